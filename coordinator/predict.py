"""`archfleet predict`: predictions as a table. Every number here is predicted, and names what it rests on."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError
from rich.table import Table

from agent.benchmark.configs import read_config
from coordinator.errors import UserError
from coordinator.seal import require_seal
from hwprofiles.catalog import load_profile, read_profile
from hwprofiles.profile import HardwareProfile
from scaling.observations import ServingObservation
from scaling.quantity import NotMeasured, Predicted
from scaling.recipes import ServingRecipe
from scaling.serving import BASIS, parse_batch_sizes, predict_batches
from scaling.throughput_fit import EngineKey, NoThroughputFit, ThroughputFit, fit_throughput, group_runs
from scaling.weight_formats import recipe_words

DEFAULT_HARDWARE = "h200"
DEFAULT_DTYPE = "bfloat16"


def run_prediction(
    config: str,
    *,
    hardware: str | None = None,
    batches: str = "128..4096",
    input_tokens: int = 1024,
    output_tokens: int = 1024,
    dtype: Any = None,
    engine: str | None = None,
    profile: Path | None = None,
    observations: Path | None = None,
    clock: Any = "wall",
    quantization: str | None = None,
    kv_cache_dtype: Any = "auto",
    tensor_parallel_size: int = 1,
) -> list[dict[str, Any]]:
    """One ServingPrediction as JSON a batch size.

    Args:
        config: a config.json or a named architecture.
        hardware: a sheet's id; by default the measured profile's, or the H200's.
        batches: "64", "64,96" or "128..4096".
        input_tokens: of each request.
        output_tokens: of each request.
        dtype: by default that of the observations, or bfloat16.
        engine: which engine's observations to use, where there are several.
        profile: a measured profile (`archfleet hw calibrate --out`).
        observations: a bench.json whose runs the host term and the scale are fitted to.
        clock: of the observations, "wall" or "processor".
        quantization: of the weights, by an engine's name; observations of others are not used.
        kv_cache_dtype: of cached keys and values.
        tensor_parallel_size: devices that share the architecture.

    Raises:
        UserError: something cannot be read, does not go together, or is too little to fit.
    """
    try:
        target = _profile(hardware, profile)
        key, fit = None, None
        asked = {
            "quantization": quantization,
            "kv_cache_dtype": kv_cache_dtype,
            "tensor_parallel_size": tensor_parallel_size,
        }
        if observations is not None:
            key, fit = _fit(observations, target, asked, engine=engine, dtype=dtype, clock=clock)
        fields = {"engine": key.engine if key else engine or "vllm", "dtype": key.dtype if key else dtype}
        _require_peak(target, fields["dtype"] or DEFAULT_DTYPE)
        predictions = predict_batches(
            read_config(config),
            target,
            ServingRecipe.model_validate({**fields, "dtype": fields["dtype"] or DEFAULT_DTYPE, **asked}),
            batch_sizes=parse_batch_sizes(batches),
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            fit=fit,
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{'.'.join(map(str, first['loc']))} {first['input']!r}: {first['msg']}") from None
    except ValueError as error:
        raise UserError(str(error)) from None
    return [prediction.model_dump(mode="json") for prediction in predictions]


def read_serving_observations(file: Path) -> tuple[ServingObservation, ...]:
    """The serving observations of a bench.json, or of a JSON list of them; failures and other kinds are passed over.

    Raises:
        ValueError: the file cannot be read or holds no serving observation.
    """
    try:
        content = json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise ValueError(f"{file}: cannot be read: {error.strerror}; expected a bench.json") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not JSON: {error}; expected a bench.json") from None
    require_seal(content, file)
    rows = content.get("results") if isinstance(content, dict) else content
    rows = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    try:
        found = tuple(ServingObservation.model_validate(row) for row in rows if row.get("kind") == "serving")
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(
            f"{file}: not an observation of this version: {'.'.join(map(str, first['loc']))}: {first['msg']}"
        ) from None
    if not found:
        raise ValueError(f"{file}: no serving observation in it; expected the bench.json of `archfleet bench`")
    return found


def _profile(hardware: str | None, file: Path | None) -> HardwareProfile:
    if file is None:
        return load_profile(hardware or DEFAULT_HARDWARE)
    measured = read_profile(file)
    if hardware is not None and hardware != measured.id:
        raise ValueError(f"--hardware {hardware}, but {file} is a profile of {measured.id}; leave one of them out")
    return measured


def _require_peak(profile: HardwareProfile, dtype: str) -> None:
    if dtype not in profile.peak_flops_per_second:
        given = [
            name
            for name in get_args(ServingRecipe.model_fields["dtype"].annotation)
            if name in profile.peak_flops_per_second
        ]
        known = " or ".join(f"--dtype {name}" for name in given)
        raise ValueError(f"{profile.id} has no peak for {dtype}; give {known or 'another profile'}")


def _fit(
    file: Path, profile: HardwareProfile, asked: Mapping[str, Any], *, engine: str | None, dtype: str | None, clock: Any
) -> tuple[EngineKey, ThroughputFit]:
    """The fit to the one engine of the file that was asked for, of runs with the quantisation and so on of `asked`."""
    found = read_serving_observations(file)
    alike = [run for run in found if all(getattr(run.recipe, name) == value for name, value in asked.items())]
    if not alike:
        others = "; ".join(sorted({recipe_words(run.recipe) for run in found}))
        raise ValueError(
            f"{file} holds no run with these --quantization, --kv-cache-dtype and --tensor-parallel-size, only in "
            f"{others}; ask for these, or leave out --observations"
        )
    groups = group_runs(alike)
    elsewhere = sorted({key.hardware for key in groups} - {profile.id})
    suited = {
        key: runs
        for key, runs in groups.items()
        if key.hardware == profile.id and engine in (None, key.engine) and dtype in (None, key.dtype)
    }
    if not suited:
        wanted = " ".join(["runs", *([f"of {engine}"] if engine else []), *([f"in {dtype}"] if dtype else [])])
        hint = f"; it has runs on {', '.join(elsewhere)}: give --hardware or --profile of that" if elsewhere else ""
        raise ValueError(f"{file} holds no valid {wanted} on {profile.id}{hint}")
    if len(suited) > 1:
        raise ValueError(
            f"{file} holds runs of several engines ({'; '.join(sorted(map(str, suited)))}): choose with --engine "
            "and --dtype, or keep one engine version a file"
        )
    ((key, runs),) = suited.items()
    fit = fit_throughput(runs, profile, clock=clock)
    if isinstance(fit, NoThroughputFit):
        raise ValueError(f"{file}: nothing was fitted: {fit.reason}")
    return key, fit


def predict_table(predictions: list[dict[str, Any]]) -> Table:
    """A table for people; units in the head, "predicted" and what it rests on in the title."""
    first = predictions[0]
    workload, words = first["workload"], recipe_words(ServingRecipe.model_validate(first["recipe"]))
    table = Table(
        title=f"PREDICTED for {first['hardware']}, {words}, {workload['input_tokens']} input / "
        f"{workload['output_tokens']} output tokens: {_basis(predictions)}"
    )
    for head in ("batch", "effective batch", "output tokens/s", "TTFT s", "ITL ms"):
        table.add_column(head, justify="right")
    above: set[str] = set()
    for row in predictions:
        cells = [
            _shown(row["effective_batch"], "{:.0f}"),
            _shown(row["output_tokens_per_second"], "{:,.0f}"),
            _shown(row["ttft_seconds"], "{:.3g}"),
            _shown(row["itl_seconds"], "{:.3g}", scale=1e3),
        ]
        # A reason is told once a row, and in full only in the first row that has it.
        told = ["" if _is_reason(cell) and cell in cells[:number] else cell for number, cell in enumerate(cells)]
        table.add_row(str(row["workload"]["batch_size"]), *("as above" if cell in above else cell for cell in told))
        above |= {cell for cell in told if _is_reason(cell)}
    return table


def _basis(predictions: list[dict[str, Any]]) -> str:
    """What the rates rest on, and why rows without an interval have none."""
    rates = [row["output_tokens_per_second"] for row in predictions if "basis" in row["output_tokens_per_second"]]
    if not rates:
        return "nothing fits, or no data"
    if rates[0]["basis"] == BASIS:
        return "uncalibrated roofline, an upper bound without interval"
    levels = {rate["interval"]["level"] for rate in rates if rate["interval"]}
    words = [str(rates[0]["basis"]), *(f"{level:.0%} intervals" for level in sorted(levels))]
    reasons = dict.fromkeys(rate["no_interval_because"] for rate in rates if not rate["interval"])
    return "; ".join([*words, *(f"no interval: {reason}" for reason in reasons)])


def _is_reason(cell: str) -> bool:
    """Whether a cell tells why there is no number; a reason may begin with one ("3 devices cannot share ...")."""
    return any(len(word) > 1 and word.isalpha() for word in cell.split())


def _shown(quantity: dict[str, Any], pattern: str, *, scale: float = 1) -> str:
    if quantity["kind"] == NotMeasured.model_fields["kind"].default:
        return str(quantity["reason"])
    assert quantity["kind"] == Predicted.model_fields["kind"].default
    shown = pattern.format(quantity["value"] * scale)
    if quantity["interval"] is None:
        return shown
    low, high = (pattern.format(quantity["interval"][end] * scale) for end in ("low", "high"))
    return f"{shown} [{low}, {high}]"
