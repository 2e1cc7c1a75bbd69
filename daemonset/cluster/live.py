"""The mesh of a cluster from its live objects, read as the control plane reads them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from daemonset.cluster.installation import Installation, find_installation
from daemonset.cluster.listing import list_all
from daemonset.cluster.network_policy import EGRESS, INGRESS, End, Policy, passage, read_policy
from daemonset.cluster.survey import RESOURCES
from daemonset.cluster.tunnels import HBONE
from daemonset.control_plane.answer import UNKNOWN, answer, state_of
from daemonset.control_plane.explanation import Target, find_targets, find_workload
from daemonset.control_plane.objects.meta import ObjectKey
from daemonset.control_plane.objects.objectset import ObjectSet
from daemonset.control_plane.objects.section import ObjectError
from daemonset.control_plane.sources.kubernetes_kinds import KINDS
from daemonset.control_plane.sources.kubernetes_store import KindStore
from daemonset.control_plane.translation.translate import Translator
from daemonset.kube.client import ApiError, KubeClient
from ztunnel.mesh.load_balance import target_port
from ztunnel.mesh.state import MeshState
from ztunnel.mesh.workload import TunnelProtocol, Workload


@dataclass(frozen=True, slots=True)
class Live:
    """``problems``: objects that cannot be read, in words; ``policies``: NetworkPolicies."""

    installation: Installation
    objects: ObjectSet
    problems: tuple[str, ...]
    policies: tuple[Policy, ...]


async def read_live(client: KubeClient, system_namespace: str) -> Live:
    """Everything that makes up the mesh now.

    Raises:
        ApiError, ApiUnavailableError: something cannot be listed.
    """
    fields: dict[str, Any] = {}
    problems: list[str] = []
    for kind in KINDS:
        store = KindStore(kind, lambda: None)
        store.begin()
        try:
            async for item in list_all(client, kind.resource):
                store.put(item)
        except ApiError as error:
            if error.status != 404 or not kind.needs:
                raise
        store.commit()
        fields[kind.field] = store.objects
        problems += [str(problem) for problem in store.problems.values()]
    daemon_sets = [item async for item in list_all(client, RESOURCES["daemonsets"])]
    deployments = [item async for item in list_all(client, RESOURCES["deployments"])]
    installation = find_installation(system_namespace, daemon_sets, deployments)
    policies: list[Policy] = []
    try:
        policies += [
            read_policy(item) async for item in list_all(client, RESOURCES["networkpolicies"])
        ]
    except (ApiError, ObjectError) as error:
        # They are no part of the mesh: its own answer does not hang on them.
        problems.append(f"NetworkPolicies are not looked at: {error}")
    return Live(installation, ObjectSet(**fields), tuple(problems), tuple(policies))


def why_live(
    live: Live, namespace: str, source: str, destination: str, port: int | None
) -> tuple[int, list[str]]:
    """Pure: exit status and lines, as for a folder.

    Args:
        namespace: of names that are given without one; "" to look in all.
    """
    # Captured is what node agents say is captured, as for the control plane.
    translation = Translator(live.installation.settings).translate(live.objects, frozenset())
    if namespace and "/" not in source:
        source = f"{namespace}/{source}"
    state = state_of(translation)
    code, lines = answer(state, live.objects, _place, source, destination, port)
    if code != UNKNOWN:
        lines += _in_the_way(live, state, source, destination, port)
    return code, lines


def _in_the_way(
    live: Live, state: MeshState, source: str, destination: str, port: int | None
) -> list[str]:
    """NetworkPolicies that do not let through what the mesh would send."""
    client = find_workload(state, source)
    here = _end(live, client)
    found: dict[str, None] = {}
    for target in find_targets(state, client, destination, port):
        for workload, number in _reached(state, client, target):
            there = _end(live, workload)
            if here is None or there is None:
                continue
            captured = client.tunnel_protocol is TunnelProtocol.HBONE
            captured = captured and workload.tunnel_protocol is TunnelProtocol.HBONE
            wanted = HBONE if captured else number
            for direction, words in ((EGRESS, "out to"), (INGRESS, "in at")):
                if passage(live.policies, direction, here, there).lets(wanted):
                    continue
                end = here if direction == EGRESS else there
                keys = [
                    str(policy.key)
                    for policy in live.policies
                    if direction in policy.rules and policy.selects(end)
                ]
                found[
                    f"  ! {', '.join(keys)}: no {direction} rule lets {here} {words} {there} on "
                    f"TCP {wanted}: where the network enforces it, the connection fails below the "
                    "mesh"
                ] = None
    return list(found)


def _reached(state: MeshState, client: Workload, target: Target) -> Iterator[tuple[Workload, int]]:
    """Who may get the connection, and on which port of theirs."""
    if target.service is None:
        workload = state.workload_by_address(client.network, target.address)
        if workload is not None:
            yield workload, target.port
        return
    for workload in state.endpoints(target.service.key):
        number = target_port(target.service, workload, target.port, False)
        if number:
            yield workload, number


def _end(live: Live, workload: Workload) -> End | None:
    pod = live.objects.pods.get((workload.namespace, workload.name))
    if pod is None:
        return None
    namespace = live.objects.namespaces.get(workload.namespace)
    labels = namespace.meta.labels if namespace is not None else {}
    ports = {one.name: one.number for one in pod.ports}
    meta = pod.meta
    return End(meta.namespace, meta.name, meta.labels, labels, pod.ips, ports)


def _place(key: ObjectKey, field: str) -> str:
    return field or "the object as a whole"
