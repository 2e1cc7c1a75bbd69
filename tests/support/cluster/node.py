"""One node: containerd, kubelet and kube-proxy in namespaces of their own, with a power switch."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from tests.support.cluster.cgroups import NodeCgroups
from tests.support.cluster.links import NodeAddresses, attach_node, detach_node
from tests.support.cluster.programs import Programs
from tests.support.program import wait_for
from ztunnel.linux.netns import NetworkNamespace

_RUN_SECONDS = 120.0


class Node:
    """A machine that is off at first. Its disk (`write_disk`) outlives a power cut.

    Args:
        boot: the file that `write_disk` wrote.
        host: the namespace with the bridge.
        nodes: the addresses of all nodes.
    """

    def __init__(
        self,
        name: str,
        addresses: NodeAddresses,
        boot: Path,
        host: NetworkNamespace,
        nodes: list[NodeAddresses],
        programs: Programs,
    ) -> None:
        self.name = name
        self.addresses = addresses
        self._boot = boot
        self._host = host
        self._nodes = nodes
        self._programs = programs
        self._cgroups = NodeCgroups(name)
        self._network: NetworkNamespace | None = None

    @property
    def network(self) -> NetworkNamespace:
        """Of this boot."""
        assert self._network is not None, f"{self.name} is switched off"
        return self._network

    def switch_on(self) -> None:
        """Returns at once; the kubelet comes later. Raises OSError."""
        self._cgroups.make()
        self._network = attach_node(self._host, self.addresses, self._nodes)
        unshare = ["unshare", "--mount", "--uts", "--ipc", "--pid", "--cgroup", "--fork"]
        init = [sys.executable, "-m", "tests.support.cluster.node_init", str(self._boot)]
        self._programs.start(
            self.name,
            [*unshare, "--kill-child=KILL", "--propagation=private", *init],
            namespace=self._network,
            cgroups=self._cgroups.folders,
        )

    def cut_power(self) -> None:
        """Everything on the node ends at this moment, without a chance to say so."""
        if self._network is None:
            return
        detach_node(self._host, self.addresses)
        self._programs.end(self.name)
        self._network.close()
        self._network = None
        self._cgroups.remove()

    def init(self) -> int:
        """The pid of its first process, as this machine counts."""

        def child() -> int:
            self._programs.check(self.name)
            pid = self._programs.pid(self.name)
            words = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            return int(words[0]) if words else 0

        return wait_for(f"{self.name} has a first process", child)

    def pid(self, program: str) -> int:
        """Of containerd, kubelet or kube-proxy, once it runs."""
        init = self.init()

        def find() -> int:
            for word in Path(f"/proc/{init}/task/{init}/children").read_text().split():
                name = Path(f"/proc/{word}/comm").read_text().strip()
                if name == program:
                    return int(word)
            return 0

        return wait_for(f"{self.name} runs {program}", find)

    def kill(self, program: str) -> None:
        """It is started again by the node's first process."""
        os.kill(self.pid(program), signal.SIGKILL)

    def run(self, *command: str) -> str:
        """A command on the node, as with `docker exec` for kind; its output.

        Raises CalledProcessError.
        """
        enter = ["nsenter", "--target", str(self.init()), "--all", "--wd=/", "--"]
        done = subprocess.run(
            [*enter, *command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
            timeout=_RUN_SECONDS,
        )
        return done.stdout

    def kill_pod(self, uid: str, *, sandbox: bool) -> None:
        """SIGKILL for the first process of each of a pod's containers, which ends the others.

        With `sandbox` also for what holds the pod's namespaces open: all of it is made anew then.
        """
        pids = []
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit():
                continue
            try:
                inside = f"/pod{uid}/" in (folder / "cgroup").read_text()
                held = (folder / "comm").read_text() == "pause\n"
                [numbers] = re.findall(r"^NSpid:(.*)$", (folder / "status").read_text(), re.M)
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has ended meanwhile
            if inside and numbers.split()[-1] == "1" and (sandbox or not held):
                pids.append(int(folder.name))
        if not pids:
            raise LookupError(f"no process of the pod {uid} on {self.name}")
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

    def pod_network(self, uid: str) -> NetworkNamespace:
        """The network namespace of a pod that runs here, found by its control group."""
        init = Path(f"/proc/{self.init()}/root/proc")
        for folder in init.iterdir():
            if folder.name.isdigit():
                try:
                    if f"/pod{uid}/" in (folder / "cgroup").read_text():
                        return NetworkNamespace.open(folder / "ns/net")
                except (FileNotFoundError, ProcessLookupError):
                    continue  # it has ended meanwhile
        raise LookupError(f"no process of the pod {uid} on {self.name}")
