"""Connects to an application of a local pod, from the client's own address."""

import errno
import logging
import socket
from typing import Final

from ztunnel.linux.sockets import SocketAddress, start_connect
from ztunnel.proxy.local_pod import LocalPod

log = logging.getLogger("ztunnel.proxy")

_NOT_ALLOWED: Final = (errno.EPERM, errno.EACCES, errno.ENOPROTOOPT)


def connect_to_application(
    pod: LocalPod, target: SocketAddress, source: str | None
) -> socket.socket:
    """Starts the connect.

    The application sees `source` as its client's address; None, a source equal to the target
    (a pod that calls itself), or one of the other address family means our own address.

    Raises:
        OSError: it cannot be started; also when the address must be kept and cannot be.
    """
    context = pod.context
    if source is not None and (
        not pod.keep_source or source == target[0] or (":" in source) != (":" in target[0])
    ):
        source = None
    try:
        return start_connect(
            target,
            mark=context.mark,
            source=source,
            keepalive=context.keepalive,
            stock=pod.sockets_ahead,
        )
    except OSError as error:
        if source is None or context.must_keep_source or error.errno not in _NOT_ALLOWED:
            raise
        if not context.warned_source:
            context.warned_source = True
            log.warning(
                "applications see this proxy's address instead of their clients': %s", error
            )
        return start_connect(
            target, mark=context.mark, keepalive=context.keepalive, stock=pod.sockets_ahead
        )
