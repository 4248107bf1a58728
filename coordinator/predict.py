"""`archfleet predict`: roofline predictions as a table. Every number here is predicted, and says so."""

from typing import Any

from rich.table import Table

from agent.benchmark.configs import read_config
from coordinator.errors import UserError
from hwprofiles.catalog import load_profile
from scaling.quantity import NotMeasured, Predicted
from scaling.recipes import ServingRecipe
from scaling.serving import parse_batch_sizes, predict_batches


def run_prediction(
    config: str, *, hardware: str, batches: str, input_tokens: int, output_tokens: int, dtype: Any
) -> list[dict[str, Any]]:
    """One ServingPrediction as JSON a batch size.

    Raises:
        UserError: the config, the hardware or the batch sizes cannot be read.
    """
    try:
        predictions = predict_batches(
            read_config(config),
            load_profile(hardware),
            ServingRecipe(engine="vllm", dtype=dtype),
            batch_sizes=parse_batch_sizes(batches),
            input_tokens=input_tokens,
            output_tokens=output_tokens,
        )
    except ValueError as error:
        raise UserError(str(error)) from None
    return [prediction.model_dump(mode="json") for prediction in predictions]


def predict_table(predictions: list[dict[str, Any]]) -> Table:
    """A table for people; units in the head, "predicted" in the title."""
    first = predictions[0]
    workload = first["workload"]
    table = Table(
        title=f"PREDICTED for {first['hardware']}, {first['recipe']['dtype']}, {workload['input_tokens']} input / "
        f"{workload['output_tokens']} output tokens: uncalibrated roofline, an upper bound without interval"
    )
    for head in ("batch", "effective batch", "output tokens/s", "TTFT s", "ITL ms"):
        table.add_column(head, justify="right")
    for row in predictions:
        table.add_row(
            str(row["workload"]["batch_size"]),
            _shown(row["effective_batch"], "{:.0f}"),
            _shown(row["output_tokens_per_second"], "{:,.0f}"),
            _shown(row["ttft_seconds"], "{:.3g}"),
            _shown(row["itl_seconds"], "{:.3g}", scale=1e3),
        )
    return table


def _shown(quantity: dict[str, Any], pattern: str, *, scale: float = 1) -> str:
    if quantity["kind"] == NotMeasured.model_fields["kind"].default:
        return str(quantity["reason"])
    assert quantity["kind"] == Predicted.model_fields["kind"].default
    return pattern.format(quantity["value"] * scale)
