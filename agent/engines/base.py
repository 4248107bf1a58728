"""What an engine is to archfleet: a driver script run by the engine's own interpreter, and the protocol it speaks.

The driver gets the path of an `EngineRequest` as its only argument and writes messages to its standard output, one
JSON object a line, in this order:

    ready  →  progress ...  →  result          or at any point        error

`ready` means loaded and built (the load deadline ends), `result` ends the run. Other lines are noise of the engine's
and are kept with the log. The driver leads a process group of its own; when its standard input closes, the agent is
gone and the driver must kill that group. A driver imports nothing of archfleet: its interpreter need not have it.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, TypeAdapter

from hwprofiles.value import Value
from scaling.observations import LatencyName

DRIVERS: Mapping[str, str] = {
    "transformers": "transformers_driver.py",
    "vllm": "vllm_driver.py",
    "sglang": "sglang_driver.py",
    "fake": "fake_driver.py",
}
"""Table: engine name → driver script beside this file."""
ENVIRONMENTS: Mapping[str, Mapping[str, str]] = {
    "vllm": {
        # In the driver's own process: one process to time and to end, and a start of seconds instead of a minute.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # as many threads as the recipe says, not one a core
    },
}
"""Table: engine name → environment variables that its process needs from the start."""


class EngineRequest(Value):
    """The whole input of one engine process."""

    config_directory: str
    """A directory with config.json; weights are random."""
    dtype: str
    quantization: str | None = None
    kv_cache_dtype: str = "auto"
    tensor_parallel_size: PositiveInt = 1
    num_threads: PositiveInt
    batch_size: PositiveInt
    input_tokens: PositiveInt
    output_tokens: PositiveInt
    min_window_seconds: float
    """Whole batches are generated until at least this long was measured."""
    seed: NonNegativeInt
    """Of the weights and the prompts."""
    fake_batch_seconds: float | None = None
    """What the fake engine pretends that a batch takes; unused by the others."""


class EngineDevice(Value):
    """What the engine's process says of the device it ran on."""

    kind: Literal["cpu", "gpu"]
    name: str
    memory_bytes: NonNegativeInt


class EngineReady(Value):
    """The model is built and about to be warmed up."""

    event: Literal["ready"]
    versions: dict[str, str]
    device: EngineDevice
    num_total_parameters: PositiveInt
    kv_cache_tokens: PositiveInt | None = None
    """Tokens whose keys and values fit into the engine's cache, as the engine itself sized it."""
    doubts: dict[str, str] = Field(default_factory=dict)
    """Validity flags that the driver knows of from the start, each with a sentence that says why."""


class EngineProgress(Value):
    """A batch was generated; `window_seconds` is the length of the measured window so far."""

    event: Literal["progress"]
    window_seconds: NonNegativeFloat


class Percentiles(Value):
    """Of a latency over all requests of a window, in seconds."""

    p50: NonNegativeFloat
    p90: NonNegativeFloat
    p99: NonNegativeFloat


class EngineResult(Value):
    """One measured window: whole batches one after the other, all of the requested shape."""

    event: Literal["result"]
    window_seconds: PositiveFloat
    window_started_seconds: float | None = None
    """When it began, on the system's monotonic clock, which all processes of a machine share."""
    cpu_seconds: NonNegativeFloat
    """Processor time of the engine's process within the window."""
    num_batches: PositiveInt
    num_output_tokens: NonNegativeInt
    logits_finite: bool
    mean_running_sequences: NonNegativeFloat | None = None
    """Time-weighted over the window."""
    num_preemptions: NonNegativeInt | None = None
    num_prefix_hits: NonNegativeInt | None = None
    """Prompt tokens that were not computed because a cache had them."""
    latencies: dict[LatencyName, Percentiles] = Field(default_factory=dict)
    not_measured: dict[str, str] = Field(default_factory=dict)
    """Why a field above, or a latency, is absent."""


class EngineError(Value):
    """The driver knows why it cannot go on."""

    event: Literal["error"]
    failure_kind: Literal["out-of-memory", "engine-start", "hardware", "validation", "unknown"]
    message: str


EngineMessage = EngineReady | EngineProgress | EngineResult | EngineError
MessageAdapter: TypeAdapter[EngineMessage] = TypeAdapter(Annotated[EngineMessage, Field(discriminator="event")])


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A driver script and the interpreter that has what it imports."""

    name: str
    driver: Path
    interpreter: str = sys.executable
    environment: Mapping[str, str] = field(default_factory=dict)
    """Added to the agent's own environment."""

    def command(self, request_file: Path) -> tuple[str, ...]:
        """The command line of one engine process."""
        return self.interpreter, str(self.driver), str(request_file)


def engine_named(name: str, *, interpreter: str = sys.executable) -> Engine:
    """The engine of this name, run by the given interpreter; `interpreters.find_engine` chooses one and checks it.

    Raises:
        ValueError: no such engine.
    """
    if name not in DRIVERS:
        raise ValueError(f"unknown engine {name!r}; expected one of: {', '.join(DRIVERS)}")
    return Engine(
        name=name,
        driver=Path(__file__).with_name(DRIVERS[name]),
        interpreter=interpreter,
        environment=ENVIRONMENTS.get(name, {}),
    )
