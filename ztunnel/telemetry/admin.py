"""The admin server's answers: what is known, what is going on, and a few switches.

It learns everything through :class:`AdminSources`, so that it can be served, and tested, without
a proxy.
"""

from __future__ import annotations

import html
import platform
import ssl
import sys
import traceback
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from http import HTTPStatus
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

import trio

from ztunnel.mesh.policy import Authorization
from ztunnel.mesh.service import Service
from ztunnel.mesh.workload import Workload
from ztunnel.native import form
from ztunnel.telemetry import config_dump
from ztunnel.telemetry.connections import Connection, select
from ztunnel.telemetry.http_message import HttpError, Request, Response
from ztunnel.telemetry.http_server import Handler
from ztunnel.telemetry.log_filter import LogFilter
from ztunnel.telemetry.routes import Route, json_response, router

_MOST_CONNECTIONS: Final = 100_000
_LARGE_MESH: Final = 2_000


@dataclass(frozen=True, slots=True)
class PodState:
    """One pod of the node: ``state`` is Up or Pending, ``info`` whatever is worth telling."""

    uid: str
    state: str
    info: dict[str, Any]


@dataclass(frozen=True, slots=True)
class AdminSources:
    """Where the answers come from. All are called in trio, when somebody asks.

    Attributes:
        workloads, services, policies: the mesh as it is now.
        certificates: entries made by :func:`ztunnel.telemetry.certificate_dump.certificates`.
        pods: the pods of this node, [] in dedicated mode.
        connections: live connections of all workers; may wait for them.
        config: the configuration as plain values.
        kernel_paths: worker to path to "on", or why it is off.
        static_config: the local file's content as plain values, {} without one.
        get_log_filter, set_log_filter: the filter in force; setting reaches the workers too.
        initial_log_filter: what a reset goes back to.
        quit: begins the shutdown, as SIGTERM does.
    """

    workloads: Callable[[], Iterable[Workload]]
    services: Callable[[], Iterable[Service]]
    policies: Callable[[], Iterable[Authorization]]
    certificates: Callable[[], list[dict[str, Any]]]
    pods: Callable[[], list[PodState]]
    connections: Callable[[], Awaitable[list[Connection]]]
    config: dict[str, Any]
    kernel_paths: Callable[[], dict[str, dict[str, str]]]
    static_config: Callable[[], dict[str, Any]]
    get_log_filter: Callable[[], LogFilter]
    set_log_filter: Callable[[LogFilter], None]
    initial_log_filter: LogFilter
    quit: Callable[[], None]


def admin_handler(sources: AdminSources, istio_version: str) -> Handler:
    """All routes of the admin server."""
    admin = _Admin(sources, istio_version)
    routes = {
        "/config_dump": Route(admin.config_dump, ("GET",), "everything that is known, as JSON"),
        "/connections": Route(
            admin.connections,
            ("GET",),
            "live connections with bytes, age, path and policy; ?direction=inbound|outbound, "
            "?namespace=NAME, ?limit=N",
        ),
        "/certificates": Route(admin.certificates, ("GET",), "certificates of the local pods"),
        "/logging": Route(
            admin.logging, ("POST",), "show, or set by ?level=info or scope:level,…; ?reset"
        ),
        "/quitquitquit": Route(admin.quit, ("POST",), "shut down gracefully"),
        "/debug/tasks": Route(admin.tasks, ("GET",), "stacks of all tasks and threads"),
        "/version": Route(admin.version, ("GET",), "versions"),
    }
    page = _index(routes)

    async def index(request: Request) -> Response:
        return Response(page, content_type="text/html; charset=utf-8")

    return router({"/": Route(index, ("GET",), "this page"), **routes})


def version_dump(istio_version: str) -> dict[str, str]:
    """What this process is made of."""
    try:
        own = version("ambientd")
    except PackageNotFoundError:
        own = "unknown"
    return {
        "version": own,
        "istioVersion": istio_version,
        "pythonVersion": platform.python_version(),
        "form": form(),
        "cryptoProvider": ssl.OPENSSL_VERSION,
    }


