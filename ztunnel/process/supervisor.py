"""The supervisor: PID 1 of the container. Starts the others, restarts what dies.

It does nothing else, so that it never dies: no trio, no threads, no names in
the file system. The control process and each worker are started by exec with
one inherited socket, their channel to the supervisor. The channel between
control process and a worker is made here too, anew whenever one of the two
starts, and handed to both ends.

SIGTERM and SIGINT start the drain: everyone is told, everyone ends by itself
within the deadline, then the supervisor goes. A second SIGINT ends at once.
"""

import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
from typing import Final

from ztunnel.process import messages
from ztunnel.process.channel import Channel, pair

log = logging.getLogger("ztunnel.supervisor")

CHANNEL_VARIABLE: Final = "ZTUNNEL_SUPERVISOR_FD"
ROLE_VARIABLE: Final = "ZTUNNEL_ROLE"
SLOT_VARIABLE: Final = "ZTUNNEL_WORKER_SLOT"

_STABLE: Final = 10.0  # seconds a child must live for its back-off to start again
_BACKOFF_MAX: Final = 5.0
_GRACE: Final = 3.0  # seconds beyond the drain's deadline before SIGKILL


class _Child:
    """One process that must be there."""

    def __init__(self, role: str, slot: int) -> None:
        self.role = role
        self.slot = slot
        self.process: subprocess.Popen[bytes] | None = None
        self.channel: Channel | None = None
        self.started = 0.0
        self.backoff = 0.0
        self.restart_at = 0.0

    @property
    def name(self) -> str:
        return self.role if self.role == "control" else f"worker {self.slot}"


class Supervisor:
    """Keeps one control process and `workers` workers alive."""

    def __init__(self, workers: int, drain_seconds: float) -> None:
        self._control = _Child("control", -1)
        self._workers = [_Child("worker", slot) for slot in range(workers)]
        self._drain_seconds = drain_seconds
        self._draining_since: float | None = None
        self._control_told = False
        self._interrupts = 0

    def run(self) -> int:
        """Runs until drained. The exit status for the process."""
        reader, writer = socket.socketpair()
        reader.setblocking(False)
        writer.setblocking(False)
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        for handled in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(handled, lambda *_: None)
        for child in (self._control, *self._workers):
            self._start(child)
        poller = select.poll()
        poller.register(reader.fileno(), select.POLLIN)
        while not self._finished():
            poller.poll(self._timeout() * 1000)
            try:
                for number in reader.recv(64):
                    self._signalled(number)
            except BlockingIOError:
                pass
            self._reap()
            self._restart_due()
            self._enforce_deadline()
            self._flush()
        return 0

    def _children(self) -> tuple[_Child, ...]:
        return (self._control, *self._workers)

    def _finished(self) -> bool:
        if self._draining_since is None:
            return False
        workers_gone = all(worker.process is None for worker in self._workers)
        if workers_gone and self._control.process is not None and not self._control_told:
            # Told to go only now: it carries the workers' last log lines and counters.
            self._control_told = True
            self._tell(self._control, messages.DRAIN, 0.0)
        return workers_gone and self._control.process is None

    def _timeout(self) -> float:
        now = time.monotonic()
        waits = [0.5] if self._draining_since is not None else [60.0]
        waits += [child.restart_at - now for child in self._children() if child.restart_at]
        if any(child.channel is not None and child.channel.pending for child in self._children()):
            waits.append(0.05)
        return max(0.0, min(waits))

    def _signalled(self, number: int) -> None:
        if number == signal.SIGINT:
            self._interrupts += 1
            if self._interrupts > 1:
                for child in self._children():
                    if child.process is not None:
                        child.process.kill()
        if number in (signal.SIGINT, signal.SIGTERM) and self._draining_since is None:
            log.info("draining: connections have %gs to end", self._drain_seconds)
            self._draining_since = time.monotonic()
            for worker in self._workers:
                worker.restart_at = 0.0
                self._tell(worker, messages.DRAIN, self._drain_seconds)
            if self._control.process is None:
                self._control.restart_at = 0.0

    def _tell(self, child: _Child, kind: int, value: float) -> None:
        if child.channel is not None:
            child.channel.queue(kind, value)

    def _start(self, child: _Child) -> None:
        ours, theirs = pair()
        environment = dict(
            os.environ,
            **{
                CHANNEL_VARIABLE: str(theirs.fileno()),
                ROLE_VARIABLE: child.role,
                SLOT_VARIABLE: str(child.slot),
            },
        )
        child.process = subprocess.Popen(
            [sys.executable, "-m", "ztunnel"],
            env=environment,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        child.channel = Channel(ours)
        child.started = time.monotonic()
        child.restart_at = 0.0
        if child is self._control:
            for worker in self._workers:
                self._join(worker)
        else:
            self._join(child)

    def _join(self, worker: _Child) -> None:
        """Gives the control process and a worker a fresh channel to each other."""
        if self._control.channel is None or worker.channel is None:
            return
        to_worker, to_control = pair()
        self._control.channel.queue(messages.WORKER, worker.slot, fds=[to_worker.fileno()])
        worker.channel.queue(messages.CONTROL, fds=[to_control.fileno()])
        # Both must be away before our copies close, or an end would not see the other's end.
        self._flush_now(self._control)
        self._flush_now(worker)
        to_worker.close()
        to_control.close()

    def _flush_now(self, child: _Child) -> None:
        channel = child.channel
        if channel is None:
            return
        try:
            while not channel.flush():
                select.select([], [channel], [], 1.0)
        except OSError as error:
            log.warning("%s cannot be reached: %s", child.name, error)

    def _flush(self) -> None:
        for child in self._children():
            if child.channel is not None and child.channel.pending:
                try:
                    child.channel.flush()
                except OSError as error:
                    log.debug("%s cannot be reached: %s", child.name, error)

    def _reap(self) -> None:
        for child in self._children():
            process = child.process
            if process is not None and process.poll() is not None:
                self._ended(child, process.returncode)
        self._reap_strangers()

    def _reap_strangers(self) -> None:
        """As PID 1, collects processes that lost their parents."""
        if os.getpid() != 1:
            return
        known = {child.process.pid for child in self._children() if child.process is not None}
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None or found.si_pid in known:
                return
            os.waitpid(found.si_pid, 0)

    def _ended(self, child: _Child, status: int) -> None:
        child.process = None
        if child.channel is not None:
            child.channel.close()
            child.channel = None
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
        if self._draining_since is not None:
            log.info("%s ended (%s)", child.name, how)
            return
        lived = time.monotonic() - child.started
        child.backoff = 0.0 if lived > _STABLE else min(_BACKOFF_MAX, child.backoff * 2 or 0.1)
        child.restart_at = time.monotonic() + child.backoff
        log.error(
            "%s ended (%s) after %.1fs; starting it again in %.1fs",
            child.name, how, lived, child.backoff,
        )  # fmt: skip
        if child is not self._control and self._control.channel is not None:
            self._control.channel.queue(messages.WORKER_GONE, child.slot)

    def _restart_due(self) -> None:
        if self._draining_since is not None:
            return
        now = time.monotonic()
        for child in self._children():
            if child.process is None and child.restart_at <= now:
                self._start(child)

    def _enforce_deadline(self) -> None:
        if self._draining_since is None:
            return
        if time.monotonic() - self._draining_since > self._drain_seconds + _GRACE:
            for child in self._children():
                if child.process is not None:
                    log.warning("%s did not end in time and is killed", child.name)
                    child.process.kill()
