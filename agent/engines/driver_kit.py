"""What the drivers share: the protocol's messages, the device's own words, prompts, percentiles, names by version.

Standard library alone (numpy and torch where a driver already has them), because an engine's interpreter need not have
archfleet. A driver finds this file in both of its lives, and keeps its own folder off the import path, where
the modules here would shadow the engine's:

    if TYPE_CHECKING or __package__:  # imported
        from agent.engines import driver_kit as kit
    else:  # a script
        sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))
        import driver_kit as kit

        kit.hide_drivers_folder()
"""

import json
import os
import platform
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

Version = tuple[int, int]
"""(major, minor)."""
Names = Mapping[str, Sequence[tuple[Version, str]]]
"""What an engine calls things: our word → (since version, name), oldest first."""

BYTES_PER_ELEMENT: Mapping[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
LEVELS = (50, 90, 99)
"""Percentiles of a latency, as the protocol has them."""
MEMORY_PHRASES = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "cache blocks",
    "free memory on device",
)
UNSUPPORTED_PHRASES = ("not supported", "unsupported", "does not support", "not implemented")
ONE_TOKEN = "a single output token has no time per further token"


class RefusedError(ValueError):
    """The request asks for what this driver cannot do; the message is for the user, as it stands."""


def hide_drivers_folder() -> None:
    """Take this folder off the import path: its modules must not shadow the engine's."""
    here = os.path.dirname(os.path.realpath(__file__))  # noqa: PTH120
    sys.path[:] = [entry for entry in sys.path if not entry or os.path.realpath(entry) != here]


def serve(request_file: str, run: Callable[[dict[str, Any], TextIO], None]) -> int:
    """The life of a driver: read the request, run it, tell every error. Returns the exit status."""
    messages = claim_stdout()
    threading.Thread(target=die_with_agent, daemon=True).start()
    try:
        run(read_json(request_file), messages)
    except Exception as error:  # the one border of this process: every error becomes a message
        tell(messages, event="error", failure_kind=failure_kind(error), message=own_words(error))
        raise
    return 0


def read_json(*path: str) -> dict[str, Any]:
    """The object of a JSON file, whose path is given in parts."""
    with open(os.path.join(*path), encoding="utf-8") as file:  # noqa: PTH118, PTH123
        found: dict[str, Any] = json.load(file)
    return found


def claim_stdout() -> TextIO:
    """Keep standard output for messages alone: what libraries print goes to standard error."""
    messages = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return messages


def tell(messages: TextIO, **fields: Any) -> None:
    """Write one message; `event` is its first key."""
    messages.write(json.dumps(fields) + "\n")
    messages.flush()


def die_with_agent() -> None:
    """Wait until the agent closes our standard input, as it does in dying, and kill the whole group."""
    while os.read(0, 1024):
        pass
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def failure_kind(error: Exception) -> str:
    """The kind of failure in archfleet's words; what the engine does not support is a `validation` failure."""
    text = str(error).lower()
    if isinstance(error, RefusedError):
        return "validation"
    if isinstance(error, MemoryError) or any(phrase in text for phrase in MEMORY_PHRASES):
        return "out-of-memory"
    if "cuda error" in text:
        return "hardware"
    if isinstance(error, ImportError):
        return "engine-start"
    if isinstance(error, (ValueError, NotImplementedError)) or any(phrase in text for phrase in UNSUPPORTED_PHRASES):
        return "validation"
    return "unknown"


def own_words(error: Exception) -> str:
    """The engine's message on one line; a refusal of our own needs no name of an exception before it."""
    text = " ".join(str(error).split())
    return (text if isinstance(error, RefusedError) else f"{type(error).__name__}: {text}")[:500]


def random_token_ids(request: Mapping[str, Any], vocab_size: int) -> list[list[int]]:
    """The batch's prompts: uniform token ids, seeded."""
    source = random.Random(request["seed"])
    length = request["input_tokens"]
    return [[source.randrange(vocab_size) for _ in range(length)] for _ in range(request["batch_size"])]


