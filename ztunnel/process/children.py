"""The processes that a supervisor keeps: how each is started, and when again after it ended."""

import logging
import os
import signal
import subprocess
import sys
import time
from typing import Final

from ztunnel.process import messages
from ztunnel.process.channel import Channel, ChannelError, Message, pair

log = logging.getLogger("ztunnel.supervisor")

CHANNEL_VARIABLE: Final = "ZTUNNEL_SUPERVISOR_FD"
ROLE_VARIABLE: Final = "ZTUNNEL_ROLE"
SLOT_VARIABLE: Final = "ZTUNNEL_WORKER_SLOT"

CANNOT_START: Final = 78  # EX_CONFIG of sysexits.h: trying again would change nothing

_STABLE: Final = 10.0  # seconds a child must live for its back-off to start again
_BACKOFF_MAX: Final = 5.0


class Child:
    """One process that must be there."""

    def __init__(self, role: str, slot: int) -> None:
        self.role = role
        self.slot = slot
        self.process: subprocess.Popen[bytes] | None = None
        self.channel: Channel | None = None
        self.starts = 0
        self.restart_at = 0.0
        self.joins = 0  # channels to the control process that a worker was given so far
        self._started = 0.0
        self._backoff = 0.0

    @property
    def name(self) -> str:
        """For the log."""
        return self.role if self.role == "control" else f"worker {self.slot}"

    @property
    def pid(self) -> int:
        """Of the running process; 0 without one."""
        return self.process.pid if self.process is not None else 0

    def start(self) -> bool:
        """Starts the process. False when that is not possible now; `restart_at` then says when."""
        self.starts += 1
        self._started = time.monotonic()
        try:
            ours, theirs = pair()
            with theirs:
                self.process = self._spawn(theirs.fileno())
        except OSError as error:
            # No memory, or no more processes: a supervisor that dies of it helps nobody.
            self._plan_restart()
            log.error(
                "%s cannot be started: %s; trying again in %.1fs", self.name, error, self._backoff
            )
            return False
        self.channel = Channel(ours)
        return True

    def _spawn(self, channel: int) -> "subprocess.Popen[bytes]":
        environment = {
            **os.environ,
            CHANNEL_VARIABLE: str(channel),
            ROLE_VARIABLE: self.role,
            SLOT_VARIABLE: str(self.slot),
        }
        return subprocess.Popen(
            [sys.executable, "-m", "ztunnel"],
            env=environment,
            pass_fds=[channel],
            stdin=subprocess.DEVNULL,
            # A terminal's Ctrl-C is for the supervisor alone, who tells the others what to do.
            process_group=0,
        )

    def reap(self) -> int | None:
        """The exit status if the process has ended: a signal's number if negative."""
        if self.process is None:
            return None
        status = self.process.poll()
        if status is not None:
            self.process = None
            self._hang_up()
        return status

    def _hang_up(self) -> None:
        if self.channel is not None:
            self.channel.close()
            self.channel = None

    def ended(self, status: int) -> None:
        """It was reaped and is to be started again, with growing pauses if it dies young."""
        lived = time.monotonic() - self._started
        if lived > _STABLE:
            self._backoff = 0.0
        self._plan_restart()
        log.error(
            "%s ended (%s) after %.1fs; starting it again in %.1fs",
            self.name, how_it_ended(status), lived, self._backoff,
        )  # fmt: skip

    def _plan_restart(self) -> None:
        self._backoff = min(_BACKOFF_MAX, self._backoff * 2 or 0.1)
        self.restart_at = time.monotonic() + self._backoff

    def tell(self, kind: int, *values: object, fds: list[int] | None = None) -> bool:
        """Queues a message. False when nobody is there, or it cannot be (said in the log)."""
        if self.channel is None:
            return False
        try:
            self.channel.queue(kind, *values, fds=fds)
        except OSError as error:
            log.error("%s cannot be told: %s", self.name, error)
            return False
        return True

    def flush(self) -> None:
        """Writes what its socket takes; never waits."""
        if self.channel is not None and self.channel.pending:
            try:
                self.channel.flush()
            except OSError as error:
                log.debug("%s cannot be reached: %s", self.name, error)

    def received(self) -> list[Message]:
        """What it has said since."""
        if self.channel is None:
            return []
        try:
            found = self.channel.receive()
        except (OSError, ChannelError) as error:
            log.warning("%s cannot be heard: %s", self.name, error)
            found = None
        if found is None:
            self._hang_up()  # it is about to end
        return found or []

    def kill(self) -> None:
        """SIGKILL."""
        if self.process is not None:
            self.process.kill()


def how_it_ended(status: int) -> str:
    """An exit status in words."""
    return f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"


def reap_strangers(known: set[int]) -> None:
    """As PID 1, collects processes that lost their parents."""
    if os.getpid() != 1:
        return
    while True:
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if found is None or found.si_pid in known:
            return
        os.waitpid(found.si_pid, 0)


def join(control: Child, worker: Child) -> None:
    """Gives the control process and a worker a fresh channel to each other."""
    if control.channel is None or worker.channel is None:
        return
    try:
        to_worker, to_control = pair()
    except OSError as error:
        log.error("%s cannot be joined to the control process: %s", worker.name, error)
        return
    # What is queued keeps copies; ours go at once, or an end would not see the other one's end.
    with to_worker, to_control:
        if control.tell(messages.WORKER, worker.slot, worker.pid, fds=[to_worker.fileno()]):
            worker.joins += 1
            worker.tell(messages.CONTROL, worker.joins, fds=[to_control.fileno()])
