"""Which archfleet this is."""

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as distribution_version


def version() -> str:
    """The installed distribution's version, or "uninstalled" for a bare source tree."""
    try:
        return distribution_version("archfleet")
    except PackageNotFoundError:
        return "uninstalled"
