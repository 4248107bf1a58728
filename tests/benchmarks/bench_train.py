"""How fast proxies train: on a CPU beside a plain loop and transformers' Trainer in turns, on a GPU as MFU.

    python tests/benchmarks/bench_train.py [--json] [--sizes 100k 10m] [--rounds 8] [--stall 297m]
    python tests/benchmarks/bench_train.py --gpu [--sizes 80m 145m 297m 1b] [--vocabularies 32000 128256] > speed.json

CPU: tokens per second of processor time of this process, one thread, fp32. All ways train the same shape on as many
tokens; each round runs every way in turn, and a ratio is the geometric mean over rounds of ours over theirs with a 95 %
t-interval of its logarithm: another's work on the machine slows all of them alike. `--stall` tells for how long a
checkpoint of a model of that size holds the loop up. The Trainer needs accelerate (`make bench-train` fetches it).

GPU: bf16, T = 2048; wall time after a synchronisation at both ends; MFU is PaLM's over the sheet's dense bf16 peak. The
JSON is what `hwprofiles/data/measured/` keeps: figures with the board's fingerprint.
"""

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import t as student_t
from torch import Tensor, nn
from torch.nn import functional

from agent.assignment import TrainAssignment
from agent.device import describe_device, gpu_fingerprint, versions
from agent.sensors import open_sensor
from agent.training.checkpoint import RunState
from agent.training.data import TokenStream
from agent.training.folder import LocalFolder
from agent.training.loss import SummedLoss
from agent.training.micro_batch import train_flops_per_token
from agent.training.model import Decoder
from agent.training.optim import make_optimizer
from agent.training.run import Telemetry
from agent.training.telemetry import PowerMeter, memory_bytes, peak_flops_per_second
from agent.training.trainer import Trainer
from agent.training.writer import CheckpointWriter
from scaling.architecture import Architecture
from scaling.observations import Progress
from scaling.recipes import FanIns, TrainingRecipe

ACCELERATE = Path(__file__).parents[2] / ".engines" / "accelerate"
"""Where `make bench-train` puts the package that the Trainer needs."""
TOO_LONG_TO_END = 10**7  # steps: a run that is measured never decays, nor diverges


def shape(
    hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, head_dim: int, vocab: int
) -> Architecture:
    """An architecture with tied embeddings."""
    return Architecture(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=vocab,
    )


