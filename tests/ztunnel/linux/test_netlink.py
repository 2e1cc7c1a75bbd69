import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztunnel.linux.netlink import attribute, attributes, each_attribute, string_of, text


@given(st.lists(st.tuples(st.integers(0, 0x3FFF), st.binary(max_size=50))))
def test_attributes_round_trip(values: list[tuple[int, bytes]]) -> None:
    packed = b"".join(attribute(kind, payload) for kind, payload in values)
    assert list(each_attribute(packed)) == values
    assert attributes(packed) == dict(values)


@given(st.binary(max_size=100))
def test_garbage_is_a_value_error_or_attributes(data: bytes) -> None:
    try:
        found = list(each_attribute(data))
    except ValueError:
        return
    assert sum(4 + len(payload) for _, payload in found) <= len(data)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="attribute of 3 bytes"):
        list(each_attribute(b"\x03\0\0\0"))
    with pytest.raises(ValueError, match="attribute of 9 bytes at 0 of 8"):
        list(each_attribute(b"\x09\0\0\0data"))
    assert string_of(attributes(text(3, "name"))[3]) == "name"


def test_workers_get_the_kernel_without_its_libraries() -> None:
    """They import these, and memory per worker is counted."""
    code = (
        "import sys\n"
        "from ztunnel.linux import fds, netns, sockets, tcp_info\n"
        "heavy = {'pyroute2', 'trio', 'google.protobuf', 'ztunnel.linux.netlink'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
