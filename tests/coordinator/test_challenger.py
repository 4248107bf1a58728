"""A faster shape where no run is near: measured, checked at the target, and recommended only if it stands there."""

from dataclasses import replace
from pathlib import Path

import pytest

from coordinator import planner
from coordinator.figures.pareto import pareto
from coordinator.record import read_record
from coordinator.store import Store
from coordinator.study import read_study
from scaling.observations import Observation, TrainingObservation
from scaling.quantity import Measured
from scaling.support import supported

FAST = {"x_opt": 0.3, "r_opt": 1.7, "x_curvature": 0.05, "r_curvature": 0.015}
"""The law of a real run: flat in r, so that wide shapes with little attention look safe."""


def steep_corner(make_world, *, penalty_nats: float):
    """A world that obeys the law but where x and r are large, which no first round tries."""

    class World(make_world):
        def loss(self, architecture, num_tokens):
            in_corner = architecture.width_ratio > 0.385 and architecture.mlp_attention_ratio > 3.9
            return super().loss(architecture, num_tokens) + penalty_nats * in_corner

        def bench(self, assignment):
            shape, seen = assignment.architecture, super().bench(assignment)
            rate = 1e9 / (0.2 * shape.num_parameters + 120 * shape.key_value_elements_per_token)
            measured = Measured(value=rate, unit="tokens/s", num_samples=3, no_interval_because="synthetic")
            return seen.model_copy(update={"output_tokens_per_second": measured})

    return World(**FAST)


@pytest.fixture(scope="module", params=[0.0, 0.15], ids=["law holds", "corner is steep"])
def finished(request, make_driver, make_world, tmp_path_factory: pytest.TempPathFactory):
    """The study `laptop` in a world, and how much its corner costs."""
    directory: Path = tmp_path_factory.mktemp("challenger") / "laptop-20260101-000000"
    with Store.create(directory, read_study("laptop"), now_unix=0) as store:
        driver = make_driver(store, steep_corner(make_world, penalty_nats=request.param))
        driver.finish()
        yield driver, request.param


def verdict_of(driver):
    return next(plan for plan in driver.store.plans() if plan.stage == "verdict")


def challenger_of(driver):
    return next(t.assignment.architecture for t in verdict_of(driver).trials if "no run is near" in t.reason)


def test_the_check_trains_a_supported_shape_and_a_faster_one_that_no_run_is_near(finished) -> None:
    driver, _ = finished
    shapes = list(dict.fromkeys(t.assignment.architecture for t in verdict_of(driver).trials))
    state = driver.state()
    found = planner.choices_of(replace(state, observations=losses_before(state)))[0].shortlist
    supported = [bool(found.supported[found.candidates.index_of(shape)]) for shape in shapes]
    assert supported == [True, False]
    assert any("Checked as well is" in note and shapes[1].label in note for note in verdict_of(driver).notes)


def losses_before(state):
    """What was known when the verdict was planned."""
    later = {row.trial_id for row in state.trials if row.stage == "verdict"}
    return tuple(one for one in state.observations if one.assignment_id not in later)


def test_the_faster_shape_is_recommended_only_if_it_stands_its_check(finished) -> None:
    driver, penalty = finished
    answer = planner.choices_of(driver.state())[0].recommended
    assert (answer == challenger_of(driver)) == (penalty == 0.0)
    stored = driver.store.recommendation()["answers"][0]
    assert stored["measured_verdict"] in ("better", "tie"), "in both worlds there is something to build"


@pytest.mark.parametrize("windows", ["kept", "dropped, as on the dashboard"])
def test_the_figure_of_loss_and_throughput_calls_what_stood_its_check_surefire(finished, windows: str) -> None:
    driver, _ = finished
    record = read_record(driver.store.run_directory)
    if windows != "kept":
        record = replace(record, observations=tuple(without_windows(one) for one in record.observations))
    (answer,) = record.recommendation.answers
    assert answer.role == "surefire"
    figure = pareto(record, answer.hardware, name="pareto")
    (named,) = {label for series in figure.series for label in series.labels if answer.recommended.label in label}
    assert "Surefire" in named


def without_windows(observation: Observation) -> Observation:
    if not isinstance(observation, TrainingObservation):
        return observation
    return observation.model_copy(update={"window_losses": ()})


def test_without_time_the_faster_shape_is_not_checked_and_the_plan_says_why(finished) -> None:
    driver, _ = finished
    state = driver.state()
    late = replace(
        state,
        stages=tuple(stage for stage in state.stages if stage != "verdict"),
        trials=tuple(row for row in state.trials if row.stage != "verdict"),
        observations=losses_before(state),
        elapsed_seconds=1e6,
    )
    plan = planner.next_plan(late)
    assert challenger_of(driver) not in {t.assignment.architecture for t in plan.trials}
    assert any("Not checked, for the budget has no time left" in note for note in plan.notes)


def test_a_corner_that_is_legal_at_the_fits_size_is_trained_there_in_the_loop(
    make_driver, make_world, tmp_path: Path
) -> None:
    laptop = read_study("laptop")
    small_heads = laptop.model_copy(update={"space": laptop.space.model_copy(update={"head_dim": 4})})
    with Store.create(tmp_path / "corner", small_heads, now_unix=0) as store:
        driver = make_driver(store, steep_corner(make_world, penalty_nats=0.0))
        while "round-1" not in driver.state().stages:
            driver.plan()
            if "round-1" not in driver.state().stages:
                driver.run_queue()
        plan = next(plan for plan in store.plans() if plan.stage == "round-1")
        hull = driver.state().analysis.law_fit.hull
    corners = [t for t in plan.trials if "where the law, extended, sees the fastest shape" in t.reason]
    assert len(corners) == 1
    assert len(plan.trials) == laptop.fit.num_runs_per_round, "it takes the place of a proposed run"
    shape = corners[0].assignment.architecture
    assert not supported(hull, shape.width_ratio, shape.mlp_attention_ratio)[0]
