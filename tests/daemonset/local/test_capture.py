import itertools
import random
import socket
import struct
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemonset.local.capture import Capture, Segment, Wire, count_tls_records, read_frame
from tests.support.lab import lab

CLIENT, SERVER = ("10.244.1.2", 40_000), ("10.244.2.2", 8080)


def capture_of(*segments: tuple[int, bytes]) -> Capture:
    capture = Capture()
    for sequence, payload in segments:
        capture.add(Segment(CLIENT, SERVER, sequence % 2**32, payload))
    return capture


def frame(payload: bytes, padding: int = 0) -> bytes:
    tcp = struct.pack("!HHIIBBHHH", 40_000, 8080, 7, 0, 5 << 4, 0x18, 0, 0, 0) + payload
    addresses = socket.inet_aton(CLIENT[0]) + socket.inet_aton(SERVER[0])
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0, 64, 6, 0) + addresses
    return bytes(12) + b"\x08\x00" + ip + tcp + bytes(padding)


def test_a_frame_is_read_and_its_padding_is_not() -> None:
    assert read_frame(frame(b"hi", padding=6)) == Segment(CLIENT, SERVER, 7, b"hi")


@given(st.binary(max_size=120), st.integers(0, 119), st.binary(max_size=4))
def test_any_frame_is_read_or_passed_over(data: bytes, at: int, other: bytes) -> None:
    read_frame(data)
    good = bytearray(frame(b"payload"))
    good[at : at + len(other)] = other
    segment = read_frame(bytes(good))
    assert segment is None or len(segment.payload) <= len(good)


@given(
    st.binary(min_size=1, max_size=300),
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(1, 299), max_size=6),
    st.randoms(use_true_random=False),
)
def test_a_stream_is_put_together_again(
    stream: bytes, start: int, cuts: list[int], rng: random.Random
) -> None:
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    pieces = [
        (start + a, stream[a : b + rng.randrange(5)])  # some bytes are sent twice
        for a, b in itertools.pairwise(edges)
    ]
    shuffled = pieces[:]
    rng.shuffle(shuffled)
    capture = capture_of(*shuffled, *rng.sample(pieces, len(pieces) // 2))
    assert capture.stream((CLIENT, SERVER)) == stream


def test_a_marker_is_found_across_packets() -> None:
    capture = capture_of((100, b"card: 4111-"), (111, b"1111; more"))
    assert capture.shows(b"4111-1111")
    assert not capture.shows(b"4111-2222")
    assert capture.around(b"4111-1111", before=2, after=1) == b": 4111-1111;"


def record(length: int, kind: int = 23) -> bytes:
    return struct.pack("!BHH", kind, 0x0303, length) + bytes(length)


def test_records_are_counted_also_from_the_middle_of_one() -> None:
    stream = record(100, 22) + record(5) + record(1000)
    assert count_tls_records(stream) == (3, 0)
    assert count_tls_records(stream[:-3]) == (3, 0)
    assert count_tls_records(b"end of a record" + stream) == (4, 0)


@pytest.mark.parametrize("stream", [b"GET / HTTP/1.1\r\n", record(20) + b"plain text, at the end"])
def test_what_is_not_tls_is_not_taken_for_it(stream: bytes) -> None:
    assert count_tls_records(stream) == (0, len(stream))


@given(st.binary(max_size=2000))
def test_any_stream_can_be_counted(stream: bytes) -> None:
    records, strangers = count_tls_records(stream)
    assert records >= 0
    assert strangers in (0, len(stream))


@pytest.mark.root
def test_packets_are_really_captured() -> None:
    with lab(pods={"client": 1, "server": 2, "neighbour": 1}) as room:
        room.app("server", http=8080)
        room.app("neighbour", http=8080)
        underlay = room.network.underlay
        assert underlay is not None
        seen, unseen = Capture(), Capture()
        for pod, capture in (("server", seen), ("neighbour", unseen)):
            wire = Wire(underlay.network, room.topology.nodes["node-1"].link)
            try:
                get = (sys.executable, "-m", "daemonset.local.app", "get", "--header", "x: marker")
                done = room.run("client", *get, f"http://{room.ip(pod)}:8080/")
                assert done.returncode == 0, done.stdout
                wire.read_into(capture)
            finally:
                wire.close()
        assert seen.shows(b"marker")
        assert 8080 in seen.ports()
        assert seen.packets_with_port(8080) >= 2
        assert unseen.packets == 0, "what stays on a node was seen between the nodes"
