"""Namespaces seen from the owner of a mesh: make them, run processes and functions in them.

Everything lives by descriptors: closing the :class:`Keeper`, or the death of the process that holds
it, removes every process, namespace, link, route and rule of the mesh.
"""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Self, TypeVar

from daemonset.local import system
from daemonset.local.keeper import NAMESPACE_KINDS, REQUEST_LIMIT
from ztunnel.linux.netns import NetworkNamespace

T = TypeVar("T")


class NamespaceError(Exception):
    """A namespace could not be made or entered; the text says which and why."""


class Namespace:
    """The network, mount and UTS namespace of one node or pod, held open by descriptors."""

    def __init__(self, name: str, network: NetworkNamespace, mnt: int, uts: int) -> None:
        self.name = name
        self.network = network
        """Its path is a name in the mount namespace of the mesh, or empty."""
        self.mnt = mnt
        self.uts = uts

    def close(self) -> None:
        self.network.close()
        os.close(self.mnt)
        os.close(self.uts)


def in_thread(function: Callable[[], T]) -> T:
    """Run *function* in a thread that ends afterwards: it may change its namespaces freely."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="ambient-namespace")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


class Keeper:
    """Owner's side of the mesh's first process (see :mod:`daemonset.local.keeper`)."""

    def __init__(
        self, names_under: Path | None = None, files: Mapping[str, Path] | None = None
    ) -> None:
        """Start it.

        Args:
            names_under: an existing folder in which network namespaces get a name to open.
            files: files to replace (target -> source) in the view of everything in the mesh.

        Raises:
            NamespaceError: the kernel refused, or a file to replace is not there.
        """
        self.names_under = names_under
        self.namespaces: dict[str, Namespace] = {}
        self.warnings: list[str] = []
        self._children: list[subprocess.Popen[bytes]] = []
        self._socket, childs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with childs:
            command = [sys.executable, "-m", "daemonset.local.keeper", str(childs.fileno())]

            def start() -> subprocess.Popen[bytes]:
                system.unshare(system.CLONE_NEWPID)
                return subprocess.Popen(
                    command,
                    pass_fds=[childs.fileno()],
                    start_new_session=True,
                    stdin=subprocess.DEVNULL,
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                )

            try:
                self._process = in_thread(start)
            except OSError as error:
                self._socket.close()
                raise NamespaceError(f"cannot make a PID namespace: {error}") from error
        common = {target: str(source) for target, source in (files or {}).items()}
        self._socket.send(json.dumps(common).encode())
        message, descriptors, _, _ = socket.recv_fds(self._socket, REQUEST_LIMIT, 2)
        said: dict[str, Any] = (
            json.loads(message) if message else {"error": "the mesh's first process ended"}
        )
        if "error" in said:
            self._socket.close()
            self._process.wait()
            raise NamespaceError(said["error"])
        self._mnt, self.pid_namespace = descriptors
        self.warnings = said["warnings"]

    @property
    def pid(self) -> int:
        """The first process, as the owner's PID namespace numbers it."""
        return self._process.pid

    def make(
        self,
        name: str,
        *,
        hostname: str,
        files: Mapping[str, Path] | None = None,
        shared_mounts: bool = False,
    ) -> Namespace:
        """Make a node's or pod's namespaces.

        Args:
            name: what to call it here and under *names_under*.
            hostname: the machine's name as seen inside.
            files: files to replace (target -> source) in its view.
            shared_mounts: no mount namespace of its own but the mesh's, in which namespaces made
                later have their names too: for what runs on nodes.

        Raises:
            NamespaceError: the kernel refused, or a file to replace is not there.
        """
        if name in self.namespaces:
            raise NamespaceError(f"namespace {name} is there already")
        path = None if self.names_under is None else self.names_under / name
        sources = {target: str(source) for target, source in (files or {}).items()}
        request = {
            "do": "make",
            "hostname": hostname[:63],
            "files": sources,
            "shared_mounts": shared_mounts,
            "name_at": None if path is None else str(path),
        }
        net, mnt, uts = self._ask(name, request, len(NAMESPACE_KINDS))
        made = Namespace(name, NetworkNamespace(net, "" if path is None else str(path)), mnt, uts)
        self.namespaces[name] = made
        return made

    def drop(self, namespace: Namespace) -> None:
        """Forget a namespace; it goes when its last process has ended."""
        del self.namespaces[namespace.name]
        namespace.close()
        if namespace.network.path:
            self._ask(namespace.name, {"do": "drop", "name_at": namespace.network.path}, 0)

    def _ask(self, name: str, request: Mapping[str, object], descriptors: int) -> list[int]:
        self._socket.send(json.dumps(request).encode())
        message, received, _, _ = socket.recv_fds(self._socket, REQUEST_LIMIT, descriptors)
        if not message:
            raise NamespaceError(f"namespace {name}: the mesh's first process is gone")
        answer = json.loads(message)
        if "error" in answer:
            raise NamespaceError(f"namespace {name}: {answer['error']}")
        return received

    def call(self, namespace: Namespace, function: Callable[[], T]) -> T:
        """Run *function* in a thread of its own in the network namespace; gives its result."""

        def enter() -> T:
            system.setns(namespace.network.fd, system.CLONE_NEWNET)
            return function()

        return in_thread(enter)

    def spawn(
        self,
        namespace: Namespace,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        stdin: int | IO[bytes] = subprocess.DEVNULL,
        stdout: int | IO[bytes] | None = None,
        stderr: int | IO[bytes] | None = None,
        pass_fds: Sequence[int] = (),
        directory: Path | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a real process in the namespaces of a node or pod.

        It inherits the namespaces of the thread that starts it, so there is no wrapper process and
        no code between fork and exec. It dies with the keeper.

        Raises:
            NamespaceError: the command is not there or the namespaces cannot be entered.
        """

        def start() -> subprocess.Popen[bytes]:
            system.unshare(system.CLONE_FS)  # a mount namespace is only for a thread of its own
            system.setns(namespace.mnt, system.CLONE_NEWNS)
            system.setns(namespace.uts, system.CLONE_NEWUTS)
            system.setns(namespace.network.fd, system.CLONE_NEWNET)
            system.setns(self.pid_namespace, system.CLONE_NEWPID)
            return subprocess.Popen(
                list(command),
                env=None if environment is None else dict(environment),
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                pass_fds=pass_fds,
                cwd=directory,
                start_new_session=True,
            )

        try:
            child = in_thread(start)
        except OSError as error:
            raise NamespaceError(f"{namespace.name}: cannot run {command[0]}: {error}") from error
        self._children = [one for one in self._children if one.returncode is None]
        self._children.append(child)
        return child

    def close(self) -> None:
        """End every process of the mesh and remove every namespace. Harmless when called twice."""
        if self._socket.fileno() == -1:
            return
        self._socket.close()
        # The kernel kills every process of the PID namespace when its first one ends, and lets that
        # one end only after all others were collected: ours to do for those that we started.
        for child in self._children:
            child.wait()
        self._process.wait()
        for namespace in self.namespaces.values():
            namespace.close()
        self.namespaces.clear()
        os.close(self._mnt)
        os.close(self.pid_namespace)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
