"""Is this namespace really the pod's? A wrong one would send traffic under another's identity."""

import socket

from daemonset.agent.pods import NetnsNotFound, Pod
from ztunnel.linux.netns import NetworkNamespace, is_network_namespace
from ztunnel.linux.routing import Routing


def check_ownership(pod: Pod, namespace: NetworkNamespace, host: NetworkNamespace) -> None:
    """Accept `namespace` when an interface in it carries one of the pod's addresses.

    The host's own namespace is never a pod's. Raises NetnsNotFound, which names what was found.
    """
    if not is_network_namespace(namespace.fd):
        raise NetnsNotFound(f"{namespace.path} is no network namespace (pod {pod})")
    if namespace.identity == host.identity:
        raise NetnsNotFound(f"{pod} is said to live in the node's own network namespace")
    if not pod.addresses:
        raise NetnsNotFound(f"{pod} has no address yet")
    try:
        with Routing(namespace) as routing:
            found = routing.addresses()
    except OSError as error:
        raise NetnsNotFound(f"cannot look into the namespace of {pod}: {error}") from error
    if found.isdisjoint(_canonical(address) for address in pod.addresses):
        raise NetnsNotFound(
            f"{namespace.path or namespace} is not the namespace of {pod}: no interface there has "
            f"any of {', '.join(pod.addresses)} (there are {', '.join(sorted(found)) or 'none'})"
        )


def _canonical(address: str) -> str:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        return socket.inet_ntop(family, socket.inet_pton(family, address))
    except OSError:
        return address  # no address at all: it matches nothing
