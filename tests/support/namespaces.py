"""Namespaces wired up for a test: a host that routes, and pods on veth pairs behind it.

Nothing touches the machine's own network: the host is a namespace too, and everything goes when the
`with` block ends, failed tests included.
"""

import socket
import time
from types import TracebackType

from pyroute2 import IPRoute

from ztunnel.linux import netns
from ztunnel.linux.netns import NetworkNamespace

HOST_V4, HOST_V6 = "10.1.0.1", "fd01::1"
_LOCAL = 2  # RTN_LOCAL
_NODAD = 2  # IFA_F_NODAD: usable at once, and not when a work queue has looked for duplicates


def _prepare(namespace: NetworkNamespace) -> None:
    with namespace.enter():
        netns.bring_up("lo")
        netns.set_sysctl("net.ipv4.tcp_congestion_control", "reno")
        netns.set_sysctl("net.ipv6.conf.all.forwarding", 1)
        netns.set_sysctl("net.ipv4.ip_forward", 1)


def _wait_until_local(ip: IPRoute, address: str) -> None:
    """A work queue of the kernel brings the routes of IPv6 addresses in, a little later."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        [route] = ip.route("get", dst=address, family=socket.AF_INET6)
        if route["type"] == _LOCAL:
            return
        time.sleep(0.0005)
    raise TimeoutError(f"{address} has no local route")


class Pod:
    """A pod's namespace with its two addresses; `eth0` leads to the host."""

    def __init__(self, number: int) -> None:
        self.namespace = netns.create()
        self.number = number
        self.v4 = f"10.1.0.{number + 10}"
        self.v6 = f"fd01::{number + 10:x}"
        _prepare(self.namespace)

    def address(self, family: int) -> str:
        return self.v6 if family == socket.AF_INET6 else self.v4


class Cluster:
    """One host namespace and `pods` pods, each reachable from all others through the host."""

    def __init__(self, pods: int) -> None:
        self.host = netns.create()
        self.pods: list[Pod] = []
        try:
            _prepare(self.host)
            for number in range(pods):
                self.pods.append(Pod(number))
                self._wire(self.pods[-1])
        except BaseException:
            self.close()
            raise

    def _wire(self, pod: Pod) -> None:
        name = f"pod{pod.number}"
        with self.host.enter(), IPRoute() as ip:
            ip.link(
                "add",
                ifname=name,
                kind="veth",
                peer={"ifname": "eth0", "net_ns_fd": pod.namespace.fd},
            )
            index = ip.link_lookup(ifname=name)[0]
            ip.link("set", index=index, state="up")
            with pod.namespace.enter(), IPRoute() as inside:
                peer = inside.link_lookup(ifname="eth0")[0]
                inside.link("set", index=peer, state="up")
                inside.addr("add", index=peer, address=pod.v4, prefixlen=32)
                inside.addr("add", index=peer, address=pod.v6, prefixlen=128, flags=_NODAD)
                inside.route("add", dst=f"{HOST_V4}/32", oif=peer, scope=253)
                inside.route("add", dst="default", gateway=HOST_V4, oif=peer)
                inside.route("add", dst=f"{HOST_V6}/128", oif=peer, family=socket.AF_INET6)
                inside.route(
                    "add", dst="default", gateway=HOST_V6, oif=peer, family=socket.AF_INET6
                )
            ip.addr("add", index=index, address=HOST_V4, prefixlen=32)
            ip.addr("add", index=index, address=HOST_V6, prefixlen=128, flags=_NODAD)
            ip.route("add", dst=f"{pod.v4}/32", oif=index, scope=253)
            ip.route("add", dst=f"{pod.v6}/128", oif=index, family=socket.AF_INET6)
            _wait_until_local(ip, HOST_V6)
            with pod.namespace.enter(), IPRoute() as inside:
                _wait_until_local(inside, pod.v6)

    def close(self) -> None:
        for pod in self.pods:
            pod.namespace.close()
        self.host.close()

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
