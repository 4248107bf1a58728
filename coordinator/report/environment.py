"""Templates of this package to self-contained HTML documents."""

from collections.abc import Callable, Mapping
from typing import Any

from coordinator.errors import UserError
from coordinator.report import formats


def render(template: str, make_context: Callable[[], Mapping[str, Any]]) -> str:
    """Fill a template with what `make_context` draws; in it `inline(name)` is a file of this package as it is.

    Raises:
        UserError: matplotlib or jinja2 is not installed.
    """
    try:
        import matplotlib  # noqa: F401 - a missing one is told here, before anything is drawn
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
    # The style sheet and the script hold no user's text.
    return environment.get_template(template).render(
        make_context(), inline=lambda name: Markup(_source(environment, name))
    )


def _source(environment: Any, name: str) -> str:
    return str(environment.loader.get_source(environment, name)[0])
