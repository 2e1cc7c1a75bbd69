"""Pods are found by their control groups where there is nothing but cgroup v2.

The groups are made as kubelets and container runtimes make them, with real processes in them, and
looked for from where a node agent is: in a pod, whose control group namespace shows all others
relative to its own group.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import traceback
from pathlib import Path
from typing import Final

import trio

from daemonset.agent.pods import Pod
from daemonset.agent.proc_netns import CONFIG_HASH, ProcResolver
from ztunnel.linux.netns import NamespaceIdentity

TOP: Final = Path("/sys/fs/cgroup")
UID: Final = "0f9a7f5c-1b7e-4c58-9f0e-3a2f1d0b9c{:02x}"
_HASH: Final = "0123456789abcdef0123456789abcd{:02x}"
_CONTAINER: Final = "c" * 64
_BURSTABLE: Final = "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{}.slice"
_CLONE_NEWCGROUP: Final = 0x0200_0000
_CLONE_NEWNET: Final = 0x4000_0000

# The hole is for the pod's UID, with "_" in place of "-" below systemd.
GROUPS: Final = {
    "containerd, cgroupfs (k3s, MicroK8s)": "kubepods/besteffort/pod{}/" + _CONTAINER,
    "containerd, cgroupfs, guaranteed": "kubepods/pod{}/" + _CONTAINER,
    "CRI-O, cgroupfs": "kubepods/burstable/pod{}/crio-" + _CONTAINER,
    "containerd, systemd": f"{_BURSTABLE}/cri-containerd-{_CONTAINER}.scope",
    "containerd, systemd, guaranteed": "kubepods.slice/kubepods-pod{}.slice/cri-containerd-x.scope",
    "CRI-O, systemd (OpenShift)": f"{_BURSTABLE}/crio-{_CONTAINER}.scope/container",
    "a systemd of its own in the pod": f"{_BURSTABLE}/cri-containerd-y.scope/init.scope",
    "kind": "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/"
    f"kubelet-kubepods-besteffort-pod{{}}.slice/cri-containerd-{_CONTAINER}.scope",
    "Docker, cgroupfs, nested": "docker/node/kubelet/kubepods/burstable/pod{}/" + _CONTAINER,
}
_STATIC: Final = (0, 3, 7)  # of cgroupfs, systemd and kind
AGENT: Final = f"{_BURSTABLE}/cri-containerd-agent.scope".format("a" * 32)


def pods() -> list[tuple[str, str, Pod]]:
    """For each way of naming: what it is, the group, the pod. Some once more as static pods."""
    found = []
    for number, (name, group) in enumerate(GROUPS.items()):
        for static in (False, True) if number in _STATIC else (False,):
            uid = UID.format(2 * number + static)
            known = _HASH.format(number) if static else uid
            written = known.replace("-", "_") if ".slice" in group else known
            annotations = {CONFIG_HASH: known} if static else {}
            pod = Pod(uid, f"pod-{number}", "shop", "web", annotations=annotations)
            found.append((f"{name}{', static' * static}", group.format(written), pod))
    return found


def _identity(pid: int) -> NamespaceIdentity:
    status = os.stat(f"/proc/{pid}/ns/net")
    return NamespaceIdentity(status.st_dev, status.st_ino)


def _unshare(what: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(what):
        raise OSError(ctypes.get_errno(), "unshare")


def _join(group: str, pid: int) -> None:
    folder = TOP / group
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cgroup.procs").write_text(f"{pid}")


def _start() -> int:
    """A process in a network namespace of its own, that does nothing; its pid."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            _unshare(_CLONE_NEWNET)
            os.write(writer, b".")
            signal.pause()
        finally:
            os._exit(1)
    os.close(writer)
    assert os.read(reader, 1) == b".", "no network namespace"
    os.close(reader)
    return pid


def _look() -> list[str]:
    """What was found, from the control group of the agent: for a process of its own."""
    groups = pods()
    running = {}
    try:
        for _, group, pod in groups:
            running[pod.uid] = _start()
            _join(group, running[pod.uid])
        _join(AGENT, 0)
        _unshare(_CLONE_NEWCGROUP)
        assert "/.." in Path("/proc/1/cgroup").read_text()
        resolver = ProcResolver()
        for name, _, pod in groups:
            with resolver.resolve(pod) as found:
                assert found.identity == _identity(running[pod.uid]), name
    finally:
        for pid in running.values():
            os.kill(pid, signal.SIGKILL)
    return [name for name, _, _ in groups]


async def found_by_cgroup_v2() -> list[str]:
    """What was found, in words."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"cgroup2", str(TOP).encode(), b"cgroup2", 0, None):
        raise OSError(ctypes.get_errno(), "mount cgroup2")
    own = await trio.Path("/proc/self/cgroup").read_text()
    assert own == "0::/\n", "there is cgroup v1 as well"
    reader, writer = os.pipe()
    if os.fork() == 0:
        try:
            said = json.dumps(_look())
        except BaseException:
            said = traceback.format_exc()
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)
    async with trio.lowlevel.FdStream(reader) as stream:
        text = b"".join([piece async for piece in stream]).decode()
    assert text.startswith("["), text
    found: list[str] = json.loads(text)
    return found
