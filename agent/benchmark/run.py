"""The measuring procedure: fresh engine processes, one window each, to one `ServingObservation` or `Failure`.

Each repeat is an engine process of its own, since levels differ between instances: it loads, warms up with one pass at
the measured shape, then generates whole batches for at least the window. Reported are the mean over repeats with a
t-interval, the coefficient of variation, and every doubt as a flag.

On a CPU at the sizes of a laptop study (0.1 M to 0.2 M parameters, vocabulary 1,024) the host's time for a step hides
the architecture at small batches: at batch 16, 32 + 32 tokens, four very different shapes stayed within 24 % of
each other, while `CPU_WORKLOAD` spreads them by a factor of 1.8 (measured, one 2.5 GHz thread). One pass takes 0.4 to
1 s there; a repeat is about 4.5 s of imports, one warm-up pass and the window. On a machine shared with others the
wall time measures them too: the row is flagged `busy-cpu`, and each repeat keeps its processor seconds beside.
"""

import getpass
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

from scipy import stats

from agent.assignment import BenchAssignment
from agent.device import CPU_PROFILE_ID, gpu_fingerprint, make_provenance, pretended_hardware
from agent.engines.base import Engine, EngineMessage, EngineReady, EngineRequest, EngineResult
from agent.engines.interpreters import find_engine
from agent.engines.process import EngineFailure, Tick, run_process
from agent.log_file import LogFollower
from agent.power import NO_SENSOR, WindowReading, reading_flags
from agent.sensors import Sampler, Sensor, Usage, open_boards, open_sensor, sampling
from hwprofiles.catalog import load_profile
from hwprofiles.value import Value
from scaling.observations import Failure, Latency, LatencyName, Progress, Provenance, ServingObservation, ServingRepeat
from scaling.quantity import Interval, Measured, NotMeasured
from scaling.recipes import Workload
from scaling.serving import predict_serving

CPU_WORKLOAD = Workload(batch_size=64, input_tokens=64, output_tokens=64)
"""A workload at which a laptop study's shapes differ on one CPU thread."""
INTERVAL_LEVEL = 0.95
MIN_REPEATS = 3
NOISY_VARIATION = 0.05
"""Coefficient of variation between repeats above which a row is flagged `noisy`."""
BUSY_CPU_RATIO = 0.9
"""Processor seconds per second and thread below which the engine was kept waiting by others: `busy-cpu`."""
FULL_BATCH_RATIO = 0.95
"""Mean running sequences per requested one below which the batch was partly a queue: `below-batch`."""
LATENCIES: tuple[LatencyName, ...] = ("ttft", "tpot", "itl")
GPU_WINDOW_SECONDS = 60.0
GPU_WINDOW_BATCHES = 4
"""Shorter windows on a GPU are flagged `short`: clocks and caches have not settled."""
MAX_TEMPORARY_BYTES = 64
"""Of a path that is to hold sockets: 107 bytes (unix(7)), less the longest name that engines append, about 40."""


class Restart(Value):
    """What one engine process measured: all that is kept of it, and all that an observation is made from."""

    ready: EngineReady
    result: EngineResult
    provenance: Provenance
    reading: WindowReading | None = None
    """What the sensors of power and clocks saw during its window."""


@dataclass
class _Run:
    """What is known of an assignment while its repeats go on."""

    assignment: BenchAssignment
    agent: str
    directory: Path
    engine: Engine
    started_at_unix: float
    clock: Callable[[], float]
    started: float
    ready: EngineReady | None = None
    results: list[EngineResult] = field(default_factory=list)
    readings: list[WindowReading | None] = field(default_factory=list)


def run_benchmark(
    assignment: BenchAssignment,
    *,
    agent: str,
    work_directory: Path,
    engine: Engine | None = None,
    wall_clock: Callable[[], float] = time.time,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Progress | ServingObservation | Failure]:
    """Measure one architecture; yield `Progress` about once a second and last the observation or failure.

    Closing the generator early ends the engine's whole process group.

    Args:
        assignment: what to measure.
        agent: name of this agent, for the provenance.
        work_directory: where config.json, the request and the engine's log are written; created if missing.
        engine: how to run the engine; by default the recipe's, in the interpreter that this node names for it.
        wall_clock: seconds since the epoch, for the provenance.
        clock: monotonic seconds, for durations.

    Raises:
        ValueError: the recipe's engine is not in this version, or not installed on this node.
    """
    engine = engine or find_engine(assignment.recipe.engine)
    run = _Run(assignment, agent, work_directory, engine, wall_clock(), clock, clock())
    _export_config(run)
    for repeat in range(assignment.num_repeats):
        failure = yield from _measure_repeat(run, repeat)
        if failure is not None:
            yield failure
            return
    assert run.ready is not None
    yield _observe(assignment, run.ready, run.results, run.readings, _provenance(run))


