"""What the control plane sent, checked once here and handed to every worker."""

import logging
import pickle
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from ztunnel.mesh.changes import Batch, Changes, Resource
from ztunnel.mesh.errors import ResourceError
from ztunnel.mesh.from_proto import address_from_proto, authorization_from_proto
from ztunnel.mesh.state import MeshState
from ztunnel.process import messages
from ztunnel.process.worker_link import WorkerLink

log = logging.getLogger("ztunnel.control")

ADDRESS_TYPE: Final = "type.googleapis.com/istio.workload.Address"
AUTHORIZATION_TYPE: Final = "type.googleapis.com/istio.security.Authorization"


class MeshFeed:
    """The mesh state of the node, and its way to the workers.

    Resources go out pickled: both ends are the same code of the same start,
    and a worker must believe its control process anyway. (The other way round
    nothing is ever unpickled.)
    """

    def __init__(self, state: MeshState, workers: Callable[[], Iterable[WorkerLink]]) -> None:
        self.state = state
        self._workers = workers
        self._sequence = 0
        self._listeners: list[Callable[[Changes], None]] = []

    def listen(self, listener: Callable[[Changes], None]) -> None:
        """Calls `listener` after each step that changed something."""
        self._listeners.append(listener)

    def welcome(self, worker: WorkerLink) -> None:
        """A worker has started: it gets everything."""
        resources: list[Resource] = [
            *self.state.workloads,
            *(record.service for record in self.state.services if record.service is not None),
            *self.state.policies(),
        ]
        worker.send(messages.UPDATE, self._sequence, pickle.dumps(resources), [], [], True)

    async def apply(self, upserts: Sequence[Resource], removed: Sequence[str],
                    removed_policies: Sequence[str]) -> None:  # fmt: skip
        """Makes one step here and in every worker; returns when all of them have made it."""
        changes = self.state.apply(Batch(upserts, removed, removed_policies))
        await self._broadcast(upserts, removed, removed_policies, changes)

    async def replace(self, resources: Iterable[Resource]) -> None:
        """Makes the mesh exactly these resources (a local file that was read anew)."""
        everything = list(resources)
        changes = self.state.replace(everything)
        if not changes:
            return
        self._sequence += 1
        body = pickle.dumps(everything)
        await self._send(body, [], [], snapshot=True)
        for listener in self._listeners:
            listener(changes)

    async def _broadcast(
        self,
        upserts: Sequence[Resource],
        removed: Sequence[str],
        removed_policies: Sequence[str],
        changes: Changes,
    ) -> None:
        if changes:
            self._sequence += 1
            await self._send(pickle.dumps(list(upserts)), removed, removed_policies, snapshot=False)
            for listener in self._listeners:
                listener(changes)

    async def _send(
        self, body: bytes, removed: Sequence[str], removed_policies: Sequence[str], snapshot: bool
    ) -> None:
        sequence = self._sequence
        workers = list(self._workers())
        for worker in workers:
            worker.send(
                messages.UPDATE, sequence, body, list(removed), list(removed_policies), snapshot
            )
        for worker in workers:
            await worker.wait_applied(sequence)

    async def apply_encoded(
        self, type_url: str, resources: Iterable[tuple[str, bytes]], removed: Sequence[str]
    ) -> list[tuple[str, str]]:
        """One xDS response.

        Good resources are applied even where others are refused: holding the
        whole back would keep the mesh from changes that have nothing to do with
        the mistake. A policy that cannot be read denies, unless a good version of it is in force.

        Returns:
            (name, reason) of each resource that was refused.
        """
        decode = _DECODERS[type_url]
        upserts: list[Resource] = []
        refused: list[tuple[str, str]] = []
        for name, body in resources:
            try:
                upserts.append(decode(body))
            except ResourceError as error:
                refused.append((name, error.reason))
                log.error("%s %s is refused: %s", type_url.rpartition(".")[2], name, error.reason)
                if error.fallback is not None and self.state.policy(error.fallback.key) is None:
                    upserts.append(error.fallback)
        if type_url == AUTHORIZATION_TYPE:
            await self.apply(upserts, [], removed)
        else:
            await self.apply(upserts, removed, [])
        return refused


_DECODERS: Final[dict[str, Callable[[bytes], Resource]]] = {
    ADDRESS_TYPE: address_from_proto,
    AUTHORIZATION_TYPE: authorization_from_proto,
}
