"""A profile as TOML text, the form that the catalogue reads: the standard library reads TOML but does not write it."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from hwprofiles.profile import HardwareProfile

SEAL = "# sha256 of what follows: "


def seal(text: str) -> str:
    """The text under a comment with its hash, so that a changed byte is noticed when it is read."""
    return f"{SEAL}{hashlib.sha256(text.encode()).hexdigest()}\n{text}"


def is_unchanged(text: str) -> bool:
    """Whether a text is what was sealed; one without a seal is somebody's own, and nothing is known against it."""
    first, _, rest = text.partition("\n")
    return not first.startswith(SEAL) or first.removeprefix(SEAL) == hashlib.sha256(rest.encode()).hexdigest()


def profile_to_toml(profile: HardwareProfile) -> str:
    """TOML text; null fields are left out. `tomllib` and `HardwareProfile` read it back as an equal profile."""
    fields = profile.model_dump(mode="json", exclude_none=True)
    plain = {name: value for name, value in fields.items() if not isinstance(value, Mapping) and name != "efficiencies"}
    lines = [f"{name} = {_inline(value)}" for name, value in plain.items()]
    for name, value in fields.items():
        if isinstance(value, Mapping):
            lines += ["", f"[{name}]", *(f"{json.dumps(key)} = {_inline(item)}" for key, item in value.items())]
    for table in fields["efficiencies"]:
        lines += ["", "[[efficiencies]]", f"operation = {_inline(table['operation'])}"]
        lines += [f"dtype = {_inline(table['dtype'])}", "points = ["]
        lines += [f"  {_inline(point)}," for point in table["points"]]
        lines.append("]")
    return "\n".join(lines) + "\n"


def _inline(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_inline(item)}" for key, item in value.items()) + " }"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(_inline(item) for item in value) + "]"
    # JSON's strings, numbers and booleans are TOML's, but for the character DEL.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