def run_restart(
    assignment: BenchAssignment,
    *,
    restart: int,
    agent: str,
    work_directory: Path,
    engine: Engine | None = None,
    wall_clock: Callable[[], float] = time.time,
    clock: Callable[[], float] = time.monotonic,
) -> Generator[Progress | Restart | Failure, None, None]:
    """One engine process of an assignment alone, so that restarts of several can be interleaved.

    Yields `Progress` about once a second and last the restart or a failure; `observe_restarts` makes an observation
    of several. `restart` numbers the process: it names its files and seeds its weights and prompts.

    Raises:
        ValueError: the recipe's engine is not in this version, or not installed on this node.
    """
    engine = engine or find_engine(assignment.recipe.engine)
    run = _Run(assignment, agent, work_directory, engine, wall_clock(), clock, clock())
    _export_config(run)
    failure = yield from _measure_repeat(run, restart)
    if failure is not None:
        yield failure
        return
    assert run.ready is not None
    yield Restart(ready=run.ready, result=run.results[-1], provenance=_provenance(run), reading=run.readings[-1])


def observe_restarts(assignment: BenchAssignment, restarts: Sequence[Restart]) -> ServingObservation:
    """The observation of an assignment from its restarts, as `run_benchmark` would have made it.

    Its provenance is that of the first, with the seconds of all.
    """
    first = restarts[0]
    seconds = sum(restart.provenance.seconds for restart in restarts)
    provenance = first.provenance.model_copy(update={"seconds": seconds})
    results, readings = [each.result for each in restarts], [each.reading for each in restarts]
    return _observe(assignment, first.ready, results, readings, provenance)


def _export_config(run: _Run) -> None:
    run.directory.mkdir(parents=True, exist_ok=True)
    workload = run.assignment.workload
    longest = max(2048, workload.input_tokens + workload.output_tokens)
    config = run.assignment.architecture.to_hf_config(max_position_embeddings=longest)
    (run.directory / "config.json").write_text(json.dumps(config, indent=2), "utf-8")


def _measure_repeat(run: _Run, repeat: int) -> Generator[Progress, None, Failure | None]:
    """One engine process; its result joins the run, its failure is returned."""
    assignment = run.assignment
    request_file = run.directory / f"request-{repeat}.json"
    request_file.write_text(_request(run, repeat).model_dump_json(), "utf-8")
    usage = _usage_before(run)
    log_file = run.directory / f"engine-{repeat}.log"
    log = LogFollower(log_file)
    messages = run_process(
        run.engine.command(request_file),
        log_file=log_file,
        load_deadline_seconds=assignment.load_deadline_seconds,
        run_deadline_seconds=assignment.run_deadline_seconds,
        environment=_environment(run),
        clock=run.clock,
    )
    failure, sampler = None, None
    with ExitStack() as until_ended:
        until_ended.enter_context(closing(messages))
        for message in messages:
            if isinstance(message, EngineReady):
                sampler = until_ended.enter_context(sampling(_sensor(run, message)))
            elif isinstance(message, EngineResult):
                run.readings.append(_reading(sampler, message, usage))
            failure = _note(run, message)
            if failure is not None:
                break
            yield _progress(run, repeat, _phase_of(message), log.new_lines())
    if lines := log.new_lines(is_over=True):
        yield _progress(run, repeat, "ended", lines)
    return _note_release(run, usage, failure)


def _usage_before(run: _Run) -> Usage | None:
    """Who is on the GPU before the engine; None where no GPU is used or its driver cannot be asked."""
    if run.engine.name == "fake":
        return None
    boards = open_boards(run.assignment.recipe.tensor_parallel_size)
    return None if isinstance(boards, str) else Usage(boards)


def _sensor(run: _Run, ready: EngineReady) -> Sensor | str:
    if run.engine.name == "fake":
        return f"{NO_SENSOR}: the fake engine uses none"
    return open_sensor(ready.device.kind, num_devices=run.assignment.recipe.tensor_parallel_size)


