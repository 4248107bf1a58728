"""The store: one writer, rising epochs, one result a trial, and nothing acknowledged is ever lost."""

import fcntl
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from coordinator import planner
from coordinator.database import Database, DatabaseError
from coordinator.errors import StoreError
from coordinator.plan import Plan, PlannedTrial
from coordinator.schema import checksum
from coordinator.store import FILE_NAME, LOCK_NAME, SCHEMA_VERSION, Store, StoreReader
from scaling.observations import Progress


@pytest.fixture
def trial(driver) -> str:
    """The first trial of a planned study."""
    driver.plan()
    return driver.queued()[0]


def row_of(store: StoreReader, trial_id: str):
    return next(row for row in store.trials() if row.trial_id == trial_id)


def run_sql(path: Path, statement: str) -> None:
    database = Database.open_for_writing(path)
    database.execute(statement)
    database.close()


# Creating, opening, refusing


def test_a_created_run_reads_back_its_study(store: Store, study) -> None:
    with StoreReader.open(store.run_directory) as reader:
        assert reader.study() == study
        assert reader.meta("state") == "running"
        assert reader.trials() == []


def test_a_resumed_run_knows_everything(store: Store, study) -> None:
    store.set_meta("corpus_id", "abc")
    store.close()
    with Store.resume(store.run_directory) as resumed:
        assert resumed.study() == study
        assert resumed.meta("corpus_id") == "abc"
    store._lock = os.open(store.run_directory / LOCK_NAME, os.O_RDONLY)  # what the fixture closes again


def test_writes_go_through_a_write_ahead_log_and_are_synced_at_every_commit(store: Store) -> None:
    full = 2
    assert store._database.row("PRAGMA journal_mode") == ("wal",)
    assert store._database.row("PRAGMA synchronous") == (full,)
    assert store._database.row("PRAGMA foreign_keys") == (1,)


def test_an_existing_directory_is_not_overwritten(store: Store, study) -> None:
    with pytest.raises(StoreError, match="exists already"):
        Store.create(store.run_directory, study, now_unix=0)


def test_a_second_writer_is_refused_with_the_first_ones_pid(store: Store) -> None:
    with pytest.raises(StoreError, match=f"process {os.getpid()}"):
        Store.resume(store.run_directory)


def test_someone_looking_at_the_moment_of_opening_does_not_pass_for_a_writer(run_copy: Path) -> None:
    looking = os.open(run_copy / LOCK_NAME, os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)  # what `archfleet status` does for an instant
    threading.Timer(0.05, os.close, (looking,)).start()
    Store.resume(run_copy).close()


def test_the_lock_is_free_again_after_closing(run_copy: Path) -> None:
    Store.resume(run_copy).close()
    Store.resume(run_copy).close()


def test_a_newer_schema_is_refused_by_reader_and_writer(run_copy: Path) -> None:
    run_sql(run_copy / FILE_NAME, f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    for open_run in (StoreReader.open, Store.resume):
        with pytest.raises(StoreError, match=r"newer archfleet.*\n.*--new"):
            open_run(run_copy)


def test_a_half_made_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).touch()
    with pytest.raises(StoreError, match="never completely set up"):
        Store.resume(tmp_path)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"no database at all, but long enough to look" * 100)
    with pytest.raises(StoreError, match="cannot be read as a store"):
        Store.resume(tmp_path)


def test_a_damaged_store_is_named_before_it_is_written(run_copy: Path) -> None:
    path = run_copy / FILE_NAME
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xa5" * (len(content) - 4096)  # the head survives, every table is rubbish
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"store\.sqlite3 is damaged: .*\n.*--new"):
        Store.resume(run_copy)
    assert path.read_bytes() == content


def test_a_damaged_record_is_told_to_a_reader(run_copy: Path) -> None:
    run_sql(run_copy / FILE_NAME, "UPDATE observations SET record = replace(record, 'loss', 'l0ss') WHERE seq = 3")
    with pytest.raises(StoreError, match="is damaged"), StoreReader.open(run_copy) as reader:
        reader.observations()


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE work SET planned = replace(planned, 'space', 'spac3') WHERE position = 2",
        "UPDATE work SET trial_id = 'train-0' WHERE position = 2",
        "DELETE FROM work WHERE position = 2",
    ],
)
def test_damaged_work_of_an_ended_trial_is_told_when_it_is_asked_for(run_copy: Path, damage: str) -> None:
    run_sql(run_copy / FILE_NAME, damage)
    with Store.resume(run_copy) as store:
        rows = store.trials()
        assert rows[0].planned.trial_id == rows[0].trial_id
        with pytest.raises(StoreError, match="is damaged"):
            _ = rows[1].planned


