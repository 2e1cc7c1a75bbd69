"""Where a book's pods come from on Kubernetes: this node's pods, and all namespaces."""

import logging

import trio

from daemonset.agent.book_source import BookSource
from daemonset.control_plane.objects.located import locate
from daemonset.control_plane.objects.namespace import read_namespace
from daemonset.control_plane.objects.pod import read_pod
from daemonset.control_plane.objects.section import ObjectError, Section
from daemonset.kube.client import Json, KubeClient
from daemonset.kube.reflector import Reflector, Resource

logger = logging.getLogger("daemonset.agent")


class _Pods:
    """Puts pods into the book; see `reflector.Sink`."""

    def __init__(self, source: BookSource) -> None:
        self._source = source
        self._seen: set[str] | None = None  # uids, while a list is being read

    def begin(self) -> None:
        self._seen = set()

    def put(self, item: Json) -> None:
        try:
            pod = read_pod(Section(locate(item)))
        except ObjectError as error:
            # The API server checks pods more strictly than we do. What is known of it stays.
            logger.error("pod %s cannot be read: %s", item.get("metadata", {}).get("name"), error)
            if self._seen is not None:
                self._seen.add(str(item.get("metadata", {}).get("uid", "")))
            return
        self._source.book.put_pod(pod)
        if self._seen is not None:
            self._seen.add(pod.meta.uid)
        else:
            self._source.changed()

    def remove(self, item: Json) -> None:
        self._source.book.drop_pod(item["metadata"]["uid"])
        self._source.changed()

    def commit(self) -> None:
        if self._seen is not None:
            self._source.book.retain_pods(frozenset(self._seen))
            self._seen = None
            self._source.changed()

    def set_absent(self, absent: bool) -> None:
        """Every API server knows pods."""


class _Namespaces:
    """Puts the labels of namespaces into the book; see `reflector.Sink`."""

    def __init__(self, source: BookSource) -> None:
        self._source = source
        self._seen: set[str] | None = None

    def begin(self) -> None:
        self._seen = set()

    def put(self, item: Json) -> None:
        try:
            meta = read_namespace(Section(locate(item))).meta
        except ObjectError as error:
            logger.error("a namespace cannot be read: %s", error)
            return
        self._source.book.put_namespace(meta.name, meta.labels, going=meta.deleting)
        if self._seen is not None:
            self._seen.add(meta.name)
        else:
            self._source.changed()

    def remove(self, item: Json) -> None:
        self._source.book.drop_namespace(item["metadata"]["name"])
        self._source.changed()

    def commit(self) -> None:
        if self._seen is not None:
            self._source.book.retain_namespaces(frozenset(self._seen))
            self._seen = None
            self._source.changed()

    def set_absent(self, absent: bool) -> None:
        """Every API server knows namespaces."""


async def watch_pods(client: KubeClient, node: str, source: BookSource) -> None:
    """Keep the book up to date, and say when it is complete for the first time. Never returns."""
    lists = trio.CapacityLimiter(2)
    namespaces, pods = trio.Event(), trio.Event()
    mine = Resource("", ("v1",), "pods", (("fieldSelector", f"spec.nodeName={node}"),))
    reflectors = (
        Reflector(client, mine, _Pods(source), lists, pods.set),
        Reflector(
            client, Resource("", ("v1",), "namespaces"), _Namespaces(source), lists, namespaces.set
        ),
    )
    async with trio.open_nursery() as nursery:
        for reflector in reflectors:
            nursery.start_soon(reflector.run)
        await namespaces.wait()
        await pods.wait()
        source.complete()
