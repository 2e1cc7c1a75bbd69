"""``ambient why``: from a running mesh, or from a folder of YAML, why a connection is allowed."""

import dataclasses
import json
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from google.protobuf.json_format import ParseDict

from daemonset.control_plane.answer import answer, mesh_state, state_of
from daemonset.control_plane.sources.folder import FolderError, read_folder
from daemonset.control_plane.sources.folder_state import FolderState
from daemonset.control_plane.translation.service_addresses import SERVICE_IPS
from daemonset.control_plane.translation.settings import MeshSettings
from daemonset.control_plane.translation.translate import Translator
from daemonset.local import run_directory
from daemonset.local.enter import EnterError, enter_place
from daemonset.local.folder_view import FolderView
from daemonset.local.mesh_programs import STATUS_PORT
from daemonset.local.run_directory import Description
from daemonset.local.topology import plan
from ztunnel.mesh.state import MeshState
from ztunnel.proto.authorization_pb2 import Authorization
from ztunnel.proto.workload_pb2 import Address

_SETTINGS = MeshSettings(service_ips=SERVICE_IPS)
_PATIENCE = 10.0


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
    return answer(state, written.objects, written.place, source, destination, port)


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
    return state_of(translation)


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
    return mesh_state(
        (ParseDict(one, Address()) for one in found["addresses"].values()),
        (ParseDict(one, Authorization()) for one in found["authorizations"].values()),
    )
