"""The node agents keep their rights until they have used them.

`kubectl delete -k` deletes one object after the other and waits for none of them: without more, the
agents would lose their rights a fifth of a second after they see that the mesh goes, most pods'
annotations still to be taken off. So the API server asks here, by an admission webhook, before it
deletes those rights (`manifests/control-plane/farewell.yaml`), and the asking is all: the
connection stays open until no pod is said to be captured, and is then closed without a word. That
is no answer, which the webhook's failurePolicy takes for a yes (as it does when its time is up, or
nobody listens), so nothing is ever stuck, and there is no certificate to be made and renewed.
"""

from __future__ import annotations

import trio

from daemonset.control_plane.sources.kubernetes import KubernetesSource
from daemonset.control_plane.translation.enrolment import REDIRECTION
from ztunnel.telemetry.http_server import open_listeners

PORT = 15017
PATIENCE = 30.0
"""Seconds: no webhook of Kubernetes may take longer."""
_MANY = 16
"""Connections at once. Who waits here gets nothing by it, but may not cost more than that."""
_LOOK = 0.1


class Farewell:
    """Holds connections for as long as any pod carries the annotation.

    Args:
        port: to listen on; 0 is any, and the attribute is that one once ``run`` has started.
    """

    def __init__(self, source: KubernetesSource, port: int) -> None:
        self._source = source
        self.port = port
        self._open = 0

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled. Raises OSError: the port is taken."""
        listeners = await open_listeners(["::"], self.port)
        self.port = listeners[0].socket.getsockname()[1]
        task_status.started()
        await trio.serve_listeners(self._hold, listeners)

    async def finish(self) -> None:
        """Return when nobody waits here any more, or has waited long enough."""
        with trio.move_on_after(PATIENCE):
            while True:
                if not self._open:
                    return
                await trio.sleep(_LOOK)

    async def _hold(self, stream: trio.SocketStream) -> None:
        if self._open < _MANY:
            self._open += 1
            try:
                with trio.move_on_after(PATIENCE):
                    await self._wait_until_written()
            finally:
                self._open -= 1
        stream.socket.close()

    async def _wait_until_written(self) -> None:
        while True:
            pods = self._source.objects.pods.values()
            if not any(REDIRECTION in pod.meta.annotations for pod in pods):
                return
            await trio.sleep(_LOOK)
