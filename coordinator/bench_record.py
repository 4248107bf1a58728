"""bench.json: a campaign with every restart that was run, and what follows from them.

`campaign` and `restarts` are the facts. `rows`, `results` and `comparisons` are derived from them, written for those
who read the file without archfleet, and derived anew when it is read.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from agent.benchmark.campaign import Campaign, SlotResult, observe_row, slots_left
from agent.benchmark.run import Restart
from agent.blobs import write_atomically
from coordinator.bench_verdicts import BenchComparison, BenchRow, compare_rows
from coordinator.errors import UserError
from coordinator.seal import require_seal, sealed
from hwprofiles.value import Value
from scaling.observations import Failure, Provenance, ServingObservation

FILE_NAME = "bench.json"
SCHEMA_VERSION = 2


class BenchRecord(Value):
    """A campaign, finished or not."""

    schema_version: Literal[2] = 2
    campaign: Campaign
    order: tuple[str, ...]
    """The names in the order in which their engines were started, one line a batch size and repeat."""
    is_finished: bool
    fingerprint: dict[str, str]
    """Where and with what it was measured, from the first restart; empty before it."""
    restarts: tuple[SlotResult, ...]
    rows: tuple[BenchRow, ...] = Field(exclude=True)
    """One a batch size and architecture, control included; written as `results` with their names."""
    comparisons: tuple[BenchComparison, ...]

    @property
    def num_restarts(self) -> int:
        """Engine processes of the whole campaign; fewer are run where rows fail."""
        return len(self.campaign.order())

    def observations(self) -> tuple[ServingObservation, ...]:
        """Everything that was measured, the control's rows included."""
        return tuple(row.observation for row in self.rows if row.observation is not None)

    def provenances(self) -> tuple[Provenance, ...]:
        """Of every restart, failed ones included, in the order of running."""
        return tuple(restart.outcome.provenance for restart in self.restarts)

    def to_json(self) -> dict[str, Any]:
        """What bench.json holds: `results` are observations or failures, `rows` says of what, in the same order."""
        ended = [row for row in self.rows if row.result is not None]
        content = {
            **self.model_dump(mode="json"),
            "rows": [row.model_dump(mode="json", exclude={"result"}) for row in ended],
            "results": [row.result.model_dump(mode="json") for row in ended if row.result is not None],
        }
        return sealed(content)


def make_record(campaign: Campaign, restarts: Sequence[SlotResult]) -> BenchRecord:
    """A record with everything that follows from its restarts."""
    rows = tuple(
        BenchRow(
            name=candidate.name,
            batch_size=workload.batch_size,
            is_control=campaign.is_control(row),
            result=observe_row(campaign, restarts, row=row, workload=index),
        )
        for index, workload in enumerate(campaign.workloads)
        for row, candidate in enumerate(campaign.rows)
    )
    return BenchRecord(
        campaign=campaign,
        order=order_lines(campaign),
        is_finished=not slots_left(campaign, restarts),
        fingerprint=_fingerprint(campaign, restarts),
        restarts=tuple(restarts),
        rows=rows,
        comparisons=compare_rows(campaign, rows),
    )


def order_lines(campaign: Campaign) -> tuple[str, ...]:
    """batch 16, repeat 1: a, b, a (again)."""
    lines: dict[str, list[str]] = {}
    for slot in campaign.order():
        head = f"batch {campaign.workloads[slot.workload].batch_size}, repeat {slot.repeat + 1}"
        lines.setdefault(head, []).append(campaign.rows[slot.row].name)
    return tuple(f"{head}: {', '.join(names)}" for head, names in lines.items())


def _fingerprint(campaign: Campaign, restarts: Sequence[SlotResult]) -> dict[str, str]:
    first = next((r.outcome for r in restarts if isinstance(r.outcome, Restart)), None)
    if first is None:
        return {}
    made, device = first.provenance, first.ready.device
    return {
        "campaign_sha256": campaign.content_hash(),
        "hostname": made.hostname,
        "hardware": made.hardware,
        **{f"device_{name}": str(value) for name, value in device.model_dump(mode="json").items()},
        **{name: value for name, value in made.versions.items() if name != "config_sha256"},
    }


def write_record(directory: Path, record: BenchRecord) -> Path:
    """Replace bench.json as a whole: a crash leaves the old file or the new one.

    Raises:
        UserError: it cannot be written.
    """
    path = directory / FILE_NAME
    content = json.dumps(record.to_json(), indent=1, allow_nan=False) + "\n"
    try:
        write_atomically(path, content.encode())
    except OSError as error:
        raise UserError(f"cannot write to {path}: {error.strerror}; give another --out") from None
    return path


def read_record(path: Path) -> BenchRecord:
    """Read a bench.json, or the one in a directory.

    Raises:
        UserError: it cannot be read, is damaged, or was written by another version.
    """
    file = path / FILE_NAME if path.is_dir() else path
    try:
        content = json.loads(file.read_text("utf-8"))
        if content["schema_version"] != SCHEMA_VERSION:
            raise UserError(
                f"{file} has schema version {content['schema_version']}, this archfleet reads {SCHEMA_VERSION}: "
                "use the archfleet that wrote it, or measure anew with another --out"
            )
        require_seal(content, file)
        campaign = Campaign.model_validate_json(json.dumps(content["campaign"]))
        restarts = [SlotResult.model_validate_json(json.dumps(restart)) for restart in content["restarts"]]
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None
    except (ValidationError, ValueError, KeyError, TypeError, RecursionError) as error:
        text = str(error).partition("\n")[0]
        raise UserError(
            f"{file} is not a bench.json ({text}); expected what `archfleet bench` writes. "
            "Move it away, or measure with another --out"
        ) from None
    return make_record(campaign, restarts)


def failures(record: BenchRecord) -> tuple[tuple[BenchRow, Failure], ...]:
    """Rows that failed, with how."""
    return tuple((row, row.result) for row in record.rows if isinstance(row.result, Failure))
