"""lm-evaluation-harness as a process of its own: tasks in, scores out.

It pulls in some sixty packages, so it may live in an interpreter of its own, which ARCHFLEET_LM_EVAL_PYTHON names; else
it is this one's (`pip install 'archfleet[eval]'`).
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveInt

from agent.failures import InvalidInputError
from hwprofiles.value import Value

VARIABLE = "ARCHFLEET_LM_EVAL_PYTHON"
DRIVER = Path(__file__).with_name("lm_eval_driver.py")
_CHECK = "import importlib.util, sys; print(*[m for m in sys.argv[1:] if importlib.util.find_spec(m) is None])"
_IMPORTS = ("lm_eval", "torch", "transformers", "accelerate")
_CHECK_TIMEOUT_SECONDS = 60.0
_TAIL = 15


class HarnessMissingError(InvalidInputError):
    """No interpreter here has lm-evaluation-harness."""


class ScoringError(InvalidInputError):
    """The harness could not score: an unknown task, a data set that cannot be had, or an error of its own."""


class ScoringRequest(Value):
    """The whole input of one scoring, without examples in the prompt (zero-shot)."""

    model_directory: str
    tasks: tuple[str, ...] = Field(min_length=1)
    task_directory: str | None = None
    """A folder with task files of the harness beside its own."""
    limit: PositiveInt | None = None
    """Only so many examples of each task: a look, not a benchmark."""
    batch_size: PositiveInt = 16
    device: Literal["cpu", "cuda"] | None = None
    """Null for cuda where there is one."""
    dtype: Literal["float32", "bfloat16"] = "float32"


class Metric(Value):
    """One number of one task. The standard error is the harness's own, over examples; null where it gives none."""

    value: float
    standard_error: float | None


class TaskScore(Value):
    """What one task gave."""

    task: str
    metrics: dict[str, Metric]
    num_samples: PositiveInt
    version: str
    """Of the task's definition: scores of different versions are not comparable."""


class Scoring(Value):
    """A sign of life: what is done with which task."""

    doing: Literal["loading", "scoring"]
    task: str


class ScoringDone(Value):
    """The end, and the versions of what scored."""

    versions: dict[str, str]


def find_harness(environment: Mapping[str, str] | None = None) -> str:
    """The interpreter that has lm-evaluation-harness.

    Raises:
        HarnessMissingError: the one that is named does not run, or lacks it.
    """
    named = (os.environ if environment is None else environment).get(VARIABLE, "").strip()
    python = str(Path(named).expanduser().absolute()) if named else sys.executable
    told = f"{python} (named by {VARIABLE})" if named else f"{python} (this interpreter)"
    missing = _missing_imports(python, told)
    if missing:
        raise HarnessMissingError(
            f"lm-evaluation-harness is not installed in {told}: it lacks {', '.join(missing)}; pip install "
            f"'archfleet[eval]', or install 'lm-eval[hf]' in an environment of its own and name its interpreter: "
            f"{VARIABLE}=/path/to/python"
        )
    return python


def _missing_imports(python: str, told: str) -> Sequence[str]:
    if python == sys.executable:
        return [module for module in _IMPORTS if importlib.util.find_spec(module) is None]
    try:
        answer = subprocess.run(
            [python, "-c", _CHECK, *_IMPORTS],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_CHECK_TIMEOUT_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise HarnessMissingError(f"{told} does not run: {error}; name a Python that has lm-eval") from None
    return answer.stdout.split()


def score(request: ScoringRequest, *, python: str) -> Iterator[Scoring | TaskScore | ScoringDone]:
    """Run the harness; yields what it is at, each task's scores, and last the versions.

    Closing the generator ends the process.

    Raises:
        ScoringError: see there; nothing was scored if a data set cannot be had.
    """
    with tempfile.TemporaryDirectory(prefix="archfleet-score-") as name:
        file, log = Path(name, "request.json"), Path(name, "log")
        file.write_text(request.model_dump_json(), encoding="utf-8")
        with (
            log.open("wb") as errors,
            subprocess.Popen(
                [python, str(DRIVER), str(file)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
            ) as process,
        ):
            try:
                yield from _messages(process, log)
            finally:
                process.kill()  # if it has not ended by itself


def _messages(process: subprocess.Popen[bytes], log: Path) -> Iterator[Scoring | TaskScore | ScoringDone]:
    assert process.stdout is not None
    for line in process.stdout:
        message = json.loads(line)
        event = message.pop("event")
        if event == "error":
            raise ScoringError(_in_words(message, log))
        if event == "score":
            yield TaskScore.model_validate(message)
        elif event == "done":
            yield ScoringDone.model_validate(message)
            return
        else:
            yield Scoring(doing=event, task=message["task"])
    raise ScoringError(f"lm-evaluation-harness ended with status {process.wait()} and no result:\n{_tail(log)}")


def _in_words(message: Mapping[str, Any], log: Path) -> str:
    task, told = message["task"], message["message"]
    if message["kind"] == "unknown-task":
        return (
            f"unknown task {task!r}; expected names that `lm_eval ls tasks` lists, or of a task file below --task-path"
        )
    if message["kind"] == "no-device":
        return str(told)
    if message["kind"] == "missing-data":
        return (
            f"the data set of task {task!r} cannot be had ({told}); nothing was scored. Fetch it once on a machine "
            "with internet and carry its cache over (HF_HOME), or leave the task out with --tasks"
        )
    return f"lm-evaluation-harness failed: {told}\n{_tail(log)}"


def _tail(log: Path) -> str:
    return "\n".join(log.read_text("utf-8", errors="replace").splitlines()[-_TAIL:])