def _reading(sampler: Sampler | str | None, result: EngineResult, usage: Usage | None) -> WindowReading:
    """What was sampled of the window, or why nothing was."""
    if not isinstance(sampler, Sampler):
        reason = sampler or f"{NO_SENSOR}: the engine gave a result before it was ready"
        return WindowReading(not_measured={"joules": reason, "sm_clock": reason})
    reading = sampler.read_window(result.window_started_seconds, result.window_seconds)
    return reading if usage is None else reading.model_copy(update={"doubts": usage.doubts})


def _note_release(run: _Run, usage: Usage | None, failure: Failure | None) -> Failure | None:
    """Wait until the GPU is given back; what is still held is told with the failure, or doubts the reading."""
    held = None if usage is None else usage.wait_until_released()
    if held is None:
        return failure
    if failure is not None:
        return failure.model_copy(update={"message": f"{failure.message}; afterwards {held}"})
    reading = run.readings[-1] if run.readings else None
    if reading is not None:
        doubts = {**reading.doubts, "gpu-not-released": held}
        run.readings[-1] = reading.model_copy(update={"doubts": doubts})
    return None


def _note(run: _Run, message: EngineMessage | Tick | EngineFailure) -> Failure | None:
    """Keep what a message says; a failure if it ends the assignment."""
    if isinstance(message, EngineFailure):
        return _fail(run, message)
    if isinstance(message, EngineReady):
        run.ready = message
        expected = run.assignment.architecture.num_total_parameters
        if message.num_total_parameters != expected:
            text = f"the engine built {message.num_total_parameters} parameters, the architecture has {expected}"
            return _fail(run, EngineFailure(failure_kind="validation", message=text))
    if isinstance(message, EngineResult):
        run.results.append(message)
    return None


def _phase_of(message: EngineMessage | Tick | EngineFailure) -> str:
    return message.phase if isinstance(message, Tick) else getattr(message, "event", "")


def _progress(run: _Run, repeat: int, phase: str, lines: tuple[str, ...]) -> Progress:
    num_repeats = run.assignment.num_repeats
    return Progress(
        assignment_id=run.assignment.id,
        done_fraction=len(run.results) / num_repeats,
        message=f"{run.engine.name} repeat {repeat + 1}/{num_repeats}: {phase}",
        lines=lines,
    )


def _environment(run: _Run) -> dict[str, str]:
    """Threads fixed before the engine's libraries load, no look at any network, and a temporary directory of its own.

    Engines leave files there; in the work directory they go with it. Where sockets in it would have names longer than
    the kernel takes, it stays the system's. Compiled kernels stay in the system's: compiling them again at every start
    takes seconds to minutes.
    """
    threads = str(run.assignment.recipe.num_threads)
    temporary = run.directory.resolve() / "tmp"
    if own_temporary := len(os.fsencode(temporary)) <= MAX_TEMPORARY_BYTES:
        temporary.mkdir(exist_ok=True)
    return {
        **({"TMPDIR": str(temporary)} if own_temporary else {}),
        "TORCHINDUCTOR_CACHE_DIR": os.environ.get("TORCHINDUCTOR_CACHE_DIR", _kernel_cache()),
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # so that an index means the same board to CUDA and to the driver
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        **run.engine.environment,
    }


def _kernel_cache() -> str:
    """Where torch keeps compiled kernels by default."""
    return str(Path(tempfile.gettempdir()) / f"torchinductor_{getpass.getuser()}")


def _request(run: _Run, repeat: int) -> EngineRequest:
    recipe, workload = run.assignment.recipe, run.assignment.workload
    return EngineRequest(
        config_directory=str(run.directory.resolve()),
        dtype=recipe.dtype,
        quantization=recipe.quantization,
        kv_cache_dtype=recipe.kv_cache_dtype,
        tensor_parallel_size=recipe.tensor_parallel_size,
        num_threads=recipe.num_threads,
        batch_size=workload.batch_size,
        input_tokens=workload.input_tokens,
        output_tokens=workload.output_tokens,
        min_window_seconds=run.assignment.min_window_seconds,
        seed=repeat,
        fake_batch_seconds=_pretended_batch_seconds(run.assignment) if run.engine.name == "fake" else None,
    )


def _pretended_batch_seconds(assignment: BenchAssignment) -> float:
    """The roofline's time for one batch on the hardware that this agent pretends to have, else on the generic CPU."""
    profile = load_profile(pretended_hardware() or CPU_PROFILE_ID)
    prediction = predict_serving(assignment.architecture, profile, assignment.recipe, assignment.workload)
    if isinstance(prediction.requests_per_second, NotMeasured):
        raise ValueError(f"the fake engine cannot serve this: {prediction.requests_per_second.reason}")
    return assignment.workload.batch_size / prediction.requests_per_second.value


