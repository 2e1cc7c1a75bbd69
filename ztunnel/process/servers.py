"""The HTTP servers of the control process."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from ztunnel.process.cannot_start import CannotStart
from ztunnel.telemetry.http_server import Handler, HttpServer, open_listeners


@dataclass(frozen=True, slots=True)
class Server:
    """One of them. With `own_machine_only` it answers only to names of loopback."""

    hosts: Sequence[str]
    port: int
    handler: Handler
    own_machine_only: bool = False


@asynccontextmanager
async def serving(nursery: trio.Nursery, wanted: Sequence[Server]) -> AsyncIterator[None]:
    """They serve for as long as the block lasts. Raises CannotStart where a port is taken."""
    servers: list[HttpServer] = []
    try:
        for one in wanted:
            try:
                listeners = await open_listeners(list(one.hosts), one.port)
            except OSError as error:
                raise CannotStart(str(error)) from error
            server = HttpServer(listeners, one.handler, loopback_names_only=one.own_machine_only)
            servers.append(server)
            nursery.start_soon(server.serve)
        yield
    finally:
        for server in servers:
            server.stop()
