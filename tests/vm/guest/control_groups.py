"""Pods are found by their control groups where there is nothing but cgroup v2.

The groups are made as kubelets and container runtimes make them, with real processes in them, and
looked for from where a node agent is: in a pod, whose control group namespace shows all others
relative to its own group.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import trio

from daemonset.agent.pods import Pod
from daemonset.agent.proc_netns import CONFIG_HASH, ProcResolver
from ztunnel.linux import netns

TOP: Final = Path("/sys/fs/cgroup")
UID: Final = "0f9a7f5c-1b7e-4c58-9f0e-3a2f1d0b9c{:02x}"
_HASH: Final = "0123456789abcdef0123456789abcd{:02x}"
_CONTAINER: Final = "c" * 64
_BURSTABLE: Final = "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{}.slice"
_CLONE_NEWCGROUP: Final = 0x0200_0000

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
AGENT: Final = f"{_BURSTABLE}/cri-containerd-agent.scope".format("a" * 32)


def pods() -> list[tuple[str, str, Pod]]:
    """For each way of naming: what it is, the group, the pod. One more time for static pods."""
    found = []
    for number, (name, group) in enumerate(GROUPS.items()):
        for static in (False, True):
            uid = UID.format(2 * number + static)
            known = _HASH.format(number) if static else uid
            written = known.replace("-", "_") if ".slice" in group else known
            annotations = {CONFIG_HASH: known} if static else {}
            pod = Pod(uid, f"pod-{number}", "shop", "web", annotations=annotations)
            found.append((f"{name}{', static' * static}", group.format(written), pod))
    return found


def resolve() -> dict[str, list[int]]:
    """The namespaces that are found, by UID."""
    found = {}
    resolver = ProcResolver()
    for _, _, pod in pods():
        with resolver.resolve(pod) as namespace:
            found[pod.uid] = [namespace.identity.device, namespace.identity.inode]
    return found


def _join(group: str, pid: int) -> None:
    folder = TOP / group
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cgroup.procs").write_text(f"{pid}")


def _as_the_agent() -> None:
    _join(AGENT, 0)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWCGROUP):
        raise OSError(ctypes.get_errno(), "unshare")


def _python(*words: str) -> Sequence[str]:
    path = json.dumps([path for path in sys.path if path])
    return [sys.executable, "-B", "-c", f"import sys; sys.path[:0] = {path}; {'; '.join(words)}"]


async def found_by_cgroup_v2() -> list[str]:
    """What was found, in words."""
    await trio.lowlevel.checkpoint()
    return _look()


def _look() -> list[str]:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"cgroup2", str(TOP).encode(), b"cgroup2", 0, None):
        raise OSError(ctypes.get_errno(), "mount cgroup2")
    assert Path("/proc/self/cgroup").read_text() == "0::/\n", "there is cgroup v1 as well"
    wanted, names = {}, []
    with ExitStack() as stack:
        for name, group, pod in pods():
            namespace = stack.enter_context(netns.create())
            with namespace.enter():
                process = subprocess.Popen(
                    _python("sys.stdin.read()"), stdin=subprocess.PIPE, cwd="/"
                )
            stack.enter_context(process)  # it ends when its input does
            _join(group, process.pid)
            wanted[pod.uid] = [namespace.identity.device, namespace.identity.inode]
            names.append(name)
        assert resolve() == wanted, "seen from the top"
        done = subprocess.run(
            _python(
                "import json; from tests.vm.guest import control_groups as ours",
                "text = open('/proc/1/cgroup').read(); assert '/..' in text, text",
                "print(json.dumps(ours.resolve()))",
            ),
            preexec_fn=_as_the_agent,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == wanted, "seen from the agent's pod"
    return names
