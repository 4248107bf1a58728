"""The table of keys beside the shipped studies: every key of a study is there, with its default, and no other."""

import re
import tomllib
from collections.abc import Iterator
from typing import get_args

import pytest
from pydantic import BaseModel

from coordinator.study import StudySpec, shipped_studies

README = (shipped_studies()["laptop"].parent / "README.md").read_text(encoding="utf-8")


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted name and default, as TOML writes it, of every key below a model."""
    for name, field in model.model_fields.items():
        inner = [kind for kind in (field.annotation, *get_args(field.annotation)) if is_table(kind)]
        if inner and not prefix.startswith("training"):
            yield from keys(inner[0], f"{prefix}{name}.")
        elif field.is_required():
            yield f"{prefix}{name}", "–"
        else:
            yield f"{prefix}{name}", in_toml(field.default)


def is_table(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def in_toml(value: object) -> str:
    match value:
        case None:
            return "none"
        case str():
            return f'"{value}"'
        case tuple():
            return f"[{', '.join(map(in_toml, value))}]"
        case BaseModel():
            return f"{{ {', '.join(f'{name} = {number}' for name, number in value)} }}"
        case _:
            return str(value)


def test_every_key_stands_in_the_table_with_its_default() -> None:
    told = dict(re.findall(r"^\| `([\w.]+)` \| (.+?) \| ", README, flags=re.MULTILINE))
    assert told == dict(keys(StudySpec))


@pytest.mark.parametrize("name", shipped_studies())
def test_every_shipped_study_is_named(name: str) -> None:
    assert f"[`{name}`]({name}.toml)" in README


def test_keys_of_shipped_studies_are_all_told() -> None:
    for path in shipped_studies().values():
        for name, table in tomllib.loads(path.read_text(encoding="utf-8")).items():
            rows = table if isinstance(table, list) else [table]
            assert all(f"`{name}.{key}" in README for row in rows if isinstance(row, dict) for key in row), path
