"""Whom the control plane serves the workload API, and what of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from daemonset.control_plane.ca.admission import Admission, Directory, RefusedError
from daemonset.control_plane.ca.authenticator import (
    AuthenticationError,
    Caller,
    Metadata,
    Verifier,
    bearer_token,
)
from daemonset.control_plane.translation.resident import Viewpoint
from daemonset.control_plane.xds.access import Access, ForbiddenError
from daemonset.control_plane.xds.snapshot import Snapshot

_log = logging.getLogger("daemonset.control_plane")


class Clients:
    """Decides about callers that show a token.

    A node's proxy sees what its node needs. Any other caller must be the proxy of a workload of
    its own (a waypoint, a dedicated proxy), and sees what the workloads of its account need.
    """

    def __init__(
        self,
        verifier: Verifier,
        admission: Admission,
        directory: Callable[[], Directory],
        snapshot: Callable[[], Snapshot],
    ) -> None:
        self._verifier = verifier
        self._admission = admission
        self._directory = directory
        self._snapshot = snapshot

    def authenticate(self, metadata: Metadata) -> Access:
        """In a thread: the answer may have to be asked for.

        Raises:
            PermissionError: the token is not good; the text is for the client.
            ForbiddenError: it is, and there is nothing here for its owner.
        """
        try:
            caller = self._verifier.verify(bearer_token(metadata), time.time())
        except AuthenticationError as error:
            _log.warning("xDS stream refused: %s", error)
            raise PermissionError("the token is not valid") from None
        viewpoint = self._viewpoint(caller)

        def check() -> None:
            if self._viewpoint(caller) != viewpoint:
                raise ForbiddenError(f"{caller} is not on {viewpoint} any more")

        return Access(str(caller), viewpoint, check)

    def _viewpoint(self, caller: Caller) -> Viewpoint:
        try:
            if self._admission.is_node_proxy(caller):
                return Viewpoint(node=self._admission.node_of(caller, self._directory()))
            if caller.pod:
                self._admission.node_of(caller, self._directory())
        except RefusedError as error:
            raise ForbiddenError(str(error)) from None
        viewpoint = Viewpoint("", caller.namespace, caller.service_account)
        if not self._snapshot().has_residents(viewpoint):
            account = f"{caller.namespace}/{caller.service_account}"
            raise ForbiddenError(f"{account} is no node proxy, and no workload of it is a proxy")
        return viewpoint
