"""Reads a table of finished runs (CSV) and fits a law to it: what `archfleet fit` does.

Columns, in any order, others ignored; lines that begin with # are comments:

- N, the first of: `n_params` (your own convention), `n_params_non_embed`, `n_params_total`;
- `n_tokens`; `loss` in nats per token; `loss_se`, its standard error, if known;
- for the conditional law `x` and `r`, or what they are computed from: `hidden_size` (`d_model`), `intermediate_size`
  (`d_ff`), `n_heads`, `n_kv_heads`, `head_dim`, `n_layers`; N is then counted from the shape, non-embedding;
- `used_in_published_fit`: rows with 0 are left out.

Rows with an empty `loss` (planned runs, benchmarks) are left out too, so that a run's own runs.csv is such a table.
"""

import csv
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from scaling.chinchilla import fit_chinchilla
from scaling.fit import fit_conditional
from scaling.held_out import held_out_scales
from scaling.law import Floats
from scaling.law_fit import LawFit, Optimum
from scaling.points import ShapePoints, make_cells, make_scales
from scaling.quantity import Interval

_SIZE_COLUMNS = ("n_params", "n_params_non_embed", "n_params_total")
_OTHER_NAMES = {"d_model": "hidden_size", "d_ff": "intermediate_size"}
_SHAPE_COLUMNS = ("hidden_size", "intermediate_size", "n_heads", "n_kv_heads", "head_dim", "n_layers")
_KNOWN = (*_SIZE_COLUMNS, "n_tokens", "loss", "loss_se", "x", "r", *_SHAPE_COLUMNS, "used_in_published_fit")
_MAY_BE_ZERO = ("loss_se", "used_in_published_fit")
_MAX_BYTES = 200_000_000
_ALL_ROWS_NEEDED = 2
RUNS_NEEDED = 6

Columns = dict[str, Floats]


@dataclass(frozen=True, kw_only=True, eq=False)
class RunsTable:
    """The known columns of a table of runs, all of one length; `messages` say what was left out and assumed."""

    path: Path
    columns: Columns
    size_column: str | None
    messages: tuple[str, ...]

    def __len__(self) -> int:
        """Number of runs."""
        return len(self.columns["loss"])


def read_runs_table(path: Path) -> RunsTable:
    """Read and check a table of runs.

    Raises:
        ValueError: the file cannot be read or is no such table; one sentence says what to change.
    """
    header, rows = _read_rows(path)
    names = [_OTHER_NAMES.get(name.strip(), name.strip()) for name in header]
    repeated = sorted({name for name in names if name in _KNOWN and names.count(name) > 1})
    if repeated:
        raise ValueError(f"{path}: column {repeated[0]} appears more than once; keep one")
    missing = [name for name in ("n_tokens", "loss") if name not in names]
    if not any(name in names for name in (*_SIZE_COLUMNS, "hidden_size")):
        missing.insert(0, "n_params (or n_params_non_embed, n_params_total)")
    if missing:
        raise ValueError(
            f"{path} lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}; it has {', '.join(header)}"
        )
    finished = [(line, row) for line, row in rows if row[names.index("loss")].strip()]
    if len(finished) < _ALL_ROWS_NEEDED:
        raise ValueError(f"{path}: {len(finished)} of {len(rows)} rows have a loss; a fit needs several")
    columns = {name: _numbers(path, name, at, finished) for at, name in enumerate(names) if name in _KNOWN}
    table = _checked(path, columns, finished)
    if len(finished) == len(rows):
        return table
    left_out = f"{len(rows) - len(finished)} rows without a loss were left out."
    return replace(table, messages=(left_out, *table.messages))


