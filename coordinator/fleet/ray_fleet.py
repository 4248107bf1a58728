"""RayFleet: one agent actor per CPU core of a local Ray cluster. The only file that imports ray.

An actor runs one assignment at a time as a streaming generator: every `Progress` and the final observation
arrive as JSON text. Blobs travel through Ray's object store and are verified by hash where they arrive.
Ray is transport and placement; leases, epochs and retries are dispatch's.
"""

import json
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from agent.assignment import AssignmentAdapter, BenchAssignment, TrainAssignment
from agent.engines.canary import KIND as CANARY_KIND
from agent.engines.canary import measure_canary
from coordinator.errors import UserError
from coordinator.fleet.base import AgentJoined, AgentLost, CanaryMeasured, FleetEvent, Reported
from scaling.architecture import Architecture
from scaling.observations import Observation, Progress

PACKAGES = ("hwprofiles", "scaling", "agent", "coordinator")
OBJECT_STORE_BYTES = 100 * 2**20
MAX_FAILED_STARTS = 3

_item_adapter: TypeAdapter[Progress | Observation] = TypeAdapter(Progress | Observation)


class AgentActor:
    """What runs inside a Ray actor: a plain Worker, spoken to in JSON."""

    def __init__(self, agent: str, work_directory: str, blobs: dict[str, list[Any]]) -> None:
        from agent.worker import Worker

        def fetch(sha256: str) -> bytes:
            import ray

            if sha256 not in blobs:
                raise KeyError(f"the coordinator published no blob {sha256}")
            return bytes(ray.get(blobs[sha256][0]))

        self._worker = Worker(agent, Path(work_directory), fetch)

    def describe(self) -> dict[str, Any]:
        """Which hardware this is, and the process that serves it."""
        from agent.device import describe_device

        return {"hardware": describe_device().hardware, "pid": os.getpid()}

    def probe(self, architecture: str, seconds: float) -> float:
        """Training tokens/s of a shape on this agent."""
        return float(self._worker.probe(Architecture.model_validate_json(architecture), seconds))

    def canary(self) -> float:
        """The canary's rate on this agent, in FLOP/s."""
        return measure_canary()

    def run(self, assignment: str) -> Iterator[str]:
        """Run one assignment: JSON progress, then the JSON observation."""
        for item in self._worker.run(AssignmentAdapter.validate_json(assignment)):
            yield item.model_dump_json()


@dataclass
class _Agent:
    handle: Any
    describing: Any = None
    stream: Any = None
    canary: Any = None
    trial_id: str = ""
    epoch: int = 0
    joined: bool = False


