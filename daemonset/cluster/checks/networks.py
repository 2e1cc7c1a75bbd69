"""What the network plugin and its policies do to captured pods. Pure.

Settings of Cilium, Calico and others are those that are known to break ambient meshes; none of them
has been tried with this one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from daemonset.agent.capture_rules import PROBE_V4
from daemonset.cluster.members import members, namespace_labels, pods_of
from daemonset.cluster.names import CONTROL_PLANE, ZTUNNEL
from daemonset.cluster.network_policy import (
    EGRESS,
    INGRESS,
    End,
    Policy,
    common,
    passage,
    read_policy,
)
from daemonset.cluster.survey import Survey
from daemonset.cluster.tunnels import HBONE, blocked_tunnels, widened_ports
from daemonset.control_plane.objects.meta import ObjectKey
from daemonset.control_plane.objects.section import ObjectError
from daemonset.control_plane.translation.finding import Findings, Severity

_XDS = 15012
_CALICO_WITH_EBPF = (3, 29)
_OTHER_ENGINES = (
    "cilium policies",
    "cluster cilium policies",
    "calico policies",
    "global calico policies",
)


def check_networks(survey: Survey, findings: Findings) -> None:
    """Policies of Kubernetes, then the plugins."""
    policies = _policies(survey, findings)
    _tunnels(survey, policies, findings)
    _own_traffic(survey, policies, findings)
    _policies_not_understood(survey, findings)
    _cilium(survey, policies, findings)
    _calico(survey, findings)
    _aws(survey, findings)


def _policies(survey: Survey, findings: Findings) -> list[Policy]:
    found: list[Policy] = []
    for item in survey.all("networkpolicies"):
        try:
            found.append(read_policy(item))
        except ObjectError as error:
            meta = item["metadata"]
            findings.warning(
                ObjectKey("NetworkPolicy", str(meta.get("namespace", "")), str(meta["name"])),
                error.field,
                "NotUnderstood",
                f"cannot be evaluated: {error.problem}.",
            )
    return found


def mesh_ends(survey: Survey) -> list[End]:
    """The pods that are, or are to be, in the mesh."""
    labels = namespace_labels(survey)
    return [
        member.end(labels.get(member.pod.meta.namespace, {}))
        for member in members(survey)
        if (member.enrolment.enrolled or member.captured) and not member.pod.finished
    ]


def _tunnels(survey: Survey, policies: list[Policy], findings: Findings) -> None:
    ends = mesh_ends(survey)
    for blocked in blocked_tunnels(policies, ends):
        more = f" (and {blocked.others} other kinds of pods)" if blocked.others else ""
        way = "lets in" if blocked.direction == INGRESS else "lets out"
        findings.error(
            blocked.policy,
            blocked.field,
            "TunnelBlocked",
            f"{way} connections of {blocked.source} to {blocked.destination} on port "
            f"{blocked.port}{more}; in the mesh they arrive on TCP {HBONE}, which no rule {way}: "
            "they fail.",
            f"Add {{port: {HBONE}, protocol: TCP}} to {blocked.field}.",
        )
    for widened in widened_ports(policies, ends):
        findings.add(
            Severity.INFO,
            widened.policy,
            widened.field,
            "PortsInsideTunnels",
            f"limits the ports of {widened.destination}, and clients in the mesh come through TCP "
            f"{HBONE}, inside which it sees none.",
            "An AuthorizationPolicy with `ports` limits them there.",
        )


def _own_traffic(survey: Survey, policies: list[Policy], findings: Findings) -> None:
    """Node proxies must reach the control plane."""
    labels = namespace_labels(survey)
    installation = survey.installation

    def ends(owner: str) -> list[End]:
        found = pods_of(survey.all("pods"), installation.namespace, owner)
        names = {str(item["metadata"]["name"]) for item in found}
        return [
            member.end(labels.get(installation.namespace, {}))
            for member in members(survey)
            if member.pod.meta.namespace == installation.namespace and member.pod.meta.name in names
        ]

    proxies, planes = ends(ZTUNNEL)[:1], ends(CONTROL_PLANE)[:1]
    for proxy in proxies:
        for plane in planes:
            for direction in (EGRESS, INGRESS):
                way = passage(policies, direction, proxy, plane)
                if not common(way.ranges, [(_XDS, _XDS)]):
                    end = plane if direction == INGRESS else proxy
                    chosen = [
                        one for one in policies if direction in one.rules and one.selects(end)
                    ]
                    findings.error(
                        chosen[0].key,
                        f"spec.{direction}",
                        "ControlPlaneBlocked",
                        f"keeps ztunnel from the control plane (TCP {_XDS}): no certificates, no "
                        "news of workloads.",
                        f"Let {end} {'in' if direction == INGRESS else 'out'} on TCP {_XDS}.",
                    )


def _policies_not_understood(survey: Survey, findings: Findings) -> None:
    for name in _OTHER_ENGINES:
        found = [
            item
            for item in survey.all(name)
            # Calico keeps Kubernetes' own policies under such names as well.
            if not str(item["metadata"]["name"]).startswith(("knp.", "kcnp."))
        ]
        if found:
            meta = found[0]["metadata"]
            findings.add(
                Severity.INFO,
                ObjectKey(
                    str(found[0].get("kind") or name), str(meta.get("namespace", "")), meta["name"]
                ),
                "spec",
                "NotEvaluated",
                f"and {len(found) - 1} others of its kind are not evaluated here.",
                f"See that they let TCP {HBONE} through between pods of the mesh, and probes from "
                f"{PROBE_V4}.",
            )


def _cilium(survey: Survey, policies: list[Policy], findings: Findings) -> None:
    for item in survey.all("cilium"):
        namespace = str(item["metadata"].get("namespace", ""))
        data: Mapping[str, str] = item.get("data") or {}
        key = ObjectKey("ConfigMap", namespace, "cilium-config")

        def is_on(name: str, data: Mapping[str, str] = data) -> bool:
            return data.get(name, "").lower() in ("true", "strict", "partial")

        if data.get("cni-exclusive", "true").lower() != "false":
            findings.error(
                key,
                "data[cni-exclusive]",
                "CiliumExclusive",
                "lets Cilium take every other plugin out of the node's CNI configuration: pods "
                "would start before they are captured.",
                'Set cni.exclusive=false (of its chart), cni-exclusive: "false" here.',
            )
        socket_balancing = is_on("bpf-lb-sock") or is_on("kube-proxy-replacement")
        if socket_balancing and not is_on("bpf-lb-sock-hostns-only"):
            findings.error(
                key,
                "data[bpf-lb-sock-hostns-only]",
                "CiliumSocketBalancing",
                "is not set, so that Cilium puts a pod's address in the place of a service's when "
                "an application connects: ztunnel never sees the service, and its waypoint is "
                "passed by.",
                "Set socketLB.hostNamespaceOnly=true.",
            )
        if is_on("enable-bpf-masquerade"):
            findings.error(
                key,
                "data[enable-bpf-masquerade]",
                "CiliumMasquerade",
                f"has Cilium translate addresses itself, which is known to lose probes from "
                f"{PROBE_V4} (istio/istio#52208).",
                "Set bpf.masquerade=false.",
            )
        if data.get("enable-host-legacy-routing", "").lower() == "false":
            findings.warning(
                key,
                "data[enable-host-legacy-routing]",
                "CiliumHostRouting",
                "lets answers pass by the node's netfilter, which is where the addresses of probes "
                "are translated back (cilium/cilium#36022).",
                "Set bpf.hostLegacyRouting=true.",
            )
        always = data.get("enable-policy", "default") == "always"
        isolated = any(
            INGRESS in policy.rules and policy.selects(end)
            for policy in policies
            for end in mesh_ends(survey)
        )
        if (always or isolated) and not _probes_let_in(survey):
            findings.error(
                ObjectKey("CiliumClusterwideNetworkPolicy", "", "allow-ambient-hostprobes"),
                "spec.ingress",
                "CiliumProbes",
                f"is missing: pods are isolated by policy, and Cilium does not know {PROBE_V4}, "
                "where the kubelet's probes of captured pods come from, as an address of the node: "
                "probes fail.",
                f"Apply one with endpointSelector {{}} and ingress fromCIDR [{PROBE_V4}/32].",
            )
        if is_on("enable-ztunnel"):
            findings.error(
                key,
                "data[enable-ztunnel]",
                "AnotherMesh",
                "has Cilium encrypt with a ztunnel of its own: two meshes capture the same pods.",
                "Switch off one of the two.",
            )


def _probes_let_in(survey: Survey) -> bool:
    for item in survey.all("cluster cilium policies"):
        spec = item.get("spec") or {}
        for rule in spec.get("ingress") or ():
            if f"{PROBE_V4}/32" in (rule.get("fromCIDR") or ()):
                return True
    return False


def _calico(survey: Survey, findings: Findings) -> None:
    for item in survey.all("felix"):
        spec = item.get("spec") or {}
        if not spec.get("bpfEnabled"):
            continue
        key = ObjectKey("FelixConfiguration", "", str(item["metadata"]["name"]))
        version = _calico_version(survey)
        if version is None or version < _CALICO_WITH_EBPF:
            said = "of a version that cannot be told" if version is None else ".".join(
                map(str, version)
            )  # fmt: skip
            findings.add(
                Severity.WARNING if version is None else Severity.ERROR,
                key,
                "spec.bpfEnabled",
                "CalicoEbpf",
                f"is on, with Calico {said}: before 3.29 its eBPF data plane loses probes of "
                "captured pods (istio/istio#52765).",
                "Use Calico 3.29 or later, or its iptables or nftables data plane.",
            )
        if str(spec.get("bpfConnectTimeLoadBalancing", "TCP")) != "Disabled":
            findings.warning(
                key,
                "spec.bpfConnectTimeLoadBalancing",
                "CalicoSocketBalancing",
                "puts a pod's address in the place of a service's when an application connects: "
                "ztunnel never sees the service, and its waypoint is passed by.",
                "Set it to Disabled, and bpfHostNetworkedNATWithoutCTLB to Enabled.",
            )


def _calico_version(survey: Survey) -> tuple[int, int] | None:
    for item in survey.all("daemonsets"):
        if str(item["metadata"]["name"]) == "calico-node":
            for container in item["spec"]["template"]["spec"].get("containers") or ():
                found = re.search(r":v?(\d+)\.(\d+)", str(container.get("image", "")))
                if found:
                    return int(found[1]), int(found[2])
    return None


def _aws(survey: Survey, findings: Findings) -> None:
    for item in survey.all("daemonsets"):
        if str(item["metadata"]["name"]) != "aws-node":
            continue
        values: dict[str, str] = {}
        for container in item["spec"]["template"]["spec"].get("containers") or ():
            for entry in container.get("env") or ():
                values[str(entry.get("name"))] = str(entry.get("value", ""))
        strict = values.get("POD_SECURITY_GROUP_ENFORCING_MODE", "strict") == "strict"
        if values.get("ENABLE_POD_ENI") == "true" and strict:
            findings.warning(
                ObjectKey("DaemonSet", str(item["metadata"].get("namespace", "")), "aws-node"),
                "spec.template.spec.containers[0].env[POD_SECURITY_GROUP_ENFORCING_MODE]",
                "AwsSecurityGroups",
                "is strict: probes of pods with a security group of their own are routed out of "
                f"the node, where nobody knows {PROBE_V4}.",
                "Set it to standard.",
            )
