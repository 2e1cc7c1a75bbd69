"""The first process of a mesh: PID 1 of its own PID namespace, and the maker of its namespaces.

When it ends, for whatever reason, the kernel ends every process of the mesh with it, and with the
last process go the network namespaces, their links, routes and rules. It ends when the socket to
its owner closes, so not even SIGKILL to the owner leaves anything behind.

It is started by :class:`daemonset.local.namespaces.Keeper`, which speaks to it over a socket pair:
one JSON request, one JSON answer; the descriptors of new namespaces ride on the answer.
"""

import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from daemonset.local import system

NAMESPACE_KINDS = ("net", "mnt", "uts")
"""What each node and pod has of its own, in the order in which descriptors are passed."""

REQUEST_LIMIT = 65_536


def serve(owner: socket.socket) -> None:
    """Answer the owner's requests until it hangs up."""
    signal.signal(signal.SIGCHLD, _reap)
    try:
        warnings = _prepare_mounts(json.loads(owner.recv(REQUEST_LIMIT)))
    except OSError as error:
        owner.send(json.dumps({"error": str(error)}).encode())
        return
    first = {"pid": os.getpid(), "warnings": warnings}
    socket.send_fds(owner, [json.dumps(first).encode()], _open_own(("mnt", "pid")))
    while True:
        try:
            request = owner.recv(REQUEST_LIMIT)
        except InterruptedError:
            continue
        if not request:
            return
        try:
            descriptors = _handle(json.loads(request))
        except OSError as error:
            answer = {"error": str(error), "errno": error.errno}
            owner.send(json.dumps(answer).encode())
        else:
            socket.send_fds(owner, [b"{}"], descriptors)
            for descriptor in descriptors:
                os.close(descriptor)


def _handle(request: dict[str, Any]) -> list[int]:
    if request["do"] == "make":
        descriptors = _make(request["hostname"], request["files"], request["name_at"])
        if request["shared_mounts"]:
            os.close(descriptors[1])
            descriptors[1] = _open_own(("mnt",))[0]
        return descriptors
    if request["do"] == "drop":
        system.unmount(request["name_at"])
        os.unlink(request["name_at"])
        return []
    raise OSError(f"unknown request {request['do']!r}")


def _prepare_mounts(files: dict[str, str]) -> list[str]:
    """A mount tree of our own, with a /proc that shows this PID namespace where that is allowed."""
    system.unshare(system.CLONE_NEWNS)
    system.mount("none", "/", None, system.MS_REC | system.MS_PRIVATE)
    _replace(files)
    try:
        flags = system.MS_NOSUID | system.MS_NODEV | system.MS_NOEXEC
        system.mount("proc", "/proc", "proc", flags)
    except PermissionError as error:
        # Inside some containers parts of /proc are masked, and the kernel then refuses a fresh one
        # to user namespaces. Everything works with the old one, only `ps` shows strangers.
        return [f"the mesh sees the machine's own /proc ({error})"]
    return []


def _open_own(kinds: tuple[str, ...]) -> list[int]:
    return [os.open(f"/proc/self/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC) for kind in kinds]


def _replace(files: dict[str, str]) -> None:
    for target, source in files.items():
        system.mount(source, target, None, system.MS_BIND)


def _make(hostname: str, files: dict[str, str], name_at: str | None) -> list[int]:
    """Namespaces for one node or pod, made in a child so that this process stays where it is."""
    ours, childs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    child = os.fork()
    if child == 0:
        try:
            ours.close()
            _become(hostname, files)
            socket.send_fds(childs, [b"ok"], _open_own(NAMESPACE_KINDS))
        except OSError as error:
            childs.send(f"{error.errno} {error.strerror}".encode())
        finally:
            os._exit(0)
    childs.close()
    with ours:
        said, descriptors, _, _ = socket.recv_fds(ours, 4096, len(NAMESPACE_KINDS))
    if said != b"ok":
        number, _, text = said.decode().partition(" ")
        raise OSError(int(number) if number.isdigit() else 0, text or "the maker died")
    if name_at is not None:
        Path(name_at).touch()
        system.mount(f"/proc/self/fd/{descriptors[0]}", name_at, None, system.MS_BIND)
    return descriptors


def _become(hostname: str, files: dict[str, str]) -> None:
    system.unshare(system.CLONE_NEWNET | system.CLONE_NEWNS | system.CLONE_NEWUTS)
    system.mount("none", "/", None, system.MS_REC | system.MS_PRIVATE)
    system.set_hostname(hostname)
    _replace(files)


def _reap(_number: int, _frame: object) -> None:
    """Collect what ended, also processes of pods whose parents ended before them."""
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as inherited:
        serve(inherited)
