"""The ``baggage`` header (W3C Baggage): who the workload at this end of a tunnel is.

Members come in a fixed order, and parts that are not known are left out::

    k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.deployment.name=cart,
    service.name=cart,service.version=v1,cloud.region=r1,cloud.availability_zone=z1

It says what a peer says about itself: good for metrics and logs, never for a decision.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Final
from urllib.parse import quote, unquote

MAX_LENGTH: Final = 8192
"""W3C Baggage section 3.3.2: what every platform must carry; beyond that it is ignored."""

MAX_MEMBERS: Final = 64

# What a baggage value may hold as it is (W3C Baggage section 3.3.1, baggage-octet), less "%".
_SAFE: Final = "!#$&'()*+-./:<=>?@[]^_`{|}~"

WORKLOAD_TYPES: Final = ("deployment", "cronjob", "pod", "job")


@dataclass(frozen=True, slots=True)
class Baggage:
    """What a workload says about itself; empty text where it says nothing.

    Attributes:
        cluster: Cluster id.
        namespace: Kubernetes namespace.
        workload_type: One of ``WORKLOAD_TYPES``.
        workload_name: Name of the deployment, cron job, pod or job.
        service: Canonical name.
        revision: Canonical revision.
        region: Of the node.
        zone: Of the node.
    """

    cluster: str = ""
    namespace: str = ""
    workload_type: str = ""
    workload_name: str = ""
    service: str = ""
    revision: str = ""
    region: str = ""
    zone: str = ""


def format_baggage(baggage: Baggage) -> str:
    """The header's value; empty when nothing is known."""
    members: list[str] = []
    _member(members, "k8s.cluster.name", baggage.cluster)
    _member(members, "k8s.namespace.name", baggage.namespace)
    if baggage.workload_type in WORKLOAD_TYPES:
        _member(members, f"k8s.{baggage.workload_type}.name", baggage.workload_name)
    _member(members, "service.name", baggage.service)
    _member(members, "service.version", baggage.revision)
    _member(members, "cloud.region", baggage.region)
    _member(members, "cloud.availability_zone", baggage.zone)
    return ",".join(members)


def _member(members: list[str], key: str, value: str) -> None:
    if value:
        members.append(f"{key}={quote(value, safe=_SAFE)}")


# A tunnel says the same thing for each of its streams.
@lru_cache(maxsize=1024)
def parse_baggage(text: str) -> Baggage:
    """Read the header's value.

    Tolerant, since nothing is decided by it: white space and properties (after ``;``) are dropped,
    members that are unknown or not printable are skipped, the first of several counts.
    """
    found: dict[str, str] = {}
    if len(text) > MAX_LENGTH:
        return Baggage()
    for member in text.split(",", MAX_MEMBERS)[:MAX_MEMBERS]:
        key, equals, value = member.partition(";")[0].partition("=")
        key = key.strip()
        if equals and key not in found:
            plain = unquote(value.strip(), errors="replace")
            # It ends up in logs.
            if plain.isprintable():
                found[key] = plain
    workload_type = ""
    workload_name = ""
    for kind in WORKLOAD_TYPES:
        name = found.get(f"k8s.{kind}.name", "")
        if name:
            workload_type, workload_name = kind, name
            break
    return Baggage(
        cluster=found.get("k8s.cluster.name", ""),
        namespace=found.get("k8s.namespace.name", ""),
        workload_type=workload_type,
        workload_name=workload_name,
        service=found.get("service.name", ""),
        revision=found.get("service.version", ""),
        region=found.get("cloud.region", ""),
        zone=found.get("cloud.availability_zone", ""),
    )
