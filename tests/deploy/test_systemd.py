"""systemd's units: they verify, shut in what they start, and start what there is with options that it has.

A machine of its own that boots nothing but these units runs a study where ARCHFLEET_SYSTEMD=1 asks for it.
"""

import configparser
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import click
import pytest

from coordinator.cli import main
from coordinator.fleet.actor import DRAIN_VARIABLE
from coordinator.history import check_history, history_of
from coordinator.runs import list_runs
from coordinator.store import Store, StoreReader
from coordinator.study import read_study
from coordinator.supervisor import EVERY_SECONDS

ROOT = Path(__file__).parents[2]
UNITS = ROOT / "deploy" / "systemd"
SERVICES = sorted(path.name for path in UNITS.glob("*.service"))
COORDINATOR, AGENT, HEAD = "archfleet-coordinator.service", "archfleet-agent@.service", "archfleet-head.service"
MOST_EXPOSED = {AGENT: 2.5}
"""Of systemd-analyze, 0 to 10; agents need devices, and compile what they run."""
MOST_EXPOSED_ELSE = 2.0
PATIENCE_SECONDS = 60.0

services = pytest.mark.parametrize("name", SERVICES)


def settings(name: str) -> dict[str, list[str]]:
    """Every value of a unit's settings, in their order, continued lines joined."""
    text = re.sub(r"\\\n\s*", "", (UNITS / name).read_text())
    found: dict[str, list[str]] = {}
    for key, value in re.findall(r"^(\w+)=(.*)$", text, flags=re.MULTILINE):
        found.setdefault(key, []).append(value)
    return found


def environment(name: str) -> dict[str, str]:
    return dict(pair.split("=", 1) for line in settings(name).get("Environment", []) for pair in shlex.split(line))


def needs(program: str, package: str) -> str:
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"needs {program}: apt-get install {package}")
    return found


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root directory in which the units and all programs that they start exist; none of these does anything."""
    root = tmp_path_factory.mktemp("root")
    shutil.copytree(UNITS, root / "etc" / "systemd" / "system", ignore=shutil.ignore_patterns("*.env", "*.conf"))
    started = {
        command.lstrip("-+!@:").split()[0]
        for name in SERVICES
        for key, commands in settings(name).items()
        if key.startswith("Exec")
        for command in commands
    }
    for program in started:
        path = root / program.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
    own = next(path for path in (Path("/usr/lib/systemd/system"), Path("/lib/systemd/system")) if path.is_dir())
    shutil.copytree(own, root / "usr" / "lib" / "systemd" / "system", symlinks=True)
    return root


@pytest.mark.parametrize("name", [*SERVICES, "archfleet-backup.timer"])
def test_systemd_finds_nothing_to_say(name: str, request: pytest.FixtureRequest) -> None:
    analyze = needs("systemd-analyze", "systemd")
    machine = request.getfixturevalue("machine")
    unit = name.replace("@.", "@h200.")
    done = subprocess.run(
        [analyze, "verify", f"--root={machine}", unit], capture_output=True, text=True, check=False, env=PLAIN
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_misspelt_setting_would_be_noticed(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    analyze = needs("systemd-analyze", "systemd")
    shutil.copytree(request.getfixturevalue("machine"), tmp_path / "root", symlinks=True)
    unit = tmp_path / "root" / "etc" / "systemd" / "system" / COORDINATOR
    unit.write_text(unit.read_text().replace("WatchdogSec", "WatchdogSeconds"))
    done = subprocess.run(
        [analyze, "verify", f"--root={tmp_path / 'root'}", COORDINATOR], capture_output=True, text=True, check=False
    )
    assert "WatchdogSeconds" in done.stderr


PLAIN = {name: value for name, value in os.environ.items() if not name.startswith("SYSTEMD_")}


@services
def test_what_it_starts_is_shut_in(name: str) -> None:
    analyze = needs("systemd-analyze", "systemd")
    threshold = round(10 * MOST_EXPOSED.get(name, MOST_EXPOSED_ELSE))
    done = subprocess.run(
        [analyze, "security", "--offline=true", f"--threshold={threshold}", UNITS / name],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout.splitlines()[-1]
    assert settings(name)["User"] == ["archfleet"]


def words_of(command: str) -> list[str]:
    """A command's words as systemd would give them, with an address and a study in the place of variables."""
    filled = command.replace("${ARCHFLEET_HEAD}", "192.0.2.10").replace("${ARCHFLEET_STUDY}", "laptop")
    return [word for word in shlex.split(filled) if not word.startswith("$")]


