"""Seal: the hash of a JSON file's content within it, so that a changed byte is named and never silently used."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

KEY = "content_sha256"


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content with its hash: SHA-256 of its JSON with sorted keys, the hash itself left out."""
    return {**content, KEY: _hash(content)}


def require_seal(content: Any, file: Path) -> None:
    """Look at a content's hash; one without a hash is older, or a person's own.

    Raises:
        ValueError: the content is not what was written.
    """
    if isinstance(content, dict) and KEY in content and content[KEY] != _hash(content):
        raise ValueError(
            f"{file} was changed after it was written, or is damaged: its content is not that of its {KEY}. "
            f"Put a copy of it in its place; where you changed it on purpose, take the line {KEY} out"
        )


def _hash(content: Mapping[str, Any]) -> str:
    facts = {key: value for key, value in content.items() if key != KEY}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
