import ipaddress

from daemonset.control_plane.objects.objectset import ObjectSet
from daemonset.control_plane.sources.file_reader import read_file
from daemonset.control_plane.sources.folder_state import FolderState
from daemonset.control_plane.translation.service_addresses import (
    SERVICE_IPS,
    SERVICE_IPS6,
    ServiceAddresses,
)

SERVICES = """
---
{apiVersion: v1, kind: Service, metadata: {name: plain}, spec: {ports: [{port: 80}]}}
---
apiVersion: v1
kind: Service
metadata: {name: six}
spec: {ipFamilies: [IPv6], ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: both}
spec: {ipFamilies: [IPv6, IPv4], ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: prefers}
spec: {ipFamilyPolicy: PreferDualStack, ports: [{port: 80}]}
---
{apiVersion: v1, kind: Service, metadata: {name: bare}, spec: {clusterIP: None}}
---
{apiVersion: v1, kind: Service, metadata: {name: own}, spec: {clusterIP: 10.96.7.7}}
---
{apiVersion: v1, kind: Service, metadata: {name: x}, spec: {type: ExternalName, externalName: y}}
"""


def objects(*node_addresses: str) -> ObjectSet:
    listed = ", ".join(f"{{type: InternalIP, address: {one!r}}}" for one in node_addresses)
    node = (
        ""
        if not listed
        else f"""
apiVersion: v1
kind: Node
metadata: {{name: n}}
status: {{addresses: [{listed}]}}
"""
    )
    state = FolderState()
    state.apply({"a.yaml": read_file("a.yaml", (node + SERVICES).encode())})
    assert state.problems == ()
    return state.objects


def families(*node_addresses: str) -> dict[str, str]:
    given = ServiceAddresses().give(objects(*node_addresses))
    for name, addresses in given.items():
        for text in addresses:
            address = ipaddress.ip_address(text)
            block = SERVICE_IPS if address.version == 4 else SERVICE_IPS6
            assert address in block, name
    return {
        name.removeprefix("default/"): "".join("6" if ":" in one else "4" for one in addresses)
        for name, addresses in given.items()
    }


def test_families_are_those_of_the_service_else_the_clusters_first() -> None:
    asked = {"six": "6", "both": "64"}
    assert families() == {**asked, "plain": "4", "prefers": "4"}
    assert families("172.18.0.2") == {**asked, "plain": "4", "prefers": "4"}
    assert families("fc00::2") == {**asked, "plain": "6", "prefers": "6"}
    assert families("172.18.0.2", "fc00::2") == {**asked, "plain": "4", "prefers": "46"}


def test_two_of_them_give_the_same_and_what_was_given_stays() -> None:
    first, second = ServiceAddresses(), ServiceAddresses()
    before = first.give(objects("fc00::2"))
    assert second.give(objects("fc00::2")) == before
    assert first.give(objects("fc00::2")) == before


def test_the_address_of_the_clusters_dns_is_never_given() -> None:
    small = ServiceAddresses(
        ipaddress.IPv4Network("10.0.0.0/28"), ipaddress.IPv6Network("fd00::/124")
    )
    many = "\n---\n".join(
        f"{{apiVersion: v1, kind: Service, metadata: {{name: s{number}}}}}" for number in range(14)
    )
    state = FolderState()
    state.apply({"a.yaml": read_file("a.yaml", many.encode())})
    given = {one for addresses in small.give(state.objects).values() for one in addresses}
    assert len(given) == 13
    assert "10.0.0.10" not in given
