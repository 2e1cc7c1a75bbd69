import json
import os
import select
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from daemonset.local.namespaces import Keeper, NamespaceError
from tests.support.lab import lab

pytestmark = pytest.mark.root


@pytest.mark.parametrize("version", [4, 6])
def test_pods_of_two_nodes_reach_each_other(version: int) -> None:
    with lab(pods={"client": 1, "server": 2, "neighbour": 1}) as room:
        room.app("server", http=8080)
        address = room.ip("server", version)
        url = f"http://[{address}]:8080/" if version == 6 else f"http://{address}:8080/"
        for pod in ("client", "neighbour"):
            asked = room.run(pod, sys.executable, "-m", "daemonset.local.app", "get", url)
            assert asked.returncode == 0, asked.stdout
            answer = json.loads(asked.stdout)
            assert answer["pod"] == "server"
            assert answer["client"] == room.ip(pod, version), "the source address was translated"


def test_namespaces_have_their_own_name_and_settings() -> None:
    with lab(pods={"client": 1}) as room:
        assert room.run("client", "hostname").stdout.strip() == "client"
        assert room.run(1, "hostname").stdout.strip() == "node-1"
        control = "/proc/sys/net/ipv4/tcp_congestion_control"
        assert room.run("client", "cat", control).stdout.strip() == "reno"
        assert room.inside("client", lambda: Path(control).read_text().strip()) == "reno"


def test_there_is_no_way_out_and_it_is_said_at_once() -> None:
    with lab(pods={"client": 1}) as room:
        command = (sys.executable, "-m", "daemonset.local.app", "get", "http://192.0.2.1/")
        asked = room.run("client", *command)
        assert asked.returncode == 1
        assert "unreachable" in asked.stdout or "No route" in asked.stdout


def test_a_command_that_is_not_there_is_named() -> None:
    with (
        lab(pods={"client": 1}) as room,
        pytest.raises(NamespaceError, match="client: cannot run no-such-command"),
    ):
        room.start("client", "no-such-command")


def test_a_file_to_replace_that_is_not_there_is_named(tmp_path: Path) -> None:
    with Keeper() as keeper, pytest.raises(NamespaceError, match=r"ambient-x: .*No such file"):
        keeper.make("ambient-x", hostname="x", files={"/nowhere/at/all": tmp_path})


def test_names_appear_and_go(tmp_path: Path) -> None:
    with Keeper(tmp_path) as keeper:
        made = keeper.make("ambient-x", hostname="x", shared_mounts=True)
        show = ("readlink", "/proc/self/ns/net")
        inside = keeper.spawn(made, show, stdout=subprocess.PIPE).communicate()[0].decode()
        probe = f"stat -L -c net:[%i] {tmp_path}/ambient-x"
        named = keeper.spawn(made, ("sh", "-c", probe), stdout=subprocess.PIPE).communicate()[0]
        assert named.decode() == inside
        keeper.drop(made)
        assert list(tmp_path.iterdir()) == []


def test_killing_the_owner_leaves_nothing_running(tmp_path: Path) -> None:
    script = textwrap.dedent("""
        import sys, time
        from tests.support.lab import lab
        with lab(pods={"client": 1}) as room:
            process = room.start("client", "sleep", "1000", stdout=None)
            print(process.pid, room.keeper.pid, flush=True)
            time.sleep(1000)
    """)
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        watched = [os.pidfd_open(int(pid)) for pid in owner.stdout.readline().split()]
        owner.send_signal(signal.SIGKILL)
    for descriptor in watched:
        # A pidfd becomes readable when its process has ended.
        ready, _, _ = select.select([descriptor], [], [], 10)
        os.close(descriptor)
        assert ready, "a process outlived its owner"
