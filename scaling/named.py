"""Architectures with a name: published baselines, kept as data with their source in `scaling/data/named.toml`."""

import tomllib
from functools import cache
from importlib import resources

from hwprofiles.value import Value
from scaling.architecture import Architecture


class NamedArchitecture(Value):
    """A published architecture and where its figures come from."""

    name: str
    architecture: Architecture
    source: str


@cache
def all_named() -> tuple[NamedArchitecture, ...]:
    """Every named architecture, in the order of the file."""
    text = resources.files("scaling").joinpath("data", "named.toml").read_text("utf-8")
    return tuple(
        NamedArchitecture(name=name, source=fields.pop("source"), architecture=Architecture(**fields))
        for name, fields in tomllib.loads(text).items()
    )


def named_architecture(name: str) -> Architecture:
    """The architecture of this name, in any case.

    Raises:
        ValueError: there is none; the message lists the names.
    """
    for named in all_named():
        if named.name == name.lower():
            return named.architecture
    known = ", ".join(named.name for named in all_named())
    raise ValueError(f"unknown architecture {name!r}; expected one of: {known}, or a path to a config.json")
