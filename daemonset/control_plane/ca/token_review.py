"""Tokens of Kubernetes' service accounts: the API server says whose they are (TokenReview)."""

from __future__ import annotations

import hashlib
import threading

import trio

from daemonset.control_plane.ca.authenticator import AuthenticationError, Caller
from daemonset.control_plane.ca.tokens import AUDIENCE, MAX_TOKEN_BYTES
from daemonset.kube.client import ApiError, ApiUnavailableError, Json, KubeClient

CACHE_SECONDS = 30.0
_CACHED = 10_000
_PATH = "/apis/authentication.k8s.io/v1/tokenreviews"
_ACCOUNT = "system:serviceaccount:"
_EXTRA = "authentication.kubernetes.io/"


class TokenReviewVerifier:
    """Asks the API server about each token, and remembers a good answer briefly.

    A token whose pod is deleted is good for at most that much longer; admission looks at the pod
    each time all the same. Made in the trio thread that runs ``client``; ``verify`` is for others.
    """

    def __init__(self, client: KubeClient) -> None:
        self._client = client
        self._token = trio.lowlevel.current_trio_token()
        self._lock = threading.Lock()
        self._known: dict[bytes, tuple[float, Caller]] = {}

    def verify(self, token: str, now: float) -> Caller:
        """Who speaks. Blocks for as long as the API server takes.

        Raises:
            AuthenticationError: the token is not good, not for us, or cannot be reviewed.
        """
        if len(token) > MAX_TOKEN_BYTES:
            raise AuthenticationError("the token is too long")
        # A copy of the cache must not be worth stealing.
        key = hashlib.sha256(token.encode()).digest()
        with self._lock:
            found = self._known.get(key)
        if found is not None and now < found[0]:
            return found[1]
        try:
            answer = trio.from_thread.run(self._review, token, trio_token=self._token)
        except (ApiError, ApiUnavailableError) as error:
            raise AuthenticationError(f"the token cannot be reviewed: {error}") from None
        except (trio.RunFinishedError, trio.Cancelled):
            raise AuthenticationError("the control plane is ending") from None
        caller = read_review(answer)
        with self._lock:
            if len(self._known) >= _CACHED:
                self._known = {key: item for key, item in self._known.items() if now < item[0]}
            if len(self._known) < _CACHED:
                self._known[key] = (now + CACHE_SECONDS, caller)
        return caller

    async def _review(self, token: str) -> Json:
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [AUDIENCE]},
        }
        return await self._client.call("POST", _PATH, body=body)


def read_review(answer: Json) -> Caller:
    """Whom a TokenReview names.

    Raises:
        AuthenticationError: nobody, no service account, or one for another audience.
    """
    status = answer.get("status")
    if not isinstance(status, dict) or status.get("authenticated") is not True:
        error = status.get("error") if isinstance(status, dict) else None
        raise AuthenticationError(f"not a good token: {error or 'the API server does not say why'}")
    # An API server that knows nothing of audiences leaves them out of its answer, and would take
    # a token that was meant for somebody else.
    if AUDIENCE not in (status.get("audiences") or ()):
        raise AuthenticationError(f"the token is not for {AUDIENCE!r}")
    user = status.get("user") or {}
    name = str(user.get("username", ""))
    namespace, colon, account = name.removeprefix(_ACCOUNT).partition(":")
    if not name.startswith(_ACCOUNT) or not colon or not namespace or not account:
        raise AuthenticationError(f"{name!r} is no service account")
    extra = user.get("extra") or {}
    pod = _one(extra, "pod-name")
    # Whoever may make tokens for a node's name is no pod on it: without a pod the node is nothing.
    return Caller(
        namespace=namespace,
        service_account=account,
        pod=pod,
        pod_uid=_one(extra, "pod-uid"),
        node=_one(extra, "node-name") if pod else "",
    )


def _one(extra: dict[str, object], name: str) -> str:
    values = extra.get(_EXTRA + name)
    return str(values[0]) if isinstance(values, list) and len(values) == 1 else ""
