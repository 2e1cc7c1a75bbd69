"""The mesh of a cluster from its live objects, read as the control plane reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from daemonset.cluster.installation import Installation, find_installation
from daemonset.cluster.listing import list_all
from daemonset.control_plane.answer import answer, state_of
from daemonset.control_plane.objects.meta import ObjectKey
from daemonset.control_plane.objects.objectset import ObjectSet
from daemonset.control_plane.sources.kubernetes_kinds import KINDS
from daemonset.control_plane.sources.kubernetes_store import KindStore
from daemonset.control_plane.translation.translate import Translator
from daemonset.kube.client import ApiError, KubeClient
from daemonset.kube.reflector import Resource

DAEMON_SETS = Resource("apps", ("v1",), "daemonsets")
DEPLOYMENTS = Resource("apps", ("v1",), "deployments")


@dataclass(frozen=True, slots=True)
class Live:
    """``problems``: objects that cannot be read, in words; ``off``: what is not installed."""

    installation: Installation
    objects: ObjectSet
    problems: tuple[str, ...]
    off: tuple[str, ...]


async def read_live(client: KubeClient, system_namespace: str) -> Live:
    """Everything that makes up the mesh now.

    Raises:
        ApiError, ApiUnavailableError: something cannot be listed.
    """
    fields: dict[str, Any] = {}
    problems: list[str] = []
    off: list[str] = []
    for kind in KINDS:
        store = KindStore(kind, lambda: None)
        store.begin()
        try:
            async for item in list_all(client, kind.resource):
                store.put(item)
        except ApiError as error:
            if error.status != 404 or not kind.needs:
                raise
            off.append(store.off)
        store.commit()
        fields[kind.field] = store.objects
        problems += [str(problem) for problem in store.problems.values()]
    daemon_sets = [item async for item in list_all(client, DAEMON_SETS)]
    deployments = [item async for item in list_all(client, DEPLOYMENTS)]
    installation = find_installation(system_namespace, daemon_sets, deployments)
    return Live(installation, ObjectSet(**fields), tuple(problems), tuple(off))


def why_live(
    live: Live, namespace: str, source: str, destination: str, port: int | None
) -> tuple[int, list[str]]:
    """Pure: exit status and lines, as for a folder.

    Args:
        namespace: of names that are given without one; "" to look in all.
    """
    # Captured is what node agents say is captured, as for the control plane.
    translation = Translator(live.installation.settings).translate(live.objects, frozenset())
    if namespace and "/" not in source:
        source = f"{namespace}/{source}"
    return answer(state_of(translation), live.objects, _place, source, destination, port)


def _place(key: ObjectKey, field: str) -> str:
    return field or "the object as a whole"
