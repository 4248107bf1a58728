"""The base of every boundary value in archfleet: frozen, validated on construction, closed to unknown fields."""

import hashlib

from pydantic import BaseModel, ConfigDict


class Value(BaseModel):
    """A frozen value. Two values with equal fields are equal and have equal content hashes."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    def content_hash(self) -> str:
        """Hex SHA-256 of the canonical JSON of this value: the name it has everywhere."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()