def test_missing_work_of_a_waiting_trial_is_told_when_the_trials_are_read(driver, trial: str) -> None:
    driver.store._database.execute("DELETE FROM work WHERE trial_id = ?", (trial,))
    with pytest.raises(StoreError, match="different trials"):
        driver.store.trials()


def test_a_directory_without_a_store_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no run directory.*archfleet run"):
        StoreReader.open(tmp_path)


def test_a_parent_that_is_a_file_is_refused(tmp_path: Path, study) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(StoreError, match=r"cannot write to .*\n.*--runs DIR"):
        Store.create(tmp_path / "runs" / "quick-1", study, now_unix=0)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to read-only directories")
def test_a_read_only_directory_is_refused(tmp_path: Path, study) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StoreError, match="cannot write to"):
            Store.create(tmp_path / "quick-1", study, now_unix=0)
    finally:
        tmp_path.chmod(0o700)


def test_a_run_that_cannot_be_set_up_leaves_nothing(tmp_path: Path, study, monkeypatch) -> None:
    monkeypatch.setattr("coordinator.store.TABLES", "CREATE nonsense")
    with pytest.raises(StoreError):
        Store.create(tmp_path / "quick-1", study, now_unix=0)
    assert list(tmp_path.iterdir()) == []


def test_messages_name_only_options_that_exist(store: Store, study) -> None:
    from coordinator.cli.run import run

    known = {option for parameter in run.params for option in parameter.opts}
    messages = []
    for attempt in (
        lambda: Store.resume(store.run_directory),
        lambda: Store.create(store.run_directory, study, now_unix=0),
    ):
        with pytest.raises(StoreError) as caught:
            attempt()
        messages.append(str(caught.value))
    named = {word.strip(".,;`") for message in messages for word in message.split() if word.startswith("--")}
    assert named <= known


# Trials, leases, results


def test_a_plan_queues_its_trials_in_order(driver) -> None:
    driver.plan()
    planned = driver.store.plans()[0].trials
    assert [row.trial_id for row in driver.store.trials()] == [trial.trial_id for trial in planned]


def test_a_known_trial_is_not_queued_again(driver, trial: str) -> None:
    planned = row_of(driver.store, trial).planned
    assert driver.store.add_plan(Plan(stage="again", trials=(planned,)), now_unix=0) == []


def test_a_stage_is_planned_once(driver, trial: str) -> None:
    with pytest.raises(DatabaseError, match="constraint"):
        driver.store.add_plan(Plan(stage="first-round", trials=()), now_unix=0)


def test_epochs_must_rise(driver, trial: str) -> None:
    epoch = driver.lease(trial)
    with pytest.raises(AssertionError, match="does not rise"):
        driver.store.lease(trial, agent="b", hardware="cpu-generic", epoch=epoch, now_unix=0, expires_unix=1)


def test_an_ended_trial_is_not_leased_again(driver, trial: str) -> None:
    driver.run_trial(trial)
    with pytest.raises(AssertionError, match="has ended"):
        driver.lease(trial)


def test_a_result_ends_its_trial(driver, trial: str) -> None:
    driver.run_trial(trial)
    row = row_of(driver.store, trial)
    assert (row.state, row.done_fraction, row.attempts, row.ended_unix) == ("succeeded", 1, 1, driver.now)
    assert row.spent_seconds == 2


def test_a_trial_has_one_result(driver, trial: str, world) -> None:
    driver.run_trial(trial)
    result = driver.store.observations()[0]
    for epoch in (1, 2):
        with pytest.raises(AssertionError):
            driver.store.record_result(trial, epoch, result, now_unix=0)
    assert driver.store.observations() == [result]


def test_a_result_under_an_old_epoch_is_not_stored(driver, trial: str, world) -> None:
    old = driver.lease(trial)
    driver.lease(trial)
    result = world.observe(row_of(driver.store, trial).planned.assignment)
    with pytest.raises(AssertionError, match="epoch"):
        driver.store.record_result(trial, old, result, now_unix=0)
    assert driver.store.observations() == []


def test_a_result_of_an_unknown_trial_is_not_stored(driver, trial: str, world) -> None:
    result = world.observe(row_of(driver.store, trial).planned.assignment)
    with pytest.raises(AssertionError):
        driver.store.record_result("train-unknown", 1, result, now_unix=0)
    assert driver.store.observations() == []


