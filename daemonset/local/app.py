"""A small application to put into pods: it answers, it asks, and it holds connections open.

Only the standard library, so that a pod starts in a few hundredths of a second:

``serve --http 80 --echo 7``
    HTTP that answers with its own name, the client's address as it saw it, and the request's
    headers; and TCP that sends back what it gets.
``get URL``
    One request; the answer's body on standard output. Exit status 1 when there is no answer.
``hold HOST PORT``
    One connection, a line every INTERVAL seconds, each answer awaited; a line of output for each
    thing that happens to the connection, so that somebody who watches sees when it is cut.
"""

import argparse
import http.client
import json
import os
import socket
import socketserver
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def own_name() -> str:
    """The pod's name: from its environment, else the machine's name, which is the pod's too."""
    return os.environ.get("POD_NAME") or socket.gethostname()


class _DualStackHttp(ThreadingHTTPServer):
    address_family = socket.AF_INET6
    request_queue_size = 128
    daemon_threads = True

    def server_bind(self) -> None:
        # Not HTTPServer's: it asks DNS for the machine's own name and waits for the answer.
        socketserver.TCPServer.server_bind(self)
        self.server_name = own_name()
        self.server_port = self.server_address[1]


class _EchoServer(socketserver.ThreadingTCPServer):
    address_family = socket.AF_INET6
    request_queue_size = 128
    daemon_threads = True
    allow_reuse_address = True


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        self._answer(self.rfile.read(length).decode(errors="replace"))

    def _answer(self, received: str | None = None) -> None:
        said: dict[str, object] = {
            "pod": own_name(),
            "client": plain_address(self.client_address[0]),
            "path": self.path,
            "headers": dict(self.headers.items()),
        }
        if received is not None:
            said["received"] = received
        body = (json.dumps(said, indent=2) + "\n").encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        text = format % args
        print(f"{plain_address(self.client_address[0])} {text}", flush=True)


class _Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        connection: socket.socket = self.request
        try:
            while data := connection.recv(65_536):
                connection.sendall(data)
        except ConnectionError as error:
            print(f"{plain_address(self.client_address[0])} echo ended: {error}", flush=True)


def plain_address(text: str) -> str:
    """An IPv4 address that arrived on an IPv6 socket, written as the IPv4 address that it is."""
    return text.removeprefix("::ffff:")


def serve(http_ports: Sequence[int], echo_ports: Sequence[int]) -> int:
    """Listen on every port, on both families, until the process is ended."""
    servers: list[socketserver.TCPServer] = []
    servers.extend(_DualStackHttp(("::", port), _Answer) for port in http_ports)
    servers.extend(_EchoServer(("::", port), _Echo) for port in echo_ports)
    threads = [threading.Thread(target=server.serve_forever) for server in servers]
    for thread in threads:
        thread.start()
    ports = ", ".join(str(port) for port in (*http_ports, *echo_ports))
    print(f"{own_name()} listens on {ports}", flush=True)
    for thread in threads:
        thread.join()
    return 0


def get(url: str, timeout: float, headers: Sequence[str]) -> int:
    """Ask once; print the body, or the reason why there is none on standard error."""
    named = dict(header.partition(":")[::2] for header in headers)
    request = urllib.request.Request(url, headers={k: v.strip() for k, v in named.items()})
    # The mesh is the only way out of a pod; a proxy from somebody's environment is not.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=timeout) as answer:
            sys.stdout.write(answer.read().decode(errors="replace"))
    except urllib.error.HTTPError as error:
        sys.stdout.write(error.read().decode(errors="replace"))
        print(f"{url}: status {error.code}", file=sys.stderr)
        return 1
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        print(f"{url}: no answer: {reason}", file=sys.stderr)
        return 1
    return 0


def hold(host: str, port: int, interval: float) -> int:
    """Keep one connection busy until it is cut or the process is ended."""
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - started:.3f}s {text}", flush=True)

    try:
        with socket.create_connection((host, port), timeout=30) as connection:
            say(f"connected to {host}:{port}")
            number = 0
            while True:
                line = f"line {number}\n".encode()
                connection.sendall(line)
                answer = b""
                while len(answer) < len(line):
                    more = connection.recv(len(line) - len(answer))
                    if not more:
                        say(f"closed by the other side after {number} answers")
                        return 1
                    answer += more
                number += 1
                say(f"answer {number}")
                time.sleep(interval)
    except OSError as error:
        say(f"cut: {error}")
        return 1


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m daemonset.local.app", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    serving = verbs.add_parser("serve", help="answer HTTP and echo TCP")
    serving.add_argument("--http", type=int, nargs="*", default=[], metavar="PORT")
    serving.add_argument("--echo", type=int, nargs="*", default=[], metavar="PORT")
    asking = verbs.add_parser("get", help="one HTTP request")
    asking.add_argument("url")
    asking.add_argument("--timeout", type=float, default=5.0, help="seconds (5)")
    asking.add_argument("--header", action="append", default=[], metavar="NAME:VALUE")
    holding = verbs.add_parser("hold", help="one long connection to an echo port")
    holding.add_argument("host")
    holding.add_argument("port", type=int)
    holding.add_argument("--interval", type=float, default=0.2, help="seconds (0.2)")
    chosen = parser.parse_args(arguments)
    if chosen.verb == "serve":
        if not chosen.http and not chosen.echo:
            parser.error("serve: give at least one port with --http or --echo")
        return serve(chosen.http, chosen.echo)
    if chosen.verb == "get":
        return get(chosen.url, chosen.timeout, chosen.header)
    return hold(chosen.host, chosen.port, chosen.interval)


if __name__ == "__main__":
    sys.exit(main())
