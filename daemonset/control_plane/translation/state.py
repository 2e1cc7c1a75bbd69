"""A translation that follows its objects: after each change, what that concerns is made anew."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, replace

from daemonset.control_plane.objects.meta import ObjectKey
from daemonset.control_plane.objects.objectset import Named, ObjectSet
from daemonset.control_plane.objects.pod import Pod
from daemonset.control_plane.objects.workload_entry import EntrySpec, WorkloadEntry
from daemonset.control_plane.translation.changes import changed
from daemonset.control_plane.translation.endpoints import (
    Selectable,
    ServicePorts,
    entry_meta,
    ports_of,
    selectable_entry,
    selectable_pod,
)
from daemonset.control_plane.translation.enrolment import (
    is_captured,
    is_selected,
    speaks_hbone_itself,
)
from daemonset.control_plane.translation.finding import Finding, Ledger
from daemonset.control_plane.translation.frame import KINDS, Frame
from daemonset.control_plane.translation.joins import Joins, report_unknown_joins
from daemonset.control_plane.translation.memory import Kept
from daemonset.control_plane.translation.networks import NETWORK, REMOTE_CLASS
from daemonset.control_plane.translation.policies import Policies, Reach
from daemonset.control_plane.translation.resident import Groups, Resident, Residents
from daemonset.control_plane.translation.resource import Resource
from daemonset.control_plane.translation.revisions import Revisions
from daemonset.control_plane.translation.roster import Roster
from daemonset.control_plane.translation.service_info import ServiceInfo
from daemonset.control_plane.translation.service_list import Allocators
from daemonset.control_plane.translation.settings import MeshSettings
from daemonset.control_plane.translation.shared_addresses import Claim, SharedAddresses

_DNS = ("DNS", "DNS_ROUND_ROBIN", "DYNAMIC_DNS")


@dataclass(slots=True)
class _Doubtful:
    """What must be looked at again: workloads; ServiceEntries, for their endpoints; slices."""

    workloads: set[ObjectKey]
    entries: set[Named]
    slices: set[Named]


class TranslationState:
    """The translation of one mesh. Begins with nothing.

    Attributes:
        addresses, authorizations: by name; new mappings when something in them is new.
    """

    def __init__(self, settings: MeshSettings, allocators: Allocators) -> None:
        self._settings = settings
        self._allocators = allocators
        self._ledger = Ledger()
        self._revisions = Revisions(settings.revision, self._ledger)
        self._objects = ObjectSet()
        self._captured: Set[Named] | None = frozenset()
        self._services_known: Kept[str, Resource] = Kept()
        self._frame = self._new_frame()
        self._roster = Roster()
        self._policies = Policies(settings, self._ledger, self._roster)
        self._pods_known: Kept[ObjectKey, Resource] = Kept()
        self._shared = SharedAddresses(self._ledger)
        self._joins = Joins()
        self._residents = Residents()
        self._made: dict[Hashable, dict[str, Resource]] = {}
        self._addresses: dict[str, Resource] = {}
        self._again = False
        self.addresses: Mapping[str, Resource] = {}
        self.authorizations: Mapping[str, Resource] = self._policies.resources()

    @property
    def findings(self) -> tuple[Finding, ...]:
        return self._ledger.sorted()

    @property
    def services(self) -> tuple[ServiceInfo, ...]:
        return self._frame.listed

    @property
    def residents(self) -> Groups:
        return self._residents.groups

    def update(self, objects: ObjectSet, captured: Set[Named] | None) -> None:
        """Make this the translation of other objects."""
        before = self._objects
        now = self._objects = self._revisions.own(objects)
        workloads = self._selectables(before, now)
        doubtful = _Doubtful(
            workloads={*workloads, *self._captured_otherwise(captured)},
            entries=set(changed(before.service_entries, now.service_entries)),
            slices=set(),
        )
        services = self._reframe(before, doubtful)
        slices = changed(before.endpoint_slices, now.endpoint_slices)
        turnout = self._roster.update(workloads, services, slices)
        reach = Reach()
        peers = changed(before.peer_authentications, now.peer_authentications)
        if peers:
            self._policies.set_peers(now.peer_authentications.values(), peers, reach)
        policies = changed(before.authorization_policies, now.authorization_policies)
        self._policies.update(policies, workloads, services, turnout, reach)
        guards = changed(before.network_policies, now.network_policies)
        if guards:
            self._joins.guard(now.network_policies.values())
            for namespace in {place[0] for place in guards}:
                doubtful.workloads.update(self._roster.workloads.inside(namespace))
        for key in doubtful.workloads | turnout.workloads | reach.workloads:
            self._write_workload(key)
        for place in doubtful.slices | turnout.slices:
            self._write_slice(place)
        doubtful.entries.update(
            place
            for place in now.service_entries
            if place[0] in reach.namespaces or "" in reach.namespaces
        )
        for place in doubtful.entries:
            self._write_endpoints(place)
        self._shared.report()
        self.authorizations = self._policies.resources()
        if self._again:
            self._again = False
            self.addresses = dict(self._addresses)

    def _selectables(self, before: ObjectSet, now: ObjectSet) -> dict[ObjectKey, Selectable | None]:
        """Workloads that have changed, as selectors see them. Pods without an address are not
        published yet, but their policies are chosen."""
        found: dict[ObjectKey, Selectable | None] = {}
        for place, pod in changed(before.pods, now.pods).items():
            alive = pod is not None and not pod.finished
            found[ObjectKey("Pod", *place)] = selectable_pod(pod) if pod and alive else None
        for place, entry in changed(before.workload_entries, now.workload_entries).items():
            key = ObjectKey("WorkloadEntry", *place)
            found[key] = selectable_entry(entry) if entry is not None else None
        return found

    def _captured_otherwise(self, captured: Set[Named] | None) -> Iterable[ObjectKey]:
        before = self._captured
        self._captured = frozenset(captured) if captured is not None else None
        if before == self._captured:
            return ()
        if before is None or self._captured is None:
            return [ObjectKey("Pod", *place) for place in self._objects.pods]
        return [ObjectKey("Pod", *place) for place in before ^ self._captured]

    def _new_frame(self) -> Frame:
        return Frame(
            self._objects, self._settings, self._allocators, self._ledger, self._services_known
        )

    def _reframe(self, before: ObjectSet, doubtful: _Doubtful) -> dict[str, ServiceInfo | None]:
        """The services that have changed; adds to ``doubtful`` what stands in another frame now."""
        now = self._objects
        found = {kind: changed(getattr(before, kind), getattr(now, kind)) for kind in KINDS}
        if not any(found.values()):
            return {}
        old, new = self._frame, self._new_frame()
        self._frame = new
        services = changed(old.services, new.services)
        for name, service in services.items():
            if service is None:
                self._services_known.drop(name)
            for one in (old.services.get(name), service):
                if one is not None and one.meta.kind == "ServiceEntry":
                    doubtful.entries.add((one.meta.namespace, one.meta.name))
                elif one is not None:
                    self._shared.drop(one.meta.key)
            if service is not None and service.meta.kind == "Service":
                claim = Claim((True, *service.meta.age_order), service.meta.key, "spec.clusterIP")
                self._shared.put(claim, (str(one.network_address) for one in service.addresses))
        self._put("frame", new.resources())
        workloads = self._roster.workloads
        moved = old.networks.own != new.networks.own
        if moved:
            doubtful.slices.update(self._roster.others)
        if (
            moved
            or bool(before.nodes) != bool(now.nodes)
            or found["gateways"]
            or found["gateway_classes"]
        ):
            for namespace in workloads.namespaces():
                doubtful.workloads.update(workloads.inside(namespace))
            doubtful.entries.update(now.service_entries)
            return services
        for namespace in found["namespaces"]:
            doubtful.workloads.update(workloads.inside(namespace))
        doubtful.entries.update(
            place for place in now.service_entries if place[0] in found["namespaces"]
        )
        if found["nodes"]:
            on_them = (pod.meta.key for pod in now.pods.values() if pod.node in found["nodes"])
            doubtful.workloads.update(on_them)
        return services

    def _put(self, part: Hashable, resources: Iterable[Resource]) -> None:
        """All that a part comes to, in place of what it came to."""
        made = {resource.name: resource for resource in resources}
        before = self._made.pop(part, {})
        if made:
            self._made[part] = made
        if made == before:
            return
        for name in before.keys() - made.keys():
            del self._addresses[name]
        self._addresses.update(made)
        self._again = True

    def _write_workload(self, key: ObjectKey) -> None:
        workload = self._roster.workloads.get(key)
        if workload is None:
            self._put(key, ())
            self._ledger.drop(key)
            self._residents.put(key, None)
            self._shared.drop(key)
            self._pods_known.drop(key)
            return
        place = (key.namespace, key.name)
        with self._ledger.part(key):
            if key.kind == "Pod":
                self._put(key, self._pod(key, self._objects.pods[place]))
            else:
                self._put(key, self._entry(key, self._objects.workload_entries[place]))

    def _reside(
        self,
        key: ObjectKey,
        node: str,
        service_account: str,
        labels: Mapping[str, str],
        policies: list[str],
    ) -> None:
        own_proxy = speaks_hbone_itself(labels)
        resident = None
        if node or own_proxy:
            resident = Resident(key.namespace, service_account, node, tuple(policies), own_proxy)
        self._residents.put(key, resident)

    def _pod(self, key: ObjectKey, pod: Pod) -> Iterator[Resource]:
        policies, verdict = self._policies.of_workload(key, pod.meta.labels)
        self._reside(key, pod.node, pod.service_account, pod.meta.labels, policies)
        claim = Claim((False, *pod.meta.age_order), key, "status.podIP")
        self._shared.put(claim, () if pod.host_network else pod.ips)
        if not pod.ips:
            return
        captured = self._is_captured(pod)
        if not (captured or is_captured(pod.meta) or speaks_hbone_itself(pod.meta.labels)):
            self._report_not_captured(pod, policies, verdict.strict)
        if self._objects.nodes and pod.node and pod.node not in self._objects.nodes:
            self._ledger.warning(
                key,
                "spec.nodeName",
                "UnknownNode",
                f"there is no Node {pod.node!r}: nobody captures it there.",
            )
        frame = self._frame
        services = self._roster.serving.get(key, {})
        waypoint = frame.waypoints.of_workload(pod.meta)
        tunnel = frame.waypoints.application_tunnel(pod.meta)
        locality, network = frame.writer.locality(pod.node), frame.networks.own
        join = self._joins.of_pod(pod, self._objects.namespaces.get(key.namespace))
        report_unknown_joins((pod,), self._ledger)
        yield self._pods_known.get(
            key,
            (pod, services, policies, waypoint, tunnel, captured, locality, network, join),
            lambda: frame.writer.pod(
                pod, services, policies, waypoint, tunnel, captured=captured, join=join
            ),
        )

    def _is_captured(self, pod: Pod) -> bool:
        if self._captured is not None:
            return (pod.meta.namespace, pod.meta.name) in self._captured
        return self._is_selected(pod)

    def _is_selected(self, pod: Pod) -> bool:
        namespace = self._objects.namespaces.get(pod.meta.namespace)
        return is_selected(pod, namespace, self._settings)

    def _report_not_captured(self, pod: Pod, policies: list[str], strict: bool) -> None:
        nowhere = ""
        if policies:
            what = "STRICT and its policies are" if strict else "its policies are"
            nowhere = f"; {what} enforced nowhere ({', '.join(policies)})"
        if self._is_selected(pod):
            self._ledger.warning(
                pod.meta.key,
                "",
                "NotCaptured",
                f"is to be in the mesh and no node agent has captured it{nowhere}.",
                "See the node agent's log.",
            )
        elif policies:
            self._ledger.warning(
                pod.meta.key,
                "",
                "NotInMesh",
                f"is not in the mesh{nowhere}.",
                "Label the pod or its namespace istio.io/dataplane-mode: ambient.",
            )

    def _entry(self, key: ObjectKey, entry: WorkloadEntry) -> Iterator[Resource]:
        meta = entry_meta(entry)
        policies, _ = self._policies.of_workload(key, meta.labels)
        self._reside(key, "", entry.spec.service_account, meta.labels, policies)
        services = self._roster.serving.get(key, {})
        waypoint = self._frame.waypoints.of_workload(meta)
        self._report_unreachable(key, "spec.network", entry.spec.network)
        yield self._frame.writer.workload_entry(entry, services, policies, waypoint)

    def _report_unreachable(self, key: ObjectKey, field: str, network: str) -> None:
        networks = self._frame.networks
        if not network or network == networks.own or networks.gateway_to(network):
            return
        self._ledger.warning(
            key,
            field,
            "NoNetworkGateway",
            f"no gateway of network {network!r} is known: it cannot be reached.",
            f"Add a Gateway of class {REMOTE_CLASS} with the label {NETWORK}: {network}.",
        )

    def _write_slice(self, place: Named) -> None:
        others = self._roster.others.get(place, {})
        self._put(
            ObjectKey("EndpointSlice", *place),
            [
                self._frame.writer.slice_endpoint(*place, address, ready, services)
                for address, (ready, services) in others.items()
            ],
        )

    def _write_endpoints(self, place: Named) -> None:
        key = ObjectKey("ServiceEntry", *place)
        with self._ledger.part(key):
            self._put(key, self._inline_endpoints(key))

    def _inline_endpoints(self, key: ObjectKey) -> Iterator[Resource]:
        """Endpoints that stand in the entry; a host that is to be looked up in DNS and has none
        stands for itself. Resolution NONE has none: clients' own destination counts."""
        entry = self._objects.service_entries.get((key.namespace, key.name))
        if entry is None:
            return
        hosts = self._frame.hosts.get(key, [])
        if not hosts:
            return  # all of them are somebody else's
        endpoint = self._frame.writer.inline_endpoint
        # As in Istio: policies go by the labels of the entry, waypoints by the endpoint's.
        policies = self._policies.of_labels(key.namespace, entry.meta.labels)
        for number, spec in enumerate(entry.endpoints):
            self._report_unreachable(key, f"spec.endpoints[{number}].network", spec.network)
            services: ServicePorts = {
                host.name: ports_of(host, spec.ports, is_pod=False) for host in hosts
            }
            waypoint = self._frame.waypoints.of_workload(replace(entry.meta, labels=spec.labels))
            yield endpoint(entry.meta, spec, services, policies, waypoint)
        if entry.endpoints or entry.selector is not None or entry.resolution not in _DNS:
            return
        for host in hosts:
            spec = EntrySpec("", host.hostname, {}, {}, "", "", None, "")
            services = {host.name: ports_of(host, {}, is_pod=False)}
            yield endpoint(entry.meta, spec, services, policies, None)
