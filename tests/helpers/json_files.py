"""JSON files that are changed on purpose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def change_json(path: Path, **fields: Any) -> None:
    """Replace fields of an object, and remove its checksum."""
    value = {**json.loads(path.read_text()), **fields}
    value.pop("checksum", None)
    path.write_text(json.dumps(value))
