import os
import socket

import pytest

from ztunnel.linux.fds import (
    MessageTruncated,
    raise_file_limit,
    receive_with_fds,
    send_with_fds,
)


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def pair() -> "list[socket.socket]":
    return list(socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))


def close(pair: "list[socket.socket]") -> None:
    for end in pair:
        end.close()


def test_a_descriptor_arrives_open_and_close_on_exec(pair: "list[socket.socket]") -> None:
    read, write = os.pipe()
    send_with_fds(pair[0], b"hello", [write])
    data, fds = receive_with_fds(pair[1], 100, 1)
    assert data == b"hello"
    assert len(fds) == 1
    assert not os.get_inheritable(fds[0])
    os.write(fds[0], b"x")
    assert os.read(read, 1) == b"x"
    for fd in (read, write, fds[0]):
        os.close(fd)
    close(pair)


def test_plain_messages_and_the_end(pair: "list[socket.socket]") -> None:
    send_with_fds(pair[0], b"plain")
    assert receive_with_fds(pair[1], 100, 1) == (b"plain", [])
    pair[0].close()
    assert receive_with_fds(pair[1], 100, 1) == (b"", [])
    pair[1].close()


@pytest.mark.parametrize("allowed", [0, 1, 2])
def test_too_many_descriptors_are_closed(pair: "list[socket.socket]", allowed: int) -> None:
    read, write = os.pipe()
    send_with_fds(pair[0], b"x", [write] * (allowed + 1))
    before = open_descriptors()
    with pytest.raises(MessageTruncated, match=f"more than {allowed} descriptors"):
        receive_with_fds(pair[1], 100, allowed)
    assert open_descriptors() == before
    os.close(read)
    os.close(write)
    close(pair)


def test_a_message_too_long_is_refused_with_its_descriptors(pair: "list[socket.socket]") -> None:
    read, write = os.pipe()
    send_with_fds(pair[0], b"x" * 101, [write])
    before = open_descriptors()
    with pytest.raises(MessageTruncated, match="longer than 100 bytes"):
        receive_with_fds(pair[1], 100, 1)
    assert open_descriptors() == before
    os.close(read)
    os.close(write)
    close(pair)


def test_the_file_limit_is_the_hard_one() -> None:
    import resource

    limit = raise_file_limit()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (limit, limit)
