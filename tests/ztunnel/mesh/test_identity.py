"""SPIFFE identities."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztunnel.mesh.identity import Identity, IdentityError

_SEGMENTS = st.from_regex(r"[A-Za-z0-9._-]{1,20}", fullmatch=True).filter(
    lambda text: text not in (".", "..")
)


@given(st.builds(Identity, _SEGMENTS, _SEGMENTS, _SEGMENTS))
def test_what_is_written_can_be_read(identity: Identity) -> None:
    assert Identity.parse(identity.uri) == identity
    assert str(identity) == "spiffe://" + identity.principal


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "spiffe://",
        "spiffe://td",
        "spiffe://td/ns/n/sa/",
        "spiffe://td/ns//sa/s",
        "spiffe:///ns/n/sa/s",
        "spiffe://td/ns/n/sa/s/x",
        "spiffe://td/ns/n/sa/s/",
        "spiffe://td/sa/n/ns/s",
        "spiffe://td/NS/n/sa/s",
        "SPIFFE://td/ns/n/sa/s",
        "https://td/ns/n/sa/s",
        "spiffe://td/ns/n/sa/s?x",
        "spiffe://td/ns/n/sa/s\n",
        "spiffe://td/ns/../sa/s",
        "spiffe://td/ns/n/sa/%73",
        "spiffe://td:1/ns/n/sa/s",
        "spiffe://td/ns/n/sa/ß",
        f"spiffe://td/ns/n/sa/{'s' * 2048}",
    ],
)
def test_anything_else_is_refused(uri: str) -> None:
    with pytest.raises(IdentityError):
        Identity.parse(uri)


@given(st.text())
def test_no_text_is_read_as_another(text: str) -> None:
    try:
        identity = Identity.parse(text)
    except IdentityError:
        return
    assert identity.uri == text