SHAPES = {
    "tiny": shape(16, 24, 1, 2, 1, 8, 64),
    "100k": shape(64, 196, 2, 4, 2, 16, 1024),
    "10m": shape(384, 1024, 6, 6, 3, 64, 1024),
    "80m": shape(768, 2240, 12, 12, 4, 64, 32_000),
    "145m": shape(1024, 3072, 12, 16, 4, 64, 32_000),
    "297m": shape(1536, 4000, 12, 24, 8, 64, 32_000),
    "1b": shape(2048, 8192, 16, 32, 8, 64, 32_000),
}
GOALS = {
    (32_000, "80m"): 470e3,
    (32_000, "145m"): 320e3,
    (32_000, "297m"): 190e3,
    (32_000, "1b"): 74e3,
    (128_256, "80m"): 315e3,
    (128_256, "145m"): 230e3,
    (128_256, "297m"): 145e3,
    (128_256, "1b"): 63e3,
}
"""Tokens/s asked of one H200."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--gpu", action="store_true", help="MFU and tokens/s on an accelerator, as JSON")
    parser.add_argument("--device", default=None, help="with --gpu: where; by default cuda")
    parser.add_argument("--sizes", nargs="+", choices=sorted(SHAPES), default=None)
    parser.add_argument("--vocabularies", nargs="+", type=int, default=[32_000, 128_256], help="with --gpu")
    parser.add_argument("--sequence-length", type=int, default=None, help="by default 128, with --gpu 2048")
    parser.add_argument("--batch-tokens", type=int, default=None, help="a step; by default 512, with --gpu 524288")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=None, help="a round; by default as many as take a second or so")
    parser.add_argument("--without", nargs="*", default=[], choices=list(WAYS), help="ways to leave out")
    parser.add_argument(
        "--stall", choices=sorted(SHAPES), default=None, help="measure a checkpoint's stall at this size"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.gpu:
        print(json.dumps(measure_gpu(options), indent=1))
        return
    record = measure_cpu(options)
    if options.json:
        print(json.dumps(record, indent=1))
    else:
        show(record, Console())


# --- CPU: ways of training one shape -------------------------------------------------------------------------------


class Way(Protocol):
    """Something that trains."""

    def processor_seconds(self, num_steps: int) -> float:
        """Processor time of so many steps."""


def random_tokens(architecture: Architecture, sequence_length: int) -> Any:
    """Tokens in a skewed order of frequencies; at least two hundred windows."""
    source = np.random.default_rng(0)
    return (source.zipf(1.3, max(200_000, 200 * sequence_length)) % architecture.vocab_size).astype(np.uint32)


def make_trainer(
    architecture: Architecture, *, sequence_length: int, batch_tokens: int, device: str = "cpu"
) -> Trainer:
    """Our trainer on random tokens, in a run that does not end."""
    recipe = TrainingRecipe(
        num_tokens=TOO_LONG_TO_END * batch_tokens,
        sequence_length=sequence_length,
        batch_tokens=batch_tokens,
        base_learning_rate=1e-3,
        base_fan_ins=FanIns(
            hidden=architecture.hidden_size,
            attention=architecture.query_width,
            mlp=architecture.intermediate_size,
        ),
    )
    stream = TokenStream(
        random_tokens(architecture, sequence_length),
        sequence_length=sequence_length,
        batch_tokens=batch_tokens,
        order_seed=0,
    )
    assignment = TrainAssignment(architecture=architecture, recipe=recipe, corpus_id="synthetic")
    directory = Path(tempfile.gettempdir()) / "archfleet-bench-never-written"
    return Trainer(assignment, stream, device=device, directory=directory)


class Ours:
    """agent.training.trainer."""

    def __init__(self, architecture: Architecture, sequence_length: int, batch_tokens: int, *, compiled: bool) -> None:
        self.trainer = make_trainer(architecture, sequence_length=sequence_length, batch_tokens=batch_tokens)
        layers = self.trainer.compile("on" if compiled else "off")
        if compiled and layers != "compiled":
            raise RuntimeError(layers)

    def processor_seconds(self, num_steps: int) -> float:
        return timed(self.trainer.step, num_steps)


def timed(step: Callable[[], object], num_steps: int) -> float:
    """Processor seconds of so many calls."""
    started = time.process_time()
    for _ in range(num_steps):
        step()
    return time.process_time() - started


class PlainLayer(nn.Module):
    """A decoder layer as one would write it: a matrix a projection."""

    def __init__(self, a: Architecture) -> None:
        super().__init__()
        self.a = a
        d, A, G, f = a.hidden_size, a.query_width, a.key_value_width, a.intermediate_size
        self.attention_norm, self.mlp_norm = nn.RMSNorm(d, eps=1e-5), nn.RMSNorm(d, eps=1e-5)
        self.q, self.k, self.v = (nn.Linear(d, width, bias=False) for width in (A, G, G))
        self.output, self.down = nn.Linear(A, d, bias=False), nn.Linear(f, d, bias=False)
        self.gate, self.up = nn.Linear(d, f, bias=False), nn.Linear(d, f, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        a, (B, T, _) = self.a, x.shape
        normed = self.attention_norm(x)
        q = rotated(self.q(normed).view(B, T, a.num_attention_heads, a.head_dim).transpose(1, 2), cos, sin)
        k = rotated(self.k(normed).view(B, T, a.num_key_value_heads, a.head_dim).transpose(1, 2), cos, sin)
        v = self.v(normed).view(B, T, a.num_key_value_heads, a.head_dim).transpose(1, 2)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.output(mixed.transpose(1, 2).reshape(B, T, a.query_width))
        normed = self.mlp_norm(x)
        down: Tensor = self.down(functional.silu(self.gate(normed)) * self.up(normed))
        return x + down


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions, half-split."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class PlainModel(nn.Module):
    """Tokens and targets → mean cross-entropy, in forty lines, as nanoGPT does it."""

    def __init__(self, a: Architecture, sequence_length: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(a.vocab_size, a.hidden_size)
        nn.init.normal_(self.embedding.weight, std=a.hidden_size**-0.5)
        self.layers = nn.ModuleList(PlainLayer(a) for _ in range(a.num_hidden_layers))
        self.norm = nn.RMSNorm(a.hidden_size, eps=1e-5)
        frequencies = 10000.0 ** (-torch.arange(0, a.head_dim, 2) / a.head_dim)
        angles = torch.arange(sequence_length)[:, None] * frequencies
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x, self.cos, self.sin)
        logits = functional.linear(self.norm(x), self.embedding.weight)
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


class Plain:
    """A minimal hand-written loop: nothing but what training needs."""

    def __init__(self, architecture: Architecture, sequence_length: int, batch_tokens: int) -> None:
        self._model = PlainModel(architecture, sequence_length)
        self._optimizer = torch.optim.AdamW(
            self._model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True
        )
        self._tokens = torch.from_numpy(random_tokens(architecture, sequence_length).astype(np.int64))
        self._length, self._sequences = sequence_length, batch_tokens // sequence_length

    def processor_seconds(self, num_steps: int) -> float:
        return timed(self._step, num_steps)

    def _step(self) -> None:
        starts = torch.randint(len(self._tokens) - self._length - 1, (self._sequences,)).tolist()
        inputs = torch.stack([self._tokens[start : start + self._length] for start in starts])
        targets = torch.stack([self._tokens[start + 1 : start + 1 + self._length] for start in starts])
        self._model(inputs, targets).backward()
        nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)


class TransformersTrainer:
    """transformers' Llama under its Trainer; a step's time is what lies between its callbacks."""

    _UNTIMED_STEPS = 2

    def __init__(self, architecture: Architecture, sequence_length: int, batch_tokens: int) -> None:
        if ACCELERATE.is_dir():
            sys.path.append(str(ACCELERATE))
        import accelerate  # type: ignore[import-not-found] # noqa: F401
        from transformers import LlamaConfig, LlamaForCausalLM

        config = architecture.to_hf_config(max_position_embeddings=sequence_length)
        config |= {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "use_cache": False}
        self._model = LlamaForCausalLM(LlamaConfig.from_dict(config))
        windows = torch.from_numpy(random_tokens(architecture, sequence_length).astype(np.int64))
        windows = windows[: len(windows) // sequence_length * sequence_length].view(-1, sequence_length)
        self._windows = [{"input_ids": window, "labels": window} for window in windows]
        self._sequences = batch_tokens // sequence_length

    def processor_seconds(self, num_steps: int) -> float:
        import transformers
        from transformers import TrainerCallback, TrainingArguments

        untimed = self._UNTIMED_STEPS
        stamps: list[float] = []

        class Stamps(TrainerCallback):  # type: ignore[misc]
            def on_step_end(self, *_: Any, **__: Any) -> None:
                stamps.append(time.process_time())

        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder,
                max_steps=num_steps + untimed,
                per_device_train_batch_size=self._sequences,
                learning_rate=1e-3,
                lr_scheduler_type="constant",
                weight_decay=0.1,
                adam_beta2=0.95,
                max_grad_norm=1.0,
                optim="adamw_torch_fused",
                logging_strategy="no",
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                use_cpu=True,
                dataloader_pin_memory=False,
            )
            trainer = transformers.Trainer(
                model=self._model, args=arguments, train_dataset=self._windows, callbacks=[Stamps()]
            )
            trainer.remove_callback(transformers.PrinterCallback)
            trainer.train()
        return stamps[-1] - stamps[untimed - 1]


WAYS: dict[str, Callable[[Architecture, int, int], Way]] = {
    "ours": lambda a, length, tokens: Ours(a, length, tokens, compiled=False),
    "ours, compiled": lambda a, length, tokens: Ours(a, length, tokens, compiled=True),
    "plain loop": Plain,
    "transformers Trainer": TransformersTrainer,
}


def measure_cpu(options: argparse.Namespace) -> dict[str, Any]:
    """Speeds of all ways in turns, what reporting costs, and what a checkpoint holds up."""
    length, batch = options.sequence_length or 128, options.batch_tokens or 512
    sizes = options.sizes or ["100k", "10m"]
    rows = [row for size in sizes for row in compare(size, length, batch, options)]
    return {
        "versions": dict(versions()),
        "load_average": os.getloadavg()[0],
        "sequence_length": length,
        "batch_tokens": batch,
        "speed": rows,
        "reporting": reporting_cost(SHAPES[sizes[0]], length, batch),
        "checkpoint": checkpoint_stall(options.stall) if options.stall else None,
    }


def compare(size: str, sequence_length: int, batch_tokens: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row a way: tokens per processor second, and ours over it."""
    ways: dict[str, Way] = {}
    absent: dict[str, str] = {}
    for name, make in WAYS.items():
        if name in options.without:
            absent[name] = "left out"
            continue
        try:
            ways[name] = make(SHAPES[size], sequence_length, batch_tokens)
        except (ImportError, RuntimeError) as error:
            absent[name] = f"{error}"
    seconds_a_step = min(way.processor_seconds(2) for way in ways.values()) / 2
    num_steps = options.steps or max(3, math.ceil(1.0 / seconds_a_step))
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(options.rounds):
        order = list(ways) if number % 2 == 0 else list(ways)[::-1]
        for name in order:
            speeds[name].append(num_steps * batch_tokens / ways[name].processor_seconds(num_steps))
    rows = [
        {
            "size": size,
            "way": name,
            "tokens_per_processor_second": statistics.median(found),
            "ours_over_this": ratio(speeds["ours"], found) if "ours" in speeds else None,
            "num_rounds": options.rounds,
            "why_not": None,
        }
        for name, found in speeds.items()
    ]
    nothing = {"size": size, "tokens_per_processor_second": None, "ours_over_this": None, "num_rounds": 0}
    return rows + [nothing | {"way": name, "why_not": reason} for name, reason in absent.items()]


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float | None]:
    """Geometric mean of the rounds' ratios with a 95 % t-interval of its logarithm; null bounds for one round."""
    return interval([our / their for our, their in zip(ours, theirs, strict=True)])


