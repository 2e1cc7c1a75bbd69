"""What decisions cost in meshes of growing size, in one process: no packets, no sockets."""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle

from ztunnel.mesh.authorize import authorize
from ztunnel.mesh.changes import Batch
from ztunnel.mesh.connection import ConnectionAttributes
from ztunnel.mesh.identity import Identity
from ztunnel.mesh.outbound import decide
from ztunnel.mesh.policy import (
    Authorization,
    Match,
    PolicyAction,
    PolicyScope,
    StringMatch,
    StringMatchKind,
)
from ztunnel.mesh.service import Service
from ztunnel.mesh.state import MeshState
from ztunnel.mesh.workload import (
    Locality,
    NetworkAddress,
    TunnelProtocol,
    Workload,
    WorkloadStatus,
)

POLICIES = (10, 100, 1_000, 10_000)
WORKLOADS = (100, 1_000, 10_000, 100_000)
_ENDPOINTS = 10  # of each service
_TRIES, _CALLS = 7, 200


@dataclass(frozen=True, slots=True)
class Cost:
    """Microseconds of one call, by what was called and how much there was: the median of several
    tries, with the lowest and the highest."""

    what: str
    size: int
    median: float
    lowest: float
    highest: float


def workload(number: int, services: int) -> Workload:
    """One of many pods: ten behind each service, on two hundred nodes."""
    of = number % services
    namespace = f"ns-{of % 100}"
    name = f"app-{of}-5b8d7c9f6d-{number:05x}"
    return Workload(
        uid=f"Kubernetes//Pod/{namespace}/{name}",
        name=name,
        namespace=namespace,
        addresses=(_address(10, number),),
        tunnel_protocol=TunnelProtocol.HBONE,
        service_account=f"app-{of}",
        node=f"node-{number % 200}",
        canonical_name=f"app-{of}",
        canonical_revision="v1",
        workload_name=f"app-{of}",
        services={service(of).key: {80: 8080}},
        locality=Locality("eu", f"eu-{number % 3}"),
    )


def service(number: int) -> Service:
    """One of many services, with an address of its own."""
    namespace = f"ns-{number % 100}"
    return Service(
        name=f"app-{number}",
        namespace=namespace,
        hostname=f"app-{number}.{namespace}.svc.cluster.local",
        vips=(NetworkAddress("", _address(11, number)),),
        ports={80: 8080},
    )


def mesh(workloads: int) -> list[Workload | Service]:
    """So many workloads, and a tenth as many services in front of them."""
    services = max(1, workloads // _ENDPOINTS)
    return [
        *(service(number) for number in range(services)),
        *(workload(number, services) for number in range(workloads)),
    ]


def policy(number: int, action: PolicyAction = PolicyAction.ALLOW) -> Authorization:
    """A policy for all of a namespace that names one client."""
    principal = f"cluster.local/ns/clients/sa/client-{number}"
    match = Match(principals=(StringMatch(StringMatchKind.EXACT, principal),))
    rules = (((match,),),)
    return Authorization(f"p{number}", "ns-0", PolicyScope.NAMESPACE, action, rules)


def policies(count: int) -> Iterator[Cost]:
    """The check at a destination to which so many policies apply, and their change."""
    state = MeshState()
    destination = workload(0, 1)
    actions = (PolicyAction.ALLOW, PolicyAction.DENY)
    state.apply(Batch([destination, *(policy(n, actions[n % 2]) for n in range(count))]))
    for what, client, expected in (
        ("check, allowed", "client-2", True),
        ("check, denied by a policy", "client-3", False),
        ("check, denied because none allows", "nobody", False),
    ):
        connection = _connection(client)
        assert authorize(state, destination, connection).allowed is expected
        yield _cost(what, count, partial(authorize, state, destination, connection))
    allowed = _connection("client-2")
    versions = [policy(1, PolicyAction.DENY), policy(1, PolicyAction.ALLOW)]

    def change() -> None:
        versions.reverse()
        state.upsert_policy(versions[0])
        authorize(state, destination, allowed)

    yield _cost("change of one policy, and a check", count, change)
    live = [_connection(f"client-{2 + 2 * (n % 4)}") for n in range(1_000)]

    def judge() -> None:
        for connection in live:
            authorize(state, destination, connection)

    yield _cost("1,000 live connections judged again", count, judge, calls=1)


def lookups(count: int) -> Iterator[Cost]:
    """Decisions and changes in a mesh of so many workloads, and a tenth as many services."""
    state = MeshState()
    state.apply(Batch(mesh(count)))
    gc.collect()
    gc.freeze()  # as worker processes do
    services = max(1, count // _ENDPOINTS)
    rng = random.Random(7)
    source = workload(0, services)
    places = {
        "a pod's address": [(_address(10, rng.randrange(count)), 8080) for _ in range(_CALLS)],
        "a service's address": [(_address(11, rng.randrange(services)), 80) for _ in range(_CALLS)],
        "an address outside": [(_address(203, n), 443) for n in range(_CALLS)],
    }
    for what, addresses in places.items():
        each = cycle(addresses)
        yield _cost(
            f"decision for {what}",
            count,
            lambda each=each: decide(state, source, next(each), rng=rng),  # type: ignore[misc]
        )
    first = workload(1 % count, services)
    versions = [replace(first, status=WorkloadStatus.UNHEALTHY), first]

    def change() -> None:
        versions.reverse()
        state.upsert_workload(versions[0])

    yield _cost("change of one endpoint", count, change)
    gc.unfreeze()


def _address(block: int, number: int) -> str:
    return f"{block}.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"


def _connection(account: str) -> ConnectionAttributes:
    return ConnectionAttributes(
        "10.0.0.9", Identity("cluster.local", "clients", account), "10.0.0.0", 8080
    )


def _cost(what: str, size: int, call: Callable[[], object], calls: int = _CALLS) -> Cost:
    for _ in range(min(calls, 20)):
        call()
    tries = []
    for _ in range(_TRIES):
        started = time.perf_counter()
        for _ in range(calls):
            call()
        tries.append((time.perf_counter() - started) / calls * 1e6)
    return Cost(what, size, statistics.median(tries), min(tries), max(tries))
