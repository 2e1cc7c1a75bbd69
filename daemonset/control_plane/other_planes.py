"""No two control planes for one mesh: both would hand out root certificates in every namespace.

Looked for is Istio's istiod of our revision, in the namespace where it lives. Elsewhere anybody who
may make a pod could give it istiod's labels, and with them stop the mesh.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any, Final

import trio

from daemonset.control_plane.translation.settings import MeshSettings
from daemonset.kube.client import ApiError, ApiUnavailableError, KubeClient

log = logging.getLogger("daemonset.control_plane")

Json = Mapping[str, Any]

LOOK_EVERY: Final = 30.0  # seconds


class OtherControlPlaneError(Exception):
    """Somebody else has the mesh. The message says who, and what to do."""


def other_planes(pods: Iterable[Json], revision: str) -> list[str]:
    """Pure: the names of those pods that are an istiod of this revision, and have not ended."""
    found = []
    for pod in pods:
        meta = pod["metadata"]
        labels = meta.get("labels") or {}
        if labels.get("app") != "istiod" or labels.get("istio.io/rev", "default") != revision:
            continue
        ended = pod.get("status", {}).get("phase") in ("Succeeded", "Failed")
        if not ended and "deletionTimestamp" not in meta:
            found.append(str(meta["name"]))
    return sorted(found)


async def refuse_others(client: KubeClient, settings: MeshSettings) -> None:
    """Looks once.

    Raises:
        OtherControlPlaneError: there is another control plane.
        ApiError, ApiUnavailableError: the API server refuses, or does not answer.
    """
    namespace = settings.root_namespace
    query = {"labelSelector": "app=istiod"}
    answer = await client.call("GET", f"/api/v1/namespaces/{namespace}/pods", query)
    found = other_planes(answer.get("items") or (), settings.revision)
    if found:
        raise OtherControlPlaneError(
            f"the mesh has another control plane: Istio's istiod of revision {settings.revision} "
            f"runs in namespace {namespace} (pod {', '.join(found)}). Both would hand out root "
            "certificates in every namespace. Keep one of the two: scale istiod to 0 replicas, or "
            "run our data plane below it (overlay below-istiod), or give ours another --revision"
        )


async def watch_for_others(
    client: KubeClient, settings: MeshSettings, pause: float = LOOK_EVERY
) -> None:
    """Looks from time to time, and never returns. Raises OtherControlPlaneError."""
    while True:
        await trio.sleep(pause)
        try:
            await refuse_others(client, settings)
        except (ApiError, ApiUnavailableError) as error:
            log.debug("cannot look for other control planes: %s", error)
