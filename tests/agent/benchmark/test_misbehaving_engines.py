"""Every way in which an engine misbehaves ends in time, rightly classified, with nothing left running.

The next run is unharmed. Real processes: drivers that speak the protocol and misbehave in one thing each.
"""

import time
import uuid
from dataclasses import dataclass, field

import pytest

from agent.assignment import BenchAssignment
from agent.benchmark.run import run_benchmark
from agent.engines import process
from agent.engines.base import Engine
from agent.engines.descendants import MARK_VARIABLE, family_of
from scaling.architecture import Architecture
from scaling.observations import INVALIDATING_FLAGS, Failure, Progress, ServingObservation
from scaling.recipes import ServingRecipe, Workload

SHAPE = Architecture(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    vocab_size=128,
)
WORKLOAD = Workload(batch_size=4, input_tokens=8, output_tokens=8)
CHILD = "subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(600)']{})"
DAEMON = """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execv(sys.executable, [sys.executable, '-S', '-c', 'import time; time.sleep(600)'])
    os._exit(0)
os.wait()
"""
SAY_WRONG = "tell(event='error', failure_kind='hardware', message='ECC'); sys.exit(1)"
TALK_NONSENSE = 'print(\'{"event": "dance"}\', flush=True); time.sleep(600)'
NO_NUMBER = {"window_seconds": float("nan")}
EAT_MEMORY = """
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
hoard = [bytes(1 << 28) for _ in range(8)]
"""


@dataclass(frozen=True)
class Case:
    """An engine and the ending that it must come to."""

    name: str
    kind: str | None = None
    """Of the failure; None where an observation is the right ending."""
    flag: str | None = None
    words: str = ""
    """In the failure's message or its log."""
    before_ready: str = ""
    after_ready: str = ""
    ready: dict = field(default_factory=dict)
    """What it says of itself otherwise than it should."""
    result: dict = field(default_factory=dict)
    """What it says of its window otherwise than a good one."""


CASES = (
    Case("hangs in load", "timeout", words="no end of load", before_ready="time.sleep(600)"),
    Case("hangs in a run", "timeout", words="no end of run", after_ready="time.sleep(600)"),
    Case("hangs deaf to TERM", "timeout", before_ready="signal.signal(15, signal.SIG_IGN); time.sleep(600)"),
    Case("leaks a child", flag="fake", after_ready=CHILD.format("")),
    Case("leaks a child that left the group", flag="fake", after_ready=CHILD.format(", start_new_session=True")),
    Case("leaks a daemon", flag="fake", after_ready=DAEMON),
    Case("leaks a daemon and crashes", "unknown", after_ready=DAEMON + "os.abort()"),
    Case("leaks a daemon and hangs", "timeout", after_ready=DAEMON + "time.sleep(600)"),
    Case("has no memory in load", "out-of-memory", words="MemoryError", before_ready=EAT_MEMORY),
    Case("has no memory in a run", "out-of-memory", words="MemoryError", after_ready=EAT_MEMORY),
    Case("is killed by someone", "unknown", words="signal 9", after_ready="os.kill(os.getpid(), 9)"),
    Case("prints a stack trace", "engine-start", words="Traceback", before_ready="raise RuntimeError('no kernel')"),
    Case("dies at the first request", "unknown", words="no page", after_ready="raise RuntimeError('no page')"),
    Case("ends without a result", "unknown", words="exited with status 0", after_ready="sys.exit(0)"),
    Case("says what is wrong", "hardware", words="ECC", before_ready=SAY_WRONG),
    Case("talks nonsense", "validation", words="broke the protocol", after_ready=TALK_NONSENSE),
    Case("builds another model", "validation", words="built 5 parameters", ready={"num_total_parameters": 5}),
    Case("returns too few tokens", flag="wrong-token-count", result={"num_output_tokens": 7}),
    Case("preempts", flag="preempted", result={"num_preemptions": 3}),
    Case("queues half of the batch", flag="below-batch", result={"mean_running_sequences": 1.0}),
    Case("answers NaN", flag="nan", result={"logits_finite": False}),
    Case("says that its window was NaN", "validation", words="broke the protocol", result=NO_NUMBER),
    Case("measures no time at all", "validation", words="broke the protocol", result={"window_seconds": 0.0}),
)  # fmt: skip


