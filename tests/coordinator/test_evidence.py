"""What the coordinator keeps in mind of its observations, and the fit that it takes up again."""

import pytest

from coordinator.analysis import Analysis, analyse
from coordinator.evidence import NUM_FITTED, Evidence
from coordinator.planning import StudyPlanner
from coordinator.store import Store
from scaling.observations import Failure, TrainingObservation


def evidence(store: Store) -> Evidence:
    return Evidence(store, StudyPlanner(), store.study())


@pytest.fixture
def measured(driver) -> Store:
    """A store with the losses of the first round."""
    driver.plan()
    driver.run_queue()
    return driver.store


def test_curves_and_windows_stay_in_the_store(measured: Store) -> None:
    kept = [one for one in evidence(measured).observations if isinstance(one, TrainingObservation)]
    assert kept
    assert all(one.curve == () and one.window_losses == () for one in kept)


def test_windows_that_are_paired_at_the_target_are_kept(run_copy) -> None:
    with Store.resume(run_copy) as store:
        target = store.study().target.num_parameters
        kept = [one for one in evidence(store).observations if isinstance(one, TrainingObservation)]
    at_target = [one for one in kept if abs(one.architecture.num_parameters / target - 1) < 0.2]
    assert at_target
    assert all(one.window_losses for one in at_target)


def test_the_law_is_that_of_all_that_the_store_has(measured: Store) -> None:
    full, kept = measured.observations(), evidence(measured).observations
    expected, found = analyse(measured.study(), full), analyse(measured.study(), kept)
    assert expected is not None
    assert found is not None
    assert found.to_json() == expected.to_json()


def test_a_failure_is_kept_without_its_log(driver, world) -> None:
    driver.plan()
    known = evidence(driver.store)
    assert known.observations == []
    known.add(world.failure("train-0").model_copy(update={"detail": "a long log"}))
    (kept,) = known.observations
    assert isinstance(kept, Failure)
    assert (kept.message, kept.detail) == ("it broke", "")


def test_equal_shapes_are_held_once(measured: Store) -> None:
    first, again = evidence(measured).observations, evidence(measured).observations
    assert all(a.architecture is b.architecture for a, b in zip(first, again, strict=True))


def test_names_of_given_fields_are_held_once(measured: Store) -> None:
    runs = [one for one in evidence(measured).observations if isinstance(one, TrainingObservation)]
    assert len({id(run.model_fields_set) for run in runs}) == 1
    stored = [one for one in measured.observations() if isinstance(one, TrainingObservation)]
    assert [run.model_fields_set for run in runs] == [one.model_fields_set for one in stored]


def test_after_a_restart_the_stored_fit_is_taken_up(measured: Store) -> None:
    before = evidence(measured)
    fitted = before.fit(7)
    assert fitted is not None
    measured.add_fit(num_points=7, outcome="ok", seconds=0, record=fitted.to_json(), now_unix=0)
    measured.set_meta(NUM_FITTED, "7")
    after = evidence(measured)
    assert isinstance(after.analysis, Analysis)
    assert after.analysis.to_json() == fitted.to_json()
    assert (after.num_fitted, after.sentence) == (7, before.sentence)


def test_a_fit_of_which_nobody_knows_how_many_losses_it_has_seen_is_made_anew(run_copy) -> None:
    with Store.resume(run_copy) as store:
        assert store.meta(NUM_FITTED) is None
        known = evidence(store)
    assert known.analysis is None
    assert known.is_stale(1, share=0.05)
    assert known.sentence.startswith("law from")


@pytest.mark.parametrize(
    ("num_fitted", "num_losses", "stale"), [(-1, 0, False), (-1, 1, True), (100, 104, False), (100, 105, True)]
)
def test_few_new_losses_are_not_worth_a_fit(store: Store, num_fitted: int, num_losses: int, stale: bool) -> None:
    known = evidence(store)
    known.num_fitted = num_fitted
    assert known.is_stale(num_losses, share=0.05) is stale
