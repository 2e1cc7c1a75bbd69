from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

import pytest

from ztunnel.mesh.workload import Workload
from ztunnel.telemetry.admin import AdminSources, PodState, admin_handler
from ztunnel.telemetry.connections import Connection, describe
from ztunnel.telemetry.http_message import HttpError, Request, Response
from ztunnel.telemetry.http_server import Handler
from ztunnel.telemetry.labels import LabelTable, Peer, ServiceLabels
from ztunnel.telemetry.log_filter import LogFilter
from ztunnel.telemetry.record import ConnectionRecord


def connection(inbound: bool, namespace: str, opened_at: float) -> Connection:
    web, db = Peer("web", "shop"), Peer("db", namespace)
    source, destination = (web, db) if inbound else (db, web)
    ends = LabelTable().ends(
        inbound, source, destination, ServiceLabels("h", "n", "s"), "spiffe://a", "spiffe://b", True
    )
    record = ConnectionRecord(ends, ("10.0.0.1", 1), ("fd00::2", 15008), opened_at, "10.0.0.2:80")
    record.up, record.down, record.pod, record.path = 5, 9, "pod-uid", "splice"
    record.original_destination = ("10.96.0.1", 80)
    return describe(record, "worker-0", 10.0)


class Fake:
    def __init__(self) -> None:
        self.filter = LogFilter.parse("warn")
        self.quits = 0
        self.live = [connection(True, "data", 4.0), connection(False, "other", 2.0)]

    async def connections(self) -> list[Connection]:
        return list(self.live)

    def set_filter(self, log_filter: LogFilter) -> None:
        self.filter = log_filter

    def quit(self) -> None:
        self.quits += 1

    def handler(self) -> Handler:
        sources = AdminSources(
            workloads=lambda: [Workload("u", "web", "shop")],
            services=list,
            policies=list,
            certificates=lambda: [{"identity": "spiffe://a"}],
            pods=lambda: [PodState("pod-uid", "Up", {"name": "db"})],
            connections=self.connections,
            config={"mode": "shared"},
            kernel_paths=lambda: {"worker-0.7": {"sockmap": "on", "splice": "switched off"}},
            static_config=dict,
            get_log_filter=lambda: self.filter,
            set_log_filter=self.set_filter,
            initial_log_filter=LogFilter.parse("info"),
            quit=self.quit,
        )
        return admin_handler(sources, "1.31")


async def get(fake: Fake, path: str, **query: str) -> Any:
    response = await fake.handler()(Request("GET", path, query))
    assert response.status == HTTPStatus.OK
    return json.loads(response.body)


async def post(fake: Fake, path: str, **query: str) -> Response:
    return await fake.handler()(Request("POST", path, query))


async def test_config_dump() -> None:
    dump = await get(Fake(), "/config_dump")
    assert set(dump) == {
        "workloads", "services", "policies", "stagedServices", "staticConfig", "version",
        "config", "kernelPaths", "certificates", "workloadState",
    }  # fmt: skip
    assert dump["workloads"][0]["name"] == "web"
    assert dump["version"]["istioVersion"] == "1.31"
    assert dump["version"]["form"] in ("compiled", "plain Python")
    assert dump["kernelPaths"]["worker-0.7"]["splice"] == "switched off"
    state = dump["workloadState"]["pod-uid"]
    assert (state["state"], state["info"]) == ("Up", {"name": "db"})
    (inbound,) = state["connections"]["inbound"]
    assert (inbound["src"], inbound["originalDst"], inbound["actualDst"], inbound["protocol"]) == (
        "10.0.0.1:1",
        "10.96.0.1:80",
        "[fd00::2]:15008",
        "HBONE",
    )


async def test_connections_of_pods_that_have_left_are_not_lost_from_the_list() -> None:
    fake = Fake()
    fake.live[0]["pod"] = "gone"
    dump = await get(fake, "/config_dump")
    assert dump["workloadState"]["pod-uid"]["connections"]["inbound"] == []
    assert len(await get(fake, "/connections")) == 2


async def test_connections_oldest_first_and_filtered() -> None:
    fake = Fake()
    everything = await get(fake, "/connections")
    assert [one["ageSeconds"] for one in everything] == [8.0, 6.0]
    assert (everything[0]["bytesSent"], everything[0]["bytesRecv"]) == (5, 9)
    assert (everything[1]["bytesSent"], everything[1]["bytesRecv"]) == (9, 5)
    assert everything[0]["path"] == "splice"
    (inbound,) = await get(fake, "/connections", direction="inbound", namespace="data")
    assert inbound["workload"] == "data/db"
    assert len(await get(fake, "/connections", limit="1")) == 1
    for query in ({"direction": "up"}, {"limit": "-1"}, {"limit": "٣"}):
        with pytest.raises(HttpError):
            await get(fake, "/connections", **query)


async def test_logging() -> None:
    fake = Fake()
    assert (await post(fake, "/logging")).body == b"current log level is warn\n"
    await post(fake, "/logging", level="debug,access:off")
    assert str(fake.filter) == "debug,access=off"
    await post(fake, "/logging", level="ztunnel::xds=trace")
    assert str(fake.filter) == "debug,access=off,ztunnel.xds=trace"
    await post(fake, "/logging", reset="")
    assert str(fake.filter) == "info"
    for query in ({"level": "x=loud"}, {"levels": "info"}):
        with pytest.raises(HttpError):
            await post(fake, "/logging", **query)
    refused = await fake.handler()(Request("GET", "/logging"))
    assert refused.status == HTTPStatus.METHOD_NOT_ALLOWED


async def test_quit_needs_a_post() -> None:
    fake = Fake()
    refused = await fake.handler()(Request("GET", "/quitquitquit"))
    assert refused.status == HTTPStatus.METHOD_NOT_ALLOWED
    assert fake.quits == 0
    await post(fake, "/quitquitquit")
    assert fake.quits == 1


async def test_the_rest() -> None:
    fake = Fake()
    assert await get(fake, "/certificates") == [{"identity": "spiffe://a"}]
    assert "pythonVersion" in await get(fake, "/version")
    index = await fake.handler()(Request("GET", "/"))
    assert b'<a href="/config_dump">' in index.body
    tasks = await fake.handler()(Request("GET", "/debug/tasks"))
    assert b"test_the_rest" in tasks.body
    assert b"thread " in tasks.body