class RayFleet:
    """Agents on a local Ray cluster that this fleet starts, and stops."""

    def __init__(self, *, num_agents: int, blob_directory: Path, work_directory: Path) -> None:
        self._num_agents = num_agents
        self._blob_directory = blob_directory
        self._work_directory = work_directory.resolve()
        self._session = _Session(work_directory / "ray-session.json")
        self._agents: dict[str, _Agent] = {}
        self._blobs: dict[str, list[Any]] = {}
        self._failed_starts = 0
        self._ray: Any = None

    def start(self) -> None:
        """Start Ray on loopback with token authentication, publish the blobs, start the agents."""
        self._session.clean_up_after_a_kill()
        self._ray = _start_ray(self._num_agents, self._session)
        for blob in sorted(self._blob_directory.iterdir()):
            self._blobs[blob.name] = [self._ray.put(blob.read_bytes())]
        for number in range(self._num_agents):
            self._start_agent(f"agent-{number}")

    def probe(self, architecture: Architecture, *, seconds: float) -> list[float]:
        """Training tokens/s of this shape on every joined agent, all probed at the same time."""
        text = architecture.model_dump_json()
        return list(self._ray.get([a.handle.probe.remote(text, seconds) for a in self._agents.values() if a.joined]))

    def canary(self, agent: str) -> None:
        """Run the canary on an idle agent; `poll` tells its rate."""
        slot = self._agents[agent]
        slot.canary = slot.handle.canary.remote()

    def assign(self, agent: str, trial_id: str, epoch: int, assignment: TrainAssignment | BenchAssignment) -> None:
        """Start an assignment on an idle agent."""
        slot = self._agents[agent]
        slot.trial_id, slot.epoch = trial_id, epoch
        slot.stream = slot.handle.run.options(num_returns="streaming").remote(assignment.model_dump_json())

    def restart(self, agent: str) -> None:
        """Kill an agent; `poll` notices its end and starts another in its place."""
        slot = self._agents[agent]
        self._ray.kill(slot.handle)
        if slot.stream is None and slot.describing is None:
            slot.describing = slot.handle.describe.remote()

    def poll(self, *, timeout_seconds: float) -> list[FleetEvent]:
        """What happened since the last call; waits up to the time-out for a first event."""
        waiting = {}
        for name, slot in self._agents.items():
            if (pending := slot.describing or slot.canary or slot.stream) is not None:
                waiting[pending] = name
        if not waiting:
            time.sleep(timeout_seconds)
            return []
        ready, _ = self._ray.wait(list(waiting), num_returns=1, timeout=timeout_seconds, fetch_local=False)
        if ready:
            ready, _ = self._ray.wait(list(waiting), num_returns=len(waiting), timeout=0, fetch_local=False)
        return [event for pending in ready if (event := self._event(waiting[pending])) is not None]

    def stop(self) -> None:
        """End Ray and everything it started, and remove its temporary files."""
        if self._ray is not None:
            with suppress(Exception):
                self._ray.shutdown()
            self._ray = None
        self._session.remove()

    def _start_agent(self, name: str) -> None:
        handle = self._ray.remote(num_cpus=1, max_restarts=0)(AgentActor).remote(
            name, str(self._work_directory), self._blobs
        )
        self._agents[name] = _Agent(handle, describing=handle.describe.remote())

    def _event(self, name: str) -> FleetEvent | None:
        slot = self._agents[name]
        try:
            if slot.describing is not None:
                facts = self._ray.get(slot.describing)
                slot.describing, slot.joined, self._failed_starts = None, True, 0
                return AgentJoined(name, facts["hardware"], facts["pid"])
            if slot.canary is not None:
                rate = self._ray.get(slot.canary)
                slot.canary = None
                return CanaryMeasured(name, CANARY_KIND, rate)
            return self._next_report(name, slot)
        except self._ray.exceptions.RayError as error:
            return self._lost(name, error)

    def _next_report(self, name: str, slot: _Agent) -> FleetEvent | None:
        try:
            item = _item_adapter.validate_json(self._ray.get(next(slot.stream)))
        except StopIteration:
            slot.stream = None
            return None
        if not isinstance(item, Progress):
            slot.stream = None  # the observation is a stream's last word
        return Reported(name, slot.trial_id, slot.epoch, item)

    def _lost(self, name: str, error: Exception) -> FleetEvent:
        if not self._agents[name].joined:
            self._failed_starts += 1
            if self._failed_starts >= MAX_FAILED_STARTS:
                raise UserError(f"agents do not start: {_first_line(error)}. `python -m agent --help` may tell more.")
        self._ray.kill(self._agents[name].handle)
        self._start_agent(name)
        return AgentLost(name, _first_line(error))


class _Session:
    """Ray's temporary files of this run: a short path (Unix sockets allow 107 bytes), removed at the end.

    Its place is written down in the run, so that after a kill -9 the next start removes what was left.
    """

    def __init__(self, record: Path) -> None:
        self._record = record
        self.directory: Path | None = None

    def clean_up_after_a_kill(self) -> None:
        """Remove the temporary files of a session that was killed."""
        if self._record.is_file():
            with suppress(ValueError, KeyError):
                shutil.rmtree(json.loads(self._record.read_text())["directory"], ignore_errors=True)
            self._record.unlink()

    def create(self) -> Path:
        """A new private directory with an authentication token only this user can read."""
        self.directory = Path(tempfile.mkdtemp(prefix="archfleet-ray-"))
        self._record.parent.mkdir(parents=True, exist_ok=True)
        self._record.write_text(json.dumps({"directory": str(self.directory)}))
        token = self.directory / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        return self.directory

    def remove(self) -> None:
        """Remove the session's files."""
        if self.directory is not None:
            shutil.rmtree(self.directory, ignore_errors=True)
            self._record.unlink(missing_ok=True)
            self.directory = None


def _start_ray(num_agents: int, session: _Session) -> Any:
    directory = session.create()
    (directory / "cwd").mkdir()
    os.environ.update(
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN_PATH=str(directory / "token"),
        RAY_USAGE_STATS_ENABLED="0",
        RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
    )
    import ray

    ray.init(
        num_cpus=num_agents,
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        log_to_driver=False,
        logging_level="CRITICAL",
        _temp_dir=str(directory),
        _node_ip_address="127.0.0.1",
        # A dedicated working directory: otherwise the driver's own folder leads every worker's import path.
        runtime_env={
            "working_dir": str(directory / "cwd"),
            "py_modules": [str(folder) for folder in package_folders()],
            "env_vars": {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        },
    )
    return ray


def package_folders() -> list[Path]:
    """The four packages, checked to be siblings: generic names must not pick up a stranger's `agent`."""
    folders = [Path(str(import_module(name).__file__)).parent for name in PACKAGES]
    if len({folder.parent for folder in folders}) != 1:
        listing = "\n".join(f"  {folder}" for folder in folders)
        raise UserError(
            f"archfleet's packages are not side by side; another package of that name is in the way:\n{listing}"
        )
    return folders


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    cause = next(
        (line for line in lines if "Worker exit detail" in line or "Error:" in line), lines[0] if lines else ""
    )
    return f"{type(error).__name__}: {cause}"[:300]
