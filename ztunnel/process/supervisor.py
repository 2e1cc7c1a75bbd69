"""The supervisor: PID 1 of the container. Starts the others, restarts what dies.

It does nothing else, so that it never dies: no trio, no threads, no names in
the file system, nothing that waits for a child. The control process and each
worker are started by exec with one inherited socket, their channel to the
supervisor. The channel between control process and a worker is made here too,
anew whenever one of the two starts or their channel broke, and handed to both
ends.

SIGTERM and SIGINT start the drain: everyone is told, the workers end by
themselves within the deadline, then the control process, which carries their
last words, then the supervisor. A SIGINT during the drain ends all at once.
"""

import logging
import select
import signal
import socket
import time
from collections.abc import Callable
from typing import Final

from ztunnel.process import messages
from ztunnel.process.children import CANNOT_START, Child, how_it_ended, join, reap_strangers

log = logging.getLogger("ztunnel.supervisor")

_GRACE: Final = 3.0  # seconds beyond the drain's deadline before SIGKILL
_LAST_WORDS: Final = 5.0  # seconds the control process gets after the last worker
_REJOIN: Final = 0.5  # seconds before a broken channel is replaced


class Supervisor:
    """Keeps one control process and `workers` workers alive.

    Args:
        drain_seconds: what live connections get when the end has been asked for.
        write_log: writes lines that had to wait; called in every round, must not block.
    """

    def __init__(self, workers: int, drain_seconds: float, write_log: Callable[[], None]) -> None:
        self._write_log = write_log
        self._control = Child("control", -1)
        self._workers = [Child("worker", slot) for slot in range(workers)]
        self._children = (self._control, *self._workers)
        self._drain_seconds = drain_seconds
        self._status = 0
        self._draining = False
        self._kill_at = 0.0
        self._end_told = False
        self._rejoin: dict[int, float] = {}  # by slot: when

    def run(self) -> int:
        """Runs until drained. The exit status for the process."""
        reader, writer = socket.socketpair()
        reader.setblocking(False)
        writer.setblocking(False)
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        for handled in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(handled, lambda *_: None)
        for child in self._children:
            self._start(child)
        while not self._finished():
            for child in self._children:
                child.flush()
            self._write_log()
            self._wait(reader)
            try:
                for number in reader.recv(64):
                    self._signalled(number)
            except BlockingIOError:
                pass
            self._listen()
            self._reap()
            self._start_what_is_due()
            self._enforce_deadline()
        self._write_log()
        return self._status

    def _wait(self, reader: socket.socket) -> None:
        """Until there is something to do."""
        poller = select.poll()
        poller.register(reader.fileno(), select.POLLIN)
        for child in self._children:
            if child.channel is not None:
                writing = select.POLLOUT if child.channel.pending else 0
                poller.register(child.channel.fileno(), select.POLLIN | writing)
        now = time.monotonic()
        due = [child.restart_at for child in self._children if child.restart_at]
        due += self._rejoin.values()
        if self._draining:
            due.append(self._kill_at)
        wait = max(0.0, min(due) - now) if due else 60.0
        poller.poll(min(wait, 60.0) * 1000 + 1)

    def _start(self, child: Child) -> None:
        child.restart_at = 0.0
        if child.start():
            for worker in self._workers if child is self._control else [child]:
                self._rejoin.pop(worker.slot, None)
                join(self._control, worker)

    def _finished(self) -> bool:
        if not self._draining or any(worker.process is not None for worker in self._workers):
            return False
        if self._control.process is None:
            return True
        if not self._end_told:
            self._end_told = True
            self._kill_at = time.monotonic() + _LAST_WORDS
            self._control.tell(messages.END)
        return False

    def _signalled(self, number: int) -> None:
        if number not in (signal.SIGINT, signal.SIGTERM):
            return
        if self._draining and number == signal.SIGINT:
            log.warning("interrupted while draining: what is left is cut")
            for child in self._children:
                child.kill()
        elif not self._draining:
            log.info("draining: connections have %gs to end", self._drain_seconds)
            self._drain(self._drain_seconds)

    def _drain(self, seconds: float) -> None:
        self._draining = True
        self._kill_at = time.monotonic() + seconds + _GRACE
        self._rejoin.clear()
        for child in self._children:
            child.restart_at = 0.0
            child.tell(messages.DRAIN, seconds)

    def _listen(self) -> None:
        """A worker whose channel to the control process broke gets a new one."""
        for worker in self._workers:
            for message in worker.received():
                # One that tells of a channel which was replaced meanwhile comes too late.
                wanted = message.kind == messages.JOIN_AGAIN and message.values[0] == worker.joins
                if wanted and not self._draining:
                    self._rejoin.setdefault(worker.slot, time.monotonic() + _REJOIN)

    def _reap(self) -> None:
        for child in self._children:
            pid = child.pid
            status = child.reap()
            if status is not None:
                self._ended(child, pid, status)
        reap_strangers({child.pid for child in self._children})

    def _ended(self, child: Child, pid: int, status: int) -> None:
        if child is not self._control:
            self._rejoin.pop(child.slot, None)
            self._control.tell(messages.WORKER_GONE, child.slot, pid, how_it_ended(status))
        if self._draining:
            log.info("%s ended (%s)", child.name, how_it_ended(status))
        elif child is self._control and status == CANNOT_START and child.starts == 1:
            # It has said why. Whoever started us must hear of it, too.
            self._status = 1
            self._drain(0.0)
        else:
            child.ended(status)

    def _start_what_is_due(self) -> None:
        now = time.monotonic()
        for child in self._children:
            if child.restart_at and child.restart_at <= now:
                self._start(child)
        for slot in [slot for slot, when in self._rejoin.items() if when <= now]:
            del self._rejoin[slot]
            log.warning("worker %d and the control process are joined again", slot)
            join(self._control, self._workers[slot])

    def _enforce_deadline(self) -> None:
        if not self._draining or time.monotonic() < self._kill_at:
            return
        for child in self._children:
            # The control process carries the others' last words: it goes after them.
            if child.process is not None and (child is not self._control or self._end_told):
                log.warning("%s did not end in time and is killed", child.name)
                child.kill()
        self._kill_at = time.monotonic() + _GRACE
