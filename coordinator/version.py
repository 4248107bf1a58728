"""Which archfleet this is."""

import hashlib
import os
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as distribution_version
from pathlib import Path

PACKAGES = ("hwprofiles", "scaling", "agent", "coordinator")


def version() -> str:
    """The installed distribution's version, or "uninstalled" for a bare source tree."""
    try:
        return distribution_version("archfleet")
    except PackageNotFoundError:
        return "uninstalled"


def code_digest() -> str:
    """SHA-256 of the source that this process runs: two machines with equal digests run the same archfleet."""
    digest = hashlib.sha256()
    for name in PACKAGES:
        folder = Path(str(import_module(name).__file__)).parent
        for file in sorted(folder.rglob("*.py")):
            digest.update(f"{name}/{file.relative_to(folder).as_posix()}\0".encode())
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


COMMIT_VARIABLE = "ARCHFLEET_GIT_COMMIT"
"""An image, which holds no .git, names its commit here."""


def git_commit(root: Path = Path(__file__).parents[1], environment: Mapping[str, str] = os.environ) -> str | None:
    """The commit that is checked out where archfleet runs from a checkout, else the one that the environment names."""
    git = root / ".git"
    try:
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        if not head.startswith("ref: "):
            return head
        name = head.removeprefix("ref: ")
        if (git / name).is_file():
            return (git / name).read_text(encoding="utf-8").strip()
        packed = (line.split() for line in (git / "packed-refs").read_text(encoding="utf-8").splitlines())
        return next((words[0] for words in packed if words[1:] == [name]), None)
    except OSError:
        return environment.get(COMMIT_VARIABLE) or None
