"""What the control plane's tests share: meshes from YAML, and clients of delta ADS."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Queue
from typing import Any

import grpc
import pytest
from envoy.service.discovery.v3 import discovery_pb2

from daemonset.control_plane.config import ControlPlaneConfig
from daemonset.control_plane.objects.objectset import ObjectSet
from daemonset.control_plane.sources.file_reader import read_file
from daemonset.control_plane.sources.folder_state import FolderState
from daemonset.control_plane.translation.finding import Finding
from daemonset.control_plane.translation.resource import ADDRESS
from daemonset.control_plane.translation.settings import MeshSettings
from daemonset.control_plane.translation.translate import Translation, Translator
from ztunnel.proto import authorization_pb2, workload_pb2

METHOD = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"


def read_objects(text: str) -> ObjectSet:
    """Objects of one YAML text, which must be without errors."""
    state = FolderState()
    state.apply({"mesh.yaml": read_file("mesh.yaml", textwrap.dedent(text).encode())})
    assert not state.problems, [str(problem) for problem in state.problems]
    return state.objects


class Translated:
    """A translation, decoded."""

    def __init__(self, translation: Translation) -> None:
        self.raw = translation

    def workload(self, name: str) -> workload_pb2.Workload:
        """By uid, or by the end of it."""
        for key, resource in self.raw.addresses.items():
            if key == name or key.endswith(f"/{name}"):
                address = workload_pb2.Address.FromString(resource.payload)
                if address.HasField("workload"):
                    return address.workload
        raise AssertionError(f"no workload {name} among {sorted(self.raw.addresses)}")

    def service(self, name: str) -> workload_pb2.Service:
        address = workload_pb2.Address.FromString(self.raw.addresses[name].payload)
        assert address.HasField("service")
        return address.service

    def policy(self, name: str) -> authorization_pb2.Authorization:
        payload = self.raw.authorizations[name].payload
        return authorization_pb2.Authorization.FromString(payload)

    @property
    def findings(self) -> tuple[Finding, ...]:
        return self.raw.findings

    @property
    def reasons(self) -> list[str]:
        return [finding.reason for finding in self.raw.findings]


Translate = Callable[..., Translated]


@pytest.fixture
def objects() -> Callable[[str], ObjectSet]:
    return read_objects


@pytest.fixture
def translate() -> Translate:
    def run(text: str, captured: set[tuple[str, str]] | None = None, **settings: Any) -> Translated:
        translator = Translator(MeshSettings(**settings))
        return Translated(translator.translate(read_objects(text), captured))

    return run


class DeltaStream:
    """One stream of delta ADS; blocking, for threads."""

    def __init__(self, channel: grpc.Channel, metadata: list[tuple[str, str]] | None) -> None:
        self._requests: Queue[discovery_pb2.DeltaDiscoveryRequest | None] = Queue()
        call = channel.stream_stream(
            METHOD,
            request_serializer=discovery_pb2.DeltaDiscoveryRequest.SerializeToString,
            response_deserializer=discovery_pb2.DeltaDiscoveryResponse.FromString,
        )
        self.call = call(iter(self._requests.get, None), metadata=metadata)

    def send(self, type_url: str = ADDRESS, **fields: Any) -> None:
        """Send a request; ``node`` gives NODE_NAME, ``error`` makes it a rejection."""
        node, error = fields.pop("node", None), fields.pop("error", None)
        request = discovery_pb2.DeltaDiscoveryRequest(type_url=type_url, **fields)
        if node is not None:
            request.node.id = f"ztunnel~10.0.0.9~ztunnel.istio-system~{node}"
            request.node.metadata["NODE_NAME"] = node
        if error is not None:
            request.error_detail.message = error
        self._requests.put(request)

    def receive(self, *, ack: bool = True) -> discovery_pb2.DeltaDiscoveryResponse:
        response = next(self.call)
        if ack:
            self.send(response.type_url, response_nonce=response.nonce)
        return response

    def close(self) -> None:
        self.call.cancel()
        self._requests.put(None)


@contextmanager
def delta_stream(
    target: str,
    credentials: grpc.ChannelCredentials | None = None,
    metadata: list[tuple[str, str]] | None = None,
) -> Iterator[DeltaStream]:
    options = [("grpc.max_receive_message_length", -1)]
    channel = (
        grpc.insecure_channel(target, options)
        if credentials is None
        else grpc.secure_channel(target, credentials, options)
    )
    with channel:
        stream = DeltaStream(channel, metadata)
        try:
            yield stream
        finally:
            stream.close()


@pytest.fixture
def open_stream() -> Callable[..., Any]:
    return delta_stream


@pytest.fixture
def config(tmp_path: Path) -> ControlPlaneConfig:
    """A control plane of an empty folder, on free ports."""
    (tmp_path / "source").mkdir()
    return ControlPlaneConfig(
        source=tmp_path / "source",
        state=tmp_path / "state",
        xds_port=0,
        tls_port=0,
        status_port=0,
        poll_interval=0.02,
    )
