"""The control process's links to its workers: who is there, and what a dead one leaves behind."""

import logging
import socket
from collections.abc import Callable

import trio

from ztunnel.process.carried import Carried
from ztunnel.process.channel import Channel, Message
from ztunnel.process.worker_link import WorkerLink
from ztunnel.telemetry.aggregate import Aggregate
from ztunnel.telemetry.counters import Counters

log = logging.getLogger("ztunnel.control")


class WorkerLinks:
    """All of them.

    Args:
        received: called for every message that a link does not keep for itself.
        nobody_left: called when the last worker is gone.
        write_line: takes lines of the access log.

    Attributes:
        workers: by slot.
    """

    def __init__(
        self,
        counters: Counters,
        aggregate: Aggregate,
        received: Callable[[WorkerLink, Message], None],
        nobody_left: Callable[[], None],
        write_line: Callable[[bytes], None],
        as_json: bool,
    ) -> None:
        self.workers: dict[int, WorkerLink] = {}
        self._links: set[WorkerLink] = set()
        self._counters = counters
        self._aggregate = aggregate
        self._received = received
        self._nobody_left = nobody_left
        self._write_line = write_line
        self._as_json = as_json
        self._nursery: trio.Nursery | None = None

    def serve_in(self, nursery: trio.Nursery) -> None:
        """Links are served there; call before any worker joins."""
        self._nursery = nursery

    def joined(self, slot: int, pid: int, *, fd: int) -> None:
        """There is a (new) channel to a worker."""
        assert self._nursery is not None
        old = self.workers.get(slot)
        if old is not None and old.pid == pid:
            old.replaced()
            old.carried = Carried()  # it tells the new link what it carries
        worker = WorkerLink(slot, pid, Channel(socket.socket(fileno=fd)), self._received)
        self.workers[slot] = worker
        self._links.add(worker)
        self._nursery.start_soon(self._serve, worker)

    async def _serve(self, worker: WorkerLink) -> None:
        await worker.run()
        if self.workers.get(worker.slot) is worker:
            del self.workers[worker.slot]
        if worker.dead:
            self._forget(worker)
        if not self.workers:
            self._nobody_left()

    def gone(self, slot: int, pid: int, how: str) -> None:
        """Its process has ended; what it said last may still be on the way."""
        self._counters.counter("ztunnel_worker_restarts").add()
        for worker in [w for w in self._links if (w.slot, w.pid) == (slot, pid)]:
            worker.dead = how
            if worker.gone:
                self._forget(worker)

    def _forget(self, worker: WorkerLink) -> None:
        self._links.discard(worker)
        if len(worker.carried):
            log.error(
                "worker %d took %d connections with it (%s)",
                worker.slot, len(worker.carried), worker.dead,
            )  # fmt: skip
            error = f"the worker that carried it has ended ({worker.dead})"
            worker.carried.write_lines(self._write_line, self._as_json, error)
        if not any(other.name == worker.name for other in self._links):
            self._aggregate.end(worker.name)

    async def read_predecessors(self, worker: WorkerLink) -> None:
        """Returns when all is taken in that former workers of its slot have said: that they listen
        for a pod, with sockets in whose queues somebody waits."""
        for before in [link for link in self._links if link.slot == worker.slot]:
            if before is not worker:
                await before.over.wait()
