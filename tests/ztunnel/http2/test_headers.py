import pytest

from ztunnel.http2.errors import ErrorCode, StreamFault
from ztunnel.http2.headers import (
    Headers,
    check_request,
    check_response,
    check_trailers,
    content_length,
)

M, S, A, P = (
    (b":method", b"GET"),
    (b":scheme", b"https"),
    (b":authority", b"web"),
    (b":path", b"/"),
)
C = (b":method", b"CONNECT")


@pytest.mark.parametrize(
    "headers",
    [
        [M, S, A, P],
        [M, S, P],
        [M, S, A, P, (b"te", b"trailers"), (b"x!#$%&'*+-.^_`|~1", b"\x80\xff\t ok")],
        [(b":method", b"OPTIONS"), S, A, (b":path", b"*")],
        [C, A],
        [C, A, (b"content-length", b"0")],
    ],
)
def test_good_requests(headers: Headers) -> None:
    assert check_request(headers, False)[b":method"] == headers[0][1]


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ([], "no readable :method"),
        ([(b":method", b"G T"), S, A, P], "no readable :method"),
        ([M, A, P], "no :scheme"),
        ([M, S, A], "no :path"),
        ([M, S, A, (b":path", b"")], "no :path"),
        ([M, S, A, (b":path", b"x")], "does not start with /"),
        ([M, S, A, (b":path", b"*")], "does not start with /"),
        ([M, M, S, A, P], "twice"),
        ([M, S, A, P, (b"a", b"b"), (b":path", b"/")], "after a regular field"),
        ([M, S, A, P, (b":status", b"200")], "not allowed"),
        ([M, S, A, P, (b":unknown", b"200")], "not allowed"),
        ([C, S, A], "CONNECT with"),
        ([C, A, P], "CONNECT with"),
        ([C], "without :authority"),
        ([C, (b":authority", b"")], "without :authority"),
        ([C, S, A, P, (b":protocol", b"websocket")], ":protocol is not allowed"),
        ([M, S, A, P, (b"Upper", b"x")], "not a field name"),
        ([M, S, A, P, (b"", b"x")], "not a field name"),
        ([M, S, A, P, (b"sp ace", b"x")], "not a field name"),
        ([M, S, A, P, (b"co:lon", b"x")], "not a field name"),
        ([M, S, A, P, (b"\xc3\xa4", b"x")], "not a field name"),
        ([M, S, A, P, (b"baggage", b"a\x00b")], "a character in"),
        ([M, S, A, P, (b"baggage", b"a\r\nb")], "a character in"),
        ([M, S, A, P, (b"baggage", b"a\nb")], "a character in"),
        ([M, S, A, P, (b"baggage", b"a\x7f")], "a character in"),
        ([M, S, A, P, (b"baggage", b" a")], "a character in"),
        ([M, S, A, P, (b"baggage", b"a\t")], "a character in"),
        ([M, S, A, (b":path", b"/ \n")], "a character in"),
        ([M, S, A, P, (b"connection", b"close")], "no place in HTTP/2"),
        ([M, S, A, P, (b"transfer-encoding", b"chunked")], "no place in HTTP/2"),
        ([M, S, A, P, (b"upgrade", b"h2c")], "no place in HTTP/2"),
        ([M, S, A, P, (b"te", b"gzip")], "te is not"),
    ],
)
def test_malformed_requests(headers: Headers, reason: str) -> None:
    with pytest.raises(StreamFault, match=reason) as caught:
        check_request(headers, False)
    assert caught.value.code is ErrorCode.PROTOCOL_ERROR


def test_extended_connect_only_where_it_is_announced() -> None:
    headers = [C, S, A, P, (b":protocol", b"websocket")]
    assert check_request(headers, True)[b":protocol"] == b"websocket"
    with pytest.raises(StreamFault):
        check_request([M, S, A, P, (b":protocol", b"websocket")], True)


def test_good_response() -> None:
    assert check_response([(b":status", b"503"), (b"server", b"envoy")]) == 503


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b":status", b"")],
        [(b":status", b"20")],
        [(b":status", b"2000")],
        [(b":status", b"099")],
        [(b":status", b"+20")],
        [(b":status", b"101")],
        [(b":status", b"200"), (b":status", b"200")],
        [(b"a", b"b"), (b":status", b"200")],
        [(b":status", b"200"), (b":path", b"/")],
    ],
)
def test_malformed_responses(headers: Headers) -> None:
    with pytest.raises(StreamFault):
        check_response(headers)


def test_trailers_have_no_pseudo_fields() -> None:
    check_trailers([(b"grpc-status", b"0")])
    with pytest.raises(StreamFault):
        check_trailers([(b":status", b"200")])


def test_content_length() -> None:
    assert content_length([]) == -1
    assert content_length([(b"content-length", b"12"), (b"content-length", b"12")]) == 12
    for bad in (b"", b"-1", b"+1", b"1,1", b"0x1", b"1" * 19):
        with pytest.raises(StreamFault):
            content_length([(b"content-length", bad)])
    with pytest.raises(StreamFault):
        content_length([(b"content-length", b"1"), (b"content-length", b"2")])
