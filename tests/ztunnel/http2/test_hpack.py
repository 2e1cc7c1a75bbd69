"""Header compression against the `hpack` library, which has an encoder and a decoder of its own."""

import pytest
from hpack import Decoder, Encoder, HeaderTuple, NeverIndexedHeaderTuple
from hpack.exceptions import HPACKError
from hypothesis import given
from hypothesis import strategies as st

from ztunnel.http2.errors import ConnectionFault, ErrorCode, StreamFault
from ztunnel.http2.header_decoder import HeaderDecoder
from ztunnel.http2.header_encoder import HeaderEncoder, integer, literal
from ztunnel.http2.headers import Header, list_size

names = st.sampled_from(
    [b":method", b":authority", b"baggage", b"traceparent", b"cookie", b"x-a", b"accept", b""]
) | st.binary(max_size=20)
values = st.sampled_from([b"CONNECT", b"GET", b"", b"v" * 130]) | st.binary(max_size=300)
header_lists = st.lists(st.tuples(names, values), max_size=12)
table_sizes = st.sampled_from([0, 32, 50, 100, 500, 4096, 65536])


@given(st.lists(st.tuples(header_lists, st.none() | table_sizes), max_size=8))
def test_the_library_reads_what_we_write(rounds: list[tuple[list[Header], int | None]]) -> None:
    ours = HeaderEncoder()
    theirs = Decoder(max_header_list_size=1 << 20)
    theirs.max_allowed_table_size = 65536
    for headers, size in rounds:
        if size is not None:
            ours.set_table_size(size)
            theirs.max_allowed_table_size = size
        assert list(theirs.decode(ours.encode(headers), raw=True)) == headers


@given(st.lists(st.tuples(header_lists, st.booleans(), st.none() | table_sizes), max_size=8))
def test_we_read_what_the_library_writes(
    rounds: list[tuple[list[Header], bool, int | None]],
) -> None:
    theirs = Encoder()
    ours = HeaderDecoder(65536, 1 << 20)
    for headers, huffman, size in rounds:
        if size is not None:
            theirs.header_table_size = size
        fields = [
            NeverIndexedHeaderTuple(*field) if index % 3 == 2 else HeaderTuple(*field)
            for index, field in enumerate(headers)
        ]
        assert ours.decode(theirs.encode(fields, huffman=huffman)) == headers


valid_pieces = st.sampled_from(
    [b"\x82", b"\x41\x01a", b"\x00\x01a\x01b", b"\x40\x01a\x01b", b"\x3f\xe1\x1f", b"\x20", b"\xbe"]
)


@given(st.lists(st.lists(valid_pieces | st.binary(max_size=12), max_size=8).map(b"".join)))
def test_random_blocks_are_judged_as_the_library_judges_them(blocks: list[bytes]) -> None:
    ours = HeaderDecoder(4096, 1 << 20)
    theirs = Decoder(max_header_list_size=1 << 20)
    for piece in blocks:
        try:
            expected = list(theirs.decode(piece, raw=True))
        except HPACKError:
            with pytest.raises(ConnectionFault) as caught:
                ours.decode(piece)
            assert caught.value.code is ErrorCode.COMPRESSION_ERROR
            return
        assert ours.decode(piece) == expected


def test_constant_fields_cost_one_byte_the_second_time() -> None:
    encoder = HeaderEncoder()
    headers = [(b":method", b"CONNECT"), (b"baggage", b"k8s.cluster.name=Kubernetes")]
    first = encoder.encode(headers)
    assert len(encoder.encode(headers)) == 2 < len(first)


def test_what_changes_each_time_stays_out_of_the_table() -> None:
    encoder = HeaderEncoder()
    decoder = Decoder()
    for number in range(100):
        decoder.decode(encoder.encode([(b"traceparent", b"%d" % number)]))
    assert not decoder.header_table.dynamic_entries