def interval(values: Sequence[float]) -> dict[str, float | None]:
    """Geometric mean and 95 % t-interval of positive values."""
    logs = [math.log(value) for value in values]
    centre = statistics.mean(logs)
    if len(logs) < 2:
        return {"mean": math.exp(centre), "low": None, "high": None}
    half = float(student_t.ppf(0.975, len(logs) - 1)) * statistics.stdev(logs) / math.sqrt(len(logs))
    return {"mean": math.exp(centre), "low": math.exp(centre - half), "high": math.exp(centre + half)}


def reporting_cost(architecture: Architecture, sequence_length: int, batch_tokens: int) -> dict[str, float]:
    """Processor seconds of one report, point, sensors and JSON, over the second between two reports."""
    trainer = make_trainer(architecture, sequence_length=sequence_length, batch_tokens=batch_tokens)
    meter = PowerMeter(open_sensor("cpu"))
    telemetry = Telemetry(trainer, meter, 1e15)
    num_reports, seconds = 50, 0.0
    for _ in range(num_reports):
        trainer.step()
        trainer.curve.read()  # what the steps cost is theirs
        started = time.process_time()
        point = trainer.point()
        assert point is not None
        told = telemetry.add_to(point, 1.0)
        Progress(assignment_id="a", done_fraction=0.5, message="loss", point=told).model_dump_json()
        seconds += time.process_time() - started
    meter.close()
    return {"seconds_a_report": seconds / num_reports, "share_of_step_time": seconds / num_reports}


