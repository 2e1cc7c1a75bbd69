from __future__ import annotations

from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from ztunnel.xds.messages import decode_response, encode_request
from ztunnel.xds.protocol import ADDRESS_TYPE, DeltaState, Request

names = st.text(max_size=5)


@given(
    st.builds(
        Request,
        type_url=names,
        subscribe=st.lists(names, max_size=3).map(tuple),
        unsubscribe=st.lists(names, max_size=3).map(tuple),
        initial_versions=st.dictionaries(names, names, max_size=3),
        nonce=names,
        error=names,
    )
)
def test_requests_arrive_as_they_were_meant(request: Request) -> None:
    data = encode_request(request, None).SerializeToString()
    message = discovery_pb2.DeltaDiscoveryRequest.FromString(data)
    assert not message.HasField("node")
    assert message.HasField("error_detail") == bool(request.error)
    assert message.error_detail.code == (3 if request.error else 0)
    assert request == Request(
        message.type_url,
        tuple(message.resource_names_subscribe),
        tuple(message.resource_names_unsubscribe),
        dict(message.initial_resource_versions),
        message.response_nonce,
        message.error_detail.message,
    )


@given(st.binary(max_size=80))
def test_whatever_parses_gets_an_answer(data: bytes) -> None:
    for body in (data, b"\x22" + bytes([len(ADDRESS_TYPE)]) + ADDRESS_TYPE.encode() + data):
        try:
            message = discovery_pb2.DeltaDiscoveryResponse.FromString(body)
        except DecodeError:
            continue
        state = DeltaState({ADDRESS_TYPE: False})
        response = decode_response(message)
        answer = state.finish(state.receive(response))
        assert answer.request.nonce == message.nonce
        encode_request(answer.request, None).SerializeToString()
