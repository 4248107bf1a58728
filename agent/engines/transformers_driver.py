"""The transformers engine: static batches through `generate`. Run as a script by the engine's own interpreter.

    python transformers_driver.py REQUEST.json

Speaks the protocol of `base.py` on its standard output and imports nothing of archfleet. One batch is `batch_size`
prompts of random token ids, decoded greedily for exactly `output_tokens` (no end-of-text id). After one warm-up pass
at the measured shape, whole batches are generated until `min_window_seconds` have gone by.
"""

import json
import os
import platform
import signal
import sys
import threading
import time
from typing import Any, TextIO

# Run by path, this folder leads the import path; its modules must not shadow the engine's.
if sys.path and os.path.realpath(sys.path[0]) == os.path.dirname(os.path.realpath(__file__)):  # noqa: PTH120
    del sys.path[0]

MEMORY_PHRASES = ("out of memory", "can't allocate memory", "not enough memory")


def main(request_file: str) -> int:
    """Load, warm up, measure; tell every step. Returns the exit status."""
    messages = claim_stdout()
    threading.Thread(target=die_with_agent, daemon=True).start()
    try:
        with open(request_file, encoding="utf-8") as file:  # noqa: PTH123
            request = json.load(file)
        run(request, messages)
    except Exception as error:  # the one border of this process: every error becomes a message
        tell(
            messages, event="error", failure_kind=failure_kind(error), message=f"{type(error).__name__}: {error}"[:500]
        )
        raise
    return 0


def run(request: dict[str, Any], messages: TextIO) -> None:
    """Build the model and measure it."""
    import torch

    torch.set_num_threads(request["num_threads"])
    torch.manual_seed(request["seed"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build_model(request, device)
    prompts = torch.randint(0, model.config.vocab_size, (request["batch_size"], request["input_tokens"])).to(device)
    tell(
        messages,
        event="ready",
        versions=versions(),
        device=describe(device),
        num_total_parameters=sum(parameter.numel() for parameter in model.parameters()),
    )
    with torch.inference_mode():
        logits_finite = bool(torch.isfinite(model(prompts[:1]).logits).all())
        generate(model, prompts, request["output_tokens"])
        measure(model, prompts, request, messages, logits_finite)


def measure(model: Any, prompts: Any, request: dict[str, Any], messages: TextIO, logits_finite: bool) -> None:
    """Whole batches until the window is long enough."""
    num_batches = num_output_tokens = 0
    started, cpu_started = time.perf_counter(), time.process_time()
    window_seconds = 0.0
    while num_batches == 0 or window_seconds < request["min_window_seconds"]:
        num_output_tokens += generate(model, prompts, request["output_tokens"])
        num_batches += 1
        window_seconds = time.perf_counter() - started
        tell(messages, event="progress", window_seconds=window_seconds)
    tell(
        messages,
        event="result",
        window_seconds=window_seconds,
        cpu_seconds=time.process_time() - cpu_started,
        num_batches=num_batches,
        num_output_tokens=num_output_tokens,
        logits_finite=logits_finite,
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


def generate(model: Any, prompts: Any, output_tokens: int) -> int:
    """Generate one batch; return the number of tokens that came out, all on the host by then."""
    import torch

    output = model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        min_new_tokens=output_tokens,
        max_new_tokens=output_tokens,
        do_sample=False,
    )
    new_tokens = output[:, prompts.shape[1] :].cpu()  # waits for the device
    legal = (new_tokens >= 0) & (new_tokens < model.config.vocab_size)
    return int(legal.sum())


def versions() -> dict[str, str]:
    """Versions of all that the number depends on."""
    import torch
    import transformers

    found = {
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "engine_python": platform.python_version(),
        "attention": "sdpa",
    }
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    return found


def describe(device: Any) -> dict[str, Any]:
    """What the device says of itself."""
    import torch

    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return {"kind": "gpu", "name": properties.name, "memory_bytes": properties.total_memory}
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"kind": "cpu", "name": cpu_model(), "memory_bytes": memory_bytes}


def cpu_model() -> str:
    """The processor's name as the kernel knows it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:  # noqa: PTH123
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def failure_kind(error: Exception) -> str:
    """The kind of failure in archfleet's words."""
    text = str(error).lower()
    if isinstance(error, MemoryError) or any(phrase in text for phrase in MEMORY_PHRASES):
        return "out-of-memory"
    if "cuda error" in text:
        return "hardware"
    if isinstance(error, ImportError):
        return "engine-start"
    return "validation" if isinstance(error, ValueError) else "unknown"


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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
