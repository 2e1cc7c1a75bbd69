"""Which function answers which path: the table that the servers of this room share."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus

from ztunnel.telemetry.http_message import Request, Response
from ztunnel.telemetry.http_server import Handler


@dataclass(frozen=True, slots=True)
class Route:
    """An answer for ``methods`` of one path. HEAD goes where GET goes."""

    handler: Handler
    methods: tuple[str, ...]
    about: str


def router(routes: Mapping[str, Route]) -> Handler:
    """Answers by path: 404 for one that is not in ``routes``, 405 for a method it does not have."""

    async def answer(request: Request) -> Response:
        route = routes.get(request.path)
        if route is None:
            return Response(b"not found\n", HTTPStatus.NOT_FOUND)
        if ("GET" if request.method == "HEAD" else request.method) not in route.methods:
            allow = ", ".join((*route.methods, *(["HEAD"] if "GET" in route.methods else [])))
            return Response(
                f"allowed are {allow}\n".encode(),
                HTTPStatus.METHOD_NOT_ALLOWED,
                headers={"allow": allow},
            )
        return await route.handler(request)

    return answer


def json_response(value: object, indent: int | None = 2) -> Response:
    """``value`` as JSON."""
    body = json.dumps(value, indent=indent, default=str).encode() + b"\n"
    return Response(body, content_type="application/json")
