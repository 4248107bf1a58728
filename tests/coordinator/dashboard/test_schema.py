"""The API answers as its own schema says, whatever is asked (schemathesis, a few seeded examples of each route)."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from coordinator.dashboard.access import LOOPBACK_NAMES, Access
from coordinator.traffic import Traffic

pytest.importorskip("fastapi", reason="the dashboard is not installed; pip install 'archfleet[dashboard]'")
schemathesis = pytest.importorskip("schemathesis", reason="no schemathesis here; pip install 'archfleet[dev]'")

NO_END = "/api/events"
"""test_stream.py asks it."""


def test_every_answer_is_as_the_schema_says(finished_run: Path) -> None:
    from coordinator.dashboard.app import create_app

    access = Access(names=LOOPBACK_NAMES | {"testserver"})
    app = create_app(finished_run, access=access, traffic=Traffic(), is_ready=lambda: True)
    schema = schemathesis.openapi.from_asgi("/openapi.json", app).exclude(path=NO_END)
    asked = set()
    for found in schema.get_all_operations():
        operation = found.ok()

        @settings(
            max_examples=8, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
        )
        @given(case=operation.as_strategy())
        def ask(case) -> None:
            case.call_and_validate()

        ask()
        asked.add(operation.path)
    assert asked == set(app.openapi()["paths"]) - {NO_END}
