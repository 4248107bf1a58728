"""The SGLang engine: whole batches through its offline interface. Run as a script by the engine's own interpreter.

    python sglang_driver.py REQUEST.json

Speaks the protocol of `base.py` and imports nothing of archfleet but `driver_kit.py`, which lies beside it. Weights are
dummies, prompts are random token ids, and every request ends after exactly `output_tokens` greedy tokens. After one
warm-up pass at the measured shape, whole batches are generated until `min_window_seconds` have gone by. SGLang runs its
scheduler and detokenizer in processes of their own; they stay in this process's group and end with it.

Pinned, because SGLang's defaults differ by GPU and would compare machines instead of architectures:

    sequences at once      the batch                                       max_running_requests
    tokens a step          MAX_PREFILL_TOKENS, or the batch if more        chunked_prefill_size, max_prefill_tokens
    prefix cache           off                                             disable_radix_cache
    memory                 MEMORY_FRACTION of a GPU; on a CPU, room for the batch's tokens and a tenth more
    CUDA graphs            up to the batch
    attention              SGLang's default on a GPU; plain PyTorch on a CPU

Times are those of the scheduler and of the request's entry, all on one machine's clock:

    TTFT = end of prefill - received        TPOT = (finished - end of prefill) / (tokens - 1)              [seconds]
    mean running = sum over requests of (finished - first forward pass) / window                         [sequences]
"""

import json
import math
import os
import sys
from typing import TYPE_CHECKING, Any, TextIO

# Imported, or run by path in an interpreter that need not have archfleet: see driver_kit.py.
if TYPE_CHECKING or __package__:
    from agent.engines import driver_kit as kit
else:
    sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # noqa: PTH120
    import driver_kit as kit

    kit.hide_drivers_folder()

MAX_PREFILL_TOKENS = 8192
MEMORY_FRACTION = 0.88
CPU_MEMORY_FRACTION = 0.5
"""What SGLang may think of as its own on a CPU; the cache's size is given in tokens there."""
RESERVED_PLACES = 8
"""SGLang keeps a few places of every request for itself, and would cut outputs short without saying so."""
KNOWN_VERSIONS = ((0, 5), (0, 5))
"""First and last version (major, minor) whose names are in `NAMES`."""
NAMES: kit.Names = {
    "preemptions": (((0, 5), "num_retractions"),),
    "prefix_hits": (((0, 5), "cached_tokens"),),
    "received": (((0, 5), "request_received_ts"),),
    "scheduled": (((0, 5), "forward_entry_time"),),
    "first_token": (((0, 5), "prefill_finished_time"),),
    "finished": (((0, 5), "request_finished_ts"),),
}
"""What SGLang calls things in the meta_info of a request: our word → (since version, name), oldest first."""
LARGEST_GRAPH = ("cuda_graph_max_bs_decode", "cuda_graph_max_bs")
"""The option's names, newest first: it was renamed between patches of 0.5, which `NAMES` does not tell apart."""
NOTES_VARIABLE = "ARCHFLEET_SGLANG_NOTES"
"""Names the file in which the scheduler's process leaves what only it knows."""

NO_TOKEN_TIMES = "SGLang sends single tokens only when streaming, which would cost the engine time that is measured"
NO_TIMES = "this version of SGLang gives no times of single requests"


def run(request: dict[str, Any], messages: TextIO) -> None:
    """Build the engine and measure it."""
    directory = request["config_directory"]
    config = kit.read_json(directory, "config.json")
    notes_file = os.path.join(directory, f"sglang-notes-{os.getpid()}.json")  # noqa: PTH118
    os.environ[NOTES_VARIABLE] = notes_file
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory  # its metrics' files, else left in the system's folder
    os.environ["SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN"] = "1"  # by the reserved places, which hold no token
    import torch

    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        os.environ["SGLANG_USE_CPU_ENGINE"] = "1"
    import sglang
    from sglang.srt.entrypoints import engine as entry  # the name in sglang itself is a stand-in until it is called
    from sglang.srt.server_args import ServerArgs

    class Engine(entry.Engine):  # type: ignore[misc, name-defined, unused-ignore]
        run_scheduler_process_func = staticmethod(run_scheduler)

    arguments = engine_arguments(request, option_names(ServerArgs), on_gpu=on_gpu)
    try:
        engine = Engine(**arguments, custom_sigquit_handler=ChildFailure(messages, notes_file))
    except Exception as error:
        raise noted_error(notes_file) or error from None
    try:
        tell_ready(engine, notes_file, messages, on_gpu=on_gpu)
        prompts = kit.random_token_ids(request, config["vocab_size"])
        measure(engine, prompts, request, config["vocab_size"], messages, sglang.__version__)
    finally:
        engine.shutdown()