def test_failure_then_retry_then_success(driver, trial: str) -> None:
    driver.fail_trial(trial, "timeout", final=False)
    after_failure = row_of(driver.store, trial)
    assert (after_failure.state, after_failure.agent, after_failure.ended_unix) == ("queued", None, None)
    driver.run_trial(trial)
    row = row_of(driver.store, trial)
    assert (row.state, row.attempts, row.epoch, row.spent_seconds) == ("succeeded", 2, 2, 4)
    assert [record.kind for record in driver.store.observations()] == ["failure", "training"]


def test_a_final_failure_ends_the_trial(driver, trial: str) -> None:
    driver.fail_trial(trial)
    assert row_of(driver.store, trial).state == "failed"


def test_queue_wait_counts_to_the_first_lease(driver, trial: str) -> None:
    driver.fail_trial(trial, "timeout", final=False)
    first = row_of(driver.store, trial).first_leased_unix
    driver.lease(trial)
    row = row_of(driver.store, trial)
    assert row.first_leased_unix == first < row.leased_unix


def test_progress_is_noted(driver, trial: str) -> None:
    driver.lease(trial)
    driver.store.record_progress(trial, Progress(assignment_id=trial, done_fraction=0.4), expires_unix=driver.now + 60)
    assert row_of(driver.store, trial).done_fraction == 0.4


def test_running_trials_are_queued_again_at_a_restart_and_keep_epoch_and_progress(driver, trial: str) -> None:
    epoch = driver.lease(trial)
    driver.store.record_progress(trial, Progress(assignment_id=trial, done_fraction=0.4), expires_unix=driver.now + 60)
    assert driver.store.requeue_running(now_unix=driver.now + 10) == [trial]
    row = row_of(driver.store, trial)
    assert (row.state, row.epoch, row.done_fraction, row.agent) == ("queued", epoch, 0.4, None)
    assert row.spent_seconds == 10


def test_time_in_which_no_coordinator_ran_is_not_spent(driver, trial: str) -> None:
    driver.lease(trial)
    driver.store.requeue_running(now_unix=driver.now + 86_400)
    assert row_of(driver.store, trial).spent_seconds <= 60  # the lease it was last known to hold


@pytest.fixture
def ahead(driver, trial: str) -> str:
    """A trial that waits in an agent's hands since second 100."""
    driver.store.lease(trial, agent="a", hardware="cpu-generic", epoch=1, now_unix=100, expires_unix=160, ahead=True)
    return trial


def test_waiting_in_an_agents_hands_is_not_spent(driver, ahead: str, world) -> None:
    row = row_of(driver.store, ahead)
    assert (row.state, row.leased_unix, row.first_leased_unix) == ("running", None, 100)
    assert driver.store.running_seconds(now_unix=150) == []
    observation = world.observe(row.planned.assignment)
    driver.store.record_result(ahead, 1, observation, now_unix=130, spent_seconds=4)
    row, (attempt,) = row_of(driver.store, ahead), driver.store.attempts()
    assert (row.leased_unix, row.ended_unix, row.spent_seconds) == (126, 130, 4)
    assert (attempt.leased_unix, attempt.ended_unix, attempt.spent_seconds) == (126, 130, 4)


def test_what_waited_in_an_agents_hands_at_a_crash_has_spent_nothing(driver, ahead: str) -> None:
    assert driver.store.requeue_running(now_unix=150) == [ahead]
    assert row_of(driver.store, ahead).spent_seconds == 0


def test_a_wall_clock_set_back_spends_nothing(driver, trial: str, world) -> None:
    epoch = driver.lease(trial)
    result = world.observe(row_of(driver.store, trial).planned.assignment)
    driver.store.record_result(trial, epoch, result, now_unix=driver.now - 3600)
    assert row_of(driver.store, trial).spent_seconds == 0


def test_agents_are_lost_at_a_restart(driver) -> None:
    driver.store.requeue_running(now_unix=0)
    assert [agent.state for agent in driver.store.agents()] == ["lost"]


def test_observations_read_back_equal(driver, world) -> None:
    while "serving" not in driver.state().stages:
        driver.run_queue()
        driver.plan()
    driver.run_queue()
    expected = [world.observe(row.planned.assignment) for row in driver.store.trials() if row.state == "succeeded"]
    assert driver.store.observations() == expected


# One sequence of numbers


def refuse(store: Store, reason: str = "fenced") -> None:
    store.reject("train-0", epoch=1, agent="agent-0", reason=reason, now_unix=0)