def _fail(run: _Run, failure: EngineFailure) -> Failure:
    return Failure(
        assignment_id=run.assignment.id,
        failure_kind=failure.failure_kind,
        message=f"{run.engine.name}: {failure.message}",
        detail=failure.detail,
        provenance=_provenance(run),
    )


def _observe(
    assignment: BenchAssignment,
    ready: EngineReady,
    results: Sequence[EngineResult],
    readings: Sequence[WindowReading | None],
    provenance: Provenance,
) -> ServingObservation:
    workload = assignment.workload
    repeats = tuple(
        ServingRepeat(
            output_tokens_per_second=result.num_output_tokens / result.window_seconds,
            seconds=result.window_seconds,
            num_output_tokens=result.num_output_tokens,
            processor_seconds=result.cpu_seconds if ready.device.kind == "cpu" else None,
            joules=None if reading is None else reading.joules,
            sm_clock_mhz=None if reading is None else reading.sm_clock_mhz,
        )
        for result, reading in zip(results, readings, strict=True)
    )
    rates = [repeat.output_tokens_per_second for repeat in repeats]
    total_per_output = (workload.input_tokens + workload.output_tokens) / workload.output_tokens
    variation = statistics.stdev(rates) / statistics.mean(rates) if len(rates) > 1 and any(rates) else 0.0
    return ServingObservation(
        assignment_id=assignment.id,
        architecture=assignment.architecture,
        recipe=assignment.recipe,
        workload=workload,
        engine_version=ready.versions.get(assignment.recipe.engine, "unknown"),
        repeats=repeats,
        output_tokens_per_second=mean_with_interval(rates, "tokens/s"),
        total_tokens_per_second=mean_with_interval([rate * total_per_output for rate in rates], "tokens/s"),
        coefficient_of_variation=variation,
        mean_running_sequences=_mean_running_sequences(assignment, results),
        joules_per_output_token=_joules_per_output_token(results, readings),
        latencies=tuple(_latency(name, results) for name in LATENCIES),
        kv_cache_tokens=_kv_cache_tokens(ready, len(results)),
        num_preemptions=_sum_or_none([result.num_preemptions for result in results]),
        flags=_flags(assignment, ready, results, readings, variation),
        provenance=provenance,
    )


def mean_with_interval(values: list[float], unit: str) -> Measured:
    """Mean over repeats of what cannot be negative, with Student's t-interval, mean ± t(n - 1) · s / √n, cut at 0."""
    mean, num_samples = statistics.mean(values), len(values)
    if num_samples < 2:
        reason = "one repeat shows no spread"
        return Measured(value=mean, unit=unit, num_samples=num_samples, no_interval_because=reason)
    quantile = float(stats.t.ppf((1 + INTERVAL_LEVEL) / 2, num_samples - 1))
    half_width = quantile * statistics.stdev(values) / num_samples**0.5
    low, high = max(0.0, mean - half_width), mean + half_width
    interval = Interval(low=low, high=high, level=INTERVAL_LEVEL, method="t over repeats")
    return Measured(value=mean, unit=unit, interval=interval, num_samples=num_samples)


def _joules_per_output_token(
    results: Sequence[EngineResult], readings: Sequence[WindowReading | None]
) -> Measured | NotMeasured:
    """Energy of the window over its output tokens: prompts, idle share and whatever else the sensor sees included."""
    ratios: list[float] = []
    for result, reading in zip(results, readings, strict=True):
        if reading is None or reading.joules is None:
            return NotMeasured(reason=NO_SENSOR if reading is None else reading.not_measured.get("joules", NO_SENSOR))
        if not result.num_output_tokens:
            return NotMeasured(reason="no output token came of the window")
        ratios.append(reading.joules / result.num_output_tokens)
    return mean_with_interval(ratios, "J/token")


def _mean_running_sequences(assignment: BenchAssignment, results: Sequence[EngineResult]) -> Measured | NotMeasured:
    told = [r.mean_running_sequences for r in results if r.mean_running_sequences is not None]
    if len(told) == len(results):
        return mean_with_interval(told, "sequences")
    if assignment.recipe.engine != "transformers":
        return NotMeasured(reason=_reason_of("mean_running_sequences", results, "how many sequences run"))
    return Measured(
        value=assignment.workload.batch_size,
        unit="sequences",
        num_samples=len(results),
        no_interval_because="static batching runs the whole batch from the first to the last token of every pass",
    )


