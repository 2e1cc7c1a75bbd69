"""The first process of a node: mounts what is the node's own, runs its programs, reaps orphans.

`python -m tests.support.cluster.node_init FILE`, in namespaces of its own (network, mounts,
processes, host name, control groups). FILE is the JSON of `node_files.Boot`. It never ends by
itself: a program that ends is started again, as a node's service manager does it.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

CGROUPS = Path("/sys/fs/cgroup")
_PAUSE = 0.2

# What the kubelet would set for the whole machine: it finds it set, and leaves the machine alone.
_SYSCTLS = {
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}


def run(*command: str) -> None:
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


def bind(source: Path, target: str) -> None:
    Path(target).mkdir(parents=True, exist_ok=True)
    run("mount", "--bind", str(source), target)


def mount_files(boot: dict[str, Any]) -> None:
    """Folders of the machine are seen through, and written to the node's own."""
    folder = Path(boot["folder"])
    run("mount", "-t", "proc", "proc", "/proc")
    for each in boot["overlays"]:
        layer = folder / "root" / each.strip("/").replace("/", "-")
        options = f"lowerdir={each},upperdir={layer / 'upper'},workdir={layer / 'work'}"
        run("mount", "-t", "overlay", "-o", options, "overlay", each)
    run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run")
    logs = Path(boot["logs"], "pods")
    logs.mkdir(exist_ok=True)
    bind(logs, "/var/log/pods")
    for name in boot["kept"]:
        bind(folder / "kept" / name.strip("/").replace("/", "-"), name)
    for name, value in {**_SYSCTLS, "kernel/random/boot_id": str(uuid.uuid4())}.items():
        source = Path("/run/sys", name)
        source.parent.mkdir(parents=True, exist_ok=True)
        source.write_text(f"{value}\n", encoding="ascii")
        run("mount", "--bind", str(source), f"/proc/sys/{name}")
    for name in ("containerd", "netns", "lock"):
        Path("/run", name).mkdir()
    run("mount", "--make-rshared", "/")


def mount_cgroups(*, only_v2: bool) -> None:
    """The machine's hierarchies; the node sees its own part of each as the whole."""
    if only_v2:
        run("mount", "-t", "cgroup2", "cgroup2", str(CGROUPS))
        leaf = CGROUPS / "init"
        leaf.mkdir()  # a group that has processes of its own cannot hand on controllers
        (leaf / "cgroup.procs").write_text("0")
        wanted = (CGROUPS / "cgroup.controllers").read_text().split()
        (CGROUPS / "cgroup.subtree_control").write_text(" ".join(f"+{each}" for each in wanted))
        return
    run("mount", "-t", "tmpfs", "-o", "mode=755", "cgroup", str(CGROUPS))
    for line in Path("/proc/cgroups").read_text().splitlines()[1:]:
        name, hierarchy, _, enabled = line.split()
        if hierarchy != "0" and enabled == "1":
            (CGROUPS / name).mkdir()
            run("mount", "-t", "cgroup", "-o", name, "cgroup", str(CGROUPS / name))
    if ":name=systemd:" in Path("/proc/self/cgroup").read_text():
        systemd = CGROUPS / "systemd"
        systemd.mkdir()
        run("mount", "-t", "cgroup", "-o", "none,name=systemd", "cgroup", str(systemd))


def import_images(files: list[str]) -> None:
    """Into containerd, once it answers; after a reboot they are there already."""
    ctr = ["ctr", "--namespace", "k8s.io", "images"]
    while True:
        done = subprocess.run([*ctr, "ls", "--quiet"], capture_output=True, text=True)
        if done.returncode == 0:
            break
        time.sleep(_PAUSE)
    if not done.stdout.split():
        for each in files:
            run(*ctr, "import", each)


def start(boot: dict[str, Any], name: str) -> subprocess.Popen[bytes]:
    with open(Path(boot["logs"], f"{name}.log"), "ab") as log:
        return subprocess.Popen(
            boot["programs"][name], stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )


def main() -> None:
    boot = json.loads(Path(sys.argv[1]).read_text())
    socket.sethostname(boot["name"])
    mount_files(boot)
    mount_cgroups(only_v2=boot["only_v2"])
    running = {"containerd": start(boot, "containerd")}
    import_images(boot["images"])
    for name in boot["programs"]:
        if name not in running:
            running[name] = start(boot, name)
    while True:
        pid, _ = os.wait()  # orphans of the node's programs come here as well
        for name, process in running.items():
            if process.pid == pid:
                process.returncode = 0  # reaped above, not by itself
                time.sleep(_PAUSE)
                running[name] = start(boot, name)


if __name__ == "__main__":
    main()
