"""Client of `istio.v1.auth.IstioCertificateService`, the CA of istiod and of our control plane.

Only the control process imports this: grpcio brings threads that have no place beside the
data plane.
"""

import ssl
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import trio

from ztunnel.mesh.identity import Identity
from ztunnel.proto.ca_pb2 import IstioCertificateRequest, IstioCertificateResponse

_METHOD = "/istio.v1.auth.IstioCertificateService/CreateCertificate"

_OPTIONS: tuple[tuple[str, int | str], ...] = (
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # The certificate manager decides when to ask again; a channel that waits for minutes
    # before it dials would make its attempts pointless.
    ("grpc.initial_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)


class CaError(Exception):
    """The CA could not be asked or refused; the text names the CA and its reason."""


class CaClient:
    """A `CertificateAuthority` over gRPC and TLS.

    Args:
        address: `https://host:port`.
        root: file with the CA server's roots, re-read for every request; or PEM; or None for
            the system's.
        token: file with the bearer token, re-read for every request; or the token; or None.
        cluster_id: sent as `clusterid`; it chooses the cluster that checks the token.
        headers: more metadata (`CA_HEADER_*`).
        server_name: a name to expect in the server's certificate instead of the address's
            (`ALT_CA_HOSTNAME`).
        impersonate: ask for the identity by name, as a node proxy does for its pods. Otherwise
            the CA goes by the token alone.
        timeout: seconds for one request, connecting included.

    Raises:
        ValueError: the address is not https.
    """

    def __init__(
        self,
        address: str,
        *,
        root: Path | bytes | None,
        token: Path | str | None,
        cluster_id: str,
        headers: Mapping[str, str] | None = None,
        server_name: str | None = None,
        impersonate: bool = True,
        timeout: float = 10.0,
    ) -> None:
        parts = urlsplit(address)
        if parts.scheme != "https" or not parts.netloc or parts.path not in ("", "/"):
            raise ValueError(f"the CA's address must be https://host:port, not {address!r}")
        self._target = parts.netloc if parts.port is not None else f"{parts.netloc}:443"
        self._root = root
        self._token = token
        self._metadata = [("clusterid", cluster_id)]
        self._metadata += [(name.lower(), value) for name, value in (headers or {}).items()]
        self._options = list(_OPTIONS)
        if server_name is not None:
            self._options.append(("grpc.ssl_target_name_override", server_name))
        self._impersonate = impersonate
        self._timeout = timeout
        self._channel: grpc.Channel | None = None
        self._channel_root = b""

    async def sign(self, identity: Identity, csr_pem: bytes, ttl: float) -> list[str]:
        """See `CertificateAuthority`.

        Raises:
            CaError: whatever went wrong.
        """
        request = IstioCertificateRequest(
            csr=csr_pem.decode("ascii"), validity_duration=max(int(ttl), 1)
        )
        if self._impersonate:
            request.metadata.update({"ImpersonatedIdentity": identity.uri})
        create = self._connected().unary_unary(
            _METHOD,
            request_serializer=IstioCertificateRequest.SerializeToString,
            response_deserializer=IstioCertificateResponse.FromString,
        )
        call = create.future(
            request,
            timeout=self._timeout,
            metadata=[*self._metadata, *self._authorization()],
        )
        try:
            response: IstioCertificateResponse = await trio.to_thread.run_sync(
                call.result, abandon_on_cancel=True
            )
        except grpc.RpcError as error:
            raise CaError(f"the CA at {self._target} {_reason(call)}") from error
        finally:
            call.cancel()
        return list(response.cert_chain)

    def close(self) -> None:
        """Give up the connection. Requests under way fail."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def _connected(self) -> grpc.Channel:
        root = self._read_root()
        if self._channel is None or root != self._channel_root:
            self.close()
            credentials = grpc.ssl_channel_credentials(root_certificates=root)
            self._channel = grpc.secure_channel(self._target, credentials, self._options)
            self._channel_root = root
        return self._channel

    def _read_root(self) -> bytes:
        if isinstance(self._root, bytes):
            return self._root
        path = self._root
        if path is None:
            system = ssl.get_default_verify_paths().cafile
            if system is None:
                raise CaError("the system has no bundle of roots to check the CA's server with")
            path = Path(system)
        try:
            return path.read_bytes()
        except OSError as error:
            raise CaError(f"cannot read the roots of the CA's server: {error}") from error

    def _authorization(self) -> list[tuple[str, str]]:
        if self._token is None:
            return []
        token = self._token
        if isinstance(token, Path):
            try:
                token = token.read_text("ascii")
            except (OSError, ValueError) as error:
                raise CaError(f"cannot read the token for the CA: {error}") from error
        return [("authorization", f"Bearer {token.strip()}")]


def _reason(call: grpc.Future) -> str:
    code, details = call.code(), call.details()
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"did not answer in time ({details})"
    if code is grpc.StatusCode.UNAVAILABLE:
        return f"cannot be reached: {details}"
    return f"refused: {code.name}: {details}"
