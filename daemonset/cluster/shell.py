"""What the commands for clusters have in common: arguments, the client, expected failures."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from daemonset.cluster.names import SYSTEM

if TYPE_CHECKING:
    from daemonset.kube.client import KubeClient


def add_cluster_arguments(parser: argparse.ArgumentParser) -> None:
    """Which cluster, and where in it."""
    parser.add_argument("--context", metavar="NAME", help="of the kubeconfig")
    parser.add_argument(
        "--system-namespace",
        default=SYSTEM,
        metavar="NAME",
        help="where the mesh itself is installed (%(default)s)",
    )


def with_client(
    context: str | None, action: Callable[[KubeClient], Awaitable[int]], failed: int = 1
) -> int:
    """Run ``action``; its exit status, or ``failed`` where the cluster cannot be asked."""
    # Commands for meshes of this machine have these arguments too, and need none of this.
    import trio

    from daemonset.agent.enrolment import SelectorError
    from daemonset.kube.client import ApiError, ApiUnavailableError, KubeClient, leaves
    from daemonset.kube.config import KubeConfigError, find_config

    async def run() -> int:
        client = KubeClient(find_config(context))
        try:
            return await action(client)
        finally:
            with trio.CancelScope(shield=True):
                await client.forget_idle()

    code = failed
    try:
        code = trio.run(run)
    except* (KubeConfigError, ApiError, ApiUnavailableError, SelectorError, OSError) as group:
        for error in leaves(group):
            print(f"ambient: {error}", file=sys.stderr)
    return code
