"""A finished run of two sizes and a target in the synthetic world: what figures are made of."""

import pytest

from coordinator.record import RunRecord, read_record
from coordinator.store import Store
from coordinator.study import StudySpec, read_study

SCIENCE = {
    "reference": (
        {"num_parameters": 50e3, "tokens_per_parameter": 5},
        {"num_parameters": 50e3, "tokens_per_parameter": 10, "num_shapes": 7},
        {"num_parameters": 50e3, "tokens_per_parameter": 20},
        {"num_parameters": 100e3, "tokens_per_parameter": 5},
    ),
    "fit": {"num_parameters": 100e3, "tokens_per_parameter": 10, "num_centre_replicates": 3},
    "target": {"num_parameters": 200e3, "tokens_per_parameter": 10},
}
"""Sizes pinned here: the shipped studies are tuned to machines, and these figures are not about them."""


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, make_driver, make_world) -> RunRecord:
    """Two failed attempts, two fits, every stage. Shared: nothing may write to it."""
    directory = tmp_path_factory.mktemp("figures") / "laptop"
    study = StudySpec.model_validate(read_study("laptop").model_dump() | SCIENCE)
    with Store.create(directory, study, now_unix=1_699_999_990.0) as store:
        driver = make_driver(store, make_world(noise_sd=0.01))
        driver.plan()
        for trial_id in driver.queued()[:2]:
            driver.fail_trial(trial_id, "agent-lost", final=False)
        driver.run_queue()
        analysis = driver.state().analysis
        store.add_fit(
            num_points=analysis.num_points, outcome="ok", seconds=0.1, record=analysis.to_json(), now_unix=driver.now
        )
        store.add_canary(
            agent="agent-0", hardware="cpu-generic", kind="matmul", rate=95.0, deviation=-0.05, now_unix=driver.now
        )
        driver.finish()
    return read_record(directory)


@pytest.fixture
def begun(make_driver, make_world, tmp_path) -> RunRecord:
    """A run of which nothing was planned yet."""
    with Store.create(tmp_path / "begun", read_study("quick"), now_unix=1_700_000_000.0):
        return read_record(tmp_path / "begun")
