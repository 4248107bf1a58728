"""RaySession: how this process reaches Ray. A cluster of its own on loopback, or one that is there already.

Whoever reaches a Ray cluster can run code on it, so both are used with token authentication alone: a local cluster
gets a token that only this user can read, and a foreign one is refused without, unless the user says `--insecure`.
"""

import json
import os
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from coordinator.errors import UserError
from coordinator.version import PACKAGES

OBJECT_STORE_BYTES = 100 * 2**20
CONNECT_TIMEOUT_SECONDS = 30.0
LISTEN_TIMEOUT_SECONDS = 5.0
LEAVE_TIMEOUT_SECONDS = 40.0
"""Ray gives a node 30 s to drain."""
REMOVE_TIMEOUT_SECONDS = 5.0
END_TIMEOUT_SECONDS = 5.0
MAX_STARTS = 2
"""Ray gives up a start after 30 s, too few for a loaded machine now and then."""
_THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class RaySession(Protocol):
    """A way to a Ray cluster."""

    is_local: bool
    """Whether every agent shares this machine's disk."""

    def connect(self) -> Any:
        """Connect this process; returns the `ray` module."""

    def close(self) -> None:
        """Leave nothing behind that this session made."""


class LocalSession:
    """A Ray cluster of this process's own: on loopback, with a token, its temporary files removed at the end.

    Its directory has a short path (Unix sockets allow 107 bytes). Its place is written down in the run, so that after
    a kill -9 the next start removes what was left. Where Ray gives up its start, `say` is told that it is tried again.
    """

    is_local = True

    def __init__(
        self,
        *,
        num_cpus: int,
        record: Path,
        start: Callable[..., Any] | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self._num_cpus = num_cpus
        self._record = record
        self._start = start or _init_ray
        self._say = say or _say_on_stderr
        self._directory: Path | None = None

    def connect(self) -> Any:
        """Start Ray.

        Raises:
            UserError: it gave up as often as it may be tried.
        """
        self._clean_up_after_a_kill()
        directory = self._create_directory()
        os.environ.update(
            RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(directory / "token"), RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0"
        )
        num_tries = 0
        while True:
            try:
                return self._start(
                    directory / "cwd",
                    num_cpus=self._num_cpus,
                    include_dashboard=False,
                    object_store_memory=OBJECT_STORE_BYTES,
                    _temp_dir=str(directory),
                    _node_ip_address="127.0.0.1",
                )
            except (ImportError, UserError):  # another try would end alike
                raise
            except Exception as error:  # Ray's own is no narrower
                num_tries += 1
                _end_processes_of(directory)
                reason = str(error).strip().partition("\n")[0].rstrip(" .:") or type(error).__name__
                if num_tries == MAX_STARTS:
                    self.close()
                    raise UserError(
                        f"Ray started no cluster on this machine (--agents {self._num_cpus}) in {MAX_STARTS} tries: "
                        f"{reason}.\nWhere the machine is loaded, Ray gives up after 30 s: run the same command again "
                        "when less runs here, or with fewer --agents."
                    ) from error
            self._say(f"Ray did not start: {reason}. Trying again: a loaded machine may need longer than Ray waits.")

    def close(self) -> None:
        """Remove the session's files."""
        if self._directory is not None:
            _remove(self._directory)
            self._record.unlink(missing_ok=True)
            self._directory = None

    def _clean_up_after_a_kill(self) -> None:
        if self._record.is_file():
            with suppress(ValueError, KeyError):
                _remove(Path(json.loads(self._record.read_text())["directory"]))
            self._record.unlink()

    def _create_directory(self) -> Path:
        self._directory = directory = Path(tempfile.mkdtemp(prefix="archfleet-ray-"))
        self._record.parent.mkdir(parents=True, exist_ok=True)
        self._record.write_text(json.dumps({"directory": str(directory)}))
        token = directory / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        return directory


class ClusterSession:
    """A Ray cluster that is there already. Workers need nothing of ours installed: the code travels along.

    A driver needs a Ray node beside it. Where this machine has none of that cluster, as in a container of its own, the
    session joins with one that offers neither CPUs nor GPUs, and takes it back at the end.
    """

    is_local = False

    def __init__(self, address: str, *, insecure: bool = False) -> None:
        self._address = address
        self._insecure = insecure
        self._directory: Path | None = None
        self._node: subprocess.Popen[bytes] | None = None

    def require(self) -> None:
        """Look at what can be known without connecting.

        Raises:
            UserError: nothing listens at the address, or (without `--insecure`) our token is missing or open to others.
        """
        require_listener(self._address)
        if not self._insecure:
            require_token(os.environ)

    def connect(self) -> Any:
        """Connect to the cluster.

        Raises:
            UserError: it takes whoever comes (without `--insecure`), our token is missing or open to others,
                nothing answers at the address, or this machine cannot join.
        """
        self.require()
        if not self._insecure and self._answers_without_a_token():
            raise UserError(
                f"the Ray cluster at {self._address} takes connections without a token: whoever reaches it runs "
                "code on it.\nStart its nodes with RAY_AUTH_MODE=token (see `ray get-auth-token --generate`), or "
                "accept the risk with --insecure."
            )
        self._directory = Path(tempfile.mkdtemp(prefix="archfleet-cwd-"))
        try:
            if not _has_a_node_of(self._address):
                self._join(self._directory / "node.log")
            return _init_ray(self._directory / "cwd", address=self._address, namespace="archfleet")
        except (ConnectionError, RuntimeError, ValueError) as error:
            self.close()
            reason = str(error).strip().partition("\n")[0]
            raise UserError(f"no Ray cluster answers at {self._address}: {reason}.\n{_WHERE}") from None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Leave the cluster, if this session joined it, and remove its files."""
        if self._node is not None:
            _end(self._node)
            self._node = None
        if self._directory is not None:
            _remove(self._directory)
            self._directory = None

    def _join(self, log: Path) -> None:
        """Start a node of that cluster here, without room for agents, and wait until it is up."""
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", f"--address={self._address}"]
        command += [f"--node-ip-address={_address_towards(self._address)}", "--num-cpus=0", "--num-gpus=0"]
        with log.open("wb") as file:
            self._node = subprocess.Popen(
                command,
                env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C is ours to handle
            )
        give_up = time.monotonic() + CONNECT_TIMEOUT_SECONDS
        while not _has_a_node_of(self._address):
            if self._node.poll() is not None or time.monotonic() > give_up:
                reason = _last_line(log.read_text(errors="replace")) or "no answer"
                raise UserError(
                    f"this machine cannot join the Ray cluster at {self._address}: {reason}.\n"
                    "Its Python and Ray must be of the cluster's versions, and each must reach the other's ports."
                )
            time.sleep(0.1)

    def _answers_without_a_token(self) -> bool:
        """Whether a process without a token gets in. Asked in another process: Ray reads its mode once."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
        try:
            answer = subprocess.run(
                [sys.executable, "-c", _ASK_WITHOUT_A_TOKEN, self._address],
                env={**environment, "RAY_AUTH_MODE": "disabled", "HOME": "/nonexistent"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=CONNECT_TIMEOUT_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return False
        return answer.returncode == 0


_ASK_WITHOUT_A_TOKEN = """
import sys
try:
    from ray._raylet import GcsClient
    ask = GcsClient.get_all_node_info
except (ImportError, AttributeError):  # another Ray: its front door, which tries for 20 s to get in
    import ray
    ray.init(address=sys.argv[1], log_to_driver=False, logging_level="CRITICAL")
else:
    ask(GcsClient(address=sys.argv[1]), timeout=20)
"""
_WHERE = "Give the head's address as --address HOST:6379; `ray status` on the head shows whether it runs."


def require_listener(address: str) -> None:
    """Ray itself would try an address where nothing listens for many minutes.

    Raises:
        UserError: not HOST:PORT, or nothing listens there.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(f"{address!r} is no address of a Ray cluster; expected HOST:PORT.\n{_WHERE}")
    try:
        socket.create_connection((host, int(port)), timeout=LISTEN_TIMEOUT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"no Ray cluster answers at {address}: {error}.\n{_WHERE}") from None


def listens(address: str) -> bool:
    """Whether something listens at HOST:PORT."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=LISTEN_TIMEOUT_SECONDS).close()
    except OSError:
        return False
    return True


def _has_a_node_of(address: str) -> bool:
    """Whether a Ray node runs here whose head listens at that port."""
    port = address.rpartition(":")[2]
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # the process has ended
            program, *arguments = file.read_bytes().split(b"\0")
            heads = (one for one in arguments if one.startswith(b"--gcs-address="))
            if program.endswith(b"/raylet") and any(head.endswith(f":{port}".encode()) for head in heads):
                return True
    return False


def _address_towards(address: str) -> str:
    """This machine's address as the one at HOST:PORT sees it. Nothing is sent."""
    host, _, port = address.rpartition(":")
    family, kind, protocol, _, place = socket.getaddrinfo(host, int(port), type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(place)
        return str(probe.getsockname()[0])


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def _end(node: "subprocess.Popen[bytes]") -> None:
    """TERM, which ends all that the node started; KILL its group where that does not help."""
    node.terminate()
    try:
        node.wait(LEAVE_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(node.pid, signal.SIGKILL)
        node.wait()


def _end_processes_of(directory: Path) -> None:
    """TERM what was started for this directory, with which a raylet ends its own; KILL what stays."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in _processes_of(directory):
            with suppress(ProcessLookupError):
                os.kill(process, number)
        give_up = time.monotonic() + END_TIMEOUT_SECONDS
        while _processes_of(directory) and time.monotonic() < give_up:
            time.sleep(0.1)


def _processes_of(directory: Path) -> list[int]:
    """Ids of other processes whose arguments name this directory or what is in it."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # the process has ended
            if os.fsencode(directory) in file.read_bytes() and int(file.parent.name) != os.getpid():
                found.append(int(file.parent.name))
    return found


def _remove(directory: Path) -> None:
    """Remove a directory in which processes that are ending may still write."""
    give_up = time.monotonic() + REMOVE_TIMEOUT_SECONDS
    while directory.exists():
        shutil.rmtree(directory, ignore_errors=True)
        if time.monotonic() > give_up:
            return
        time.sleep(0.1 if directory.exists() else 0.0)


def require_token(environment: os._Environ[str] | dict[str, str]) -> Path:
    """The file of our token: named by the environment or at Ray's own place, readable by this user alone.

    Raises:
        UserError: token authentication is off, there is no token, or others can read it.
    """
    how = "Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=FILE (`ray get-auth-token --generate` makes one)"
    if environment.get("RAY_AUTH_MODE") != "token":
        given = environment.get("RAY_AUTH_MODE")
        raise UserError(
            f"a Ray cluster is used with token authentication only; RAY_AUTH_MODE is {given!r}, expected 'token'.\n"
            f"{how}, or accept the risk with --insecure."
        )
    file = Path(environment.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    try:
        mode = stat.S_IMODE(file.stat().st_mode)
    except OSError as error:
        raise UserError(f"the Ray token {file} cannot be read: {error.strerror}.\n{how}.") from None
    if mode & 0o077:
        raise UserError(f"others can read the Ray token {file} (mode {mode:04o}, expected 0600).\nchmod 600 {file}")
    return file


def _init_ray(working_directory: Path, **arguments: Any) -> Any:
    working_directory.mkdir(exist_ok=True)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    with _own_signals():
        try:
            ray.init(
                **arguments,
                log_to_driver=False,
                logging_level="CRITICAL",
                # A dedicated working directory: otherwise the driver's own folder leads every worker's import path.
                runtime_env={
                    "working_dir": str(working_directory),
                    "py_modules": [str(folder) for folder in package_folders()],
                    "env_vars": _THREADS,
                },
            )
        except Exception:
            ray.shutdown()  # what it has set in this process
            raise
    return ray


def _say_on_stderr(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


@contextmanager
def _own_signals() -> Iterator[None]:
    """What INT and TERM did before, they do afterwards: Ray's own handlers print a stack and end the process."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only there can Ray, or we, set any
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def package_folders() -> list[Path]:
    """The four packages, checked to be siblings: generic names must not pick up a stranger's `agent`."""
    folders = [Path(str(import_module(name).__file__)).parent for name in PACKAGES]
    if len({folder.parent for folder in folders}) != 1:
        listing = "\n".join(f"  {folder}" for folder in folders)
        raise UserError(
            f"archfleet's packages are not side by side; another package of that name is in the way:\n{listing}"
        )
    return folders
