import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ztunnel.linux import netns
from ztunnel.linux.netns import NetworkNamespace

pytestmark = pytest.mark.root


def own() -> netns.NamespaceIdentity:
    with NetworkNamespace.current() as here:
        return here.identity


def test_a_thread_is_inside_only_for_the_block() -> None:
    home = own()
    with netns.create() as namespace:
        assert namespace.identity != home
        with namespace.enter():
            assert own() == namespace.identity
        assert own() == home


def test_blocks_nest_and_come_back_one_by_one() -> None:
    home = own()
    with netns.create() as outer, netns.create() as inner:
        with outer.enter():
            with inner.enter():
                assert own() == inner.identity
            assert own() == outer.identity
        assert own() == home


def test_an_exception_inside_comes_back_too() -> None:
    home = own()
    with netns.create() as namespace:
        with pytest.raises(ZeroDivisionError), namespace.enter():
            raise ZeroDivisionError
        assert own() == home


def test_other_threads_stay_where_they_are() -> None:
    home = own()
    seen: list[netns.NamespaceIdentity] = []
    entered = threading.Event()
    looked = threading.Event()

    def look() -> None:
        entered.wait(5)
        seen.append(own())
        looked.set()

    thread = threading.Thread(target=look)
    thread.start()
    with netns.create() as namespace, namespace.enter():
        entered.set()
        assert looked.wait(5)
    thread.join()
    assert seen == [home]


def test_entering_something_else_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    home = own()
    (tmp_path / "file").touch()
    with (
        NetworkNamespace.open(tmp_path / "file") as wrong,
        pytest.raises(OSError, match="setns"),
        wrong.enter(),
    ):
        raise AssertionError
    assert own() == home


def test_a_process_that_cannot_come_back_ends() -> None:
    code = (
        "from ztunnel.linux import netns\n"
        "import os\n"
        "with netns.create() as n:\n"
        "    inside = n.enter()\n"
        "    with inside:\n"
        "        os.close(inside._home)\n"
        "print('still here')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 70
    assert "cannot return from a network namespace" in done.stderr
    assert "still here" not in done.stdout


def test_only_network_namespaces_are_taken_for_one() -> None:
    with NetworkNamespace.current() as mine, open("/proc/self/ns/mnt") as mount:
        assert netns.is_network_namespace(mine.fd)
        assert not netns.is_network_namespace(mount.fileno())
        assert not netns.is_network_namespace(0)


def test_a_duplicate_is_the_same_namespace() -> None:
    with netns.create() as first, first.duplicate() as second:
        assert first.fd != second.fd
        assert first.identity == second.identity
        assert not os.get_inheritable(second.fd)


def test_sysctls_are_those_of_the_namespace() -> None:
    before = netns.sysctl("net.ipv4.ip_forward")
    with netns.create() as namespace, namespace.enter():
        netns.set_sysctl("net.ipv4.ip_forward", 0 if before == "1" else 1)
        assert netns.sysctl("net.ipv4.ip_forward") != before
        assert netns.has_ipv6()
        netns.set_sysctl("net.ipv6.conf.lo.disable_ipv6", 1)
        assert not netns.has_ipv6()
    assert netns.sysctl("net.ipv4.ip_forward") == before
