"""What a run leaves behind for people and programs, written from its store: report, recommendation, configs, table."""

import csv
import io
import json
from pathlib import Path
from typing import Any

from agent.assignment import TrainAssignment
from coordinator.errors import UserError
from coordinator.figures.standing import proposal
from coordinator.record import RunRecord, read_record
from coordinator.report import ReportFormat, render_as, render_report
from scaling.architecture import Architecture
from scaling.observations import Observation, ServingObservation, TrainingObservation


def write_outputs(run_directory: Path) -> list[Path]:
    """Write report.html, runs.csv and, where there is a recommendation, its JSON and configs. Returns the paths."""
    record = read_record(run_directory)
    written = [_write(run_directory / "report.html", render_report(record)), write_table(record)]
    if record.recommendation is not None:
        written.append(_write(run_directory / "recommendation.json", record.recommendation.model_dump_json(indent=2)))
        written += [_write_config(run_directory, name, shape) for name, shape in named_shapes(record).items()]
    return written


def write_report(run_directory: Path, form: ReportFormat, *, out: Path | None = None) -> Path:
    """Write the report alone, as report.html, report.md or report.json, or to `out`. Returns the path.

    Raises:
        UserError: the folder of `out` does not exist, or for HTML jinja2 is missing.
    """
    path = out or run_directory / f"report.{form}"
    if not path.parent.is_dir():
        raise UserError(f"{path} cannot be written: there is no folder {path.parent}. Type: mkdir -p {path.parent}")
    return _write(path, render_as(read_record(run_directory), form))


def named_shapes(record: RunRecord) -> dict[str, Architecture]:
    """The architectures that get a config.json: recommended, baseline, Panda, Surefire, and the others measured.

    Where a proposed shape failed its check at the target it is called refuted, and the baseline is recommended.
    Where there are answers for several kinds of hardware, names of what belongs to one end in its profile id.
    """
    recommendation = record.recommendation
    assert recommendation is not None
    shapes = {"baseline": recommendation.baseline}
    answers = recommendation.answers
    for answer in answers:
        suffix = f"-{answer.hardware}" if len(answers) > 1 else ""
        shapes[f"recommended{suffix}"] = answer.recommended if answer.stands else recommendation.baseline
        if not answer.stands:
            shapes[f"{proposal(answer)}{suffix}"] = answer.recommended
        for shape in answer.answer.shapes:
            shapes |= {f"{role}{suffix}": shape.architecture for role in shape.roles if role == "surefire"}
            shapes |= {role: shape.architecture for role in shape.roles if role == "panda"}
    for observation in record.serving.values():
        if observation.architecture not in shapes.values():
            shapes[observation.architecture.label] = observation.architecture
    return shapes


_COLUMNS = (
    *("trial_id", "role", "state", "stage", "attempts", "agent", "hardware"),
    *("hidden_size", "intermediate_size", "n_layers", "n_heads", "n_kv_heads", "head_dim", "n_params", "x", "r"),
    *("n_tokens", "seed", "loss", "loss_se", "tokens_per_second", "output_tokens_per_second", "reason"),
)


def write_table(record: RunRecord) -> Path:
    """Every trial as a row of runs.csv; `archfleet fit` reads the finished training runs of it as they are."""
    results: dict[str, Observation] = {**record.training, **record.serving}
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, fieldnames=_COLUMNS)
    writer.writeheader()
    for trial in record.trials:
        assignment = trial.planned.assignment
        row: dict[str, Any] = {
            "trial_id": trial.trial_id,
            "role": trial.planned.role,
            "state": trial.state,
            "stage": trial.stage,
            "attempts": trial.attempts,
            "agent": trial.agent,
            "hardware": trial.hardware,
            "reason": trial.planned.reason,
            **_shape_columns(assignment.architecture),
        }
        if isinstance(assignment, TrainAssignment):
            row |= {"n_tokens": assignment.recipe.num_tokens, "seed": assignment.recipe.seed}
        writer.writerow(row | _result_columns(results.get(trial.trial_id)))
    return _write(record.run_directory / "runs.csv", table.getvalue())


def _shape_columns(shape: Architecture) -> dict[str, Any]:
    return {
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "n_layers": shape.num_hidden_layers,
        "n_heads": shape.num_attention_heads,
        "n_kv_heads": shape.num_key_value_heads,
        "head_dim": shape.head_dim,
        "n_params": shape.num_parameters,
        "x": f"{shape.width_ratio:.6f}",
        "r": f"{shape.mlp_attention_ratio:.6f}",
    }


def _result_columns(result: Observation | None) -> dict[str, Any]:
    if isinstance(result, TrainingObservation):
        return {
            "loss": f"{result.loss:.6f}",
            "loss_se": f"{result.loss_standard_error:.6f}",
            "tokens_per_second": f"{result.tokens_per_second:.1f}",
        }
    if isinstance(result, ServingObservation):
        return {"output_tokens_per_second": f"{result.output_tokens_per_second.value:.1f}"}
    return {}


def _write_config(run_directory: Path, name: str, architecture: Architecture) -> Path:
    path = run_directory / "architectures" / name / "config.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    return _write(path, json.dumps(architecture.to_hf_config(), indent=2) + "\n")


def _write(path: Path, text: str) -> Path:
    """Replace the file as a whole: a reader never sees half of it."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
    return path


def closing_words(run_directory: Path) -> str:
    """What a finished run says last: the answer, and where everything is."""
    answer = _answer_words(read_record(run_directory)).replace("\n", f"\n{' ' * 16}")
    return (
        f"\nrecommendation: {answer}\n"
        f"report:         {run_directory / 'report.html'}\n"
        f"also:           {run_directory}/recommendation.json, runs.csv, architectures/*/config.json"
    )


def _answer_words(record: RunRecord) -> str:
    """The answers, one a line; each says so where fewer tokens than wanted were trained on."""
    if record.recommendation is None:
        return "none: no law could be fitted"
    scale = 1.0 if record.token_scale is None else record.token_scale
    share = f"trained with {scale:.0%} of the wanted tokens: " if scale < 1 else ""
    answers = record.recommendation.answers
    return "\n".join(f"{share}{answer.sentence(simulated=record.is_simulated)}" for answer in answers)
