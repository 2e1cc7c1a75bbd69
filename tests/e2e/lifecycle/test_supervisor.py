"""What the supervisor keeps alive, and what workers are made of."""

import os
import re
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.support.faults import FaultLab
from tests.support.pod_sockets import connect, echo, exchange, steady
from tests.support.ztunnel_processes import ZtunnelProcesses
from ztunnel.native import form

pytestmark = [pytest.mark.root, pytest.mark.slow]

FORBIDDEN = ("grpc", "pyroute2", "yaml", "kubernetes", "prometheus_client", "google.protobuf")
LIBRARIES = ("cygrpc", "/google/", "_upb", "_yaml")  # of those, what is mapped as code


def test_pauses_grow_for_what_dies_again_and_again(lab: FaultLab) -> None:
    def kill_control(ztunnel: ZtunnelProcesses) -> None:
        old = ztunnel.control
        ztunnel.kill(old)
        lab.mesh.wait(lambda: ztunnel.control not in (0, old), "there is another one")

    for _ in range(4):
        kill_control(lab.near)
    ended = r"control ended \(signal SIGKILL\) after .*; starting it again in ([\d.]+)s"
    pauses = [float(found[1]) for found in re.finditer(ended, lab.near.log.text())]
    assert pauses == [0.1, 0.2, 0.4, 0.8]
    lab.mesh.wait(lab.near.ready, "it is ready again")


def test_one_that_is_stuck_does_not_hold_up_what_others_have_to_know(lab: FaultLab) -> None:
    """The control plane gets its answer, and the worker catches up by itself."""
    with echo(lab.mesh, "server", 7000), connect(lab.mesh, "client", lab.server) as sock:
        exchange(sock, b"before")
        (worker,) = lab.far.workers
        os.kill(worker, signal.SIGSTOP)
        rule = "{from: [{source: {principals: [cluster.local/ns/default/sa/nobody]}}]}"
        lab.mesh.policy("only-nobody", f"{{action: ALLOW, rules: [{rule}]}}")
        lab.far.log.says("worker 0 has not applied an update for 5s")
        os.kill(worker, signal.SIGCONT)
        lab.far.log.says("worker 0 answers again")
        lab.far.log.says("closed due to policy change.*default/only-nobody")
        assert lab.far.workers == [worker]


def test_workers_carry_no_libraries_that_they_do_not_need(lab: FaultLab) -> None:
    with echo(lab.mesh, "server", 7000), steady(lab.mesh, "client", lab.server, 3):
        assert _mapped(lab.near.control), "the control process does, so that this finds them"
        for worker in (*lab.near.workers, *lab.far.workers):
            assert not _mapped(worker)


def _mapped(pid: int) -> list[str]:
    maps = Path(f"/proc/{pid}/maps").read_text()
    return [name for name in LIBRARIES if name in maps]


def test_a_worker_imports_none_of_them() -> None:
    code = "import sys, ztunnel.__main__, ztunnel.process.worker\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    loaded = done.stdout.split()
    assert "ztunnel.proxy.pod" in loaded
    for forbidden in FORBIDDEN:
        assert not any(f"{name}.".startswith(f"{forbidden}.") for name in loaded), forbidden


def test_help_may_be_cut_short_by_its_reader() -> None:
    command = f"{sys.executable} -m ztunnel help | head -1"
    done = subprocess.run(
        ["/bin/sh", "-c", command], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


def test_the_command_says_its_version_and_knows_what_it_does_not_know() -> None:
    def run(*words: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "ztunnel", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    shown = run("version")
    assert (shown.returncode, shown.stdout) == (0, f"{version('ambientd')} ({form()})\n")
    unknown = run("proxi")
    assert unknown.returncode == 1
    assert unknown.stderr.startswith("unknown command 'proxi'\n")
    assert run("help").stdout.strip() in unknown.stderr
