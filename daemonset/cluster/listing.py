"""All objects of one kind, once."""

from __future__ import annotations

from collections.abc import AsyncIterator

from daemonset.kube.client import ApiError, Json, KubeClient
from daemonset.kube.reflector import Resource

_PAGE = 500


async def list_all(client: KubeClient, resource: Resource) -> AsyncIterator[Json]:
    """Every object, with ``apiVersion``.

    Raises:
        ApiError: the API server refuses; 404 where it knows none of the resource's versions.
        ApiUnavailableError: it does not answer.
    """
    for version in resource.versions:
        try:
            first = await _page(client, resource, version, "")
            break
        except ApiError as error:
            if error.status != 404 or version == resource.versions[-1]:
                raise
    page = first
    api_version = f"{resource.group}/{version}" if resource.group else version
    while True:
        for item in page.get("items") or ():
            yield {"apiVersion": api_version, **item}
        more = str(page["metadata"].get("continue") or "")
        if not more:
            return
        page = await _page(client, resource, version, more)


async def _page(client: KubeClient, resource: Resource, version: str, more: str) -> Json:
    query = {**dict(resource.query), "limit": str(_PAGE)}
    if more:
        query["continue"] = more
    return await client.call("GET", resource.path(version), query)