def parse(words: list[str]) -> None:
    """Let the command parse its words without doing anything; click raises where it does not know one."""
    name, *rest = words
    main.commands[name].make_context(name, rest)


@pytest.mark.parametrize("name", [COORDINATOR, "archfleet-backup.service"])
def test_archfleet_has_the_command_and_the_options(name: str) -> None:
    (command,) = settings(name)["ExecStart"]
    program, *words = words_of(command)
    assert program == "/opt/archfleet/bin/archfleet"
    parse(words)


def test_archfleet_has_the_options_that_open_it_to_other_machines(tmp_path: Path) -> None:
    given = environment("open.conf")["ARCHFLEET_OPEN"].split()
    parse(["run", "laptop", *given])
    with pytest.raises(click.NoSuchOption):
        parse(["run", "laptop", *given, "--tls-certificate=x"])
    loaded = {value.partition(":")[0] for value in settings("open.conf")["LoadCredential"]}
    assert set(re.findall(r"%d/([\w.]+)", " ".join(given))) == loaded
    assert "$ARCHFLEET_OPEN" in settings(COORDINATOR)["ExecStart"][0].split()


@pytest.mark.parametrize("name", [HEAD, AGENT])
def test_ray_has_the_options(name: str) -> None:
    scripts = pytest.importorskip("ray.scripts.scripts", reason="pip install 'archfleet[fleet]'")
    (command,) = settings(name)["ExecStart"]
    program, start, *options = words_of(command)
    assert (program, start) == ("/opt/archfleet/bin/ray", "start")
    options += environment(name).get("ARCHFLEET_AGENT_OPTIONS", "").split()
    scripts.start.make_context("start", list(options))
    assert "--num-cpus=0" in options  # where a GPU has gone no processor is measured in its place


def test_every_variable_of_a_command_is_given() -> None:
    shared = configparser.ConfigParser()
    shared.read_string("[all]\n" + (UNITS / "archfleet.env").read_text())
    given = {name.upper() for name in shared["all"]}
    assert given == {"ARCHFLEET_HEAD", "ARCHFLEET_STUDY"}
    known = given | {"CREDENTIALS_DIRECTORY", "RUNTIME_DIRECTORY", "MAINPID"}
    for name in SERVICES:
        commands = " ".join(value for key, found in settings(name).items() if key.startswith("Exec") for value in found)
        named = set(re.findall(r"\$\{?([A-Z_]{4,})", commands))
        assert named <= known | environment(name).keys(), name


def test_no_secret_is_in_an_environment_or_a_command() -> None:
    for name in SERVICES:
        for variable, value in environment(name).items():
            assert "TOKEN" not in variable or value.startswith(("/", "%")), f"{name}: {variable}"
    for name in (COORDINATOR, AGENT, HEAD):
        assert settings(name)["LoadCredential"] == ["ray-token:/etc/archfleet/ray-token"]
        assert environment(name)["RAY_AUTH_MODE"] == "token"


def test_agents_drain_before_they_are_ended() -> None:
    found = settings(AGENT)
    (stop,) = found["ExecStop"]
    assert DRAIN_VARIABLE in stop
    assert environment(AGENT)[DRAIN_VARIABLE].startswith(f"%t/{found['RuntimeDirectory'][0]}/")
    seconds = int(environment(AGENT)["ARCHFLEET_SECONDS_TO_DRAIN"])
    assert int(found["TimeoutStopSec"][0]) >= seconds + 40


@services
def test_a_stop_reaches_the_main_process_first(name: str) -> None:
    found = settings(name)
    if found["Type"] != ["oneshot"]:
        assert found["KillMode"] == ["mixed"]  # what it has started is its own to end
        assert int(found["TimeoutStopSec"][0]) >= 40