class _Admin:
    def __init__(self, sources: AdminSources, istio_version: str) -> None:
        self._sources = sources
        self._version = version_dump(istio_version)

    async def config_dump(self, request: Request) -> Response:
        sources = self._sources
        connections = await sources.connections()
        # Copies of frozen values, so that a thread can take its time over a large mesh.
        workloads = list(sources.workloads())
        services = list(sources.services())
        policies = list(sources.policies())
        rest = {
            "staticConfig": sources.static_config(),
            "version": self._version,
            "config": sources.config,
            "kernelPaths": sources.kernel_paths(),
            "certificates": sources.certificates(),
            "workloadState": _pod_states(sources.pods(), connections),
        }
        # Indenting is done in Python, compact text in C: four seconds or none for a large mesh.
        indent = 2 if len(workloads) + len(services) < _LARGE_MESH else None
        return await trio.to_thread.run_sync(
            lambda: json_response(config_dump.mesh(workloads, services, policies) | rest, indent)
        )

    async def connections(self, request: Request) -> Response:
        direction = request.query.get("direction", "")
        if direction not in ("", "inbound", "outbound"):
            raise HttpError(HTTPStatus.BAD_REQUEST, "direction is inbound or outbound")
        limit = request.query.get("limit", str(_MOST_CONNECTIONS))
        if not (limit.isascii() and limit.isdecimal() and len(limit) <= 9):
            raise HttpError(HTTPStatus.BAD_REQUEST, "limit is a number")
        listed = await self._sources.connections()
        namespace = request.query.get("namespace", "")
        return json_response(select(listed, direction, namespace, int(limit)))

    async def certificates(self, request: Request) -> Response:
        return json_response(self._sources.certificates())

    async def logging(self, request: Request) -> Response:
        sources, query = self._sources, request.query
        current = sources.get_log_filter()
        unknown = sorted(set(query) - {"level", "reset"})
        if unknown:
            raise HttpError(HTTPStatus.BAD_REQUEST, f"{unknown[0]!r} is neither level nor reset")
        if query:
            wanted = sources.initial_log_filter if "reset" in query else current
            try:
                wanted = wanted.with_changes(query.get("level", ""))
            except ValueError as error:
                raise HttpError(HTTPStatus.BAD_REQUEST, str(error)) from None
            sources.set_log_filter(wanted)
            current = sources.get_log_filter()
        return Response(f"current log level is {current}\n".encode())

    async def quit(self, request: Request) -> Response:
        self._sources.quit()
        return Response(b"shutdown now\n")

    async def tasks(self, request: Request) -> Response:
        return Response("".join(_task_stacks()).encode(errors="replace"))

    async def version(self, request: Request) -> Response:
        return json_response(self._version)


def _pod_states(pods: list[PodState], connections: list[Connection]) -> dict[str, Any]:
    states: dict[str, Any] = {
        pod.uid: {
            "state": pod.state,
            "connections": {"inbound": [], "outbound": []},
            "info": pod.info,
        }
        for pod in pods
    }
    for connection in connections:
        state = states.get(connection["pod"])
        # A pod may have left between the two questions.
        if state is not None:
            state["connections"][connection["direction"]].append(connection)
    return states


def _task_stacks() -> list[str]:
    """The tree of trio tasks, each with its stack, then the stacks of threads."""
    lines: list[str] = []
    root = trio.lowlevel.current_root_task()
    waiting = [(root, 0)] if root is not None else []
    while waiting:
        task, depth = waiting.pop()
        indent = "  " * depth
        lines.append(f"{indent}task {task.name}\n")
        lines += [
            f"{indent}    {frame.f_code.co_filename}:{line} {frame.f_code.co_name}\n"
            for frame, line in task.iter_await_frames()
        ]
        waiting += [
            (child, depth + 1) for nursery in task.child_nurseries for child in nursery.child_tasks
        ]
    for identifier, frame in sys._current_frames().items():
        lines.append(f"thread {identifier}\n")
        lines += [f"    {line}" for line in traceback.format_stack(frame)]
    return lines


def _index(routes: dict[str, Route]) -> bytes:
    rows = "".join(
        f"<tr><td>{' '.join(route.methods)}</td>"
        f"<td>{_link(path, route)}</td><td>{html.escape(route.about)}</td></tr>\n"
        for path, route in routes.items()
    )
    return (
        "<!DOCTYPE html>\n<html><head><title>ztunnel</title></head><body>\n"
        f"<h1>ztunnel</h1>\n<table>\n{rows}</table>\n</body></html>\n"
    ).encode()


def _link(path: str, route: Route) -> str:
    return f'<a href="{path}">{path}</a>' if "GET" in route.methods else path
