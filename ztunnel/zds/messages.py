"""The messages of ZDS, as values (ztunnel/proto/zds.proto).

One message is one SEQPACKET packet. The agent sends requests, and waits for the response to each
before it sends the next. Reading is strict: a request that cannot be understood in full is an
error, never half of what was meant.
"""

from dataclasses import dataclass

from google.protobuf.message import DecodeError

from ztunnel.proto import zds_pb2

MAX_MESSAGE = 1024
"""Bytes that either end can receive; Istio's agent and ztunnel have the same limit."""


class MessageError(ValueError):
    """A message that is malformed, incomplete or of an unknown kind."""


@dataclass(frozen=True, slots=True)
class WorkloadInfo:
    """Who a pod is. None of the three may be empty: together they make its identity."""

    name: str
    namespace: str
    service_account: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class AddWorkload:
    """Serve this pod. The packet carries the descriptor of its network namespace."""

    uid: str
    info: WorkloadInfo


@dataclass(frozen=True, slots=True)
class KeepWorkload:
    """In a snapshot: go on serving this pod, whose namespace the agent does not have at hand."""

    uid: str


@dataclass(frozen=True, slots=True)
class DeleteWorkload:
    """Serve this pod no more."""

    uid: str


@dataclass(frozen=True, slots=True)
class SnapshotSent:
    """The agent has named every pod of the node; what it has not named is to go."""


Request = AddWorkload | KeepWorkload | DeleteWorkload | SnapshotSent


def encode_hello() -> bytes:
    """What ztunnel sends first."""
    return zds_pb2.ZdsHello(version=zds_pb2.V1).SerializeToString()


def decode_hello(data: bytes) -> None:
    """Accept a hello of a version that is spoken here. Raises MessageError."""
    hello = zds_pb2.ZdsHello()
    try:
        hello.ParseFromString(data)
    except DecodeError as error:
        raise MessageError(f"malformed ZdsHello: {error}") from None
    if hello.version != zds_pb2.V1:
        raise MessageError(f"ZdsHello has version {hello.version}, 1 (V1) is spoken here")


def encode_request(request: Request) -> bytes:
    """Raises MessageError when the request is longer than the other end can receive."""
    message = zds_pb2.WorkloadRequest()
    if isinstance(request, AddWorkload):
        message.add.uid = request.uid
        message.add.workload_info.name = request.info.name
        message.add.workload_info.namespace = request.info.namespace
        message.add.workload_info.service_account = request.info.service_account
    elif isinstance(request, KeepWorkload):
        message.keep.uid = request.uid
    elif isinstance(request, DeleteWorkload):
        # `del` is a keyword of Python: the generated class has the field, but no such syntax.
        getattr(message, "del").uid = request.uid
    else:
        message.snapshot_sent.SetInParent()
    data = message.SerializeToString()
    if len(data) > MAX_MESSAGE:
        raise MessageError(f"a request of {len(data)} bytes, {MAX_MESSAGE} can be received")
    return data


def decode_request(data: bytes) -> Request:
    """Raises MessageError, naming the field."""
    message = zds_pb2.WorkloadRequest()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise MessageError(f"malformed WorkloadRequest: {error}") from None
    kind = message.WhichOneof("payload")
    if kind == "add":
        return _read_add(message.add)
    if kind == "keep":
        return KeepWorkload(_required(message.keep.uid, "keep.uid"))
    if kind == "del":
        return DeleteWorkload(_required(getattr(message, "del").uid, "del.uid"))
    if kind == "snapshot_sent":
        return SnapshotSent()
    raise MessageError("WorkloadRequest without a payload that is known here")


def _read_add(add: zds_pb2.AddWorkload) -> AddWorkload:
    uid = _required(add.uid, "add.uid")
    if not add.HasField("workload_info"):
        raise MessageError(f"add.workload_info is missing (uid {uid})")
    info = add.workload_info
    return AddWorkload(
        uid,
        WorkloadInfo(
            _required(info.name, "add.workload_info.name"),
            _required(info.namespace, "add.workload_info.namespace"),
            _required(info.service_account, "add.workload_info.service_account"),
        ),
    )


def _required(value: str, field: str) -> str:
    if not value:
        raise MessageError(f"{field} is empty")
    return value


def encode_ack(error: str = "") -> bytes:
    """The response to a request; an empty `error` is success. A long one is cut to fit."""
    while True:
        message = zds_pb2.WorkloadResponse()
        message.ack.SetInParent()
        message.ack.error = error
        data = message.SerializeToString()
        if len(data) <= MAX_MESSAGE:
            return data
        error = error[: len(error) - max(1, (len(data) - MAX_MESSAGE) // 4)]


def decode_ack(data: bytes) -> str:
    """The error of a response, empty for success. Raises MessageError."""
    message = zds_pb2.WorkloadResponse()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise MessageError(f"malformed WorkloadResponse: {error}") from None
    if message.WhichOneof("payload") != "ack":
        raise MessageError("WorkloadResponse without an ack")
    return message.ack.error
