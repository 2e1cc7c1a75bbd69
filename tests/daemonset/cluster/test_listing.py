"""All objects of a kind, from API servers that give them in pages and in other versions."""

import pytest

from daemonset.cluster.listing import list_all
from daemonset.cluster.survey import take_survey
from daemonset.kube.client import ApiError
from daemonset.kube.reflector import Resource
from tests.support.kube.scripted_api import Exchange, scripted_api

THINGS = Resource("x.io", ("v1", "v1beta1"), "things")


def named(name: str) -> dict[str, object]:
    return {"metadata": {"name": name}}


async def test_pages_of_the_version_that_there_is() -> None:
    async def script(exchange: Exchange) -> None:
        if exchange.path != "/apis/x.io/v1beta1/things":
            await exchange.answer({"reason": "NotFound"}, 404)
        elif "continue" not in exchange.query:
            await exchange.answer({"metadata": {"continue": "2"}, "items": [named("a")]})
        else:
            assert exchange.query["continue"] == "2"
            await exchange.answer({"metadata": {}, "items": [named("b")]})

    async with scripted_api(script) as client:
        found = [item async for item in list_all(client, THINGS)]
    assert [item["metadata"]["name"] for item in found] == ["a", "b"]
    assert {item["apiVersion"] for item in found} == {"x.io/v1beta1"}


async def test_a_kind_that_is_not_there() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.answer({"reason": "NotFound", "message": "no such kind"}, 404)

    async with scripted_api(script) as client:
        with pytest.raises(ApiError, match="no such kind"):
            assert [item async for item in list_all(client, THINGS)] == []


async def test_a_survey_notes_what_it_may_not_see() -> None:
    async def script(exchange: Exchange) -> None:
        if exchange.path == "/version":
            await exchange.answer({"major": "1", "minor": "36", "gitVersion": "v1.36.3"})
        elif exchange.path == "/api/v1/pods":
            await exchange.answer({"message": "pods is forbidden"}, 403)
        elif exchange.path == "/api/v1/nodes":
            meta = {"name": "n", "managedFields": [{}], "annotations": {}}
            meta["annotations"] = {"kubectl.kubernetes.io/last-applied-configuration": "{}"}
            await exchange.answer({"metadata": {}, "items": [{"metadata": meta}]})
        else:
            await exchange.answer({"message": "no such kind"}, 404)

    async with scripted_api(script) as client:
        found = await take_survey(client, "ambient-system")
    assert found.unseen.keys() == {"pods"}
    assert "nodes" not in found.absent
    assert len(found.absent) > 10
    assert found.all("nodes") == [
        {"apiVersion": "v1", "metadata": {"name": "n", "annotations": {}}}
    ]
