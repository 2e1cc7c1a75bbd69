"""Which addresses the node is to stop, because the pods that they belong to cannot be captured.

Pure. Addresses change hands: what counts is whose an address is now, and an address that may be
somebody else's is rather let go than stopped.
"""

import enum
import ipaddress
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from daemonset.agent.pods import Pod

VARIABLE = "AMBIENT_UNCAPTURED"


class Uncaptured(enum.Enum):
    """What happens to the traffic of a pod that is in the mesh and cannot be captured."""

    STOP = "stop"
    PERMIT = "permit"


def read_uncaptured(text: str) -> Uncaptured:
    """The value of AMBIENT_UNCAPTURED. Raises ValueError."""
    try:
        return Uncaptured(text)
    except ValueError:
        raise ValueError(
            f"{VARIABLE} is {text!r}, which is neither stop (nothing gets in or out of a pod that"
            " cannot be captured) nor permit (its traffic goes on, outside the mesh)"
        ) from None


@dataclass(frozen=True, slots=True)
class Stops:
    """`stopped`: addresses, each with the uid of its pod. `spared`: addresses of such pods that are
    not stopped, each with the reason."""

    stopped: Mapping[str, str] = field(default_factory=dict)
    spared: Mapping[str, str] = field(default_factory=dict)


def decide_stops(pods: Sequence[Pod], uncaptured: Collection[str], own: Collection[str]) -> Stops:
    """The decision for a node.

    Args:
        pods: all that the node is said to have now.
        uncaptured: the uids of those that are in the mesh and cannot be captured.
        own: addresses of the node itself and of the agent, which are nobody else's.
    """
    holders: dict[str, list[Pod]] = {}
    for pod in pods:
        # What has ended has no address any more, and the node's own is not the pod's.
        if not pod.terminated and not pod.host_network:
            for address in pod.addresses:
                holders.setdefault(address, []).append(pod)
    stopped: dict[str, str] = {}
    spared: dict[str, str] = {}
    for address, found in holders.items():
        if all(pod.uid not in uncaptured for pod in found):
            continue
        others = [pod for pod in found if pod.uid not in uncaptured]
        if address in own:
            spared[address] = f"{address} is the node's own"
        elif others:
            spared[address] = f"{address} is that of the pod {others[0]} too"
        elif not _is_of_one_host(address):
            spared[address] = f"{address} is no address of one pod"
        else:
            stopped[address] = found[0].uid
    return Stops(stopped, spared)


def _is_of_one_host(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    return not (
        parsed.is_loopback or parsed.is_unspecified or parsed.is_multicast or parsed.is_link_local
    )
