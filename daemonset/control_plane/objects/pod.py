"""Pod (v1)."""

from __future__ import annotations

from dataclasses import dataclass

from daemonset.control_plane.objects.addresses import read_ip
from daemonset.control_plane.objects.meta import ObjectMeta, read_meta
from daemonset.control_plane.objects.section import Section

_PHASES = ("Pending", "Running", "Succeeded", "Failed", "Unknown")


@dataclass(frozen=True, slots=True)
class ContainerPort:
    """A named TCP port of a container."""

    name: str
    number: int


@dataclass(frozen=True, slots=True)
class Pod:
    """``ips`` are canonical; ``ports`` are the named TCP ports of containers and sidecars."""

    meta: ObjectMeta
    node: str
    service_account: str
    host_network: bool
    ips: tuple[str, ...]
    phase: str
    ready: bool
    ports: tuple[ContainerPort, ...]

    @property
    def finished(self) -> bool:
        """Its containers have ended for good; it may still hold an address in its status."""
        return self.phase in ("Succeeded", "Failed")


def read_pod(root: Section) -> Pod:
    """Read a Pod. One that runs and says nothing of readiness is ready: a folder describes running
    pods, and kubelet sets address and conditions together.

    Raises:
        ObjectError: a field is missing or of the wrong type.
    """
    meta = read_meta(root, "Pod", namespaced=True)
    spec = root.section("spec")
    status = root.section("status")
    ips: list[str] = []
    texts = [(item.text("ip"), item.at("ip"), item.line) for item in status.sections("podIPs")]
    if status.text("podIP"):
        texts.insert(0, (status.text("podIP"), status.at("podIP"), status.line))
    for text, path, line in texts:
        address = read_ip(text, path, line)
        if address not in ips:
            ips.append(address)
    phase = status.choice("phase", _PHASES, "Running" if ips else "Pending")
    ready = status.text("phase") != "Pending"  # said, and not only for want of an address
    for condition in status.sections("conditions"):
        if condition.text("type") == "Ready":
            ready = condition.text("status") == "True"
    return Pod(
        meta=meta,
        node=spec.text("nodeName"),
        service_account=spec.text("serviceAccountName") or spec.text("serviceAccount") or "default",
        host_network=spec.flag("hostNetwork"),
        ips=tuple(ips),
        phase=phase,
        ready=ready,
        ports=tuple(_named_ports(spec)),
    )


def _named_ports(spec: Section) -> list[ContainerPort]:
    ports: list[ContainerPort] = []
    containers = spec.sections("containers")
    # Init containers that are restarted always are native sidecars and serve like the others.
    containers += [
        container
        for container in spec.sections("initContainers")
        if container.text("restartPolicy") == "Always"
    ]
    for container in containers:
        for port in container.sections("ports"):
            number = port.required_port("containerPort")
            name = port.text("name")
            if name and port.text("protocol", "TCP") == "TCP":
                ports.append(ContainerPort(name, number))
    return ports
