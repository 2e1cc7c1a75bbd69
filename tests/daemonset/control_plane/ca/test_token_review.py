"""What counts as a good answer to a TokenReview (real ones: tests/kube/test_ca.py)."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from daemonset.control_plane.ca.authenticator import AuthenticationError, Caller
from daemonset.control_plane.ca.token_review import (
    CACHE_SECONDS,
    TokenReviewVerifier,
    read_review,
)
from tests.support.kube.scripted_api import Exchange, scripted_api

EXTRA = {
    "authentication.kubernetes.io/pod-name": ["zt"],
    "authentication.kubernetes.io/pod-uid": ["u-1"],
    "authentication.kubernetes.io/node-name": ["node-a"],
}


def answer(
    username: str = "system:serviceaccount:istio-system:ztunnel",
    audiences: list[str] | None = None,
    extra: dict[str, list[str]] | None = None,
    authenticated: object = True,
) -> dict[str, Any]:
    user = {"username": username, "extra": EXTRA if extra is None else extra}
    return {
        "status": {
            "authenticated": authenticated,
            "audiences": ["istio-ca"] if audiences is None else audiences,
            "user": user,
        }
    }


def test_a_token_of_a_pod() -> None:
    assert read_review(answer()) == Caller("istio-system", "ztunnel", "zt", "u-1", "node-a")


def test_a_token_of_an_older_api_server_names_no_node() -> None:
    extra = {name: value for name, value in EXTRA.items() if "node" not in name}
    assert read_review(answer(extra=extra)) == Caller("istio-system", "ztunnel", "zt", "u-1", "")


def test_a_token_that_names_a_node_and_no_pod_is_on_no_node() -> None:
    extra = {"authentication.kubernetes.io/node-name": ["node-a"]}
    assert read_review(answer(extra=extra)) == Caller("istio-system", "ztunnel")


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({}, "not a good token"),
        ({"status": {"error": "expired"}}, "expired"),
        (answer(authenticated=False), "not a good token"),
        (answer(authenticated="true"), "not a good token"),
        # An API server that does not know audiences says nothing of them.
        (answer(audiences=[]), "not for 'istio-ca'"),
        (answer(audiences=["vault"]), "not for 'istio-ca'"),
        (answer(username="admin"), "no service account"),
        (answer(username="system:node:node-a"), "no service account"),
        (answer(username="system:serviceaccount:x"), "no service account"),
        (answer(username="system:serviceaccount::x"), "no service account"),
    ],
)
def test_what_is_refused(given: dict[str, Any], reason: str) -> None:
    with pytest.raises(AuthenticationError, match=reason):
        read_review(given)


def review(token: str, account: str = "ztunnel") -> dict[str, Any]:
    if token == "bad":
        return answer(authenticated=False)
    return answer(username=f"system:serviceaccount:istio-system:{account}")


async def test_a_good_answer_is_remembered_briefly_and_a_bad_one_not_at_all() -> None:
    asked: list[str] = []
    account = "ztunnel"

    async def script(exchange: Exchange) -> None:
        assert exchange.path == "/apis/authentication.k8s.io/v1/tokenreviews"
        spec = exchange.json["spec"]
        assert spec["audiences"] == ["istio-ca"]
        asked.append(spec["token"])
        await exchange.answer(review(spec["token"], account))

    async with scripted_api(script) as client:
        verifier = TokenReviewVerifier(client)

        async def verify(token: str, now: float) -> str:
            caller = await trio.to_thread.run_sync(verifier.verify, token, now)
            return caller.service_account

        assert await verify("one", 100.0) == "ztunnel"
        account = "other"
        # What the API server would say by now is not asked for.
        assert await verify("one", 100.0 + CACHE_SECONDS - 0.1) == "ztunnel"
        assert asked == ["one"]
        assert await verify("two", 101.0) == "other"
        assert await verify("one", 100.0 + CACHE_SECONDS) == "other"
        assert asked == ["one", "two", "one"]
        for _ in range(2):
            with pytest.raises(AuthenticationError):
                await verify("bad", 102.0)
        assert asked[3:] == ["bad", "bad"]
