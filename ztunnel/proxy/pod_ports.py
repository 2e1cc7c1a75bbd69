"""The ports of a pod: which there are, and how they are opened."""

import errno
import socket
from typing import Final

from ztunnel.config.model import OriginalSource
from ztunnel.linux.sockets import listen_tcp
from ztunnel.mesh.workload import HBONE_PORT
from ztunnel.proxy.context import SOCKS_PORT
from ztunnel.proxy.local_pod import LocalPod

OUTBOUND_PORT: Final = 15001
PLAINTEXT_PORT: Final = 15006
_DENIED: Final = (errno.EPERM, errno.EACCES, errno.ENOPROTOOPT)


def wanted_listeners(pod: LocalPod, only_tunnels: bool) -> list[tuple[str, str, int, bool]]:
    """(kind, address or "" for any, port, transparent) of each listener for TCP but DNS."""
    tunnels = ("hbone", "", HBONE_PORT, pod.keep_source)
    if only_tunnels:
        return [tunnels]
    wanted = [
        ("outbound", "", OUTBOUND_PORT, False),
        ("plaintext", "", PLAINTEXT_PORT, pod.keep_source),
        tunnels,
    ]
    if pod.context.config.socks5:
        wanted.append(("socks", "127.0.0.1", SOCKS_PORT, False))
    return wanted


def open_listener(pod: LocalPod, address: str, port: int, transparent: bool) -> socket.socket:
    """A listener in the pod. Raises OSError, which names the port."""
    sockets = pod.context.config.sockets
    wanted = address or ("::" if sockets.ipv6 else "0.0.0.0")
    try:
        try:
            return _open_at(pod, wanted, port, transparent)
        except OSError as error:
            if error.errno == errno.EAFNOSUPPORT and wanted == "::":
                return _open_at(pod, "0.0.0.0", port, transparent)
            if not transparent or pod.context.must_keep_source or error.errno not in _DENIED:
                raise
            return _open_at(pod, wanted, port, False)
    except OSError as error:
        raise OSError(error.errno, f"listen on port {port}: {error.strerror}") from error


def _open_at(pod: LocalPod, address: str, port: int, transparent: bool) -> socket.socket:
    sockets = pod.context.config.sockets
    return listen_tcp(
        address,
        port,
        mark=pod.context.mark,
        reuse_port=sockets.port_reuse,
        transparent=transparent and sockets.original_source is not OriginalSource.NEVER,
        backlog=sockets.listen_backlog,
        namespace=pod.namespace,
    )
