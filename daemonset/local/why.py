"""``ambient why``: from a running mesh, or from a folder of YAML, why a connection is allowed."""

import dataclasses
import json
import urllib.request
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from google.protobuf.json_format import ParseDict

from daemonset.control_plane.explanation import (
    UnknownNameError,
    Way,
    explain,
    find_targets,
    find_workload,
)
from daemonset.control_plane.objects.meta import ObjectKey
from daemonset.control_plane.objects.objectset import ObjectSet
from daemonset.control_plane.objects.peer_authentication import MutualTLSMode
from daemonset.control_plane.sources.folder import FolderError, read_folder
from daemonset.control_plane.sources.folder_state import FolderState
from daemonset.control_plane.translation.peer_authentication import CONVERTED, STATIC_STRICT
from daemonset.control_plane.translation.service_addresses import SERVICE_IPS
from daemonset.control_plane.translation.settings import MeshSettings
from daemonset.control_plane.translation.translate import Translator
from daemonset.local import run_directory
from daemonset.local.enter import EnterError, enter_place
from daemonset.local.folder_view import FolderView
from daemonset.local.mesh_programs import STATUS_PORT
from daemonset.local.run_directory import Description
from daemonset.local.topology import plan
from ztunnel.mesh.changes import Batch, Resource
from ztunnel.mesh.from_proto import address_from_proto
from ztunnel.mesh.policy_from_proto import authorization_from_proto
from ztunnel.mesh.state import MeshState
from ztunnel.proto.authorization_pb2 import Authorization
from ztunnel.proto.workload_pb2 import Address

ALLOWED, REFUSED, UNKNOWN = 0, 1, 2
"""Exit statuses: every way is allowed, some way is not, the question has no answer."""

_SETTINGS = MeshSettings(service_ips=SERVICE_IPS)
_PATIENCE = 10.0
_POLICY = "AuthorizationPolicy"


def why(
    mesh: str | None, folder: Path | None, source: str, destination: str, port: int | None
) -> tuple[int, list[str]]:
    """Exit status and lines for people.

    Args:
        mesh: name of the running mesh to ask; None with ``folder`` None: the only one.
        folder: ask these files instead; what labels want in the mesh counts as captured.

    Raises:
        RunDirectoryError, EnterError, TopologyError: there is nobody to ask.
    """
    if folder is not None:
        written = _read(folder)
        state = _state_of_folder(folder)
    else:
        _, description = run_directory.find(mesh)
        written = _read(Path(description.folder))
        state = _state_of_mesh(description)
    try:
        client = find_workload(state, source)
        targets = find_targets(state, client, destination, port)
    except UnknownNameError as error:
        return UNKNOWN, [f"{error}"]
    lines: list[str] = []
    allowed = True
    for target in targets:
        ways = explain(state, client, target)
        allowed = allowed and all(way.allowed for way in ways)
        place = f"[{target.address}]" if ":" in target.address else target.address
        lines.append(
            f"{client.namespace}/{client.name} → {target.name}, {place}:{target.port}:"
            f" {_outcome(ways)}"
        )
        for way in ways:
            lines += _in_words(way, written)
    return (ALLOWED if allowed else REFUSED), lines


def _outcome(ways: Iterable[Way]) -> str:
    allowed = {way.allowed for way in ways}
    if allowed == {True}:
        return "allowed"
    return "REFUSED" if allowed == {False} else "depends on the endpoint"


def _in_words(way: Way, written: FolderState) -> list[str]:
    objects = written.objects if way.policies else ObjectSet()
    mark = "✓" if way.allowed else "✗"
    lines = [f"  {mark} {way.steps[-1]}"]
    lines[:0] = [f"    {step}" for step in way.steps[:-1]]
    for policy in way.policies:
        for key in _written_as(policy, objects):
            field = f"spec.rules[{way.rule - 1}]" if key.kind == _POLICY and way.rule else ""
            lines.append(f"      {key}: {written.place(key, field)}")
    return lines


def _written_as(policy: str, objects: ObjectSet) -> list[ObjectKey]:
    """The objects that a policy in force was made from."""
    namespace, _, name = policy.partition("/")
    if name == STATIC_STRICT:
        return [
            one.meta.key
            for one in objects.peer_authentications.values()
            if one.mode is MutualTLSMode.STRICT
        ]
    if name.startswith(CONVERTED):
        return [ObjectKey("PeerAuthentication", namespace, name.removeprefix(CONVERTED))]
    return [ObjectKey(_POLICY, namespace, name)]


def _read(folder: Path) -> FolderState:
    try:
        return read_folder(folder)
    except FolderError:
        return FolderState()  # it is gone, and the mesh goes on: places cannot be told


def _state_of_folder(folder: Path) -> MeshState:
    view = FolderView(folder)
    objects = view.objects
    if objects.nodes:
        planned = plan(view.raw).pods
        pods = {
            key: dataclasses.replace(
                pod,
                ips=pod.ips or tuple(str(one) for one in planned["/".join(key)].addresses),
                phase="Running",
            )
            if "/".join(key) in planned
            else pod
            for key, pod in objects.pods.items()
        }
        objects = dataclasses.replace(objects, pods=pods)
    translation = Translator(_SETTINGS).translate(objects)
    return _state(
        (Address.FromString(one.payload) for one in translation.addresses.values()),
        (Authorization.FromString(one.payload) for one in translation.authorizations.values()),
    )


def _state_of_mesh(mesh: Description) -> MeshState:
    """What its control plane has in force. Moves this process into the mesh for good."""
    assert mesh.underlay is not None
    enter_place(mesh, mesh.underlay)
    address = mesh.underlay.addresses[0]
    host = f"[{address}]" if ":" in address else address
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    url = f"http://{host}:{STATUS_PORT}/debug/resources"
    try:
        with opener.open(url, timeout=_PATIENCE) as answer:
            found: Mapping[str, Mapping[str, dict[str, Any]]] = json.load(answer)
    except OSError as error:
        text = f"the control plane of mesh {mesh.name} does not answer: {error}"
        raise EnterError(text) from error
    return _state(
        (ParseDict(one, Address()) for one in found["addresses"].values()),
        (ParseDict(one, Authorization()) for one in found["authorizations"].values()),
    )


def _state(addresses: Iterable[Address], policies: Iterable[Authorization]) -> MeshState:
    state = MeshState()
    resources: list[Resource] = [address_from_proto(one) for one in addresses]
    resources += [authorization_from_proto(one) for one in policies]
    state.apply(Batch(resources))
    return state
