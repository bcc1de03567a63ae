"""Credentials do not belong in a report."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"
#: Environment variable with the URL of a storage, whose password is in no list of processes then.
STORAGE_VARIABLE = "SPARSITY_SEARCH_STORAGE"

_URL = re.compile(r"[A-Za-z][\w+.-]*://[^\s'\"]+")
_SECRET_FIELD = re.compile(r"(?i)([?&][^=&]*(?:pass|pwd|user|token|secret|key)[^=&]*=)[^&#]*")


def redact_url(url: str) -> str:
    """Return a URL without user, password, and secret query fields.

    >>> redact_url("postgresql://me:pa@ss@db.example:5432/search?sslmode=require")
    'postgresql://***@db.example:5432/search?sslmode=require'
    >>> redact_url("sqlite:///runs/search.db")
    'sqlite:///runs/search.db'
    """
    scheme, separator, rest = url.partition("://")
    credentials, at, location = rest.rpartition("@")
    kept = f"{HIDDEN}@{location}" if at and credentials else rest
    return scheme + separator + _SECRET_FIELD.sub(rf"\g<1>{HIDDEN}", kept)


def redact(value: Any, secrets: tuple[str, ...] = ()) -> Any:
    """Return a JSON-like value with the credentials of all URLs in its texts hidden.

    Args:
        value: A text, or nested mappings and lists.
        secrets: URLs that are replaced wherever they occur, whatever characters they hold.
    """
    if isinstance(value, Mapping):
        return {key: redact(inner, secrets) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [redact(inner, secrets) for inner in value]
    if not isinstance(value, str):
        return value
    for secret in secrets:
        value = value.replace(secret, redact_url(secret))
    return _URL.sub(lambda match: redact_url(match.group()), value)
