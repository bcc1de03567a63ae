from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from sparsity_search.errors import ConfigError, UnknownNameError
from sparsity_search.models.anatomy.prunable import PrunableModel
from sparsity_search.profiles.budget import Budget
from sparsity_search.registry import ALLOCATORS
from sparsity_search.spaces.files import ParametricFile, load_space, space_names
from sparsity_search.spaces.parametric import compose
from sparsity_search.testing.models import tiny_llama
from sparsity_search.testing.problems import toy_layout

#: Points of each space's grid.
PARAMETRIC = {
    "depth_spline": 21**4,
    "dsa_expressions": 36,
    "owl_grid": 20,
    "ramp_slope": 21,
    "role_ratios": 21**6,
}
GRID = {"low": 1, "high": 5, "step": 2}


def parametric(folder: Path, **changes: object) -> str:
    """Write a space of parameters; a change to None leaves a key out."""
    value = {"version": 1, "description": "x", "allocator": "owl", "parameters": {"m": GRID}}
    value = {k: v for k, v in {**value, **changes}.items() if v is not None}
    path = folder / "parametric.yaml"
    path.write_text(yaml.safe_dump(value))
    return str(path)


def test_all_spaces_of_parameters_are_here() -> None:
    files = {name: load_space(name) for name in space_names()}
    assert {name for name, file in files.items() if isinstance(file, ParametricFile)} == set(
        PARAMETRIC
    )


@pytest.mark.parametrize("name", PARAMETRIC)
def test_every_space_of_parameters(name: str) -> None:
    file = load_space(name)
    assert isinstance(file, ParametricFile)
    assert file.of_levels is not file
    assert file.of_levels == load_space("per_linear")
    parameters = file.build_parameters()
    assert np.prod([len(p.values) for p in parameters]) == PARAMETRIC[name]
    allocator = ALLOCATORS.get(file.allocator)
    for parameter in parameters:
        for value in parameter.values:  # all are legal, whatever the others are
            first = {p.name: p.values[0] for p in parameters}
            allocator(**compose(file.settings, {**first, parameter.name: value}))


@pytest.mark.parametrize("name", ["depth_spline", "role_ratios"])
def test_spaces_without_text_start_uniform(name: str) -> None:
    file = load_space(name)
    assert isinstance(file, ParametricFile)
    subject = PrunableModel(tiny_llama(layers=2))
    on = file.of_levels.build(subject.layout, Budget(0.6), {})
    default = ALLOCATORS.create(file.allocator)

    def allocate(settings: dict[str, object]) -> object:
        allocator = ALLOCATORS.create(file.allocator, **settings)
        return allocator.allocate(subject, torch.empty(0, 0), on.budget, on.bounds)

    space = file.build(on, allocate, default)
    assert space.profile(space.origin) == on.base
    other = (0, *space.origin[1:])
    assert space.profile(other) != on.base
    assert space.profile(other).n_removed == on.base.n_removed


def test_owl_grid_is_that_of_evopress() -> None:
    file = load_space("owl_grid")
    assert isinstance(file, ParametricFile)
    values = {p.name: p.values for p in file.build_parameters()}
    assert values == {"m": (3, 5, 7, 10), "spread": (0.02, 0.05, 0.08, 0.1, 0.2)}


def test_parameters_of_a_file(tmp_path: Path) -> None:
    parameters = {
        "a": GRID,
        "b": {"low": 0, "high": 0.3, "step": 0.1},
        "c": {"low": 1, "high": 4, "points": 3, "log": True},
        "d": {"low": 1, "high": 4, "points": 3},
        "e.0": {"values": ["x", 1, 1.5, True, None]},
        "e.1": {"values": [0]},
    }
    path = parametric(tmp_path, parameters=parameters, space="per_block", settings={"f": [1]})
    file = load_space(path)
    assert isinstance(file, ParametricFile)
    found = [p.values for p in file.build_parameters()]
    assert found[:4] == [(1, 3, 5), (0.0, 0.1, 0.2, 0.3), (1.0, 2.0, 4.0), (1.0, 2.5, 4.0)]
    assert [type(v) for v in found[0]] == [int] * 3
    assert [type(v) for v in found[4]] == [str, int, float, bool, type(None)]
    assert file.of_levels == load_space("per_block")
    on = file.of_levels.build(toy_layout(400, 400), Budget(0.5), {})
    space = file.build(on, lambda _: on.base, "an allocator")
    assert space.settings == {"f": [1]}
    assert space.method == "owl: 'an allocator'"
    assert space.roles == tuple(parameters)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parameters": {}}, "parameters"),
        ({"parameters": {"m": {}}}, "m needs values, or low.*not nothing"),
        ({"parameters": {"m": {"values": []}}}, r"parameters\.m\.values"),
        ({"parameters": {"m": {"values": [1, 1]}}}, "distinct"),
        ({"parameters": {"m": {"values": [1], "log": True}}}, "m needs values, or.*not log, val"),
        ({"parameters": {"m": {**GRID, "values": [1]}}}, "m needs values, or low"),
        ({"parameters": {"m": {**GRID, "points": 3}}}, "m needs values, or low"),
        ({"parameters": {"m": {**GRID, "log": True}}}, "m needs values, or low"),
        ({"parameters": {"m": {"low": 0, "high": 1}}}, "m needs values, or low"),
        ({"parameters": {"m": {**GRID, "step": 3}}}, "whole number of steps of 3"),
        ({"parameters": {"m": {**GRID, "step": float("inf")}}}, r"parameters\.m\.step"),
        ({"parameters": {"m": {**GRID, "steps": 3}}}, r"parameters\.m\.steps"),
        ({"parameters": {"m": GRID, "m.0": dict(GRID)}}, "'m' is a value"),
        ({"parameters": {"pruner.damping": GRID}}, "'pruner.damping' cannot be a parameter"),
        ({"parameters": {"pruner": GRID}}, "'pruner' cannot be a parameter"),
        ({"version": 2}, "version"),
        ({"gene": ["block"]}, "gene"),
        ({"description": None}, "description"),
    ],
)
def test_faults_of_a_file_of_parameters(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=f"space .*{message}"):
        load_space(parametric(tmp_path, **changes))


def test_levels_of_parameters_must_be_levels(tmp_path: Path) -> None:
    for name, error in {"owl_grid": ConfigError, "per_blok": UnknownNameError}.items():
        file = load_space(parametric(tmp_path, space=name))
        with pytest.raises(error, match=r"one of parameters|did you mean 'per_block'"):
            _ = file.of_levels
