"""What the demo's steps are made of: ask, listen on the wire, hold a connection, find a log line.

Each either gives a measured fact or fails the demo with a message that says what was seen instead.
"""

import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daemonset.local.access_lines import AccessLine
from daemonset.local.capture import Capture, Wire
from daemonset.local.mesh import Mesh
from daemonset.local.observe import AccessLog, Observer
from daemonset.local.processes import last_lines, python
from daemonset.local.terminal import Terminal

PATIENCE = 60.0
"""Seconds that any single thing may take before the demo gives up on it."""
_ATTEMPT = 30.0
"""Seconds that one request may take: it is asked once, on a machine that may be busy."""


class DemoError(Exception):
    """A step did not show what it should; the text says what was seen instead."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a pod got when it asked another."""

    ok: bool
    text: str

    @property
    def said(self) -> Any:
        """The body, which our application writes as JSON."""
        return json.loads(self.text)


class Held:
    """A connection that a pod keeps open, and what happens to it."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self.process = process
        self._lines: list[tuple[float, str]] = []
        self._reader = threading.Thread(target=self._read, name="ambient-held")
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.append((time.monotonic(), line.decode().partition(" ")[2].strip()))

    @property
    def answers(self) -> int:
        return sum(text.startswith("answer") for _, text in list(self._lines))

    @property
    def end(self) -> tuple[float, str] | None:
        """When (monotonic seconds) and how it ended, once it has."""
        for when, text in list(self._lines):
            if text.startswith(("cut", "closed")):
                return when, text
        return None

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()


class Tools:
    """The demo's hands on the mesh."""

    def __init__(self, mesh: Mesh, terminal: Terminal) -> None:
        self.mesh = mesh
        self.terminal = terminal
        self.observer = Observer(mesh)

    def run(self, pod: str, *arguments: str) -> "subprocess.Popen[bytes]":
        """Our application's client in a pod."""
        return self.mesh.keeper.spawn(
            self.mesh.namespace_of(pod),
            python("-m", "daemonset.local.app", *arguments),
            environment=self.mesh.pods.environment(self.mesh.pod(pod)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def ask(self, pod: str, url: str, *headers: str) -> Answer:
        """One HTTP request from a pod; the mesh is kept going meanwhile."""
        options = [word for header in headers for word in ("--header", header)]
        process = self.run(pod, "get", url, "--timeout", f"{_ATTEMPT:g}", *options)
        assert process.stdout is not None
        with process.stdout:
            if not self.mesh.wait(lambda: process.poll() is not None, PATIENCE):
                process.kill()
                raise DemoError(f"{pod} got neither an answer nor a refusal from {url}")
            return Answer(process.returncode == 0, process.stdout.read().decode().strip())

    def ask_successfully(self, pod: str, url: str, *headers: str) -> Answer:
        answer = self.ask(pod, url, *headers)
        if not answer.ok:
            raise DemoError(f"{pod} should get an answer from {url}, and got: {answer.text}")
        return answer

    @contextmanager
    def listening(self, node: str) -> Iterator[Capture]:
        """Capture what passes between a node and the others; to be looked at afterwards."""
        underlay = self.mesh.network.underlay
        assert underlay is not None
        wire = Wire(underlay.network, self.mesh.topology.nodes[node].link)
        seen = Capture()
        try:
            yield seen
            wire.read_into(seen)
        finally:
            wire.close()

    def hold(self, pod: str, host: str, port: int) -> Held:
        """Open a connection that stays, and wait until it has carried something."""
        held = Held(self.run(pod, "hold", host, str(port), "--interval", "0.05"))
        if not self.mesh.wait(lambda: held.answers > 2 or held.end is not None, PATIENCE):
            held.close()
            raise DemoError(f"{pod} got no answer from {host}:{port}")
        if held.end is not None:
            held.close()
            raise DemoError(f"the connection of {pod} to {host}:{port} was {held.end[1]}")
        return held

    def wait_for(self, what: str, condition: Callable[[], bool]) -> float:
        """Wait, with the progress shown; how many seconds it took."""
        started = time.monotonic()
        with self.terminal.progress(f"waiting until {what}"):
            if not self.mesh.wait(condition, PATIENCE):
                raise DemoError(f"{PATIENCE:g} s were not enough until {what}\n{self._logs()}")
        return time.monotonic() - started

    def settle(self, *, in_mesh: Sequence[str] = (), outside: Sequence[str] = ()) -> float:
        """Wait until pods are captured (or not), published, and acknowledged everywhere."""

        def settled() -> bool:
            captured = self.observer.captured()
            if not captured.issuperset(in_mesh) or not captured.isdisjoint(outside):
                return False
            try:
                return self.observer.is_settled(in_mesh, outside)
            except OSError:
                return False  # the control plane is being restarted

        what = f"{', '.join(in_mesh or outside)} {'are in' if in_mesh else 'is out of'} the mesh"
        return self.wait_for(what, settled)

    def find_line(
        self, log: AccessLog, what: str, wanted: Callable[[AccessLine], bool]
    ) -> AccessLine:
        """The access log line of a connection that has just ended."""
        found: list[AccessLine] = []

        def written() -> bool:
            line = log.find(wanted)
            if line is not None:
                found.append(line)
            return line is not None

        if not self.mesh.wait(written, PATIENCE):
            lines = "\n".join(f"    {line.text}" for line in log.lines()) or "    (none)"
            raise DemoError(f"no line about {what} in the access log; there are:\n{lines}")
        return found[0]

    def write(self, name: str, text: str) -> Path:
        """Put a file into the mesh's folder, in one step."""
        path = self.mesh.settings.folder / name
        temporary = path.with_name(f".{name}.new")
        temporary.write_text(text)
        temporary.replace(path)
        return path

    def _logs(self) -> str:
        """The ends of the logs of the mesh's own processes, for a failure."""
        running = self.mesh.processes.running
        return "\n".join(
            f"  {name} ({running[name].state}):\n{last_lines(running[name].program.log)}"
            for name in self.mesh.programs.states()
        )