def test_secrets_are_marked_as_never_to_be_indexed() -> None:
    (field,) = Decoder().decode(HeaderEncoder().encode([(b"authorization", b"s3cret")]), raw=True)
    assert not field.indexable


def test_a_list_that_is_too_large_costs_its_stream_and_not_the_state() -> None:
    encoder = Encoder()
    decoder = HeaderDecoder(4096, 1000)
    bomb = [(b"baggage", b"b" * 500)] * 50 + [(b"server", b"after")]
    with pytest.raises(StreamFault):
        decoder.decode(encoder.encode(bomb))
    after: list[Header] = [(b"baggage", b"b" * 500), (b"server", b"after")]
    encoded = encoder.encode(after)
    assert len(encoded) == 2
    assert decoder.decode(encoded) == after


def test_a_bomb_of_references_is_counted_and_not_kept() -> None:
    encoder = Encoder()
    decoder = HeaderDecoder(4096, 65536)
    decoder.decode(encoder.encode([(b"a", b"b" * 3000)]))
    with pytest.raises(StreamFault, match=str(60000 * (32 + 3001))):
        decoder.decode(b"\xbe" * 60000)


def test_a_table_that_was_not_made_smaller_is_an_error() -> None:
    decoder = HeaderDecoder(0, 65536)
    encoder = Encoder()
    block = encoder.encode([(b"a", b"b")])
    assert decoder.decode(block) == [(b"a", b"b")]
    decoder.settings_acknowledged()
    with pytest.raises(ConnectionFault, match="not made smaller"):
        decoder.decode(encoder.encode([(b"a", b"b")]))


def test_a_table_size_beyond_the_announced_one_is_an_error() -> None:
    with pytest.raises(ConnectionFault, match="more than the 4096"):
        HeaderDecoder(4096, 65536).decode(integer(4097, 5, 0x20))


def test_many_table_size_updates_are_an_error() -> None:
    decoder = HeaderDecoder(4096, 65536)
    assert decoder.decode(b"\x20" * 16) == []
    with pytest.raises(ConnectionFault, match="too many"):
        decoder.decode(b"\x20" * 17)


def test_the_smallest_of_several_sizes_is_signalled_too() -> None:
    encoder = HeaderEncoder()
    encoder.set_table_size(0)
    encoder.set_table_size(4096)
    assert encoder.encode([]) == b"\x20" + integer(4096, 5, 0x20)


@given(header_lists)
def test_list_size_counts_32_for_each_field(headers: list[Header]) -> None:
    assert list_size(headers) == sum(32 + len(n) + len(v) for n, v in headers)


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from([None, 0, 60, 100, 500, 4096])), max_size=40
    )
)
def test_blocks_that_are_remembered_follow_the_table(
    rounds: list[tuple[int, int | None]],
) -> None:
    encoder = HeaderEncoder()
    decoder = HeaderDecoder(4096, 65536)
    lists: list[tuple[Header, ...]] = [
        ((b":method", b"CONNECT"), (b":authority", b"10.0.0.1:80"), (b"baggage", b"x" * size))
        for size in (1, 20, 40, 200)
    ]
    for which, size in rounds:
        if size is not None:
            encoder.set_table_size(size)
        assert tuple(decoder.decode(encoder.encode_again(lists[which]))) == lists[which]


def test_what_is_remembered_is_bounded() -> None:
    encoder = HeaderEncoder()
    decoder = HeaderDecoder(4096, 65536)
    for number in range(1000):
        headers = ((b":authority", b"10.0.0.1:%d" % number),)
        assert tuple(decoder.decode(encoder.encode_again(headers))) == headers
        assert tuple(decoder.decode(encoder.encode_again(headers))) == headers


@given(names, values)
def test_a_literal_is_in_no_table(name: bytes, value: bytes) -> None:
    decoder = HeaderDecoder(0, 65536)
    decoder.settings_acknowledged()
    assert decoder.decode(b"\x20" + literal(name, value)) == [(name, value)]
