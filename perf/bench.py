"""The place of a measurement: a client pod and a server pod on two nodes, and the load in them."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from perf.build import Tools
from perf.processes import with_descendants
from perf.works import BULK, ECHO_PORT, SINK_PORT, SOURCE_PORT, Work
from ztunnel.linux.netns import NetworkNamespace, set_sysctl

CLIENT, SERVER = "client", "server"
PODS = {CLIENT: 1, SERVER: 2}
_STOP_SECONDS = 10
_EXTRA_SECONDS = 60  # for tcpload to open its connections and to end them


class LoadError(Exception):
    """The load generator could not do its work; the text is what it said."""


def prepare(namespace: NetworkNamespace) -> None:
    """No pacing (bbr paces veth links), and enough ports for a new connection per message."""
    with namespace.enter():
        set_sysctl("net.ipv4.tcp_congestion_control", "reno")
        set_sysctl("net.ipv4.ip_local_port_range", "1024 65535")
        set_sysctl("net.ipv4.tcp_tw_reuse", 1)


class Bench:
    """Runs works between two pods.

    Args:
        whole_machine: what the kernel's own threads do counts as well: processor time is that of
            the whole machine, less the load generator's and the far end's.

    Attributes:
        client, server: their namespaces.
        server_ip: where the far end is reached.
    """

    def __init__(
        self,
        client: NetworkNamespace,
        server: NetworkNamespace,
        server_ip: str,
        tools: Tools,
        whole_machine: bool = False,
    ) -> None:
        self.client = client
        self.server = server
        self.server_ip = server_ip
        self._tools = tools
        self._whole_machine = whole_machine
        self._far_end = 0  # its process
        for namespace in (client, server):
            prepare(namespace)

    def run(self, work: Work, pids: list[int], seconds: float, warm_up: float) -> dict[str, Any]:
        """One work; gives what tcpload printed. Raises LoadError when nothing worked."""
        if not work.beside_bulk:
            return self._run(work, pids, seconds, warm_up)
        with self._bulk(_EXTRA_SECONDS + seconds + warm_up):
            return self._run(work, pids, seconds, warm_up)

    @contextmanager
    def _bulk(self, seconds: float) -> Iterator[None]:
        """One stream is uploaded for as long as the block lasts."""
        command = [str(self._tools.tcpload), *BULK.arguments(seconds, 0)]
        command.append(f"{self.server_ip}:{BULK.port}")
        with self.client.enter():
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        with process, contextlib.ExitStack() as stack:
            stack.callback(process.kill)
            yield
            if process.poll() is not None:
                raise LoadError(f"the upload beside it ended with {process.returncode}")

    def _run(self, work: Work, pids: list[int], seconds: float, warm_up: float) -> dict[str, Any]:
        command = [str(self._tools.tcpload), *work.arguments(seconds, warm_up)]
        watched = with_descendants(pids)
        if self._whole_machine:
            watched.append(self._far_end)
        for pid in watched:
            command += ["-p", str(pid)]
        command.append(f"{self.server_ip}:{work.port}")
        limit = seconds + warm_up + _EXTRA_SECONDS
        with self.client.enter():
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        try:
            output, complaints = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired as error:
            process.kill()
            process.communicate()
            raise LoadError(f"{work.name}: tcpload did not end within {limit:.0f} s") from error
        if process.returncode not in (0, 3):
            raise LoadError(f"{work.name}: {complaints.strip() or 'nothing was completed'}")
        report: dict[str, Any] = json.loads(output)
        if self._whole_machine:
            count_whole_machine(report, self._far_end)
        return report

    @contextmanager
    def far_end(self) -> Iterator[None]:
        """Echo, sink and source in the server pod."""
        ports = {"-e": ECHO_PORT, "-k": SINK_PORT, "-o": SOURCE_PORT}
        command = [str(self._tools.tcpserve)]
        for option, port in ports.items():
            command += [option, f"0.0.0.0:{port}"]
        with self.server.enter():
            process = subprocess.Popen(command, stdout=subprocess.PIPE)
        with process, contextlib.ExitStack() as stack:
            stack.callback(process.kill)
            assert process.stdout is not None
            if process.stdout.readline() != b"ready\n":
                raise LoadError(f"tcpserve ended with {process.wait(_STOP_SECONDS)}")
            self._far_end = process.pid
            yield


def count_whole_machine(report: dict[str, Any], far_end: int) -> None:
    """Replaces what processes used, in a report of tcpload, by what the whole machine did besides
    the load: tcpload itself and the process `far_end`."""
    ends = [one for one in report["processes"] if one["pid"] == far_end]
    report["processes"] = [one for one in report["processes"] if one["pid"] != far_end]
    load = report["own_cpu_s"] + sum(one["cpu_s"] for one in ends)
    # The machine is counted in ticks of a hundredth of a second, the load exactly.
    report["processes_cpu_s"] = max(report["machine_cpu_s"] - load, 0.0)
