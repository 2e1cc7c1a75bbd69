"""The mesh as a worker has it: what the control process sends, and what follows for connections."""

import gc
import pickle
from collections.abc import Callable, Mapping, Sequence

from ztunnel.mesh.changes import Batch, Changes, Resource
from ztunnel.mesh.state import MeshState
from ztunnel.mesh.workload import Workload
from ztunnel.proxy.local_pod import LocalPod
from ztunnel.proxy.registry import Registry


class MeshCopy:
    """Keeps a state up to date. What comes here is from our own control process, which has checked
    it.

    Args:
        pods: that the worker serves, by uid.
        registry: gives the live connections.
    """

    def __init__(
        self, state: MeshState, pods: Mapping[str, LocalPod], registry: Callable[[], Registry]
    ) -> None:
        self._state = state
        self._pods = pods
        self._registry = registry
        self._judged: dict[str, Workload | None] = {}  # by pod: what its connections were judged by
        self._snapshot_names: set[str] | None = None

    def update(
        self, resources: bytes, removed: Sequence[str], removed_policies: Sequence[str]
    ) -> None:
        """What has changed."""
        upserts: list[Resource] = pickle.loads(resources)
        if self._snapshot_names is not None:
            self._snapshot_names.update(
                one.uid if isinstance(one, Workload) else one.key for one in upserts
            )
        self._changed(self._state.apply(Batch(upserts, removed, removed_policies)))

    def begin_snapshot(self, policies: bytes) -> None:
        """Of a new control process: all policies, and all else in updates up to `end_snapshot`."""
        self._snapshot_names = set()
        self._changed(self._state.replace_policies(pickle.loads(policies)))

    def end_snapshot(self) -> None:
        """What has not come is no more."""
        names, self._snapshot_names = self._snapshot_names, None
        self._changed(self._state.keep_only(names or ()))
        if not self._pods:
            # The mesh is most of what lives here, and lives long: the collector of cycles must
            # not walk through it while bytes wait. Without pods there are no cycles to lose.
            gc.collect()
            gc.freeze()

    def forget(self, uid: str) -> None:
        """A pod has left."""
        self._judged.pop(uid, None)

    def _changed(self, changes: Changes) -> None:
        if not changes:
            return
        affected = set()
        for uid, pod in self._pods.items():
            workload, judged = pod.workload(), self._judged.get(uid)
            same = workload is not None and judged is not None and workload.uid == judged.uid
            if not same or any(one is None or changes.rejudge(one) for one in (workload, judged)):
                affected.add(uid)
            self._judged[uid] = workload
        if affected:
            self._registry().rejudge(self._state, changes, affected)
        for pod in self._pods.values():
            pod.mesh_changed()
