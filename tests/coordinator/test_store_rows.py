"""Work: read in short or whole, in whatever order, and also after the store was closed."""

import pytest

from coordinator.store import StoreReader, TrialRow


@pytest.fixture
def rows(finished_run) -> list[TrialRow]:
    with StoreReader.open(finished_run) as store:
        return store.trials()


def test_the_short_form_says_what_the_whole_says(rows: list[TrialRow]) -> None:
    phases = set()
    for row in rows:
        assert row.work.role == row.brief.role
        short, assignment = row.brief, row.planned.assignment
        assert (short.role, short.reason) == (row.planned.role, row.planned.reason)
        assert short.architecture == assignment.architecture
        assert short.num_tokens == getattr(assignment.recipe, "num_tokens", None)
        assert short.seed == getattr(assignment.recipe, "seed", None)
        assert short.engine == getattr(assignment.recipe, "engine", None)
        assert short.hardware == getattr(assignment, "hardware", None)
        phases.add(row.phase)
    assert phases == {"train", "bench"}


def test_the_order_of_asking_does_not_matter(finished_run, rows: list[TrialRow]) -> None:
    with StoreReader.open(finished_run) as store:
        others = store.trials()
    for row, other in zip(rows, others, strict=True):
        whole_first = (row.planned, row.brief)
        assert whole_first == (other.brief, other.planned)[::-1]
