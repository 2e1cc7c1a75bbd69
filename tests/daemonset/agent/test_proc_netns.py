"""The search in a /proc of our own making, with real namespaces behind it."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemonset.agent.pods import NetnsNotFound, Pod
from daemonset.agent.proc_netns import ProcResolver, pod_uid, start_time
from ztunnel.linux import netns
from ztunnel.linux.netns import NetworkNamespace

UID = "0f9a7f5c-1b7e-4c58-9f0e-3a2f1d0b9c8d"
HASH = "0123456789abcdef0123456789abcdef"
UID_ = UID.replace("-", "_")
CONTAINER = "c" * 64


@pytest.mark.parametrize(
    "cgroup",
    [
        f"12:memory:/kubepods/besteffort/pod{UID}/{CONTAINER}\n0::/\n",
        f"0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{UID_}.slice"
        f"/cri-containerd-{CONTAINER}.scope\n",
        f"0::/kubepods.slice/kubepods-pod{UID_}.slice/crio-{CONTAINER}.scope\n",
        f"0::/system.slice/containerd.service/kubepods-burstable-pod{UID_}.slice:cri:{CONTAINER}\n",
        f"0::/docker/node/kubelet/kubepods/burstable/pod{UID}/{CONTAINER}\n",
        f"3:cpu:/kubepods/pod{UID}\n2:memory:/kubepods/pod{UID}\n",
        f"0::/../../pod{UID}/{CONTAINER}",
    ],
)
def test_the_uid_in_a_control_group(cgroup: str) -> None:
    assert pod_uid(cgroup) == UID


@pytest.mark.parametrize(
    "cgroup",
    [
        "0::/\n",
        "",
        "0::/user.slice/user-0.slice/session-1.scope\n",
        f"0::/kubepods/pod{UID}0/x\n",
        f"0::/kubepods/xpod{UID}/x\n",
        f"0::/kubepods/pod{UID}/kubepods/pod{UID.replace('0', '1')}/x\n",  # a runtime in a pod
    ],
)
def test_no_uid_or_more_than_one(cgroup: str) -> None:
    assert pod_uid(cgroup) == ""


def test_static_pods_are_known_by_a_hash() -> None:
    assert pod_uid(f"0::/kubepods/burstable/pod{HASH}/{CONTAINER}\n") == HASH


@given(st.text())
def test_any_text_is_survived(text: str) -> None:
    assert pod_uid(text) == "" or pod_uid(text) in text.replace("_", "-")
    with contextlib.suppress(ValueError):
        start_time(text)


def test_the_name_of_a_process_does_not_confuse() -> None:
    stat = Path("/proc/self/stat").read_text()
    expected = int(stat.rpartition(")")[2].split()[19])
    assert start_time(stat) == expected
    assert start_time(stat.replace("(", "(x) S 1 (", 1)) == expected


class Proc:
    """Files as /proc has them; `ns/net` leads to a namespace that is really there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.namespaces: list[NetworkNamespace] = []
        self.add(1, "", NetworkNamespace.current(), 1)

    def namespace(self) -> NetworkNamespace:
        made = netns.create()
        self.namespaces.append(made)
        return made

    def add(self, pid: int, uid: str, namespace: NetworkNamespace, started: int) -> None:
        folder = self.folder / str(pid)
        (folder / "ns").mkdir(parents=True)
        (folder / "cgroup").write_text(f"0::/kubepods/pod{uid}/{CONTAINER}\n" if uid else "0::/\n")
        (folder / "stat").write_text(f"{pid} (a b) S " + "0 " * 18 + f"{started} 0 0\n")
        (folder / "ns/net").symlink_to(f"/proc/{os.getpid()}/fd/{namespace.fd}")
        if namespace not in self.namespaces:
            self.namespaces.append(namespace)


@pytest.fixture
def proc(tmp_path: Path) -> Iterator[Proc]:
    made = Proc(tmp_path)
    yield made
    for each in made.namespaces:
        each.close()


def pod(uid: str = UID, netns_path: str = "", **annotations: str) -> Pod:
    found = {key.replace("_", "/", 1): value for key, value in annotations.items()}
    return Pod(uid, "web", "shop", "web", ("10.0.0.1",), annotations=found, netns=netns_path)


@pytest.mark.root
def test_the_oldest_process_leads_to_the_namespace(proc: Proc) -> None:
    older, younger, other = proc.namespace(), proc.namespace(), proc.namespace()
    proc.add(300, UID, older, 1000)
    proc.add(20, UID, younger, 2000)
    proc.add(30, UID.replace("0", "1"), other, 10)
    (proc.folder / "40").mkdir()  # it is just ending
    with ProcResolver(proc.folder).resolve(pod()) as found:
        assert found.identity == older.identity


@pytest.mark.root
def test_a_process_in_the_nodes_own_namespace_does_not_count(proc: Proc) -> None:
    proc.add(300, UID, NetworkNamespace.current(), 1000)
    with pytest.raises(NetnsNotFound, match=rf"no process of shop/web .*{UID}"):
        ProcResolver(proc.folder).resolve(pod())


@pytest.mark.root
def test_a_static_pod_is_found_by_its_hash(proc: Proc) -> None:
    namespace = proc.namespace()
    proc.add(300, HASH, namespace, 1000)
    static = Pod(UID, "etcd", "shop", "d", annotations={"kubernetes.io/config.hash": HASH})
    with ProcResolver(proc.folder).resolve(static) as found:
        assert found.identity == namespace.identity


@pytest.mark.root
def test_the_path_that_the_plugin_told_comes_first(proc: Proc, tmp_path: Path) -> None:
    told, running = proc.namespace(), proc.namespace()
    root = tmp_path / "host"
    (root / "run").mkdir(parents=True)
    (root / "run/cni-1").symlink_to(f"/proc/{os.getpid()}/fd/{told.fd}")
    proc.add(300, UID, running, 1000)
    resolver = ProcResolver(proc.folder, root)
    with resolver.resolve(pod(netns_path="/run/cni-1")) as found:
        assert found.identity == told.identity
    (root / "run/cni-1").unlink()  # the sandbox was made again
    with resolver.resolve(pod(netns_path="/run/cni-1")) as found:
        assert found.identity == running.identity


@pytest.mark.root
def test_a_pod_that_starts_later_is_found_later(proc: Proc) -> None:
    resolver = ProcResolver(proc.folder)
    with pytest.raises(NetnsNotFound):
        resolver.resolve(pod())
    namespace = proc.namespace()
    proc.add(300, UID, namespace, 1000)
    with resolver.resolve(pod()) as found:
        assert found.identity == namespace.identity
