"""``ambient demo``: a tour in which everything that is shown has just been measured."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

from daemonset.local import demo_texts as texts
from daemonset.local.access_lines import AccessLine
from daemonset.local.capture import HBONE_PORT
from daemonset.local.demo_tools import DemoError, Held, Tools
from daemonset.local.mesh import TURN, Mesh, Settings
from daemonset.local.mesh_programs import METRICS_PORT
from daemonset.local.metrics_lines import Sample, parse_samples
from daemonset.local.run_directory import RunDirectory
from daemonset.local.terminal import Terminal

NAME = "demo"
EXAMPLE = Path(__file__).parent / "examples" / "shop"

_MARKER = "4111-1111-1111-1111"
_HEADER = f"x-card: {_MARKER}"
_LABEL = "istio.io/dataplane-mode"
_POLICY = "orders-only-for-web"

_PODS = (
    "shop/web",
    "shop/catalog-1",
    "shop/catalog-2",
    "shop/orders",
    "street/visitor",
    "street/busker",
)


def run_demo(terminal: Terminal, *, keep: bool) -> int:
    """Show it; the exit status: 1 when something was not as it should be.

    Raises:
        NamespaceError, ProcessError, RunDirectoryError: the mesh could not be built.
    """
    started = time.monotonic()
    run = RunDirectory.create(NAME)
    folder = run.path / "yaml"
    shutil.copytree(EXAMPLE / "mesh", folder)
    with Mesh.open(Settings(name=NAME, folder=folder), terminal.note, run) as mesh:
        demo = Demo(mesh, terminal)
        terminal.say(texts.INTRODUCTION)
        try:
            demo.show()
        except (DemoError, OSError) as error:
            terminal.say()
            terminal.bad(f"{error}")
            return 1
        terminal.title(f"That was all, in {time.monotonic() - started:.0f} seconds.")
        if keep:
            _stay(mesh, terminal)
        else:
            terminal.say(texts.goodbye())
    return 0


def _stay(mesh: Mesh, terminal: Terminal) -> None:
    """Until Ctrl-C."""
    terminal.say("It stays up. In another terminal you can now, for example:")
    for command, meaning in texts.things_to_try(mesh.settings.folder, EXAMPLE / "policies"):
        terminal.command(command)
        terminal.quote([terminal.style(meaning, "dim")])
    terminal.say("Ctrl-C here ends it and removes everything.")
    while True:
        mesh.step()
        time.sleep(TURN)


class Demo:
    """The steps, in their order; each stands on what the ones before it did."""

    def __init__(self, mesh: Mesh, terminal: Terminal) -> None:
        self.mesh = mesh
        self.terminal = terminal
        self.tools = Tools(mesh, terminal)

    def show(self) -> None:
        """All steps. Raises DemoError where one does not show what it should."""
        self.build()
        self.ask_in_the_clear()
        self.join_the_mesh()
        self.ask_through_the_mesh()
        self.write_a_policy()
        self.leave_the_mesh()
        self.count()

    def build(self) -> None:
        out = self.terminal
        out.title("1 of 7. A small cluster on this machine")
        out.say(texts.CLUSTER)
        started = time.monotonic()
        with out.progress("building nodes and pods, starting the parts of the mesh"):
            self.mesh.start()
        for node in self.mesh.topology.nodes:
            pods = ", ".join(
                f"{pod.key} {pod.addresses[0]}" for pod in self.mesh.topology.pods_on(node)
            )
            out.good(f"{node}: {pods}")
        names = ", ".join(self.mesh.programs.states())
        out.good(f"running: {names} ({time.monotonic() - started:.1f} s)")

    def ask_in_the_clear(self) -> None:
        out = self.terminal
        out.title("2 of 7. Before: anybody on the wire can read along")
        out.command(texts.ask("web", f"--header '{_HEADER}' http://orders/"))
        with self.tools.listening("node-1") as seen:
            answer = self.tools.ask_successfully("shop/web", "http://orders/", _HEADER)
        out.good(f"pod {answer.said['pod']} answered a client at {answer.said['client']}")
        if not seen.shows(_MARKER.encode()):
            raise DemoError(f"{_MARKER} should be readable between the nodes, and is not")
        out.good(f"captured between the nodes: {seen.packets} packets with data, among them:")
        out.quote([_printable(seen.around(_MARKER.encode()))])

    def join_the_mesh(self) -> None:
        out = self.terminal
        out.title("3 of 7. Two labels turn the mesh on")
        for namespace in ("shop", "street"):
            name = f"namespace-{namespace}.yaml"
            text = (self.mesh.settings.folder / name).read_text()
            self.tools.write(name, f"{text.rstrip()}\n  labels:\n    {_LABEL}: ambient\n")
            out.quote([name, out.style("  +  labels:", "green")])
            out.quote([out.style(f"  +    {_LABEL}: ambient", "green")])
        out.say(texts.LABELS)
        before = self._pids()
        seconds = self.tools.settle(in_mesh=_PODS)
        if self._pids() != before:
            raise DemoError("applications were restarted, which joining a mesh must not do")
        out.good(f"{len(_PODS)} pods are in the mesh, {seconds:.1f} s after the files were written")
        out.good("no application was restarted or changed")

    def ask_through_the_mesh(self) -> None:
        out = self.terminal
        out.title("4 of 7. After: the same request, encrypted and with identities")
        out.command(texts.ask("web", f"--header '{_HEADER}' http://orders/"))
        logs = {node: self.tools.observer.follow_access(node) for node in self.mesh.topology.nodes}
        with self.tools.listening("node-1") as seen:
            answer = self.tools.ask_successfully("shop/web", "http://orders/", _HEADER)
        out.good(
            f"pod {answer.said['pod']} answered a client at {answer.said['client']}:"
            " the application still sees the client's own address"
        )
        tunnelled = seen.packets_with_port(HBONE_PORT)
        records, strange = seen.tls_records(HBONE_PORT)
        if not tunnelled or not records or strange:
            raise DemoError(
                f"port {HBONE_PORT} should carry TLS and nothing else; seen: {tunnelled} packets,"
                f" {records} TLS records, {strange} other bytes; ports {sorted(seen.ports())}"
            )
        if seen.shows(_MARKER.encode()):
            raise DemoError(f"{_MARKER} can still be read between the nodes")
        out.good(
            f"captured between the nodes: {tunnelled} packets to and from port {HBONE_PORT},"
            f" {records} TLS records; {_MARKER} is in none of them"
        )
        out.say(texts.IDENTITIES)
        for node, what, inbound in (
            ("node-1", "says the ztunnel of node-1, where the client is", False),
            ("node-2", "says the ztunnel of node-2, where the server is", True),
        ):
            line = self.tools.find_line(logs[node], "web's request", _from_to("web", inbound))
            if not line["src.identity"] or not line["dst.identity"]:
                raise DemoError(f"both identities should be in the access log: {line.text}")
            out.good(f"{what}:")
            out.quote([f"{line['src.identity']} → {line['dst.identity']}"])

    def write_a_policy(self) -> None:
        out = self.terminal
        out.title("5 of 7. A policy, and connections that are open already")
        out.say(texts.POLICY)
        text = (EXAMPLE / "policies" / f"{_POLICY}.yaml").read_text()
        out.quote(out.style(line, "dim") for line in texts.policy_lines(text))
        log = self.tools.observer.follow_access("node-2")
        web = self.tools.hold("shop/web", "orders.shop", 7000)
        try:
            visitor = self.tools.hold("street/visitor", "orders.shop", 7000)
            try:
                self._cut(web, visitor)
            finally:
                visitor.close()
        finally:
            web.close()
        line = self.tools.find_line(log, "the visitor's end", _from_to("visitor", True))
        out.good("why, in the access log of the server's node:")
        out.quote(texts.wrapped(f"{line['src.identity']} was {line['verdict']}"))
        if _POLICY not in line.text:
            raise DemoError(f"the access log should name the policy {_POLICY}: {line.text}")
        again = self.tools.ask("street/visitor", "http://orders.shop/")
        if again.ok:
            raise DemoError("the visitor should be refused, and got an answer")
        out.good("and a new request of the visitor:")
        out.quote([again.text])

    def _cut(self, web: Held, visitor: Held) -> None:
        out = self.terminal
        out.good("web and visitor each hold a connection to orders:7000, and get answers")
        out.command(f"cp policies/{_POLICY}.yaml {self.mesh.settings.folder}")
        written = time.monotonic()
        self.tools.write(f"{_POLICY}.yaml", (EXAMPLE / "policies" / f"{_POLICY}.yaml").read_text())
        self.tools.wait_for("the visitor is cut off", lambda: visitor.end is not None)
        end = visitor.end
        assert end is not None
        milliseconds = (end[0] - written) * 1000
        out.good(
            f"{milliseconds:.0f} ms after it was written the visitor's connection was {end[1]}"
        )
        answers = web.answers
        self.tools.wait_for("web gets more answers", lambda: web.answers > answers + 3)
        if web.end is not None:
            raise DemoError(f"web's connection should live on, and was {web.end[1]}")
        out.good(f"web's connection lives on: {web.answers} answers so far")

    def leave_the_mesh(self) -> None:
        out = self.terminal
        out.title("6 of 7. One pod leaves")
        out.quote(["street.yaml, pod visitor", out.style(f"  +    {_LABEL}: none", "green")])
        text = (self.mesh.settings.folder / "street.yaml").read_text()
        changed = text.replace("{app: visitor}", f"{{app: visitor, {_LABEL}: none}}", 1)
        self.tools.write("street.yaml", changed)
        seconds = self.tools.settle(outside=["street/visitor"])
        out.good(f"the visitor is out of the mesh after {seconds:.1f} s")
        with self.tools.listening("node-1") as seen:
            self.tools.ask_successfully("street/visitor", "http://busker/", _HEADER)
        if not seen.shows(_MARKER.encode()):
            raise DemoError("the visitor's request should be in the clear again, and is not")
        out.good("what it sends can be read on the wire again:")
        out.quote([_printable(seen.around(_MARKER.encode()))])
        refused = self.tools.ask("street/visitor", "http://orders.shop/")
        if refused.ok:
            raise DemoError("without an identity the visitor should not reach the orders")
        out.good("and it does not get past the policy like that: without the mesh it is nobody")
        out.quote([refused.text])

    def count(self) -> None:
        out = self.terminal
        out.title("7 of 7. What the mesh has counted and logged")
        out.command(texts.ask("node/node-2", f"http://localhost:{METRICS_PORT}/metrics"))
        samples: list[Sample] = []

        def counted() -> bool:
            try:
                page = self.tools.observer.metrics("node-2")
            except OSError:
                return False  # busy: asked again
            samples[:] = (
                sample
                for sample in parse_samples(page)
                if sample.name == "istio_tcp_connections_opened_total"
                and sample.labels.get("reporter") == "destination"
            )
            return bool(samples)

        self.tools.wait_for("node-2's ztunnel has counted connections", counted)
        out.quote([f"{samples[0].name}, among it:"])
        out.quote(_shortened(sample) for sample in samples)
        out.command(f"{texts.program()} logs ztunnel")
        found: list[str] = []

        def logged() -> bool:
            lines = self.tools.observer.access_lines("node-2")
            found[:] = (line.text for line in lines if _from_to("web", True)(line))
            return bool(found)

        self.tools.wait_for("node-2's ztunnel has logged a connection of web", logged)
        out.quote(texts.wrapped(found[0]))

    def _pids(self) -> dict[str, str]:
        return {
            f"{pod.key} {name}": state
            for pod in self.mesh.topology.pods.values()
            for name, state in self.mesh.pods.states(pod).items()
        }


def _from_to(source: str, inbound: bool) -> Callable[[AccessLine], bool]:
    def wanted(line: AccessLine) -> bool:
        return line["src.workload"] == source and line.inbound == inbound

    return wanted


def _printable(data: bytes) -> str:
    return "".join(chr(byte) if 32 <= byte < 127 else "·" for byte in data)


def _shortened(sample: Sample) -> str:
    names = ("source_workload", "destination_workload", "connection_security_policy")
    labels = ", ".join(f"{name}={sample.labels.get(name)}" for name in names)
    return f"{sample.value:3g}  {labels}"
