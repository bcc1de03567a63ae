"""Loading of causal language models: a hub id, a folder, a GGUF file, or the bundled `smollm2`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
)

from sparsity_search.errors import (
    ConfigError,
    ModelError,
    SparsitySearchError,
    show_value,
    suggest_name,
)
from sparsity_search.models.anatomy.blocks import find_blocks
from sparsity_search.models.io.classes import build_empty, find_class
from sparsity_search.models.io.converted import ConvertedModel
from sparsity_search.models.io.identity import WEIGHTS, identify
from sparsity_search.models.io.locating import Origin, locate, shorten
from sparsity_search.models.io.offload import Offload
from sparsity_search.models.io.packed import Packing
from sparsity_search.models.io.source import Source, check_gguf, find_source
from sparsity_search.models.io.vocabulary import check_vocabulary
from sparsity_search.utils.extras import require

_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True)
class LoadedModel:
    """A model ready for measurements, with its tokenizer and identity.

    Attributes:
        model: In evaluation mode, without gradients, on its device.
        tokenizer: The tokenizer that belongs to it.
        name: The name under which it was requested.
        revision: Commit of a hub model, else None.
        identity: All that measurements on it depend on, see `identify`.
        source: The checkpoint that it was loaded from; None for a GGUF file.
    """

    model: PreTrainedModel
    tokenizer: Any
    name: str
    revision: str | None
    identity: Mapping[str, str]
    source: Source | None = None

    @property
    def digest(self) -> str:
        """The digest of its weights alone, see `compute_weights_digest`."""
        return self.identity[WEIGHTS]

    @property
    def saved_as(self) -> torch.dtype:
        """Number type in which its weights are saved."""
        own = None if self.source is None else self.source.dtype
        return own or self.model.dtype

    def check_shape_is_kept(self, what: str) -> None:
        """Check that nothing in the checkpoint has to fit a model of its present shape.

        Args:
            what: What changes the shape, for the message.

        Raises:
            ModelError: The checkpoint has tensors that are no part of the model's class.
        """
        if self.source is not None:
            self.source.check_shape_is_kept(what)


class _Parts(NamedTuple):
    """A model and its tokenizer, and how its weights were packed."""

    model: PreTrainedModel
    tokenizer: Any
    packing: Packing | None


def load_model(
    name: str,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
    blocks: str | None = None,
    offload: bool = False,
) -> LoadedModel:
    """Load a causal language model and its tokenizer for inference.

    Args:
        name: A hub id, a folder, a ``.gguf`` file, or ``smollm2``.
        revision: Branch, tag or commit of a hub model.
        dtype: ``float32``, ``bfloat16`` or ``float16``, in which the model computes and is saved;
            or ``auto``: it computes in bfloat16 where the device does that fast, else in float32,
            and is saved in the number type of its checkpoint.
        device: ``auto`` (CUDA if there is one) or a torch device such as ``cuda:1``.
        trust_remote_code: Whether code that comes with the model may run.
        blocks: Regular expression for the decoder blocks, see `find_blocks`.
        offload: Whether to keep the blocks' weights in a file, with one block at a time on the
            device.

    Raises:
        ModelError: The model is unknown, unreachable, incomplete or not a causal model, or its
            tokenizer is another model's.
        ConfigError: ``dtype`` or ``device`` does not exist.
        MissingExtraError: The extra ``gguf`` or ``offload`` is needed and not installed.
    """
    if offload:
        require("--offload", "offload", "accelerate")
    target = resolve_device(device)
    number_type = resolve_dtype(dtype, target)
    origin = locate(name, revision)
    with tempfile.TemporaryDirectory() as folder:
        to_disk = partial(_map_blocks_to_disk, target, blocks, folder) if offload else None
        read = partial(_read_checked, name, number_type, trust_remote_code, to_disk)
        try:
            model, tokenizer, packing = (
                _read_gguf(origin, number_type, read) if origin.gguf_file else read(origin)
            )
            home = None if origin.gguf_file else origin.find_folder()
        except SparsitySearchError:
            raise
        except Exception as error:  # the libraries raise some twenty kinds, down to KeyError
            raise ModelError(f"cannot load the model {name!r}: {shorten(error)}") from error
        if blocks is not None:  # later calls on the model find the same blocks
            find_blocks(model, blocks)
        model.eval().requires_grad_(False)
        if offload:
            Offload(model, target)
        else:
            model.to(target)
    source = None
    if home is not None:
        source = find_source(home, model, packing, keep_dtype=dtype == "auto")
    identity = identify(model, tokenizer)
    return LoadedModel(model, tokenizer, name, origin.revision, identity, source)


def _read_gguf(origin: Origin, dtype: torch.dtype, read: Callable[[Origin], _Parts]) -> _Parts:
    """Return the parts of a GGUF file's model, and keep it converted; the next time it is found.

    Args:
        origin: Location of the file.
        dtype: Number type of the weights.
        read: Reads the model at a location.
    """
    file = Path(origin.place, str(origin.gguf_file))
    converted = ConvertedModel(file, dtype)
    if (folder := converted.find()) is not None:
        with suppress(OSError, SafetensorError):  # removed meanwhile
            return read(Origin(str(folder)))
    parts = read(origin)
    check_gguf(file, parts.model)
    converted.keep(parts.model, parts.tokenizer)
    return parts


def _read_checked(
    name: str,
    dtype: torch.dtype,
    trust_remote_code: bool,
    to_disk: Callable[[torch.nn.Module], dict[str, Any]] | None,
    origin: Origin,
) -> _Parts:
    """Return a model with plain weights in the number type ``dtype``, and its tokenizer.

    Raises:
        ModelError: They do not belong together, or the model is incomplete.
        Exception: Of any kind, if the files cannot be read.
    """
    common = {"trust_remote_code": trust_remote_code, **origin.keywords}
    model, info, packing = _read_model(origin, dtype, common, to_disk)
    tokenizer = AutoTokenizer.from_pretrained(origin.place, **common)
    _check_complete(name, info)
    check_vocabulary(model, tokenizer)
    _check_context(name, model)
    _make_plain(model, packing, dtype)
    return _Parts(model, tokenizer, packing)


def _read_model(
    origin: Origin,
    dtype: torch.dtype,
    common: dict[str, Any],
    to_disk: Callable[[torch.nn.Module], dict[str, Any]] | None,
) -> tuple[PreTrainedModel, dict[str, Any], Packing | None]:
    """Return the model, what transformers says about its loading, and how it was packed.

    Args:
        origin: Location of the files.
        dtype: Number type of the weights; packed ones may come in another.
        common: Options for configuration and model.
        to_disk: Returns the options that leave the weights of a model's blocks in the files. GGUF
            files and packed checkpoints are always read completely.
    """
    if origin.gguf_file:
        packing, model_class, options = None, AutoModelForCausalLM, _build_gguf_options()
    else:
        config = AutoConfig.from_pretrained(origin.place, **common)
        packing, model_class, options = Packing.of(config), find_class(config), {}
        if packing is not None:
            options = packing.build_options()
        elif to_disk is not None:
            code = common["trust_remote_code"]
            options = to_disk(build_empty(model_class, config, trust_remote_code=code))
    found = model_class.from_pretrained(
        origin.place, output_loading_info=True, **common, **{"dtype": dtype, **options}
    )
    return (*found, packing)


def _map_blocks_to_disk(
    device: torch.device, blocks: str | None, folder: str, empty: torch.nn.Module
) -> dict[str, Any]:
    """Return the options that leave the blocks' weights in the checkpoint's files."""
    prefix, modules = find_blocks(empty, blocks)
    places = {f"{prefix}.{index}": "disk" for index in range(len(modules))}
    for name, module in empty.named_modules():
        if name == prefix or not _contains(name, prefix):
            continue
        inner = (*module.named_children(), *module.named_parameters(recurse=False))
        names = [f"{name}.{child}".lstrip(".") for child, _ in inner]
        places |= {child: str(device) for child in names if not _contains(child, prefix)}
    return {"device_map": places, "offload_folder": folder}


def _contains(module: str, prefix: str) -> bool:
    """Return whether a module is, or contains, the module list called ``prefix``."""
    return not module or f"{prefix}.".startswith(f"{module}.")


def resolve_device(device: str) -> torch.device:
    """Return the torch device called ``device``.

    Raises:
        ConfigError: This machine has no such device.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
        torch.zeros(1, device=target).item()  # "meta" has no numbers
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"no device {device!r} here: {shorten(error)}") from error
    return target


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Return the number type called ``dtype``; ``auto`` is bfloat16 where that is fast.

    Raises:
        ConfigError: There is no such number type.
    """
    if dtype == "auto":
        return torch.bfloat16 if _has_fast_bfloat16(device) else torch.float32
    if dtype not in _DTYPES:
        raise ConfigError(f"unknown dtype {dtype!r}: {suggest_name(dtype, ['auto', *_DTYPES])}")
    return _DTYPES[dtype]


def _has_fast_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        # without emulation, which older cards offer and which is slow
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        # an older torch lacks this function: then float32 is used
        features: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        return bool(features.get("avx512_bf16") or features.get("amx_bf16"))
    return False


def _build_gguf_options() -> dict[str, Any]:
    # otherwise recent releases keep packed blocks of some families, which cannot be pruned
    config = getattr(transformers, "GgufConfig", None)
    return {} if config is None else {"quantization_config": config(dequantize=True)}


def _check_complete(name: str, info: dict[str, Any]) -> None:
    for kind in ("missing_keys", "mismatched_keys"):
        keys = sorted(map(str, info.get(kind, ())))
        if keys:
            words = kind.replace("_keys", " weights")
            raise ModelError(f"the model {name!r} has {len(keys)} {words}, first {keys[0]}")


def _check_context(name: str, model: PreTrainedModel) -> None:
    """Check the longest text that the configuration states, which bounds all sequences."""
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if longest is not None and (not isinstance(longest, int) or longest < 0):
        raise ModelError(
            f"the config.json of {name!r} says max_position_embeddings "
            f"{show_value(longest)}: it must be a positive integer"
        )


def _make_plain(model: PreTrainedModel, packing: Packing | None, dtype: torch.dtype) -> None:
    """Make a model that was read from packed weights one that can be saved as any other."""
    if packing is not None:
        packing.make_plain(model, dtype)
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is None:
        return
    if any(not parameter.is_floating_point() for parameter in model.parameters()):
        raise ModelError("this GGUF stays packed when loaded: convert it to safetensors first")
    quantizer.remove_quantization_config(model)