def misbehaving(case, directory):
    """A driver that speaks the protocol by itself, with the case's code around its messages."""
    ready = {
        "event": "ready",
        "versions": {"fake": "1"},
        "device": {"kind": "cpu", "name": "fake", "memory_bytes": 0},
        "num_total_parameters": SHAPE.num_total_parameters,
    }
    result = {
        "event": "result",
        "window_seconds": 0.1,
        "cpu_seconds": 0.1,
        "num_batches": 1,
        "num_output_tokens": WORKLOAD.batch_size * WORKLOAD.output_tokens,
        "logits_finite": True,
    }
    lines = (
        "import json, os, resource, signal, subprocess, sys, time",
        "NaN = nan = float('nan')",
        "def tell(**fields):",
        "    print(json.dumps(fields), flush=True)",
        case.before_ready,
        f"tell(**{ready | case.ready!r})",
        case.after_ready,
        f"tell(**{result | case.result!r})",
    )
    driver = directory / "driver.py"
    driver.write_text("\n".join(lines))
    return Engine(name="fake", driver=driver)


def assignment(**changes):
    return BenchAssignment(
        architecture=SHAPE,
        recipe=ServingRecipe(engine="fake", dtype="float32"),
        workload=WORKLOAD,
        min_window_seconds=0.05,
        **changes,
    )


def last(messages):
    *progress, end = messages
    assert all(isinstance(message, Progress) for message in progress)
    return end


@pytest.fixture
def mark(monkeypatch):
    """The mark that the run's processes will bear."""
    chosen = uuid.uuid4()
    monkeypatch.setattr(process.uuid, "uuid4", lambda: chosen)
    return chosen.hex


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_a_misbehaving_engine_ends_rightly_and_harms_nothing(case, tmp_path, mark):
    asked = assignment(num_repeats=1, load_deadline_seconds=3, run_deadline_seconds=2)
    started = time.monotonic()
    end = last(run_benchmark(asked, agent="a", work_directory=tmp_path, engine=misbehaving(case, tmp_path)))
    assert time.monotonic() - started < 60  # deadlines of 5 s and graces of 6 s, on a slow machine

    assert family_of(0x7FFFFFFF, mark) == set()
    if case.kind is None:
        assert isinstance(end, ServingObservation), end
        assert case.flag in end.flags
    else:
        assert isinstance(end, Failure), end
        assert end.failure_kind == case.kind, end
        assert case.words in end.message + end.detail
        assert end.assignment_id == asked.id

    again = last(run_benchmark(assignment(), agent="a", work_directory=tmp_path))
    assert isinstance(again, ServingObservation)
    assert not INVALIDATING_FLAGS & set(again.flags)


def test_every_process_of_a_run_bears_its_mark(tmp_path, mark):
    case = Case("tells its mark", after_ready=f"sys.exit(os.environ[{MARK_VARIABLE!r}])")
    end = last(run_benchmark(assignment(), agent="a", work_directory=tmp_path, engine=misbehaving(case, tmp_path)))
    assert end.detail == mark


def test_a_kill_while_the_kernel_was_short_of_memory_is_out_of_memory(tmp_path, monkeypatch):
    kills = iter([4, 5])  # a real kill for memory would take others on this machine with it
    monkeypatch.setattr(process, "count_kernel_kills", lambda: next(kills))
    case = Case("is killed for memory", after_ready="os.kill(os.getpid(), 9)")
    end = last(run_benchmark(assignment(), agent="a", work_directory=tmp_path, engine=misbehaving(case, tmp_path)))
    assert end.failure_kind == "out-of-memory"
