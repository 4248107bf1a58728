"""The transformers engine: static batches through `generate`. Run as a script by the engine's own interpreter.

    python transformers_driver.py REQUEST.json

Speaks the protocol of `base.py` on its standard output and imports nothing of archfleet but `driver_kit.py`, which
lies beside it. One batch is `batch_size`
prompts of random token ids, decoded greedily for exactly `output_tokens` (no end-of-text id). After one warm-up pass
at the measured shape, whole batches are generated until `min_window_seconds` have gone by.
"""

import os
import sys
import time
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
        kit.tell(messages, event="progress", window_seconds=window_seconds)
    kit.tell(
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
    return {**kit.common_versions(), "attention": "sdpa"}


if __name__ == "__main__":
    sys.exit(kit.serve(sys.argv[1], run))