def checkpoint_stall(size: str) -> dict[str, Any]:
    """For how long a checkpoint holds the loop up, and how long its writing takes beside the loop; wall time.

    A stall is what beginning takes, and what the next update of the weights waits for the copy; the gradients between
    are formed on 8 tokens, the least that a step could be.
    """
    architecture = SHAPES[size]
    model = Decoder(architecture, max_sequence_length=8)
    optimizer = make_optimizer(model, TrainingRecipe(num_tokens=1))
    for parameter in model.parameters():
        with torch.no_grad():
            parameter.fill_(0.5)
        moments = {name: torch.ones_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
        optimizer.state[parameter] = {"step": torch.tensor(1.0), **moments}
    loss, tokens = SummedLoss(model), torch.zeros(1, 8, dtype=torch.int64)
    stalls, copies, writes = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        writer = CheckpointWriter(LocalFolder(Path(folder)), model, optimizer, assignment_hash="bench")
        for step in range(2):
            started = time.monotonic()
            writer.begin(RunState(step=step))
            begun = time.monotonic()
            loss(tokens, tokens).backward()  # what a run does before its weights change, here on the fewest tokens
            computed = time.monotonic()
            writer.wait_copied()
            stalls.append(begun - started + time.monotonic() - computed)
            copies.append(time.monotonic() - started)
            loss.zero_grad(set_to_none=True)
            writer.wait()
            writes.append(writer.write_seconds)
    return {
        "size": size,
        "num_parameters": architecture.num_total_parameters,
        "num_bytes": 12 * architecture.num_total_parameters,
        "stall_seconds": stalls,
        "seconds_to_the_update": copies,
        "write_seconds": writes,
        "goal_stall_seconds": 1.0,
    }


def show(record: dict[str, Any], console: Console) -> None:
    """Tables for people."""
    table = Table(title=f"training on one thread, fp32, {record['batch_tokens']} tokens a step")
    for column in ("size", "way", "tokens per CPU-second", "ours / this (95 %)"):
        table.add_column(column)
    for row in record["speed"]:
        if row["why_not"]:
            table.add_row(row["size"], row["way"], "not measured", row["why_not"])
            continue
        table.add_row(
            row["size"], row["way"], f"{row['tokens_per_processor_second']:,.0f}", as_text(row["ours_over_this"])
        )
    console.print(table)
    cost = record["reporting"]
    console.print(
        f"one report a second: {1e3 * cost['seconds_a_report']:.2f} ms, "
        f"{100 * cost['share_of_step_time']:.2f} % of the step time (goal: below 1 %)"
    )
    if found := record["checkpoint"]:
        stalls = ", ".join(f"{seconds:.2f}" for seconds in found["stall_seconds"])
        writes = ", ".join(f"{seconds:.1f}" for seconds in found["write_seconds"])
        console.print(
            f"checkpoint at {found['size']} ({found['num_parameters']:,} parameters): holds the loop up for {stalls} s "
            f"(goal: below 1 s), written beside it in {writes} s"
        )
    console.print(f"load average of the machine: {record['load_average']:.1f}")


def as_text(found: dict[str, float | None] | None) -> str:
    """A ratio with its interval."""
    if found is None:
        return ""
    if found["low"] is None:
        return f"{found['mean']:.2f}"
    return f"{found['mean']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


# --- GPU: MFU ------------------------------------------------------------------------------------------------------


def measure_gpu(options: argparse.Namespace) -> dict[str, Any]:
    """One row a size and vocabulary, with the fingerprint of the board."""
    device = options.device or "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no CUDA device; expected one, or --device cpu for a trial of the command itself")
    described = describe_device(on_gpu=device == "cuda")
    peak = peak_flops_per_second(described.hardware)
    rows = [
        gpu_row(size, vocabulary, device=device, peak=peak, options=options)
        for size in options.sizes or ["80m", "145m", "297m", "1b"]
        for vocabulary in options.vocabularies
    ]
    return {
        "schema_version": 1,
        "kind": "training-speed",
        "hardware": described.hardware,
        "device": described.name,
        "fingerprint": dict(gpu_fingerprint()),
        "versions": dict(versions()),
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "peak_flops_per_second": peak,
        "mfu_convention": "PaLM: 6 · parameters that multiply + 12 · L · A · T per token, dense bf16 peak",
        "rows": rows,
    }


