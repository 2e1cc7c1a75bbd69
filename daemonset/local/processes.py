"""The processes of a mesh: started in their namespaces, watched, restarted, ended in order."""

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import daemonset
from daemonset.local.namespaces import Keeper, Namespace, NamespaceError

Report = Callable[[str], None]
"""Tells the user of a mesh one thing that happened, in words."""

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 10.0
"""Seconds between a process's end and its restart: doubled each time, as kubelet backs off."""

STEADY_AFTER = 30.0
"""Seconds after which a process that ran is not taken for one that cannot start."""


class ProcessError(Exception):
    """A process did not become ready; the text names it and quotes its log."""


@dataclass(frozen=True, slots=True)
class Program:
    """What to run, where, and when it counts as ready."""

    name: str
    namespace: Namespace
    command: tuple[str, ...]
    environment: Mapping[str, str]
    log: Path
    restart: str = "Always"
    """A Pod's ``restartPolicy``: Always, OnFailure or Never."""
    is_ready: Callable[[], bool] | None = None
    """None: ready as soon as it runs."""
    grace: float = 3.0
    """Seconds between SIGTERM and SIGKILL."""


class RunningProgram:
    """One program, through its restarts."""

    def __init__(self, program: Program, keeper: Keeper, report: Report) -> None:
        self.program = program
        self.restarts = 0
        self.process: subprocess.Popen[bytes] | None = None
        self.stopped = False
        self._keeper = keeper
        self._report = report
        self._started = 0.0
        self._restart_at: float | None = None
        self._pause = FIRST_PAUSE

    def start(self) -> None:
        """Raises NamespaceError when the command cannot be run."""
        with self.program.log.open("ab") as log:
            self.process = self._keeper.spawn(
                self.program.namespace,
                self.program.command,
                environment=self.program.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._started = time.monotonic()
        self._restart_at = None

    @property
    def has_ended(self) -> bool:
        """Whether it does not run at this moment."""
        return self.process is None or self.process.poll() is not None

    @property
    def state(self) -> str:
        """In words, for people."""
        again = f", restarted {self.restarts} times" if self.restarts else ""
        if self.process is None:
            return f"cannot be started{again}"
        code = self.process.returncode
        if code is None:
            return f"running, pid {self.process.pid}{again}"
        return f"ended {how_it_ended(code)}{again}"

    def watch(self) -> None:
        """Notice an end, and restart when the time has come."""
        if self.stopped:
            return
        now = time.monotonic()
        if self._restart_at is not None:
            if now >= self._restart_at:
                self.restarts += 1
                self._start_again()
            return
        if self.process is None or self.process.poll() is None:
            return
        code = self.process.returncode
        if self.program.restart == "Never" or (self.program.restart == "OnFailure" and code == 0):
            self.stopped = True
            self._report(f"{self.program.name} ended {how_it_ended(code)}")
            return
        if now - self._started > STEADY_AFTER:
            self._pause = FIRST_PAUSE
        self._report(
            f"{self.program.name} ended {how_it_ended(code)}; it is started again in"
            f" {self._pause:g} s (its log: {self.program.log})"
        )
        self._plan_restart(now)

    def _start_again(self) -> None:
        try:
            self.start()
        except NamespaceError as error:
            self._report(str(error))
            self._plan_restart(time.monotonic())

    def _plan_restart(self, now: float) -> None:
        self._restart_at = now + self._pause
        self._pause = min(self._pause * 2, LONGEST_PAUSE)

    def terminate(self) -> None:
        """Ask it to end, and do not start it again."""
        self.stopped = True
        if self.process is not None and self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGTERM)

    def finish(self, deadline: float) -> None:
        """Wait for its end; after *deadline* (monotonic seconds) end its whole session."""
        if self.process is None:
            return
        try:
            self.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            # It leads a session and process group of its own (Keeper.spawn).
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