def test_the_coordinator_is_started_again_but_not_for_ever_and_never_in_two() -> None:
    found = settings(COORDINATOR)
    assert (found["Type"], found["NotifyAccess"]) == (["notify"], ["main"])
    assert int(found["WatchdogSec"][0]) >= 10 * EVERY_SECONDS
    assert found["Restart"] == ["on-failure"]
    assert found["SuccessExitStatus"] == ["130"]  # a stop before the study's end is no failure
    assert "--stay" in found["ExecStart"][0]  # and none begins a finished study anew
    assert int(found["StartLimitBurst"][0]) * int(found["RestartSec"][0]) < 15 * 60


def test_drivers_find_the_heads_sockets() -> None:
    assert settings(COORDINATOR)["JoinsNamespaceOf"] == [HEAD]
    assert settings(COORDINATOR)["PrivateTmp"] == settings(HEAD)["PrivateTmp"] == ["yes"]


def test_the_user_is_made_by_sysusers(tmp_path: Path) -> None:
    sysusers = needs("systemd-sysusers", "systemd")
    (tmp_path / "etc").mkdir()
    subprocess.run([sysusers, f"--root={tmp_path}", UNITS / "sysusers.conf"], capture_output=True, check=True)
    (line,) = [line for line in (tmp_path / "etc" / "passwd").read_text().splitlines() if line.startswith("archfleet:")]
    assert line.split(":")[5:] == ["/var/lib/archfleet", "/usr/sbin/nologin"]


# As systemd starts it


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """The socket that systemd would give."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as found:
        found.bind(str(path))
        found.settimeout(PATIENCE_SECONDS)
        yield found


def test_a_coordinator_tells_systemd_that_it_is_ready_lives_and_ends(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    with Store.create(runs / "quick-20260101-000000", read_study("quick"), now_unix=0.0) as store:
        store.set_meta("state", "finished")
    command = [sys.executable, "-m", "coordinator.cli", "run", "quick", "--stay", f"--runs={runs}"]
    with listening(tmp_path / "s") as told:
        process = subprocess.Popen(
            [*command, "--metrics-port=0", "--dashboard-port=0"],
            cwd=ROOT,
            env={**os.environ, "NOTIFY_SOCKET": str(tmp_path / "s")},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            assert told.recv(100) == b"READY=1"
            assert told.recv(100) == b"WATCHDOG=1"
            process.send_signal(signal.SIGTERM)
            while (word := told.recv(100)) == b"WATCHDOG=1":
                pass
            assert word == b"STOPPING=1"
            assert process.wait(PATIENCE_SECONDS) == 0
        finally:
            process.kill()
            said = process.communicate()[0]
    assert "is finished" in said


# A real systemd

PREPARE = """
systemd-sysusers /opt/source/deploy/systemd/sysusers.conf
rm -rf /etc/archfleet
install -d -o archfleet -g archfleet -m 0750 /etc/archfleet
(umask 077 && python3 -c 'import secrets; print(secrets.token_hex(32), end="")' >/etc/archfleet/ray-token)
install -o archfleet -m 0640 /opt/given/study.toml /etc/archfleet/study.toml
sed 's/192.0.2.10/127.0.0.1/' /opt/source/deploy/systemd/archfleet.env >/etc/archfleet/archfleet.env
printf 'ARCHFLEET_AGENT_OPTIONS=--num-cpus=1\\nARCHFLEET_SECONDS_TO_DRAIN=10\\n' >/etc/archfleet/agent-cpu.env
setpriv --reuid=archfleet --regid=archfleet --clear-groups \\
    /opt/archfleet/bin/archfleet token create ada --tokens /etc/archfleet/tokens.toml
"""
PLAY = """
archfleet="setpriv --reuid=archfleet --regid=archfleet --clear-groups /opt/archfleet/bin/archfleet"
is() { [[ $(systemctl show --property="$2" --value "$1") == "$3" ]]; }
has() { $archfleet status --runs /var/lib/archfleet/runs --json 2>/dev/null | grep "$1" >/dev/null; }
until_true() {
    for ((second = 0; second < 240; second++)); do "$@" && return; sleep 1; done
    echo "never: $*" && return 1
}

