"""Templates of this package to self-contained HTML documents."""

from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any

from coordinator.errors import UserError
from coordinator.figures import formats


def render(template: str, make_context: Callable[[], Mapping[str, Any]]) -> str:
    """Fill a template with what `make_context` draws; in it `inline(name)` is a file as it is.

    Files are those of this package, and the palette that it shares with the dashboard.

    Raises:
        UserError: jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
        from markupsafe import Markup
    except ImportError as error:
        raise UserError(
            f"a report needs {error.name}, which is not installed; expected the extra `report`. "
            "Type: pip install 'archfleet[report]'"
        ) from None
    environment = Environment(
        loader=PackageLoader("coordinator.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"count": formats.count, "short": formats.short}
    # Style sheets and the script hold no user's text.
    return environment.get_template(template).render(make_context(), inline=lambda name: Markup(_source(name)))


def _source(name: str) -> str:
    package = "coordinator.figures" if name == "palette.css" else "coordinator.report"
    return files(package).joinpath(name).read_text(encoding="utf-8")
