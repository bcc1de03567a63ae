"""The versions of packages in the record of a job that may go on later with others."""

from __future__ import annotations

from collections.abc import Mapping

_THEN = " then "


def join_versions(before: Mapping[str, str], now: Mapping[str, str]) -> dict[str, str]:
    """Return the versions of all sessions of a job, by package.

    Results of earlier sessions stay those of the earlier versions.

    >>> join_versions({"numpy": "2.0", "optuna": "4.5"}, {"numpy": "2.1", "optuna": "4.5"})
    {'numpy': '2.0 then 2.1', 'optuna': '4.5'}
    """
    joined = dict(before)
    for package, version in now.items():
        known = before[package].split(_THEN) if package in before else []
        joined[package] = _THEN.join(dict.fromkeys([*known, version]))
    return joined