def num_legal(token_ids: Sequence[int], vocab_size: int) -> int:
    """How many of a request's tokens are of the vocabulary; the common case costs two passes in C."""
    if len(token_ids) and min(token_ids) >= 0 and max(token_ids) < vocab_size:
        return len(token_ids)
    return sum(0 <= token < vocab_size for token in token_ids)


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Linear between order statistics."""
    import numpy as np

    found = np.percentile(np.asarray(seconds, dtype=float), LEVELS)
    return {f"p{level}": float(value) for level, value in zip(LEVELS, found, strict=True)}


def latency_fields(**seconds: Sequence[float] | str) -> dict[str, dict[str, Any]]:
    """A result's `latencies` and `not_measured`: percentiles by name, or the reason that stands in their place.

    No values at all mean that requests of one token have no such time.
    """
    found: dict[str, dict[str, Any]] = {"latencies": {}, "not_measured": {}}
    for name, each in seconds.items():
        if isinstance(each, str):
            found["not_measured"][name] = each
        elif len(each):
            found["latencies"][name] = percentiles(each)
        else:
            found["not_measured"][name] = ONE_TOKEN
    return found


def name_in(names: Names, version: str, word: str) -> str:
    """What a version calls something; the newest name where the version is unknown."""
    number = version_number(version)
    since = [name for first, name in names[word] if number is None or first <= number]
    return since[-1] if since else names[word][0][1]


def version_number(version: str) -> Version | None:
    """(major, minor) of a version; None for what is no release, such as a build from source."""
    parts = version.split(".")
    if len(parts) < 2 or not (parts[0].isdecimal() and parts[1].isdecimal()):
        return None
    return int(parts[0]), int(parts[1])


def version_doubts(engine: str, version: str, known: tuple[Version, Version]) -> dict[str, str]:
    """A flag and its sentence where a driver was not written for the version of its engine."""
    number = version_number(version)
    first, last = known
    if number is not None and first <= number <= last:
        return {}
    names = " to ".join(f"{major}.{minor}" for major, minor in known)
    return {
        "unknown-engine-version": f"{engine} {version} is not among {names}, whose names are known; tried all the same"
    }


def common_versions() -> dict[str, str]:
    """Versions of what every engine here is made of."""
    import torch
    import transformers

    found = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "engine_python": platform.python_version(),
    }
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    return found


def measure_window(
    request: dict[str, Any],
    messages: TextIO,
    generate: Callable[[], int],
    *,
    processor_clock: Callable[[], float] = time.process_time,
) -> dict[str, Any]:
    """Generate whole batches until the window is long enough, telling of each; what the result says of the window.

    Args:
        request: as the driver got it.
        messages: where to tell.
        generate: one batch; returns how many of its output tokens are of the vocabulary.
        processor_clock: seconds of processor time of the engine's processes.
    """
    num_batches = num_output_tokens = 0
    started, cpu_started = time.perf_counter(), processor_clock()
    window_seconds = 0.0
    while num_batches == 0 or window_seconds < request["min_window_seconds"]:
        num_output_tokens += generate()
        num_batches += 1
        window_seconds = time.perf_counter() - started
        tell(messages, event="progress", window_seconds=window_seconds)
    return {
        "window_seconds": window_seconds,
        "window_started_seconds": started,  # perf_counter is the system's monotonic clock on Linux
        "cpu_seconds": max(0.0, processor_clock() - cpu_started),
        "num_batches": num_batches,
        "num_output_tokens": num_output_tokens,
    }


def describe_device(*, on_gpu: bool) -> dict[str, Any]:
    """What the device says of itself; the first one where there are several."""
    if on_gpu:
        import torch

        properties = torch.cuda.get_device_properties(0)
        return {"kind": "gpu", "name": properties.name, "memory_bytes": properties.total_memory}
    return {"kind": "cpu", "name": cpu_model(), "memory_bytes": memory_bytes()}


def memory_bytes() -> int:
    """Physical memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def cpu_model() -> str:
    """The processor's name as the kernel knows it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:  # noqa: PTH123
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