def _latency(name: LatencyName, results: Sequence[EngineResult]) -> Latency:
    told = [result.latencies[name] for result in results if name in result.latencies]
    if len(told) < len(results):
        absent = NotMeasured(reason=_reason_of(name, results, "the times of single requests"))
        return Latency(name=name, p50=absent, p90=absent, p99=absent)
    p50, p90, p99 = (
        mean_with_interval([getattr(each, level) for each in told], "s") for level in ("p50", "p90", "p99")
    )
    return Latency(name=name, p50=p50, p90=p90, p99=p99)


def _reason_of(name: str, results: Sequence[EngineResult], what: str) -> str:
    """Why the engine's driver left something out, in its own words if it gave any."""
    reasons = [result.not_measured[name] for result in results if name in result.not_measured]
    return reasons[0] if reasons else f"the engine does not tell {what}"


def _kv_cache_tokens(ready: EngineReady, num_repeats: int) -> Measured | NotMeasured:
    if ready.kv_cache_tokens is None:
        return NotMeasured(reason="the engine does not tell the size of its cache")
    return Measured(
        value=ready.kv_cache_tokens,
        unit="tokens",
        num_samples=num_repeats,
        no_interval_because="the engine's own figure: blocks times their size",
    )


def _sum_or_none(counts: Sequence[int | None]) -> int | None:
    told = [count for count in counts if count is not None]
    return sum(told) if len(told) == len(counts) else None


def _flags(
    assignment: BenchAssignment,
    ready: EngineReady,
    results: Sequence[EngineResult],
    readings: Sequence[WindowReading | None],
    variation: float,
) -> tuple[str, ...]:
    """Every doubt about the row, in alphabetical order."""
    workload = assignment.workload
    tokens_per_batch = workload.batch_size * workload.output_tokens
    on_cpu = ready.device.kind == "cpu" and assignment.recipe.engine != "fake"
    doubts = {
        "fake": assignment.recipe.engine == "fake",
        "wrong-token-count": any(r.num_output_tokens != r.num_batches * tokens_per_batch for r in results),
        "nan": not all(result.logits_finite for result in results),
        "short": any(_is_short(assignment, ready, result) for result in results),
        "too-few-repeats": len(results) < MIN_REPEATS,
        "noisy": variation > NOISY_VARIATION,
        "busy-cpu": on_cpu and any(r.cpu_seconds < BUSY_CPU_RATIO * r.window_seconds for r in results),
        "preempted": any(result.num_preemptions for result in results),
        "prefix-hits": any(result.num_prefix_hits for result in results),
        "below-batch": any(_is_below_batch(workload, result) for result in results),
        **dict.fromkeys(ready.doubts, True),
        **dict.fromkeys(reading_flags([reading for reading in readings if reading is not None]), True),
    }
    return tuple(sorted(flag for flag, holds in doubts.items() if holds))


def _is_below_batch(workload: Workload, result: EngineResult) -> bool:
    running = result.mean_running_sequences
    return running is not None and running < FULL_BATCH_RATIO * workload.batch_size


def _is_short(assignment: BenchAssignment, ready: EngineReady, result: EngineResult) -> bool:
    if ready.device.kind == "gpu":
        return result.window_seconds < GPU_WINDOW_SECONDS or result.num_batches < GPU_WINDOW_BATCHES
    return result.window_seconds < assignment.min_window_seconds


def _provenance(run: _Run) -> Provenance:
    """The agent's provenance, with the engine's own versions (its interpreter may differ) and its device."""
    ready = run.ready
    provenance = make_provenance(
        agent=run.agent,
        started_at_unix=run.started_at_unix,
        seconds=run.clock() - run.started,
        on_gpu=None if ready is None else ready.device.kind == "gpu",
    )
    fingerprint = {
        "engine": run.engine.name,
        "config_sha256": run.assignment.architecture.content_hash(),
        **({} if ready is None else {**ready.versions, **ready.doubts}),
        **(gpu_fingerprint() if ready is not None and ready.device.kind == "gpu" else {}),
    }
    device = provenance.device if ready is None else ready.device.name
    versions = {**provenance.versions, **fingerprint}
    pretended = pretended_hardware() if run.engine.name == "fake" else None
    pretence = {} if pretended is None else {"hardware": pretended, "device": f"pretended {pretended}"}
    return provenance.model_copy(update={"device": device, "versions": versions, **pretence})