def canary(store: Store, rate: float = 1.0) -> None:
    store.add_canary(agent="agent-0", hardware="h200", kind="gemm", rate=rate, deviation=None, now_unix=0)


def test_facts_of_all_kinds_share_one_sequence_of_numbers(driver, trial: str) -> None:
    driver.run_trial(trial)
    refuse(driver.store)
    canary(driver.store)
    events = driver.store.events()
    assert [event.seq for event in events] == [1, 2, 3, 4, 5]
    assert [event.kind for event in events] == ["planned", "leased", "result", "refused", "canary"]
    assert driver.store.last_seq() == 5


def test_what_was_given_up_leaves_no_gap(store: Store) -> None:
    def give_up() -> None:
        with store.transaction():
            canary(store)
            refuse(store)
            raise KeyError

    refuse(store)
    with pytest.raises(KeyError):
        give_up()
    canary(store)
    assert [(event.seq, event.kind) for event in store.events()] == [(1, "refused"), (2, "canary")]
    store.verify()


def test_a_restart_goes_on_after_the_newest_number(run_copy: Path) -> None:
    with Store.resume(run_copy) as store:
        last = store.last_seq()
        refuse(store)
        assert [event.seq for event in store.events(last)] == [last + 1]
        store.verify()


@pytest.mark.parametrize("change", ["seq = 9 WHERE seq = 2", "seq = 1 WHERE seq = 2"])
def test_a_gap_or_a_repeat_of_a_number_is_found(store: Store, change: str) -> None:
    refuse(store)
    canary(store)
    canary(store)
    store._database.execute(f"UPDATE canaries SET {change}")
    for seq, *values in store._database.rows("SELECT seq, agent, hardware, kind, rate, deviation, unix FROM canaries"):
        store._database.execute(
            "UPDATE canaries SET checksum = ? WHERE seq = ?", (checksum("canaries", (seq, *values)), seq)
        )
    with pytest.raises(StoreError, match="gaps or repeats"):
        store.verify()


def test_the_newest_of_a_kind_are_found_among_the_others(driver, trial: str) -> None:
    for rate in (1.0, 2.0, 3.0):
        canary(driver.store, rate)
        refuse(driver.store)
    driver.fail_trial(trial, final=False)
    driver.run_trial(trial)
    assert [row.rate for row in driver.store.newest_canaries(2)] == [2.0, 3.0]
    assert [row.epoch for row in driver.store.newest_attempts(1)] == [2]
    assert len(driver.store.newest_attempts(9)) == 2


def test_running_trials_are_told_with_how_far_they_are(driver, trial: str) -> None:
    second = driver.queued()[1]
    driver.lease(second)
    driver.lease(trial)
    driver.store.record_progress(trial, Progress(assignment_id=trial, done_fraction=0.25), expires_unix=driver.now)
    assert driver.store.running() == [(trial, "agent-0", 0.25), (second, "agent-0", 0.0)]


def test_counters_add_up(store: Store) -> None:
    store.count("leases_expired")
    store.count("leases_expired", 2)
    assert store.counters() == {"leases_expired": 3}


def test_rejections_are_kept(store: Store) -> None:
    store.reject("train-1", epoch=3, agent="a", reason="fenced", now_unix=1)
    assert store.rejections() == [("fenced", "train-1", 3, "a")]


def test_the_newest_fit_and_recommendation_are_read(store: Store) -> None:
    for number in (1, 2):
        store.add_fit(num_points=number, outcome="ok", seconds=0.1, record={"n": number}, now_unix=number)
        store.add_recommendation({"n": number}, now_unix=number)
    assert store.last_fit().record == {"n": 2}
    assert store.recommendation() == {"n": 2}
    assert len(store.fit_history()) == 2


def test_numbers_that_are_not_finite_are_not_stored(store: Store) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        store.add_recommendation({"n": float("nan")}, now_unix=0)


# Trouble with the disk, and sudden death


def test_a_full_disk_is_told_and_the_store_goes_on_when_there_is_room_again(driver, trial: str) -> None:
    database = driver.store._database
    database.execute(f"PRAGMA max_page_count = {database.number('PRAGMA page_count')}")
    with pytest.raises(DatabaseError, match="full") as caught:
        driver.store.set_meta("big", "x" * 1_000_000)
    assert caught.value.reason == "full"
    database.execute("PRAGMA max_page_count = 1000000")
    driver.run_trial(trial)
    assert row_of(driver.store, trial).state == "succeeded"