systemctl start archfleet-coordinator
systemctl start archfleet-agent@cpu
until_true has '"succeeded": [1-9]'
systemctl stop archfleet-agent@cpu
is archfleet-agent@cpu Result success
systemctl start archfleet-agent@cpu
kill -KILL "$(systemctl show --property=MainPID --value archfleet-coordinator)"
until_true is archfleet-coordinator NRestarts 1
until_true is archfleet-coordinator ActiveState active
systemctl start archfleet-backup
until_true has '"state": "finished"'
systemctl stop archfleet-coordinator
is archfleet-coordinator Result success
systemctl stop archfleet-agent@cpu archfleet-head
[[ -z $(systemctl list-units --failed --no-legend) ]]
cp -R /var/lib/archfleet/runs /opt/given/runs
"""


@pytest.mark.fleet
@pytest.mark.slow
@pytest.mark.skipif(
    "ARCHFLEET_SYSTEMD" not in os.environ, reason="minutes under a systemd of its own; ARCHFLEET_SYSTEMD=1 asks for it"
)
def test_a_study_runs_under_systemd_though_its_agents_are_stopped_and_its_coordinator_is_killed(
    tmp_path: Path, small_study: Callable[..., str]
) -> None:
    needs("systemd-sysusers", "systemd")
    needs("unshare", "util-linux")
    if os.geteuid() != 0:
        pytest.skip("needs root: namespaces and mounts")
    given, work = tmp_path / "given", tmp_path / "work"
    work.mkdir()
    given.mkdir()
    given.chmod(0o755)
    (given / "prepare").write_text(PREPARE)
    (given / "play").write_text(PLAY)
    (given / "study.toml").write_text(small_study(given, seen="/opt/given"))
    own = ("--mount", "--pid", "--fork", "--kill-child", "--cgroup", "--uts", "--ipc", "--net")
    with group_of_its_own() as join, (given / "said").open("w") as said:
        machine = subprocess.Popen(
            ["unshare", *own, "bash", ROOT / "tests/deploy/machine.sh", work, ROOT, sys.executable, given],
            stdout=said,
            stderr=said,
            preexec_fn=join,
        )
        try:
            ends = time.monotonic() + 400
            while machine.poll() is None and not (given / "played").exists() and time.monotonic() < ends:
                time.sleep(0.5)
        finally:
            machine.kill()
            machine.wait()
    told = "\n".join((given / name).read_text() for name in ("log", "said") if (given / name).exists())
    assert (given / "played").exists(), told
    assert (given / "played").read_text() == "0\n", told
    (run,) = list_runs(given / "runs")
    with StoreReader.open(run) as store:
        assert store.meta("state") == "finished"
        verdict = check_history(history_of(store))
    assert verdict.kept, verdict.sentence()
    assert list((run / "backups").iterdir())
    assert re.search(rf"gets no new work: {DRAIN_VARIABLE} \S+ exists", told)


def test_a_machine_of_its_own_is_never_made_of_this_one(tmp_path: Path) -> None:
    command = ["bash", ROOT / "tests/deploy/machine.sh", tmp_path, ROOT, sys.executable, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "unshare" in done.stderr
    assert not list(tmp_path.iterdir())


@contextmanager
def group_of_its_own() -> Iterator[Callable[[], None]]:
    """A control group for a machine, and what its first process is to call: systemd makes those of units below it."""
    places = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))
    unified = next((place for place in places if (place / "cgroup.procs").exists()), None)
    if unified is None:
        pytest.skip("needs control groups of version 2")
    group = unified / f"archfleet-test-{os.getpid()}"
    group.mkdir()
    try:
        yield lambda: (group / "cgroup.procs").write_text(str(os.getpid())) and None
    finally:
        for _ in range(50):  # its processes end one after the other
            with suppress(OSError):
                for folder in sorted(group.rglob("*/"), reverse=True):
                    folder.rmdir()
                group.rmdir()
                break
            time.sleep(0.2)
