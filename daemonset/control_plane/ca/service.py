"""The certificate service: IstioCertificateService/CreateCertificate."""

from __future__ import annotations

import asyncio
import datetime
import logging
import time
from collections.abc import Callable
from typing import NoReturn

import grpc

from daemonset.control_plane.ca.admission import Admission, Directory, RefusedError
from daemonset.control_plane.ca.authenticator import (
    AuthenticationError,
    Metadata,
    Verifier,
    bearer_token,
)
from daemonset.control_plane.ca.authority import AuthorityHolder
from daemonset.control_plane.ca.csr import CsrError, public_key_of
from daemonset.control_plane.ca.issuer import to_pem
from daemonset.control_plane.ca.lifetimes import Lifetimes
from daemonset.control_plane.metrics import ControlPlaneMetrics
from ztunnel.proto import ca_pb2

_log = logging.getLogger("daemonset.control_plane.ca")

SERVICE = "istio.v1.auth.IstioCertificateService"


class RefusalError(Exception):
    """A request that is not signed; the client gets status and text."""

    def __init__(self, status: grpc.StatusCode, reason: str, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.reason = reason


class CertificateService:
    """Signs for callers what they may ask for. Stateless; any thread."""

    def __init__(
        self,
        authority: AuthorityHolder,
        verifier: Verifier,
        admission: Admission,
        directory: Callable[[], Directory],
        metrics: ControlPlaneMetrics,
        lifetimes: Lifetimes | None = None,
    ) -> None:
        self._authority = authority
        self._verifier = verifier
        self._admission = admission
        self._directory = directory
        self._metrics = metrics
        self._lifetimes = lifetimes or Lifetimes()

    def create(
        self, request: ca_pb2.IstioCertificateRequest, metadata: Metadata, peer: str
    ) -> ca_pb2.IstioCertificateResponse:
        """Sign, or refuse.

        Raises:
            RefusalError: logged already.
        """
        try:
            caller = self._verifier.verify(bearer_token(metadata), time.time())
        except AuthenticationError as error:
            # Whoever has no valid token does not learn what is wrong with it.
            status = grpc.StatusCode.UNAUTHENTICATED
            self._refuse(status, "token", "the token is not valid", f"{peer}: {error}")
        wanted = ""
        if "ImpersonatedIdentity" in request.metadata.fields:
            wanted = request.metadata.fields["ImpersonatedIdentity"].string_value
            if not wanted:
                text = "ImpersonatedIdentity is empty"
                status = grpc.StatusCode.INVALID_ARGUMENT
                self._refuse(status, "identity", text, f"{caller}: {text}")
        try:
            identity = self._admission.identity(caller, wanted, self._directory())
        except RefusedError as error:
            text = f"{caller} may not have {wanted or 'its own identity'}: {error}"
            self._refuse(grpc.StatusCode.PERMISSION_DENIED, "identity", text, text)
        try:
            key = public_key_of(request.csr)
            lifetime = self._lifetime(request.validity_duration)
        except CsrError as error:
            text = f"{caller} asks for {identity}: {error}"
            self._refuse(grpc.StatusCode.INVALID_ARGUMENT, "csr", str(error), text)
        authority = self._authority.get()
        now = datetime.datetime.now(datetime.UTC)
        certificate = authority.issuer.workload(key, identity.uri, lifetime, now)
        self._metrics.certificate_signed()
        until = certificate.not_valid_after_utc.isoformat()
        _log.info(
            "signed %s for %s, serial %x, valid until %s",
            identity,
            caller,
            certificate.serial_number,
            until,
        )
        # The leaf, one intermediate per element, all roots in the last: without this a client
        # could not tell roots from intermediates.
        chain = [to_pem(certificate), *authority.chain_pem, authority.roots_pem]
        return ca_pb2.IstioCertificateResponse(cert_chain=chain)

    def _lifetime(self, seconds: int) -> datetime.timedelta:
        if seconds == 0:
            return self._lifetimes.default
        longest = self._lifetimes.longest.total_seconds()
        if not 0 < seconds <= longest:
            raise CsrError(f"a lifetime of {seconds} s (longest: {longest:.0f} s)")
        return datetime.timedelta(seconds=seconds)

    def _refuse(self, status: grpc.StatusCode, reason: str, text: str, logged: str) -> NoReturn:
        _log.warning("certificate refused: %s", logged)
        self._metrics.certificate_refused(reason)
        raise RefusalError(status, reason, text)

    def handler(self) -> grpc.GenericRpcHandler:
        """The handler for an asyncio server."""

        async def create(
            request: ca_pb2.IstioCertificateRequest, context: grpc.aio.ServicerContext
        ) -> ca_pb2.IstioCertificateResponse | None:
            metadata = context.invocation_metadata() or ()
            try:
                # Who calls may have to be asked for elsewhere.
                return await asyncio.to_thread(self.create, request, metadata, context.peer())
            except RefusalError as error:
                await context.abort(error.status, str(error))
                return None

        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "CreateCertificate": grpc.unary_unary_rpc_method_handler(
                    create,
                    request_deserializer=ca_pb2.IstioCertificateRequest.FromString,
                    response_serializer=ca_pb2.IstioCertificateResponse.SerializeToString,
                )
            },
        )
