"""How a pod leaves the mesh without losing a connection.

By now nothing new is redirected in the pod, and ztunnel goes on serving it. Whoever sends to the
pod is told to use no tunnel any more, and what ztunnel moves may come to its end; both have their
limits. Only then ztunnel lets go.
"""

import logging
from collections.abc import Awaitable, Callable

import trio

from daemonset.agent.capture_rules import HBONE_PORT
from daemonset.agent.pods import Pod
from ztunnel.kernel import direct_rules
from ztunnel.linux.conntrack_entries import Conntrack
from ztunnel.linux.netlink import NetlinkError
from ztunnel.linux.netns import NetworkNamespace
from ztunnel.linux.sock_diag import count_marked

logger = logging.getLogger("daemonset.agent")

TELL_SECONDS = 5.0
"""For everybody to hear that the pod is reached without a tunnel."""
DRAIN_SECONDS = 5.0
"""For connections through ztunnel to end; then they are cut."""
LOOK = 0.1
"""Seconds between two looks at them."""
QUIET = 2
"""Looks without any connection: one may be about to be made by a tunnel."""

Told = Callable[[Pod], Awaitable[None]]
"""Returns when whoever sends to the pod knows that it is reached without a tunnel."""

InThread = Callable[[Callable[[], int]], Awaitable[int]]


async def wait_until_told(pod: Pod, told: Told) -> None:
    """As long as that takes, but not for ever: a control plane may be away."""
    with trio.move_on_after(TELL_SECONDS) as limit:
        await told(pod)
    if limit.cancelled_caught:
        logger.warning(
            "%s leaves the mesh, and not everybody has heard of it within %g s: connections that"
            " come through tunnels are refused",
            pod, TELL_SECONDS,
        )  # fmt: skip


async def wait_until_drained(
    pod: Pod, namespace: NetworkNamespace, mark: int, mask: int, in_thread: InThread
) -> None:
    """Return when ztunnel has no connection in the pod any more, or has had long enough."""
    quiet = count = 0
    try:
        with trio.move_on_after(DRAIN_SECONDS):
            while quiet < QUIET:
                count = await in_thread(lambda: _count(namespace, mark, mask))
                quiet = quiet + 1 if not count else 0
                await trio.sleep(LOOK)
    except NetlinkError as error:
        logger.warning("connections of %s are not waited for: %s", pod, error)
    if count:
        logger.warning(
            "%s leaves the mesh: %d connections that began before and have not ended within %g s"
            " are cut",
            pod, count, DRAIN_SECONDS,
        )  # fmt: skip


def _count(namespace: NetworkNamespace, mark: int, mask: int) -> int:
    """Connections through ztunnel, and those that it lets past itself. Raises NetlinkError."""
    with Conntrack(namespace) as conntrack:
        past = conntrack.count_open(direct_rules.TAG, direct_rules.TAG_MASK)
    return past + count_marked(namespace, mark, mask, (HBONE_PORT,))
