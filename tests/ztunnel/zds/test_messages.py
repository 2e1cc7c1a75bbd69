import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztunnel.proto import zds_pb2
from ztunnel.zds import messages
from ztunnel.zds.messages import (
    MAX_MESSAGE,
    AddWorkload,
    DeleteWorkload,
    KeepWorkload,
    MessageError,
    Request,
    SnapshotSent,
    WorkloadInfo,
)

names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=60)
requests: st.SearchStrategy[Request] = st.one_of(
    st.builds(AddWorkload, names, st.builds(WorkloadInfo, names, names, names)),
    st.builds(KeepWorkload, names),
    st.builds(DeleteWorkload, names),
    st.just(SnapshotSent()),
)


@given(requests)
def test_requests_round_trip(request: Request) -> None:
    assert messages.decode_request(messages.encode_request(request)) == request


@given(st.text(st.characters(codec="utf-8")))
def test_acks_round_trip_or_are_cut(error: str) -> None:
    data = messages.encode_ack(error)
    assert len(data) <= MAX_MESSAGE
    read = messages.decode_ack(data)
    assert error.startswith(read)
    assert read == error or len(error.encode()) > MAX_MESSAGE - 10


@given(st.binary(max_size=200))
def test_garbage_is_refused_and_nothing_else_is_raised(data: bytes) -> None:
    for decode in (messages.decode_request, messages.decode_ack, messages.decode_hello):
        try:
            decode(data)
        except MessageError:
            pass


def test_the_wire_is_istios() -> None:
    """Bytes spelt out by hand: the uid of a deletion is field 2, and hello is 08 01."""
    assert messages.encode_hello() == b"\x08\x01"
    assert messages.encode_request(DeleteWorkload("u")) == b"\x12\x03\x12\x01u"
    assert messages.encode_request(KeepWorkload("u")) == b"\x2a\x03\x0a\x01u"
    assert messages.encode_request(SnapshotSent()) == b"\x1a\x00"
    add = AddWorkload("u", WorkloadInfo("p", "n", "s"))
    info = b"\x0a\x01p\x12\x01n\x1a\x01s"
    assert messages.encode_request(add) == b"\x0a\x0e\x0a\x01u\x12\x09" + info
    assert messages.encode_ack() == b"\x0a\x00"
    assert messages.encode_ack("no") == b"\x0a\x04\x0a\x02no"


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (zds_pb2.WorkloadRequest(), "without a payload"),
        (zds_pb2.WorkloadRequest(add=zds_pb2.AddWorkload()), "add.uid is empty"),
        (
            zds_pb2.WorkloadRequest(add=zds_pb2.AddWorkload(uid="u")),
            r"add.workload_info is missing \(uid u\)",
        ),
        (
            zds_pb2.WorkloadRequest(
                add=zds_pb2.AddWorkload(
                    uid="u", workload_info=zds_pb2.WorkloadInfo(name="n", namespace="s")
                )
            ),
            "add.workload_info.service_account is empty",
        ),
        (zds_pb2.WorkloadRequest(keep=zds_pb2.KeepWorkload()), "keep.uid is empty"),
    ],
)
def test_what_is_missing_is_named(payload: zds_pb2.WorkloadRequest, reason: str) -> None:
    with pytest.raises(MessageError, match=reason):
        messages.decode_request(payload.SerializeToString())


def test_the_old_field_of_a_deletion_is_not_taken_for_its_uid() -> None:
    with pytest.raises(MessageError, match="uid is empty"):
        messages.decode_request(b"\x12\x03\x0a\x01u")


def test_another_version_is_refused() -> None:
    messages.decode_hello(messages.encode_hello())
    with pytest.raises(MessageError, match="version 2"):
        messages.decode_hello(b"\x08\x02")
    with pytest.raises(MessageError, match="version 0"):
        messages.decode_hello(b"")


def test_a_request_too_long_is_not_sent() -> None:
    with pytest.raises(MessageError, match="1024 can be received"):
        messages.encode_request(KeepWorkload("u" * MAX_MESSAGE))
