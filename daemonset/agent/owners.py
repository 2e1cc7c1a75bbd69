"""Nobody else may do this agent's work on its node: two would write over each other's rules.

Found out from what really happens there: a lock that one agent of ours holds, whoever answers at
the socket where ztunnel connects, and pods that mount what only a node agent of a mesh mounts
(which takes rights that not everybody has, unlike names and labels).
"""

import errno
import fcntl
import logging
import os
import posixpath
import socket
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from daemonset.kube.client import ApiError, ApiUnavailableError, KubeClient

logger = logging.getLogger("daemonset.agent")

Json = Mapping[str, Any]

PATIENCE = 40.0
"""Seconds for an agent before this one to end: a little more than it is given."""
_LOOK, _LONGEST_LOOK = 0.5, 5.0
_CNI_FOLDERS = ("cni/net.d", "cni/bin", "/cni-network", "/run/istio-cni")


class NotAloneError(Exception):
    """Somebody else looks after this node. The message says who, and what to do."""


def other_agents(pods: Iterable[Json], zds_folder: str, own: tuple[str, str]) -> list[str]:
    """Pure: "namespace/name" of the pods of a node that are node agents of a mesh and not ours.

    A node agent serves ztunnel and is chained into the node's CNI: it mounts both folders.

    Args:
        pods: of this node, as the API has them.
        zds_folder: where the socket is that ztunnel connects to.
        own: namespace and name of the DaemonSet that runs this agent.
    """
    found = []
    for pod in pods:
        meta = pod["metadata"]
        if pod.get("status", {}).get("phase") in ("Succeeded", "Failed"):
            continue
        if (str(meta.get("namespace", "")), _controller(meta)) == own:
            continue
        if mounts_of_an_agent(pod, zds_folder):
            found.append(f"{meta.get('namespace', '')}/{meta['name']}")
    return sorted(found)


async def look_for_others(
    client: KubeClient, node: str, zds_folder: Path, own: tuple[str, str]
) -> None:
    """Return when the API has shown no other mesh's agent on this node.

    Waits for as long as it does not answer, or does not let us look yet.

    Raises:
        NotAloneError: there is one.
    """
    query = {"fieldSelector": f"spec.nodeName={node}"}
    pause, said = _LOOK, ""
    while True:
        try:
            pods = (await client.call("GET", "/api/v1/pods", query)).get("items") or ()
            break
        except (ApiError, ApiUnavailableError) as error:
            if str(error) != said:
                logger.warning("cannot look for other node agents: %s; trying again", error)
            said = str(error)
            await trio.sleep(pause)
            pause = min(pause * 2, _LONGEST_LOOK)
    others = other_agents(pods, str(zds_folder), own)
    if others:
        raise NotAloneError(
            f"this node belongs to another mesh's node agent: {', '.join(others)} (it mounts "
            f"{zds_folder} and the node's CNI). Uninstall one of the two, or keep this one off "
            "such nodes with a nodeSelector"
        )


def mounts_of_an_agent(pod: Json, zds_folder: str) -> bool:
    """Pure: does a pod (or a pod template) mount both folders from its node?"""
    volumes = (pod.get("spec") or {}).get("volumes") or ()
    paths = [
        posixpath.normpath(str((volume.get("hostPath") or {}).get("path", "")))
        for volume in volumes
        if volume.get("hostPath")
    ]
    serves = any(_same(path, zds_folder) for path in paths)
    return serves and any(path.endswith(_CNI_FOLDERS) for path in paths)


def _same(path: str, folder: str) -> bool:
    """/var/run is /run on most nodes."""
    return path.removeprefix("/var") == posixpath.normpath(folder).removeprefix("/var")


def _controller(meta: Json) -> str:
    owners = meta.get("ownerReferences") or ()
    return next((str(one.get("name", "")) for one in owners if one.get("controller")), "")


@asynccontextmanager
async def only_agent(lock: Path, who: str, patience: float = PATIENCE) -> AsyncIterator[None]:
    """Be the only agent of ours that works with the folder of `lock`.

    Args:
        who: we are, in words for whoever finds the lock taken.
        patience: seconds; an agent that this one replaces may need a moment.

    Raises:
        NotAloneError: another one keeps it.
        OSError: the file cannot be used.
    """
    lock.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        deadline = trio.current_time() + patience
        while not _take(descriptor):
            if trio.current_time() >= deadline:
                holder = os.pread(descriptor, 500, 0).decode(errors="replace").strip()
                raise NotAloneError(
                    f"another node agent works on this node: {holder or 'it left no name'}. Two of "
                    "them would write over each other's rules: uninstall one of the two"
                )
            await trio.sleep(_LOOK)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{who}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _take(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


async def wait_unserved(path: Path, patience: float = PATIENCE) -> None:
    """Return when nobody answers at the socket where ztunnel will look for us.

    Raises:
        NotAloneError: somebody goes on answering.
    """
    deadline = trio.current_time() + patience
    while is_served(path):
        if trio.current_time() >= deadline:
            raise NotAloneError(
                f"somebody else serves pods to ztunnel at {path}: Istio's istio-cni, or another "
                "installation of this agent. Remove it from this node (of Istio: helm uninstall "
                "istio-cni), or keep it and leave this agent out"
            )
        await trio.sleep(_LOOK)


def is_served(path: Path) -> bool:
    """Does somebody listen there? Asking is harmless: a ztunnel that says nothing has come."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except OSError as error:
            # A listener of another kind of socket, or with a full queue, is one all the same.
            return error.errno in (errno.EPROTOTYPE, errno.EAGAIN)
    return True


async def watch_socket(path: Path, pause: float = 5.0) -> None:
    """Never returns; to be started once our own socket is there.

    Raises:
        NotAloneError: somebody else has put theirs in its place, or it is gone.
    """
    ours = os.stat(path)
    while True:
        await trio.sleep(pause)
        try:
            now = os.stat(path)
        except FileNotFoundError:
            raise NotAloneError(f"somebody has removed {path}: no ztunnel could come") from None
        if not os.path.samestat(ours, now):
            raise NotAloneError(
                f"somebody else has taken {path} over, which tells ztunnel of this node's pods: "
                "another node agent has been installed (Istio's istio-cni?). Uninstall one of the "
                "two; captured pods stay captured"
            )