def gpu_row(
    size: str, vocabulary: int, *, device: str, peak: float | None, options: argparse.Namespace
) -> dict[str, Any]:
    """Tokens/s and MFU of one shape; wall time between two synchronisations a round."""
    architecture = SHAPES[size].model_copy(update={"vocab_size": vocabulary})
    length, batch = options.sequence_length or 2048, options.batch_tokens or 524_288
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    trainer = make_trainer(architecture, sequence_length=length, batch_tokens=batch, device=device)
    started = time.monotonic()
    layers = trainer.compile("auto" if device == "cuda" else "off")
    compile_seconds = time.monotonic() - started
    for _ in range(2):
        trainer.step()
    trainer.point()
    rates = []
    for _ in range(options.rounds):
        started = time.monotonic()
        for _ in range(options.steps or 3):
            trainer.step()
        trainer.point()  # waits for the device
        rates.append((options.steps or 3) * batch / (time.monotonic() - started))
    trainer.close()
    rate = interval(rates)
    flops = train_flops_per_token(architecture, length)
    mfu = {key: None if value is None or peak is None else value * flops / peak for key, value in rate.items()}
    return {
        "size": size,
        "architecture": architecture.model_dump(),
        "sequence_length": length,
        "batch_tokens": batch,
        "micro_batch_sequences": trainer.micro_batch,
        "layers": layers,
        "compile_seconds": compile_seconds,
        "tokens_per_second": rate,
        "goal_tokens_per_second": GOALS.get((vocabulary, size)),
        "mfu": mfu if peak else None,
        "why_no_mfu": None if peak else "the device's sheet has no dense bf16 peak",
        "memory_bytes": memory_bytes(trainer.device),
        "num_rounds": options.rounds,
    }


if __name__ == "__main__":
    main()
