"""Events: each fact of the store as a small value, in order, whatever it is cut into."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.errors import StoreError
from coordinator.events import MAX_MESSAGE, event_of
from coordinator.store import Store, StoreReader


@pytest.fixture(scope="module")
def reader(finished_run):
    with StoreReader.open(finished_run) as store:
        yield store


def of_kind(store: StoreReader, kind: str) -> list:
    return [event for event in store.events(0, limit=100_000) if event.kind == kind]


def test_a_run_tells_everything_that_it_keeps(reader: StoreReader) -> None:
    events = reader.events(0, limit=100_000)
    assert [event.seq for event in events] == list(range(1, reader.last_seq() + 1))
    kinds = [event.kind for event in events]
    assert kinds.count("planned") == len(reader.plans())
    assert kinds.count("leased") == len(reader.attempts())
    assert kinds.count("result") + kinds.count("failure") == reader.num_observations() > 0
    assert kinds[-1] == "recommendation"


@settings(max_examples=25)
@given(limits=st.lists(st.integers(min_value=1, max_value=40), min_size=1, max_size=8))
def test_whatever_it_is_cut_into_every_event_is_told_once_and_in_order(reader: StoreReader, limits: list[int]) -> None:
    told, after = [], 0
    while after < reader.last_seq():
        limit = limits[len(told) % len(limits)]
        told += reader.events(after, limit=limit)
        after += limit
    assert told == reader.events(0, limit=100_000)


def test_a_training_tells_its_loss_with_its_error(reader: StoreReader) -> None:
    losses = {record.assignment_id: record for record in reader.observations() if record.kind == "training"}
    told = [event for event in of_kind(reader, "result") if event.phase == "train"]
    assert len(told) == len(losses) > 0
    for event in told:
        run = losses[event.subject]
        assert (event.loss, event.loss_standard_error) == (run.loss, run.loss_standard_error)
        assert event.output_tokens_per_second is None


def test_a_benchmark_tells_its_rate_with_its_interval(reader: StoreReader) -> None:
    rates = {record.assignment_id: record for record in reader.observations() if record.kind == "serving"}
    told = [event for event in of_kind(reader, "result") if event.phase == "bench"]
    assert len(told) == len(rates) > 0
    for event in told:
        assert event.output_tokens_per_second == rates[event.subject].output_tokens_per_second
        assert event.loss is None


def test_a_fit_tells_its_optima(reader: StoreReader) -> None:
    law, event = reader.last_fit().record["law_fit"], of_kind(reader, "fit")[-1]
    interval = law["x_opt"]["interval"]
    assert event.x_opt.model_dump() == {"value": law["x_opt"]["value"]} | {
        key: interval[key] for key in ("low", "high", "level")
    }
    assert event.residual_sd == law["residual_sd"]
    assert event.outcome == "ok"


def test_a_recommendation_tells_for_which_hardware(reader: StoreReader) -> None:
    (event,) = of_kind(reader, "recommendation")
    assert event.hardware == tuple(answer["hardware"] for answer in reader.recommendation()["answers"])


def test_the_one_answer_of_an_old_recommendation_is_told_too(store: Store) -> None:
    store.add_recommendation({"schema_version": 1, "hardware": "h200", "engine": "vllm"}, now_unix=1)
    assert store.events()[0].hardware == ("h200",)


def test_a_failure_tells_its_kind_and_the_beginning_of_its_message(driver, world) -> None:
    driver.plan()
    trial_id = driver.queued()[0]
    epoch = driver.lease(trial_id)
    failure = world.failure(trial_id, "nan-loss").model_copy(update={"message": "x" * 1000})
    driver.store.record_failure(trial_id, epoch, failure, final=False, now_unix=driver.now)
    (event,) = of_kind(driver.store, "failure")
    assert (event.subject, event.failure_kind, event.epoch) == (trial_id, "nan-loss", 1)
    assert event.message == "x" * MAX_MESSAGE


def test_a_canary_without_a_baseline_has_no_deviation(store: Store) -> None:
    store.add_canary(agent="agent-7", hardware="h200", kind="gemm", rate=3.0, deviation=None, now_unix=1)
    (event,) = store.events()
    assert (event.subject, event.task, event.rate, event.deviation) == ("agent-7", "gemm", 3.0, None)


def test_a_record_that_cannot_be_read_is_told_as_damage(store: Store) -> None:
    store.add_fit(num_points=1, outcome="ok", seconds=0.1, record={"law_fit": {"x_opt": {"value": 1}}}, now_unix=1)
    with pytest.raises(StoreError, match="is damaged: the record of fact 1 in table fits"):
        store.events()
    with pytest.raises(ValueError, match="cannot be read"):
        event_of("decisions", (1, "plan", "first-round", "[]", "{}", None, 0.0))