def _read_rows(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Header and (line number, cells) of every row."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError(f"{path} is larger than {_MAX_BYTES // 1_000_000} MB: that is no table of runs")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}; give the path of a CSV file of runs") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not a text file in UTF-8; save the table as CSV") from None
    lines = [(at, line) for at, line in enumerate(text.splitlines(), 1) if line.strip() and not line.startswith("#")]
    try:
        cells = [(at, row) for (at, _), row in zip(lines, csv.reader(line for _, line in lines), strict=True)]
    except (csv.Error, ValueError):
        raise ValueError(f"{path} is not a CSV file with one run a line (a quote is not closed?)") from None
    if not cells:
        raise ValueError(f"{path} is empty; expected a header line (n_params,n_tokens,loss,...) and one run a line")
    header, rows = cells[0][1], cells[1:]
    for at, row in rows:
        if len(row) != len(header):
            raise ValueError(f"{path}, line {at}: {len(row)} cells where the header has {len(header)}")
    if len(rows) < _ALL_ROWS_NEEDED:
        raise ValueError(f"{path} has {len(rows)} run{'s' if len(rows) != 1 else ''}; a fit needs several")
    return header, rows


def _numbers(path: Path, name: str, at: int, rows: list[tuple[int, list[str]]]) -> Floats:
    values = np.empty(len(rows))
    for index, (line, row) in enumerate(rows):
        text = row[at].strip()
        try:
            values[index] = float(text)
        except ValueError:
            raise ValueError(f"{path}, line {line}: {name} is {text!r}, expected a number") from None
        if not np.isfinite(values[index]):
            raise ValueError(f"{path}, line {line}: {name} is {text}; remove runs that failed or diverged")
        if values[index] < 0 or (values[index] == 0 and name not in _MAY_BE_ZERO):
            raise ValueError(f"{path}, line {line}: {name} is {text}, expected a positive number")
    return values


def _checked(path: Path, columns: Columns, rows: list[tuple[int, list[str]]]) -> RunsTable:
    seen: dict[tuple[str, ...], int] = {}
    for line, row in rows:
        key = tuple(cell.strip() for cell in row)
        if key in seen:
            raise ValueError(
                f"{path}, line {line} repeats line {seen[key]} exactly; a run counted twice looks twice as "
                "sure: remove one (real replicates differ in their loss)"
            )
        seen[key] = line
    messages = []
    used = columns.pop("used_in_published_fit", None)
    if used is not None and (used == 0).any():
        messages.append(f"{int((used == 0).sum())} rows with used_in_published_fit = 0 were left out.")
        columns = {name: column[used != 0] for name, column in columns.items()}
        if len(columns["loss"]) < _ALL_ROWS_NEEDED:
            raise ValueError(f"{path}: fewer than {_ALL_ROWS_NEEDED} rows have used_in_published_fit other than 0")
    size_column = next((name for name in _SIZE_COLUMNS if name in columns), None)
    others = [name for name in _SIZE_COLUMNS if name in columns and name != size_column]
    if others:
        messages.append(f"N is taken from {size_column}; {', '.join(others)} is not used.")
    return RunsTable(path=path, columns=columns, size_column=size_column, messages=tuple(messages))


def fit_table(table: RunsTable, law: Literal["chinchilla", "conditional"] | str = "chinchilla") -> dict[str, Any]:
    """Fit a law to a table; the result is plain data for JSON.

    It always holds `law`, `coefficients` (null where there is no fit), `objective`, `converged`, `num_points`,
    and `messages`; for the conditional law also `x_opt` and `r_opt`, each a value with its interval, or null.

    Raises:
        ValueError: `law` is unknown, or the table lacks columns, runs or scales that it needs.
    """
    if law == "chinchilla":
        return _fit_chinchilla(table)
    if law == "conditional":
        return _fit_conditional(table)
    raise ValueError(f"law is chinchilla or conditional, not {law!r}")


def check_number_of_runs(table: RunsTable) -> None:
    """Both laws have five coefficients that can be told; one more run tells how sure they are.

    Raises:
        ValueError: there are fewer.
    """
    if len(table) < RUNS_NEEDED:
        raise ValueError(
            f"{table.path} holds {len(table)} finished runs; a law has five coefficients and needs {RUNS_NEEDED} runs "
            f"at least (some twenty for intervals worth having): add {RUNS_NEEDED - len(table)} or more"
        )


def scales_of(num_parameters: Floats) -> Floats:
    """The different N of some runs, ascending; values within 5 % are one scale."""
    return np.sort(make_cells(num_parameters, np.ones_like(num_parameters)).num_parameters)


def _fit_chinchilla(table: RunsTable) -> dict[str, Any]:
    columns = table.columns
    N = columns[table.size_column] if table.size_column else _counted_size(table)
    check_number_of_runs(table)
    scales = scales_of(N)
    if len(scales) == 1:
        raise ValueError(
            f"{table.path} holds runs at one scale only, N = {scales[0]:.3g}; Chinchilla's law needs three sizes or "
            "more to tell how the loss falls with N. Add runs at other sizes, or fit the shapes at this one: "
            "--law conditional"
        )
    fit = fit_chinchilla(N, columns["n_tokens"], columns["loss"])
    return {
        "law": "chinchilla",
        "formula": "L = E + A / N^alpha + B / D^beta, nats per token",
        "coefficients": None if fit.law is None else asdict(fit.law),
        "objective": fit.objective,
        "objective_meaning": "sum of Huber(1e-3) of the residuals of ln loss",
        "converged": fit.converged,
        "condition_number": fit.condition_number,
        "not_identified": list(fit.not_identified),
        "num_points": fit.num_points,
        "size_column": table.size_column or "counted from the shape",
        "messages": [*table.messages, *fit.messages],
    }


def _fit_conditional(table: RunsTable) -> dict[str, Any]:
    points = shape_points(table)
    check_number_of_runs(table)
    fit = fit_conditional(points)
    law = fit.law
    coefficients = None
    if law is not None:
        names = ("a0", "a1", "a2", "b0", "b1", "b2")
        coefficients = dict(zip(names, (*law.a, *law.b), strict=True))
    return {
        "law": "conditional",
        "formula": "L = (a0 + a1 ln x + a2/x) (b0 + b1 ln r + b2/r) L_opt(N, D), nats per token",
        "coefficients": coefficients,
        "objective": fit.objective,
        "objective_meaning": "weighted sum of squared residuals of the loss, nats squared",
        "converged": fit.converged,
        "x_opt": _optimum(fit.x_opt),
        "x_opt_reason": fit.x_opt_reason,
        "r_opt": _optimum(fit.r_opt),
        "r_opt_reason": fit.r_opt_reason,
        "residual_sd": fit.residual_sd,
        "pure_error_sd": fit.pure_error_sd,
        "lack_of_fit_p": fit.lack_of_fit_p,
        "condition_number": fit.condition_number,
        "num_points": fit.num_points,
        "num_left_out": fit.num_left_out,
        "references": [asdict(cell) for cell in fit.cells],
        "validation": _in_sample(fit, table),
        "held_out_scales": _held_out_scales(points),
        "messages": [*table.messages, *fit.messages],
    }


def _held_out_scales(points: ShapePoints) -> list[dict[str, Any]]:
    """Fitted to the smaller sizes, judged on the next: the tasks of arXiv 2510.18245; none where there is one size."""
    if len(make_scales(points.num_parameters)) < 2:
        return []
    try:
        tasks = held_out_scales(points, num_bootstrap=20)
    except ValueError:  # sizes differ, but not within the law's range of r
        return []
    return [
        {
            "fitted_sizes": list(task.fitted_sizes),
            "held_out_size": task.held_out_size,
            "mse": None if task.validation is None else task.validation.mse,
            "spearman": None if task.validation is None else task.validation.spearman,
            "num_points": None if task.validation is None else task.validation.num_points,
            "reason": task.reason,
        }
        for task in tasks
    ]


def _describe_held_out(task: dict[str, Any]) -> str:
    start = f"  held out N = {task['held_out_size']:.3g}, fitted to {len(task['fitted_sizes'])} smaller size(s): "
    if task["mse"] is None:
        return f"{start}no prediction ({task['reason']})"
    rank = "too few for a rank correlation" if task["spearman"] is None else f"Spearman {task['spearman']:.2f}"
    return f"{start}mean squared error {task['mse']:.2g} nats², {rank}, {task['num_points']} runs"


def _optimum(optimum: Optimum | None) -> dict[str, Any] | None:
    if optimum is None:
        return None
    interval: Interval = optimum.interval
    return {
        "value": optimum.value,
        "low": interval.low,
        "high": interval.high,
        "level": interval.level,
        "method": interval.method,
        "fraction_without": optimum.fraction_without,
    }


def _in_sample(fit: LawFit, table: RunsTable) -> dict[str, Any] | None:
    """How the fit describes its own table, rows left out for their r included: no test of its predictions."""
    if fit.law is None:
        return None
    found = fit.validate(shape_points(table))
    return {"mse": found.mse, "spearman": found.spearman, "num_points": found.num_points, "on": "the fitted table"}


def shape_points(table: RunsTable) -> ShapePoints:
    """The table as points of the conditional law.

    Raises:
        ValueError: it has neither x and r with a size, nor all shape columns; the message names what lacks.
    """
    columns = table.columns
    if "x" in columns and "r" in columns and table.size_column:
        N, x, r = columns[table.size_column], columns["x"], columns["r"]
    else:
        N = _counted_size(table)
        attention, mlp = _block_parameters(columns)
        x, r = columns["hidden_size"] / np.sqrt(N), mlp / attention
    return ShapePoints(
        x=x,
        r=r,
        num_parameters=N,
        num_tokens=columns["n_tokens"],
        loss=columns["loss"],
        standard_error=columns.get("loss_se"),
        query_group_size=query_group_sizes(table),
    )


def query_group_sizes(table: RunsTable) -> Floats | None:
    """Heads per key-value head of every run; None where the table does not say.

    Raises:
        ValueError: a run's heads are no multiple of its key-value heads.
    """
    columns = table.columns
    if not {"n_heads", "n_kv_heads"} <= set(columns):
        return None
    g = np.asarray(columns["n_heads"] / columns["n_kv_heads"], dtype=float)
    uneven = np.flatnonzero((g < 1) | (g != np.round(g)))
    if len(uneven):
        heads, kv_heads = (columns[name][uneven[0]] for name in ("n_heads", "n_kv_heads"))
        raise ValueError(
            f"{table.path}: {len(uneven)} runs have n_heads that are no multiple of n_kv_heads (the first: {heads:g} "
            f"and {kv_heads:g}); correct or remove them"
        )
    return g


def _counted_size(table: RunsTable) -> Floats:
    """N = layers · (attention + MLP), non-embedding."""
    lacking = [name for name in _SHAPE_COLUMNS if name not in table.columns]
    if lacking:
        shown = {new: f"{new} (or {old})" for old, new in _OTHER_NAMES.items()}
        raise ValueError(
            f"the conditional law needs the shape of every run, and {table.path} lacks "
            f"{', '.join(shown.get(name, name) for name in lacking)}; add these columns, or x and r beside n_params"
        )
    attention, mlp = _block_parameters(table.columns)
    return np.asarray(table.columns["n_layers"] * (attention + mlp), dtype=float)


def _block_parameters(columns: Columns) -> tuple[Floats, Floats]:
    """Attention and MLP parameters per layer, as `scaling.architecture` counts them."""
    d = columns["hidden_size"]
    attention = 2 * d * columns["head_dim"] * (columns["n_heads"] + columns["n_kv_heads"])
    return attention, 3 * d * columns["intermediate_size"]


def describe_fit(result: dict[str, Any]) -> str:
    """The result of `fit_table` for people."""
    lines = [f"{result['law']} law, {result['num_points']} runs: {result['formula']}"]
    if result["coefficients"] is not None:
        lines.append("  " + "  ".join(f"{name} = {value:.6g}" for name, value in result["coefficients"].items()))
        lines.append(f"  objective {result['objective']:.6g} ({result['objective_meaning']})")
    for name in ("x_opt", "r_opt"):
        if result.get(name) is not None:
            found = result[name]
            ends = f"[{found['low']:.4g}, {found['high']:.4g}] at {found['level']:.0%}"
            lines.append(f"  {name[0]}* = {found['value']:.4g}  {ends}")
    if result.get("residual_sd") is not None:
        lines.append(f"  residual sd {result['residual_sd']:.4f} nats per token")
    lines += [_describe_held_out(task) for task in result.get("held_out_scales", ())]
    lines.append("  converged" if result["converged"] else "  not converged")
    return "\n".join([*lines, *(f"  - {message}" for message in result["messages"])])
