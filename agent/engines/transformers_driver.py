"""The transformers engine: static batches through `generate`. Run as a script by the engine's own interpreter.

    python transformers_driver.py REQUEST.json

Speaks the protocol of `base.py` on its standard output and imports nothing of archfleet but `driver_kit.py`, which
lies beside it. One batch is `batch_size`
prompts of random token ids, decoded greedily for exactly `output_tokens` (no end-of-text id). After one warm-up pass
at the measured shape, whole batches are generated until `min_window_seconds` have gone by.

All requests of a batch start and step together, so they share their latencies: TTFT is from the call of `generate` to
the end of its first step, ITL from the end of a step to the end of the next, TPOT the mean of a batch's ITLs. Ends of
steps are read from the host's clock on a CPU, where a step has then been computed; on a GPU from the device's own
events, recorded after each step, so that nothing waits for them.
"""

import os
import sys
import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TextIO

# Imported, or run by path in an interpreter that need not have archfleet: see driver_kit.py.
if TYPE_CHECKING or __package__:
    from agent.engines import driver_kit as kit
else:
    sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # noqa: PTH120
    import driver_kit as kit

    kit.hide_drivers_folder()


def run(request: dict[str, Any], messages: TextIO) -> None:
    """Build the model and measure it."""
    refuse_unsupported(request)
    import torch

    torch.set_num_threads(request["num_threads"])
    torch.manual_seed(request["seed"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build_model(request, device)
    prompts = torch.randint(0, model.config.vocab_size, (request["batch_size"], request["input_tokens"])).to(device)
    kit.tell(
        messages,
        event="ready",
        versions=versions(),
        device=kit.describe_device(on_gpu=device.type == "cuda"),
        num_total_parameters=sum(parameter.numel() for parameter in model.parameters()),
    )
    with torch.inference_mode():
        logits_finite = bool(torch.isfinite(model(prompts[:1]).logits).all())
        generate(model, prompts, request["output_tokens"], new_clock(device))
        measure(model, prompts, request, messages, logits_finite)


def measure(model: Any, prompts: Any, request: dict[str, Any], messages: TextIO, logits_finite: bool) -> None:
    """Whole batches until the window is long enough."""
    clock, batches = new_clock(prompts.device), list[list[float]]()

    def one_batch() -> int:
        num_tokens = generate(model, prompts, request["output_tokens"], clock)
        batches.append(clock.step_seconds())
        return num_tokens

    window = kit.measure_window(request, messages, one_batch)
    kit.tell(
        messages,
        event="result",
        **window,
        logits_finite=logits_finite,
        **summarise_steps(batches),
    )


def refuse_unsupported(request: dict[str, Any]) -> None:
    """Say in one sentence what of the request this engine cannot do.

    Raises:
        RefusedError: it cannot do all of it.
    """
    possible = {"quantization": (None,), "kv_cache_dtype": ("auto", request["dtype"]), "tensor_parallel_size": (1,)}
    refused = [f"{name} {request[name]!r}" for name, values in possible.items() if request[name] not in values]
    if refused:
        raise kit.RefusedError(
            f"the transformers engine cannot do {' or '.join(refused)}: it keeps weights, keys and values in the "
            "recipe's dtype, on one device; expected a recipe without these keys, or another engine"
        )


class HostClock:
    """Ends of steps by this process's clock, as a stopping criterion that never stops: called once a step."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def start(self) -> None:
        """A batch begins."""
        self.ends = [time.perf_counter()]

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        """A step has ended; no sequence is to stop."""
        self.ends.append(time.perf_counter())
        return input_ids.new_zeros(input_ids.shape[0], dtype=bool)

    def step_seconds(self) -> list[float]:
        """How long each step of the last batch took."""
        return [end - start for start, end in pairwise(self.ends)]


class DeviceClock:
    """Ends of steps by the accelerator's clock: `HostClock` where steps are only enqueued when it is called."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def start(self) -> None:
        """A batch begins; the device is idle."""
        self.events = [_event_now()]

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        """A step was enqueued, and its event after it; no sequence is to stop."""
        self.events.append(_event_now())
        return input_ids.new_zeros(input_ids.shape[0], dtype=bool)

    def step_seconds(self) -> list[float]:
        """How long each step of the last batch took; the device has reached its end."""
        self.events[-1].synchronize()
        return [start.elapsed_time(end) / 1000 for start, end in pairwise(self.events)]


def _event_now() -> Any:
    import torch

    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def new_clock(device: Any) -> HostClock | DeviceClock:
    """The clock of a device's steps."""
    return DeviceClock() if device.type == "cuda" else HostClock()


def summarise_steps(batches: list[list[float]]) -> dict[str, Any]:
    """Percentiles of the latencies, from each batch's seconds by step; every request of a batch counts the same."""
    further = [steps[1:] for steps in batches if len(steps) > 1]
    return kit.latency_fields(
        ttft=[steps[0] for steps in batches],
        tpot=[sum(gaps) / len(gaps) for gaps in further],
        itl=[gap for gaps in further for gap in gaps],
    )


def build_model(request: dict[str, Any], device: Any) -> Any:
    """The causal language model of config.json with random weights, in evaluation mode."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(request["config_directory"], local_files_only=True)
    torch.set_default_dtype(getattr(torch, request["dtype"]))
    config.dtype = getattr(torch, request["dtype"])
    with device:
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    torch.set_default_dtype(torch.float32)
    model.generation_config.eos_token_id = None  # lengths are exact: nothing ends a sequence early
    model.generation_config.pad_token_id = 0
    return model.to(device=device, dtype=getattr(torch, request["dtype"]))


def generate(model: Any, prompts: Any, output_tokens: int, clock: HostClock | DeviceClock) -> int:
    """Generate one batch; return the number of tokens that came out, all on the host by then."""
    import torch

    clock.start()
    output = model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        min_new_tokens=output_tokens,
        max_new_tokens=output_tokens,
        do_sample=False,
        stopping_criteria=[clock],
    )
    new_tokens = output[:, prompts.shape[1] :].cpu()  # waits for the device
    legal = (new_tokens >= 0) & (new_tokens < model.config.vocab_size)
    return int(legal.sum())


def versions() -> dict[str, str]:
    """Versions of all that the number depends on."""
    return {**kit.common_versions(), "attention": "sdpa"}


if __name__ == "__main__":
    sys.exit(kit.serve(sys.argv[1], run))
