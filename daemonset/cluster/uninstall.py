"""``ambient uninstall``: pods leave the mesh, that is verified, and only then anything is deleted.

Every step finds out from the cluster what is left to do, so that a second run goes on where the
first one stopped.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Collection
from dataclasses import dataclass

import trio

from daemonset.agent.owners import mounts_of_an_agent
from daemonset.agent.pod_notes import REDIRECTION
from daemonset.agent.report import WITHDRAW
from daemonset.cluster.listing import list_all
from daemonset.cluster.names import AGENT, CONTROL_PLANE, PART_OF, US, ZDS_FOLDER, ZTUNNEL
from daemonset.cluster.removal import (
    KINDS_OF_OURS,
    NAMESPACES,
    WORKLOADS,
    Doomed,
    list_doomed,
    what_stays,
)
from daemonset.cluster.survey import Access, Survey
from daemonset.cluster.withdrawal import NodeProgress, is_annotated, node_of, progress
from daemonset.control_plane.translation.settings import DATAPLANE_MODE
from daemonset.kube.client import MERGE_PATCH, ApiError, Json, KubeClient
from daemonset.kube.reflector import Resource

_LOOK = 1.0
_PODS = Resource("", ("v1",), "pods")


class NotUninstalledError(Exception):
    """It stops here, with nothing deleted that is needed to go on. The message says what to do."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """``skipped`` nodes are not waited for; ``patience``: seconds for each step that waits."""

    skipped: frozenset[str] = frozenset()
    patience: float = 180.0


def needed_access(survey: Survey) -> list[Access]:
    """What whoever uninstalls must be allowed: asked before anything is changed."""
    namespace = survey.installation.namespace
    found = [
        Access("patch", "", "namespaces"),
        Access("patch", "", "pods/status"),
        Access("delete", "apps", "daemonsets", namespace),
        Access("delete", "apps", "deployments", namespace),
    ]
    for resource in KINDS_OF_OURS:
        group = resource.group
        namespaced = not group.startswith("admission") and not resource.plural.startswith("cluster")
        wanted = Access("delete", group, resource.plural, namespace if namespaced else "")
        if wanted not in found:
            found.append(wanted)
    return found


def summary(survey: Survey, doomed: Collection[Doomed]) -> list[str]:
    """What is going to happen, for people to agree to; no line at all where nothing is there.

    Args:
        doomed: objects that are there beside the workloads.
    """
    installation = survey.installation
    captured = [pod for pod in survey.all("pods") if is_annotated(pod)]
    if not installation.is_there and not captured:
        return [f"{len(doomed)} objects of an earlier installation are deleted"] if doomed else []
    nodes = {node_of(pod) for pod in captured} - {""}
    if installation.agent is None:
        lines = [
            f"{len(captured)} pods on {len(nodes)} nodes carry the annotation {REDIRECTION}, and no"
            " node agent is there any more: it is taken off them"
        ]
    else:
        lines = [
            f"{len(captured)} pods on {len(nodes)} nodes leave the mesh: connections that stay open"
            " through it are cut, new ones are in the clear and without identities"
        ]
    strict = sorted(
        f"{item['metadata'].get('namespace')}/{item['metadata']['name']}"
        for item in survey.all("peer authentications")
        if ((item.get("spec") or {}).get("mtls") or {}).get("mode") == "STRICT"
    )
    if strict:
        lines.append(
            f"PeerAuthentication {', '.join(strict)} demands mTLS: until all pods have left, those "
            "that are still in refuse those that are out. Delete it, or set it to PERMISSIVE, "
            "first if that matters"
        )
    if installation.is_there:
        lines.append(
            f"the mesh's own parts in {installation.namespace} are deleted, with their roles, "
            "admission policies and root ConfigMaps"
        )
    elif doomed:
        lines.append(f"{len(doomed)} objects of an earlier installation are deleted")
    return lines


class Uninstall:
    """One run.

    Args:
        say: prints a line.
    """

    def __init__(
        self, client: KubeClient, survey: Survey, wishes: Wishes, say: Callable[[str], None]
    ) -> None:
        self._client = client
        self._survey = survey
        self._wishes = wishes
        self._say = say
        self._namespace = survey.installation.namespace
        self._root = survey.installation.settings.root_namespace

    async def run(self) -> None:
        """Do all of it.

        Raises:
            NotUninstalledError: something is not as it must be to go on.
            ApiError, ApiUnavailableError: the API server refuses, or does not answer.
        """
        if self._survey.installation.agent is not None:
            await self._withdraw(await self._ask_agents())
        else:
            self._say(
                "no node agent is there (any more): what is left on nodes is not verified; where an"
                " agent could not end in peace, captured pods stay captured until they are deleted"
            )
        await self._clear_annotations()
        installation = self._survey.installation
        ours = {AGENT: installation.agent, ZTUNNEL: installation.ztunnel,
                CONTROL_PLANE: installation.control_plane}  # fmt: skip
        for plural, name in WORKLOADS:
            if ours[name] is not None:
                await self._delete_workload(plural, name)
        async for one in list_doomed(self._client, self._namespace, self._root):
            await self._delete(one.path, one.words)
        await self._delete_namespace()
        labelled = [
            str(item["metadata"]["name"])
            for item in self._survey.all("namespaces")
            if DATAPLANE_MODE in (item["metadata"].get("labels") or {})
        ]
        self._say("uninstalled. What stays:")
        for line in what_stays(self._root, labelled):
            self._say(f"  {line}")

    async def cancel(self) -> None:
        """Take back what was asked of the agents. Raises as `run`."""
        await self._label(None)
        self._say(f"label {WITHDRAW} is off namespace {self._namespace}: agents begin anew")

    # ---- pods

    async def _ask_agents(self) -> str:
        path = f"/api/v1/namespaces/{self._namespace}"
        labels = (await self._client.call("GET", path))["metadata"].get("labels") or {}
        if labels.get(WITHDRAW):
            request = str(labels[WITHDRAW])
            self._say(f"going on with the uninstallation that began at {request} (UTC)")
            return request
        request = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%dT%H.%M.%S}"
        await self._label(request)
        self._say(f"asked the node agents to leave ({WITHDRAW}={request} on {self._namespace})")
        return request

    async def _label(self, value: str | None) -> None:
        body = {"metadata": {"labels": {WITHDRAW: value}}}
        path = f"/api/v1/namespaces/{self._namespace}"
        await self._client.call("PATCH", path, body=body, content_type=MERGE_PATCH)

    async def _withdraw(self, request: str) -> None:
        said: set[str] = set()
        deadline = trio.current_time() + self._wishes.patience
        while True:
            found = progress(await self._our_pods(AGENT), await self._pods(), request)
            for one in found:
                if one.clean and one.node not in said:
                    said.add(one.node)
                    self._say(f"node {one.node}: nothing of the mesh is left ({one.pods} pods)")
            open_ = [one for one in found if not one.clean and one.node not in self._wishes.skipped]
            if not open_:
                break
            if trio.current_time() >= deadline:
                raise NotUninstalledError(_unfinished(open_))
            await trio.sleep(_LOOK)
        for one in found:
            if not one.clean:
                self._say(
                    f"node {one.node} is skipped: {one.waits_for or '; '.join(one.left)}. What is "
                    "left there goes with its pods, and with a restart of the node"
                )

    async def _clear_annotations(self) -> None:
        cleared = 0
        pods = await self._pods()
        foreign = {
            node_of(pod)
            for pod in pods
            if pod["metadata"].get("namespace") != self._namespace
            and mounts_of_an_agent(pod, ZDS_FOLDER)
        }
        for pod in pods:
            # On nodes of another mesh's agent the annotation is that one's.
            if not is_annotated(pod) or node_of(pod) in foreign:
                continue
            meta = pod["metadata"]
            path = f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}/status"
            body = {"metadata": {"uid": meta["uid"], "annotations": {REDIRECTION: None}}}
            try:
                await self._client.call("PATCH", path, body=body, content_type=MERGE_PATCH)
                cleared += 1
            except ApiError as error:
                if error.status not in (404, 409):  # gone, or another pod of that name
                    raise
        if cleared:
            self._say(f"took the annotation {REDIRECTION} off {cleared} pods")

    async def _pods(self) -> list[Json]:
        return [item async for item in list_all(self._client, _PODS)]

    async def _our_pods(self, app: str) -> list[Json]:
        """Of one of our workloads."""
        query = (("labelSelector", f"app={app},{PART_OF}={US}"),)
        ours = Resource("", ("v1",), f"namespaces/{self._namespace}/pods", query)
        return [item async for item in list_all(self._client, ours)]

    # ---- objects

    async def _delete_workload(self, plural: str, name: str) -> None:
        """And wait until its pods have ended: what comes next takes away what they need."""
        path = f"/apis/apps/v1/namespaces/{self._namespace}/{plural}/{name}"
        await self._delete(path, f"{plural} {self._namespace}/{name}")
        deadline = trio.current_time() + self._wishes.patience
        while pods := [
            pod for pod in await self._our_pods(name) if node_of(pod) not in self._wishes.skipped
        ]:
            if trio.current_time() >= deadline:
                names = ", ".join(str(pod["metadata"]["name"]) for pod in pods)
                raise NotUninstalledError(
                    f"pods of {name} do not end: {names}. Run the command again once they have "
                    "(a node that is gone keeps its pods until its Node object is deleted)"
                )
            await trio.sleep(_LOOK)

    async def _delete(self, path: str, words: str) -> None:
        body: Json = {"propagationPolicy": "Background"}
        try:
            await self._client.call("DELETE", path, body=body)
        except ApiError as error:
            if error.status != 404:
                raise
            return
        self._say(f"deleted {words}")

    async def _delete_namespace(self) -> None:
        """Where it is the installation's own; another's is kept, without our label."""
        ours = {str(item["metadata"]["name"]) async for item in list_all(self._client, NAMESPACES)}
        if self._namespace in ours and self._namespace != self._root:
            await self._delete(f"/api/v1/namespaces/{self._namespace}",
                               f"namespace {self._namespace}")  # fmt: skip
            return
        try:
            await self._label(None)
        except ApiError as error:
            if error.status != 404:
                raise
            return
        self._say(f"namespace {self._namespace} is not of this installation, and stays")


def _unfinished(nodes: Collection[NodeProgress]) -> str:
    lines = [
        f"  node {one.node}: {one.waits_for or 'still there: ' + '; '.join(one.left)}"
        for one in nodes
    ]
    return (
        "nothing was deleted, because these nodes are not done:\n"
        + "\n".join(lines)
        + "\nRun the command again to go on; --skip-node NAME goes on without a node, --cancel "
        "takes it all back"
    )
