"""What the control plane sent, checked once here and handed to every worker."""

import logging
import pickle
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import trio

from ztunnel.mesh.changes import Batch, Changes, Resource
from ztunnel.mesh.errors import ResourceError
from ztunnel.mesh.from_proto import address_from_proto, authorization_from_proto
from ztunnel.mesh.policy import Authorization
from ztunnel.mesh.state import MeshState
from ztunnel.mesh.workload import Workload
from ztunnel.process import messages
from ztunnel.process.ahead import Ahead
from ztunnel.process.worker_link import WorkerLink

log = logging.getLogger("ztunnel.control")

ADDRESS_TYPE: Final = "type.googleapis.com/istio.workload.Address"
AUTHORIZATION_TYPE: Final = "type.googleapis.com/istio.security.Authorization"

PIECE: Final = 200  # resources at a time, which take a worker some milliseconds


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
        self._ahead = Ahead(state)
        self._local: set[str] = set()
        self._local_policies: set[str] = set()

    def listen(self, listener: Callable[[Changes], None]) -> None:
        """Calls `listener` after each step that changed something."""
        self._listeners.append(listener)

    async def welcome(self, worker: WorkerLink) -> None:
        """A worker is to have everything, and to hear of each step from now on.

        Only once the state is whole: to a worker that outlived a former control process the
        snapshot says what is no more, and it ends the connections that this forbids. Policies
        come first and at once, the rest piece by piece, with updates between the pieces.
        """
        state = self.state
        worker.welcome = True
        worker.send(messages.SNAPSHOT, pickle.dumps(list(state.policies())))
        names = [workload.uid for workload in state.workloads]
        names += [record.key for record in state.services]
        for start in range(0, len(names), PIECE):
            await trio.lowlevel.checkpoint()
            if worker.gone:
                return
            # As they are now: a change since the start must not be undone.
            found = [state.workload(n) or state.service(n) for n in names[start : start + PIECE]]
            resources = [resource for resource in found if resource is not None]
            worker.send(messages.UPDATE, self._sequence, pickle.dumps(resources), [], [])
        worker.send(messages.SNAPSHOT_END)

    async def apply(
        self,
        upserts: Sequence[Resource],
        removed: Sequence[str],
        removed_policies: Sequence[str],
    ) -> None:
        """Makes one step here and in every worker; returns when they have made it.

        Workloads and services beyond a few hundred come in several steps, so that neither this
        process nor the workers stand still meanwhile. Policies never do: half of them may allow
        less, or more, than the whole. A worker that is stuck is not waited for much longer than
        the others take.
        """
        told: set[WorkerLink] = set()
        if not any(isinstance(resource, Authorization) for resource in upserts):
            while len(upserts) > PIECE:
                told |= self._step(Batch(upserts[:PIECE], removed, removed_policies))
                upserts, removed, removed_policies = upserts[PIECE:], (), ()
                await trio.lowlevel.checkpoint()
        told |= self._step(Batch(upserts, removed, removed_policies))
        async with trio.open_nursery() as nursery:
            for worker in told:
                nursery.start_soon(worker.wait_applied, self._sequence)

    def _step(self, batch: Batch) -> set[WorkerLink]:
        """Gives the workers that have been told, which are none where nothing changed."""
        changes = self.state.apply(batch)
        if not changes:
            return set()
        self._sequence += 1
        body = pickle.dumps([resource for resource in batch.upserts if changes.names(resource)])
        # No await since the state changed: a worker is welcomed before this step or after it.
        workers = {worker for worker in self._workers() if worker.welcome}
        for worker in workers:
            worker.send(
                messages.UPDATE,
                self._sequence,
                body,
                list(batch.removed),
                list(batch.removed_policies),
            )
        for listener in self._listeners:
            listener(changes)
        return workers

    async def replace_local(self, resources: Iterable[Resource]) -> None:
        """A local file was read (anew): what it said before and does not say now is removed.

        What a control plane has said is left alone.
        """
        upserts = list(resources)
        addresses = {r.uid if isinstance(r, Workload) else r.key
                     for r in upserts if not isinstance(r, Authorization)}  # fmt: skip
        policies = {r.key for r in upserts if isinstance(r, Authorization)}
        gone, gone_policies = self._local - addresses, self._local_policies - policies
        self._local, self._local_policies = addresses, policies
        await self.apply(upserts, sorted(gone), sorted(gone_policies))

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
        for number, (name, body) in enumerate(resources):
            if number % PIECE == PIECE - 1:
                await trio.lowlevel.checkpoint()
            try:
                upserts.append(decode(body))
            except ResourceError as error:
                refused.append((name, error.reason))
                log.error("%s %s is refused: %s", type_url.rpartition(".")[2], name, error.reason)
                if error.fallback is not None and self.state.policy(error.fallback.key) is None:
                    upserts.append(error.fallback)
        if type_url == AUTHORIZATION_TYPE:
            # With them, in one step, the workloads that waited for them.
            arriving = [policy.key for policy in upserts if isinstance(policy, Authorization)]
            await self.apply([*upserts, *self._ahead.release(arriving)], [], removed)
        else:
            ready = self._ahead.hold(upserts, removed, trio.current_time())
            await self.apply(ready, removed, [])
        return refused

    @property
    def waits_for_policies(self) -> bool:
        """Whether `settle` is to be called, `ahead.GRACE` seconds from now."""
        return bool(self._ahead)

    async def settle(self) -> None:
        """Workloads whose policies have not come in time go by what they were told."""
        late = self._ahead.expire(trio.current_time())
        for workload in late:
            log.warning(
                "workload %s names a policy that the control plane has not sent: %s",
                workload.uid,
                ", ".join(workload.authorization_policies),
            )
        if late:
            await self.apply(late, [], [])


_DECODERS: Final[dict[str, Callable[[bytes], Resource]]] = {
    ADDRESS_TYPE: address_from_proto,
    AUTHORIZATION_TYPE: authorization_from_proto,
}
