"""The log of an attempt tells what happened, once, with its time, and stays small."""

from collections.abc import Callable

import pytest

from agent.device import make_provenance
from agent.log import MAX_BYTES, REPEAT_SECONDS, AttemptLog, ending
from agent.redaction import REDACTED, Redaction
from scaling.observations import Failure, Progress, TrainingPoint

MORNING = 1_770_000_000.0 - 1_770_000_000.0 % 86_400 + 8 * 3600


@pytest.fixture
def clock() -> list[float]:
    return [MORNING]


@pytest.fixture
def make_log(clock: list[float]) -> Callable[..., AttemptLog]:
    def make(beginning: str = "agent-0, epoch 1", **secrets: str) -> AttemptLog:
        return AttemptLog(beginning, unix_time=lambda: clock[0], redaction=Redaction(secrets))

    return make


def progress(message: str, fraction: float = 0.0, *lines: str, point: TrainingPoint | None = None) -> Progress:
    return Progress(assignment_id="t", done_fraction=fraction, message=message, lines=lines, point=point)


def failure(message: str) -> Failure:
    made_by = make_provenance(agent="agent-0", started_at_unix=MORNING, seconds=1.0)
    return Failure(assignment_id="t", failure_kind="timeout", message=message, provenance=made_by)


def test_it_begins_with_the_day_and_who_speaks(make_log: Callable[..., AttemptLog]) -> None:
    log = make_log()
    assert log.of(progress("loading")) == "2026-02-02 UTC  agent-0, epoch 1\n08:00:00    0%  loading\n"
    assert log.of(progress("resumed at step 3", 0.25)) == "08:00:00   25%  resumed at step 3\n"


def test_a_new_day_is_told(make_log: Callable[..., AttemptLog], clock: list[float]) -> None:
    log = make_log()
    log.of(progress("loading"))
    clock[0] += 86_400
    assert log.of(progress("compiling")) == "2026-02-03 UTC\n08:00:00    0%  compiling\n"


def test_a_training_tells_what_it_measured(make_log: Callable[..., AttemptLog]) -> None:
    point = TrainingPoint(num_tokens=15_360, loss=5.4, learning_rate=0.0031, gradient_norm=0.87, tokens_per_second=12e3)
    log = make_log()
    log.of(progress("loading"))
    assert log.of(progress("loss 5.400", 0.03, point=point)) == (
        "08:00:00    3%  loss 5.400; 15,360 tokens, learning rate 0.0031, gradient norm 0.87, 12,000 tokens/s\n"
    )


def test_the_same_with_other_numbers_is_said_again_when_the_work_or_the_time_has_moved_on(
    make_log: Callable[..., AttemptLog], clock: list[float]
) -> None:
    log = make_log()
    assert log.of(progress("loss 5.4", 0.1))
    assert not log.of(progress("loss 5.3", 0.105))
    assert log.of(progress("loss 5.2", 0.111))
    clock[0] += REPEAT_SECONDS
    assert log.of(progress("loss 5.1", 0.112))


def test_what_is_new_is_said_at_once(make_log: Callable[..., AttemptLog]) -> None:
    log = make_log()
    log.of(progress("loss 5.4", 0.1))
    assert "out of memory" in log.of(progress("loss 5.4; out of memory at step 7: going on with 2", 0.1))


def test_lines_of_a_program_follow_under_the_report_that_brings_them(make_log: Callable[..., AttemptLog]) -> None:
    log = make_log()
    log.of(progress("vllm repeat 1/3: load"))
    assert log.of(progress("vllm repeat 1/3: load", 0.0, "loading weights", "took 3 s")) == (
        "             |  loading weights\n             |  took 3 s\n"
    )


def test_what_the_agent_itself_wrote_stands_before_the_end(make_log: Callable[..., AttemptLog]) -> None:
    *_, warning, end = make_log().of(failure("it broke"), ["a library warns"]).splitlines()
    assert warning == "             |  a library warns"
    assert end == "08:00:00  failed, timeout: it broke"


def test_it_ends_with_how_the_attempt_ended(make_log: Callable[..., AttemptLog]) -> None:
    assert (
        make_log()
        .of(failure("no end of load\nwithin 120 s"))
        .endswith("08:00:00  failed, timeout: no end of load within 120 s\n")
    )


def test_secrets_are_left_out_of_every_line(make_log: Callable[..., AttemptLog]) -> None:
    log = make_log(A_TOKEN="open-sesame")
    said = log.of(progress("trying open-sesame", 0.0, "open-sesame it is")) + log.of(failure("open-sesame was refused"))
    assert "open-sesame" not in said
    assert said.count(REDACTED) == 3


def test_a_day_of_training_stays_within_its_bound(make_log: Callable[..., AttemptLog], clock: list[float]) -> None:
    log, num_bytes, num_seconds = make_log(), 0, 6 * 3600
    for second in range(num_seconds):
        num_bytes += len(log.of(progress(f"loss {5 - second / num_seconds:.3f}", second / num_seconds)))
        clock[0] += 1
    assert num_bytes < MAX_BYTES


def test_the_end_of_a_text_is_whole_lines() -> None:
    text = "".join(f"{number} äöü\n" for number in range(1000))
    kept = ending(text, 100)
    assert len(kept.encode()) <= 100
    assert kept == "".join(line for line in text.splitlines(keepends=True)[-len(kept.splitlines()) :])
    assert kept.endswith("999 äöü\n")
    assert ending("short\n", 100) == "short\n"
