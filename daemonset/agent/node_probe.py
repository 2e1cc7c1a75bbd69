"""What this node's kernel can do for the mesh, found out by doing it in a namespace made for that.

Also a program of its own (`python -m daemonset.agent.node_probe`, JSON on standard output): the
agent runs it that way, so that nothing of it stays in the agent's memory, and a kernel that does
something strange harms nothing else.
"""

import json
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from pyroute2 import IPRoute

from daemonset.agent.capture import MIGRATE, Capture, CaptureError
from daemonset.agent.capture_rules import CaptureOptions
from daemonset.agent.host import HostProbes
from daemonset.agent.report import Feature
from ztunnel.kernel.sockmap import Sockmap
from ztunnel.linux import netns, sockets
from ztunnel.linux.conntrack import forget_direct_connections
from ztunnel.linux.netns import NetworkNamespace

_OPTIONS = CaptureOptions(mark=0x6D657368)
_NEAR, _FAR, _PORT, _CAPTURED = "192.0.2.1", "192.0.2.2", 80, 15001  # RFC 5737
_PATIENCE = 3.0


def probe_node(proc: Path = Path("/proc")) -> tuple[Feature, ...]:
    """Try everything. Needs root; leaves nothing behind. Synchronous, takes some 50 ms.

    Args:
        proc: the node's own /proc, whose settings can be written.
    """
    found: list[Feature] = []
    try:
        namespace = _make_namespace()
    except OSError as error:
        return (Feature("network namespaces", False, True, str(error)),)
    found.append(Feature("network namespaces", True, True))
    with namespace:

        def attempt(name: str, needed: bool, action: Callable[[], None]) -> None:
            try:
                action()
            except (OSError, CaptureError) as error:
                found.append(Feature(name, False, needed, str(error)))
            else:
                found.append(Feature(name, True, needed))

        attempt("capture rules (nftables)", True, lambda: _capture(namespace, proc))
        attempt("redirection", True, lambda: _redirect(namespace, proc))
        attempt("the node's probe rules (nftables)", True, lambda: _host_rules(namespace))
        attempt("foreign source addresses (IP_TRANSPARENT)", True, lambda: _foreign(namespace))
        attempt("conntrack over netlink", False, lambda: forget_direct_connections(namespace))
        attempt("waiting connections move (tcp_migrate_req)", False,
                lambda: _migrate(namespace, proc))  # fmt: skip
        attempt("IPv6", False, lambda: _ipv6(namespace))
        attempt("sockmap", False, lambda: Sockmap(1).close())
    return tuple(found)


def _make_namespace() -> NetworkNamespace:
    """With an interface that leads nowhere, and addresses on both sides of it."""
    namespace = netns.create()
    try:
        with namespace.enter():
            netns.bring_up("lo")
            with IPRoute() as ip:
                ip.link("add", ifname="near", kind="veth", peer={"ifname": "far"})
                for name in ("near", "far"):
                    ip.link("set", index=ip.link_lookup(ifname=name)[0], state="up")
                index = ip.link_lookup(ifname="near")[0]
                ip.addr("add", index=index, address=_NEAR, prefixlen=24)
    except BaseException as error:
        namespace.close()
        if isinstance(error, OSError) or not isinstance(error, Exception):
            raise
        raise OSError(f"no interfaces can be made: {error}") from error
    return namespace


def _capture(namespace: NetworkNamespace, proc: Path) -> None:
    with _captured(namespace, proc) as capture:
        wrong = capture.check()
        if wrong:
            raise CaptureError("; ".join(wrong))


@contextmanager
def _captured(namespace: NetworkNamespace, proc: Path) -> Iterator[Capture]:
    capture = Capture(namespace, _OPTIONS, proc)
    capture.apply()
    try:
        yield capture
    finally:
        capture.remove()


def _redirect(namespace: NetworkNamespace, proc: Path) -> None:
    """A connection to somewhere else ends where ztunnel would listen, and says where it wanted."""
    with (
        _captured(namespace, proc),
        sockets.listen_tcp("0.0.0.0", _CAPTURED, namespace=namespace) as listener,
        namespace.socket(socket.AF_INET, socket.SOCK_STREAM) as client,
    ):
        client.settimeout(_PATIENCE)
        client.connect((_FAR, _PORT))
        listener.settimeout(_PATIENCE)
        with listener.accept()[0] as accepted:
            wanted = sockets.original_destination(accepted)
    if wanted != (_FAR, _PORT):
        raise OSError(f"a connection to {_FAR}:{_PORT} seems to be one to {wanted[0]}:{wanted[1]}")


def _host_rules(namespace: NetworkNamespace) -> None:
    rules = HostProbes(namespace)
    rules.start()
    try:
        rules.add("a pod", [_FAR])
        wrong = rules.repair()
        if wrong:
            raise CaptureError("; ".join(wrong))
    finally:
        rules.stop()


def _foreign(namespace: NetworkNamespace) -> None:
    with namespace.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sockets.set_mark(sock, _OPTIONS.mark)
        sockets.set_transparent(sock)
        sock.bind((_FAR, 0))


def _migrate(namespace: NetworkNamespace, proc: Path) -> None:
    with namespace.enter():
        netns.set_sysctl(MIGRATE, 1, proc)


def _ipv6(namespace: NetworkNamespace) -> None:
    with namespace.enter():
        if not netns.has_ipv6():
            raise OSError("it is switched off: nothing of IPv6 is captured, and pods have none")


if __name__ == "__main__":
    result = probe_node(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("/proc"))
    print(json.dumps([asdict(one) for one in result]))
