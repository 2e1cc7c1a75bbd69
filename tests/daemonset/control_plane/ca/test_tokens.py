"""Tokens: minting, and every way in which one is refused."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, hmac, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from hypothesis import given
from hypothesis import strategies as st

from daemonset.control_plane.ca.authenticator import (
    AuthenticationError,
    Caller,
    Metadata,
    bearer_token,
)
from daemonset.control_plane.ca.issuer import AuthorityError, key_to_pem, new_key
from daemonset.control_plane.ca.private_files import UnsafeFileError
from daemonset.control_plane.ca.tokens import (
    TokenSigner,
    TokenSubject,
    TokenVerifier,
    key_id,
    open_token_key,
)

Make = Callable[[Any, Any], str]

KEY = new_key()
SIGNER, VERIFIER = TokenSigner(KEY), TokenVerifier(KEY.public_key())
NOW = 1_000_000.0
SUBJECT = TokenSubject("istio-system", "ztunnel", node="node-a", pod="zt-1", pod_uid="u-1")


def encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def decode(text: str) -> dict[str, object]:
    value: dict[str, object] = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    return value


def sign(header: object, claims: object, key: ec.EllipticCurvePrivateKey = KEY) -> str:
    signed = f"{encode(json.dumps(header).encode())}.{encode(json.dumps(claims).encode())}"
    r, s = decode_dss_signature(key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
    return f"{signed}.{encode(r.to_bytes(32) + s.to_bytes(32))}"


HEADER = {"alg": "ES256", "kid": key_id(KEY.public_key()), "typ": "JWT"}
CLAIMS = decode(SIGNER.mint(SUBJECT, NOW, 60.0).split(".")[1])


def test_what_was_minted_is_verified() -> None:
    token = SIGNER.mint(SUBJECT, NOW, 60.0)
    assert VERIFIER.verify(token, NOW) == Caller(
        "istio-system", "ztunnel", pod="zt-1", pod_uid="u-1", node="node-a"
    )
    assert CLAIMS["aud"] == ["istio-ca"]
    assert CLAIMS["sub"] == "system:serviceaccount:istio-system:ztunnel"
    assert sign(HEADER, CLAIMS).count(".") == 2
    assert VERIFIER.verify(sign(HEADER, CLAIMS), NOW).node == "node-a"


def other_key(header: dict[str, object], claims: dict[str, object]) -> str:
    return sign(header, claims, new_key())


def unsigned(header: dict[str, object], claims: dict[str, object]) -> str:
    return sign({**header, "alg": "none"}, claims).rpartition(".")[0] + "."


def hmac_with_the_public_key(header: dict[str, object], claims: dict[str, object]) -> str:
    signed = sign({**header, "alg": "HS256"}, claims).rpartition(".")[0]
    public = KEY.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    code = hmac.HMAC(public, hashes.SHA256())
    code.update(signed.encode())
    return f"{signed}.{encode(code.finalize())}"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (other_key, "the signature is wrong"),
        (unsigned, "signed with 'none', not with ES256"),
        (hmac_with_the_public_key, "signed with 'HS256', not with ES256"),
        (lambda h, c: sign({**h, "alg": "ES384"}, c), "not with ES256"),
        (lambda h, c: sign({**h, "kid": "x"}, c), "a key that is not known"),
        (lambda h, c: sign({**h, "crit": ["exp"]}, c), "demands extensions"),
        (lambda h, c: sign(h, {**c, "iss": "https://elsewhere"}), "issued by"),
        (lambda h, c: sign(h, {**c, "aud": ["vault"]}), "not for 'istio-ca'"),
        (lambda h, c: sign(h, {k: v for k, v in c.items() if k != "aud"}), "not for 'istio-ca'"),
        (lambda h, c: sign(h, {**c, "exp": NOW + 31.5}), "exp is not a time"),
        (lambda h, c: sign(h, {**c, "exp": int(NOW) - 31}), "expired"),
        (lambda h, c: sign(h, {k: v for k, v in c.items() if k != "exp"}), "exp is not a time"),
        (lambda h, c: sign(h, {**c, "exp": True}), "exp is not a time"),
        (lambda h, c: sign(h, {**c, "nbf": int(NOW) + 31}), "not valid yet"),
        (lambda h, c: sign(h, {k: v for k, v in c.items() if k != "nbf"}), "nbf is not a time"),
        (lambda h, c: sign(h, {**c, "sub": "system:serviceaccount:a:b"}), "different accounts"),
        (lambda h, c: sign(h, {**c, "kubernetes.io": "x"}), "no kubernetes.io claim"),
        (lambda h, c: sign(h, {**c, "kubernetes.io": {}}), "no service account"),
        (
            lambda h, c: sign(h, {**c, "kubernetes.io": {**c["kubernetes.io"], "pod": "x"}}),
            "pod is not an object",
        ),
        (
            lambda h, c: sign(
                h, {**c, "kubernetes.io": {**c["kubernetes.io"], "node": {"name": 7}}}
            ),
            "name is not a string",
        ),
        (lambda h, c: sign(h, [1]), "not a JSON object"),
        (lambda h, c: sign(h, c) + "A", "wrong length"),
        (lambda h, c: sign(h, c) + "=", "not base64url"),
        (lambda h, c: sign(h, c)[:-6], "wrong length"),
        (lambda h, c: sign(h, c) + ".x", "three parts"),
        (lambda h, c: "x.y", "three parts"),
        (lambda h, c: "", "three parts"),
        (lambda h, c: "a" * 20_000, "too long"),
        (lambda h, c: encode(b"{") + ".e30.e30", "not JSON"),
        (lambda h, c: encode(b"[" * 5000) + ".e30.e30", "not JSON"),
    ],
)
def test_tokens_that_are_refused(make: Make, reason: str) -> None:
    with pytest.raises(AuthenticationError, match=reason):
        VERIFIER.verify(make(HEADER, CLAIMS), NOW)


def test_clocks_may_differ_by_half_a_minute() -> None:
    for claims in ({"exp": int(NOW) - 29}, {"nbf": int(NOW) + 29}):
        assert VERIFIER.verify(sign(HEADER, {**CLAIMS, **claims}), NOW)


@given(
    token=st.text(max_size=100) | st.from_regex(r"[A-Za-z0-9_-]{0,40}(\.[A-Za-z0-9_-]{0,40}){2}")
)
def test_any_text_is_refused(token: str) -> None:
    with pytest.raises(AuthenticationError):
        VERIFIER.verify(token, NOW)


@given(position=st.integers(0, 400), character=st.sampled_from("AZaz09-_"))
def test_a_changed_character_is_noticed(position: int, character: str) -> None:
    token = SIGNER.mint(SUBJECT, NOW, 60.0)
    position %= len(token)
    changed = token[:position] + character + token[position + 1 :]
    if changed == token:
        return
    with pytest.raises(AuthenticationError):
        VERIFIER.verify(changed, NOW)


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ([], "no authorization"),
        ([("authorization", "Basic x")], "no bearer token"),
        ([("authorization", "Bearer")], "no bearer token"),
        ([("authorization", "Bearer a"), ("authorization", "Bearer b")], "more than once"),
    ],
)
def test_metadata_without_a_token(metadata: Metadata, reason: str) -> None:
    with pytest.raises(AuthenticationError, match=reason):
        bearer_token(metadata)


def test_metadata_with_a_token() -> None:
    assert bearer_token([("x", "y"), ("Authorization", "bearer abc ")]) == "abc"
    assert bearer_token([("authorization", b"Bearer abc")]) == "abc"


def test_the_key_is_made_once_and_kept_private(tmp_path: Path) -> None:
    state = tmp_path / "state"
    first = open_token_key(state)
    token = first.mint(SUBJECT, NOW, 60.0)
    assert TokenVerifier(open_token_key(state).public_key).verify(token, NOW)
    path = state / "tokens/key.pem"
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o640)
    with pytest.raises(UnsafeFileError, match=r"open to others \(mode 0640\)"):
        open_token_key(state)


def test_a_key_of_another_kind_is_refused(tmp_path: Path) -> None:
    open_token_key(tmp_path / "state")
    path = tmp_path / "state/tokens/key.pem"
    path.write_bytes(key_to_pem(ec.generate_private_key(ec.SECP384R1())))
    with pytest.raises(AuthorityError, match="must be an EC P-256 key"):
        open_token_key(tmp_path / "state")