CREATE_WITH_LITTLE_ROOM = """
import resource, sys
from pathlib import Path
from coordinator.errors import StoreError
from coordinator.store import Store
from coordinator.study import read_study

resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
try:
    Store.create(Path(sys.argv[1]), read_study("quick"), now_unix=0)
except StoreError as error:
    print(error)
"""


@pytest.mark.parametrize("num_bytes", [0, 2, 4_096, 20_000])
def test_a_disk_full_at_the_start_is_told_and_leaves_nothing(tmp_path: Path, num_bytes: int) -> None:
    """The limit on file sizes fails writes after a number of bytes, as a full disk does."""
    run = tmp_path / "quick-1"
    command = [sys.executable, "-c", CREATE_WITH_LITTLE_ROOM, str(run), str(num_bytes)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.startswith(f"cannot write to {run}: "), done.stderr
    assert not run.exists()


def test_a_failed_commit_leaves_no_open_transaction(store: Store) -> None:
    with pytest.raises(DatabaseError, match="constraint"):
        insert_an_orphan_that_only_the_commit_refuses(store)
    store.set_meta("after", "fine")
    assert store.meta("after") == "fine"
    assert store.observations() == []


def insert_an_orphan_that_only_the_commit_refuses(store: Store) -> None:
    with store.transaction():
        store._database.execute("PRAGMA defer_foreign_keys = ON")
        store._database.execute("INSERT INTO observations VALUES (1, 'none', 1, 'x', '{}', 0, 0)")


WRITER = """
import sys
from pathlib import Path
from coordinator.store import Store
from scaling.observations import TrainingObservation

template = TrainingObservation.model_validate_json(Path(sys.argv[2]).read_text())
with Store.resume(Path(sys.argv[1])) as store:
    store.requeue_running(now_unix=0)
    for row in store.trials():
        if row.state != "queued":
            continue
        store.lease(
            row.trial_id, agent="a", hardware="cpu-generic", epoch=row.epoch + 1, now_unix=0, expires_unix=60
        )
        result = template.model_copy(update={"assignment_id": row.trial_id})
        store.record_result(row.trial_id, row.epoch + 1, result, now_unix=1)
        print(row.trial_id, flush=True)
"""
NUM_KILLS = 60


@pytest.mark.slow
def test_acknowledged_results_survive_kill_9(driver, world, tmp_path: Path) -> None:
    template = planned_with_seeds(driver, num=5_000)
    (tmp_path / "result.json").write_text(world.observe(template.assignment).model_dump_json())
    directory = tmp_path / "killed"
    shutil.copytree(driver.store.run_directory, directory, ignore=shutil.ignore_patterns("*-shm", LOCK_NAME))
    source = random.Random(20260101)
    acknowledged: set[str] = set()
    for _ in range(NUM_KILLS):
        acknowledged |= acknowledged_before_a_kill(
            directory, tmp_path / "result.json", after_seconds=source.uniform(0, 0.05)
        )
        with StoreReader.open(directory) as reader:
            stored = [observation.assignment_id for observation in reader.observations()]
            succeeded = {row.trial_id for row in reader.trials() if row.state == "succeeded"}
            assert reader._database.row("PRAGMA integrity_check") == ("ok",)
        assert len(stored) == len(set(stored))
        assert acknowledged <= set(stored) == succeeded
    assert len(acknowledged) >= NUM_KILLS


def planned_with_seeds(driver, *, num: int) -> PlannedTrial:
    """Queue many trials that differ in their seed alone; the first of them."""
    planned = planner.next_plan(driver.state()).trials[0]
    recipe = planned.assignment.recipe
    trials = tuple(
        planned.model_copy(
            update={
                "assignment": planned.assignment.model_copy(update={"recipe": recipe.model_copy(update={"seed": seed})})
            }
        )
        for seed in range(num)
    )
    assert len(driver.store.add_plan(Plan(stage="many", trials=trials), now_unix=0)) == num
    return trials[0]


def acknowledged_before_a_kill(directory: Path, result: Path, *, after_seconds: float) -> set[str]:
    """Start a writer, kill it some time after its first acknowledgement; all that it acknowledged."""
    command = [sys.executable, "-c", WRITER, str(directory), str(result)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        time.sleep(after_seconds)
        process.send_signal(signal.SIGKILL)
        lines = [first, *process.stdout.read().splitlines(keepends=True)]
    return {line.strip() for line in lines if line.endswith("\n")}