class Processes:
    """All programs of one mesh. Not thread-safe: one thread owns it."""

    def __init__(self, keeper: Keeper, report: Report) -> None:
        self.running: dict[str, RunningProgram] = {}
        self._keeper = keeper
        self._report = report

    def start(self, program: Program) -> RunningProgram:
        """Raises NamespaceError when the command cannot be run."""
        running = RunningProgram(program, self._keeper, self._report)
        running.start()
        self.running[program.name] = running
        return running

    def watch(self) -> None:
        for running in self.running.values():
            running.watch()

    def await_ready(
        self, names: Iterable[str], timeout: float, restarts: int | None = None
    ) -> None:
        """Wait until each is ready; up to *restarts* restarts of each (None: any number) happen
        meanwhile.

        Raises:
            ProcessError: one was not within *timeout* seconds, or ended once more; its log is
                quoted.
        """
        deadline = time.monotonic() + timeout
        for name in names:
            running = self.running[name]
            program = running.program
            while program.is_ready is not None and not program.is_ready():
                self.watch()
                problem = ""
                if restarts is not None and running.has_ended and running.restarts >= restarts:
                    problem = "ended again and again before it was ready"
                elif time.monotonic() > deadline:
                    problem = f"was not ready within {timeout:g} s"
                if problem:
                    raise ProcessError(
                        f"{name} {problem} ({running.state});"
                        f" the end of its log {program.log}:\n{last_lines(program.log)}"
                    )
                time.sleep(0.02)

    def stop(self, names: Iterable[str]) -> None:
        """End some programs together and forget them."""
        stopping = [self.running.pop(name) for name in list(names)]
        for running in stopping:
            running.terminate()
        started = time.monotonic()
        for running in stopping:
            running.finish(started + running.program.grace)


def how_it_ended(code: int) -> str:
    """An exit status in words."""
    if code >= 0:
        return f"with status {code}"
    return f"by {signal.Signals(-code).name}"


def last_lines(path: Path, count: int = 12) -> str:
    """The end of a log, indented."""
    lines = path.read_text(errors="replace").splitlines()[-count:]
    return "\n".join(f"    {line}" for line in lines) or "    (it is empty)"


def python(*arguments: str) -> tuple[str, ...]:
    """A command for this very interpreter."""
    return (sys.executable, *arguments)


def base_environment() -> dict[str, str]:
    """What every process of a mesh has in its environment: nothing of the user's own but paths.

    A proxy setting or a preloaded library of the user's shell would change what a mesh does.
    """
    own = Path(daemonset.__file__).resolve().parent.parent
    inherited = os.environ.get("PYTHONPATH", "")
    return {
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), *_system_path())),
        "PYTHONPATH": os.pathsep.join(filter(None, (str(own), inherited))),
        "PYTHONUNBUFFERED": "1",
        "LANG": "C.UTF-8",
        "HOME": "/tmp",
    }


def _system_path() -> Iterator[str]:
    seen: set[str] = set()
    usual = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
    for folder in (*os.environ.get("PATH", "").split(os.pathsep), *usual):
        if folder and folder not in seen:
            seen.add(folder)
            yield folder


def resolve(command: Sequence[str]) -> tuple[str, ...]:
    """The command with ``python`` and ``python3`` meaning the interpreter that we run on."""
    if command[0] in ("python", "python3"):
        return python(*command[1:])
    return tuple(command)


def answers(namespace: Namespace, address: str, port: int, path: str) -> Callable[[], bool]:
    """A readiness check: HTTP GET in a namespace gives status 200."""

    def check() -> bool:
        try:
            return http_status(namespace, address, port, path) == 200
        except OSError:
            return False

    return check


def accepts(namespace: Namespace, address: str, port: int) -> Callable[[], bool]:
    """A readiness check: a TCP connection from a namespace is accepted."""

    def check() -> bool:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with namespace.network.socket(family, socket.SOCK_STREAM) as connection:
            connection.settimeout(1.0)
            return connection.connect_ex((address, port)) == 0

    return check


def http_status(namespace: Namespace, address: str, port: int, path: str) -> int:
    """The status of one GET. Raises OSError when there is no answer in time."""
    return http_get(namespace, address, port, path)[0]


def http_get(
    namespace: Namespace, address: str, port: int, path: str, timeout: float = 2.0
) -> tuple[int, str]:
    """Status and body of one GET from inside a namespace; *timeout* in seconds.

    Raises:
        OSError: nobody answers, or not with HTTP.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with namespace.network.socket(family, socket.SOCK_STREAM) as connected:
        connected.settimeout(timeout)
        connected.connect((address, port))
        connection = http.client.HTTPConnection(address, port)
        connection.sock = connected
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode(errors="replace")
        except http.client.HTTPException as error:
            raise OSError(f"{address}:{port} does not answer with HTTP: {error!r}") from error
        finally:
            connection.close()