class ChildFailure:
    """Handles the signal by which SGLang's processes tell that they failed.

    SGLang's own handler would kill this process too, before it can say why.
    """

    def __init__(self, messages: TextIO | None, notes_file: str) -> None:
        self.messages, self.notes_file = messages, notes_file

    def __reduce__(self) -> tuple[Any, ...]:
        return ChildFailure, (None, self.notes_file)  # it travels to those processes with their arguments

    def __call__(self, *_: Any) -> None:
        """Tell the reason and end; the group's other processes end with their parent."""
        error = noted_error(self.notes_file) or RuntimeError("a process of SGLang's ended; its log has the reason")
        if self.messages is not None:
            kit.tell(self.messages, event="error", failure_kind=kit.failure_kind(error), message=kit.own_words(error))
        os._exit(1)


def run_scheduler(*arguments: Any, **options: Any) -> Any:
    """SGLang's scheduler process; it leaves in a file what it built, or why it could not."""
    from sglang.srt.managers import scheduler as module

    build = module.Scheduler.__init__

    def build_and_note(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            build(self, *args, **kwargs)
            runner = self.tp_worker.model_runner
            if runner.tp_rank == 0:
                note(num_total_parameters=num_parameters(runner.model))
        except Exception as error:
            note(failure_kind=kit.failure_kind(error), message=kit.own_words(error))
            raise

    module.Scheduler.__init__ = build_and_note
    return module.run_scheduler_process(*arguments, **options)


def note(**fields: Any) -> None:
    """Leave fields for the driver; whole or not at all."""
    path = os.environ[NOTES_VARIABLE]
    part = f"{path}.{os.getpid()}"
    with open(part, "w", encoding="utf-8") as file:  # noqa: PTH123
        json.dump(fields, file)
    os.replace(part, path)  # noqa: PTH105


class NotedError(kit.RefusedError):
    """What the scheduler said before it ended, already in one line."""


def noted_error(notes_file: str) -> Exception | None:
    """The error that the scheduler left, of a type that is classified as it was; None if it left none."""
    try:
        notes = kit.read_json(notes_file)
    except FileNotFoundError:
        return None
    if "message" not in notes:
        return None
    types: dict[str, type[Exception]] = {"validation": NotedError, "out-of-memory": MemoryError}
    return types.get(notes["failure_kind"], RuntimeError)(notes["message"])


def tell_ready(engine: Any, notes_file: str, messages: TextIO, *, on_gpu: bool) -> None:
    """What was built, in the engine's own figures."""
    import sglang

    info = engine.get_server_info()
    kit.tell(
        messages,
        event="ready",
        versions={
            "sglang": sglang.__version__,
            **kit.common_versions(),
            "attention_backend": str(info.get("attention_backend")),
            "chunked_prefill_size": str(info.get("chunked_prefill_size")),
        },
        device=kit.describe_device(on_gpu=on_gpu),
        num_total_parameters=kit.read_json(notes_file)["num_total_parameters"],
        kv_cache_tokens=info["max_total_num_tokens"],
        doubts=kit.version_doubts("SGLang", sglang.__version__, KNOWN_VERSIONS),
    )


def measure(
    engine: Any, prompts: list[list[int]], request: dict[str, Any], vocab_size: int, messages: TextIO, version: str
) -> None:
    """Warm up, then whole batches until the window is long enough."""
    sampling = {"temperature": 0, "max_new_tokens": request["output_tokens"], "ignore_eos": True}
    logits_finite = are_logits_finite(engine, prompts[0])
    engine.generate(input_ids=prompts, sampling_params=sampling)
    metas: list[dict[str, Any]] = []

    def one_batch() -> int:
        outputs = engine.generate(input_ids=prompts, sampling_params=sampling)
        metas.extend(output["meta_info"] for output in outputs)
        return sum(kit.num_legal(output["output_ids"], vocab_size) for output in outputs)

    window = kit.measure_window(request, messages, one_batch, processor_clock=processor_seconds)
    kit.tell(
        messages,
        event="result",
        **window,
        logits_finite=logits_finite,
        **summarise(metas, window["window_seconds"], version),
    )


def engine_arguments(request: dict[str, Any], options: frozenset[str], *, on_gpu: bool) -> dict[str, Any]:
    """What SGLang's `Engine` is built from: everything that could differ by default is given.

    Args:
        request: the driver's input.
        options: names that this version's server arguments have.
        on_gpu: whether a GPU is there.

    Raises:
        RefusedError: several devices are asked for where there is a CPU.
    """
    batch_size, num_devices = request["batch_size"], request["tensor_parallel_size"]
    if num_devices > 1 and not on_gpu:
        raise kit.RefusedError(
            f"tensor_parallel_size {num_devices} was asked for, and on a CPU SGLang is measured with one scheduler; "
            "expected tensor_parallel_size 1, or a machine with as many GPUs"
        )
    length = request["input_tokens"] + request["output_tokens"]
    prefill = max(MAX_PREFILL_TOKENS, batch_size)
    arguments = {
        "model_path": request["config_directory"],
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "dtype": request["dtype"],
        "quantization": request["quantization"],
        "kv_cache_dtype": request["kv_cache_dtype"],
        "tp_size": num_devices,
        "random_seed": request["seed"],
        "context_length": length + RESERVED_PLACES,
        "max_running_requests": batch_size,
        "chunked_prefill_size": prefill,
        "max_prefill_tokens": prefill,
        "disable_radix_cache": True,
        "enable_metrics": True,  # else no times of requests are told
        "log_level": "error",
    }
    if on_gpu:
        (graph, *_) = [name for name in LARGEST_GRAPH if name in options] or LARGEST_GRAPH
        return arguments | {"mem_fraction_static": MEMORY_FRACTION, graph: batch_size}
    return arguments | {
        "device": "cpu",
        "attention_backend": "torch_native",
        "sampling_backend": "pytorch",
        "disable_overlap_schedule": True,
        "disable_cuda_graph": True,
        "mem_fraction_static": CPU_MEMORY_FRACTION,
        "max_total_tokens": math.ceil(1.1 * batch_size * (length + RESERVED_PLACES)),
    }


def option_names(server_args: Any) -> frozenset[str]:
    """Names of a version's server arguments, a dataclass once and a msgspec structure since."""
    return frozenset(getattr(server_args, "__struct_fields__", None) or server_args.__dataclass_fields__)


def are_logits_finite(engine: Any, prompt: list[int]) -> bool:
    """Whether the logarithmic probability of one prompt's first token is a number."""
    sampling = {"temperature": 0, "max_new_tokens": 1, "ignore_eos": True}
    output = engine.generate(input_ids=prompt, sampling_params=sampling, return_logprob=True)
    tokens = output["meta_info"]["output_token_logprobs"]
    return bool(tokens) and all(math.isfinite(each[0]) for each in tokens)


def num_parameters(model: Any) -> int:
    """Weights of the architecture as SGLang built it, from the layers' whole sizes.

    SGLang merges matrices, pads vocabularies to multiples of 64, and splits both over devices.
    """
    counted: dict[int, int] = {}
    vocabularies: dict[int, int] = {}
    for module in model.modules():
        if hasattr(module, "org_vocab_size") and hasattr(module, "embedding_dim"):
            vocabularies[id(module.weight)] = module.org_vocab_size * module.embedding_dim
        elif hasattr(module, "input_size") and hasattr(module, "output_size"):
            counted[id(module)] = module.input_size * module.output_size
        elif not any(True for _ in module.children()):
            counted.update((id(p), p.numel()) for p in module.parameters(recurse=False))
    return sum(counted.values()) + sum(vocabularies.values())


def processor_seconds() -> float:
    """Processor time of this process and of all that it started and that still run."""
    import psutil  # type: ignore[import-untyped]

    this = psutil.Process()
    times = [process.cpu_times() for process in (this, *this.children(recursive=True))]
    return float(sum(each.user + each.system for each in times))


def summarise(metas: list[dict[str, Any]], window_seconds: float, version: str) -> dict[str, Any]:
    """Counts, mean running sequences and percentiles of latencies, from what SGLang says of each request."""
    name = {word: kit.name_in(NAMES, version, word) for word in NAMES}
    fields: dict[str, Any] = {
        f"num_{word}": sum(each[name[word]] for each in metas)
        for word in ("preemptions", "prefix_hits")
        if all(name[word] in each for each in metas)
    }
    words = ("received", "scheduled", "first_token", "finished")
    if not metas or any(name[word] not in each for word in words for each in metas):
        absent = dict.fromkeys(("mean_running_sequences", "ttft", "tpot", "itl"), NO_TIMES)
        return {**fields, "not_measured": absent}
    times = [{word: each[name[word]] for word in words} for each in metas]
    lengths = [each["completion_tokens"] for each in metas]
    paces = [
        (each["finished"] - each["first_token"]) / (length - 1)
        for each, length in zip(times, lengths, strict=True)
        if length > 1
    ]
    return {
        **fields,
        "mean_running_sequences": sum(each["finished"] - each["scheduled"] for each in times) / window_seconds,
        **kit.latency_fields(
            ttft=[each["first_token"] - each["received"] for each in times], tpot=paces, itl=NO_TOKEN_TIMES
        ),
    }


if __name__ == "__main__":
    sys.exit(kit.serve(sys.argv[1], run))
