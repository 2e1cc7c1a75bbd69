"""While keys of the authority change, everybody goes on trusting everybody.

Workloads renew their certificates at half of their life, each at a time of its own, and learn of
roots only then. At every hour of a rotation each must accept each other's certificate.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from daemonset.control_plane.ca.authority import Authority
from daemonset.control_plane.ca.generations import OVERLAP, open_state, rotate
from daemonset.control_plane.ca.issuer import Issuer, new_key, new_root
from daemonset.control_plane.ca.overlap import RootOverlap

START = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
HOUR = datetime.timedelta(hours=1)
LIFETIME = datetime.timedelta(hours=24)
RENEWED_EVERY = 12  # hours
IDENTITY = "spiffe://cluster.local/ns/shop/sa/web"
KEY = new_key().public_key()

Plane = Callable[[datetime.datetime], Authority]
"""The authority in force at a time; asked in order of time."""


@dataclass(frozen=True)
class Held:
    """What a workload has from its last renewal."""

    leaf: x509.Certificate
    chain: tuple[x509.Certificate, ...]
    roots: tuple[x509.Certificate, ...]

    def trusts(self, other: Held, now: datetime.datetime) -> bool:
        verifier = PolicyBuilder().store(Store([*self.roots])).time(now).build_client_verifier()
        try:
            verifier.verify(other.leaf, list(other.chain))
        except VerificationError:
            return False
        return True


def renew(authority: Authority, now: datetime.datetime) -> Held:
    issuer = authority.issuer
    return Held(issuer.workload(KEY, IDENTITY, LIFETIME, now), issuer.chain, authority.roots)


def follow(plane: Plane, hours: int) -> list[Held]:
    """Every workload through so many hours; what they hold in the end."""
    held = [renew(plane(START), START) for _ in range(RENEWED_EVERY)]
    for hour in range(1, hours):
        now = START + hour * HOUR
        authority = plane(now)
        held[hour % RENEWED_EVERY] = renew(authority, now)
        # One that starts at this moment is a workload as any other.
        fresh = renew(authority, now)
        for one in (*held, fresh):
            for other in {id(item): item for item in (held[0], held[hour % 12], fresh)}.values():
                assert one.trusts(other, now), f"hour {hour}"
                assert other.trusts(one, now), f"hour {hour}"
    return held


def authority_of(key_and_root: tuple[object, x509.Certificate], name: str) -> Authority:
    key, root = key_and_root
    own_key, own = Issuer(key, (), root).new_intermediate(name, START)  # type: ignore[arg-type]
    return Authority(Issuer(own_key, (own,), own), (root,))


def test_a_root_that_the_user_replaces_at_once() -> None:
    old = authority_of(new_root("old", START), "old 1")
    new = authority_of(new_root("new", START), "new 1")
    overlap = RootOverlap(old, OVERLAP)
    held = follow(lambda now: overlap.next(new if now > START + 20 * HOUR else old, now), 140)
    assert all(one.roots == new.roots for one in held)


def test_without_overlap_it_would_break() -> None:
    """That the test above can fail."""
    old = authority_of(new_root("old", START), "old 1")
    new = authority_of(new_root("new", START), "new 1")
    with pytest.raises(AssertionError, match="hour 21"):
        follow(lambda now: new if now > START + 20 * HOUR else old, 140)


def test_an_intermediate_that_the_user_replaces() -> None:
    top = new_root("one", START)
    first, second = authority_of(top, "first"), authority_of(top, "second")
    overlap = RootOverlap(first, OVERLAP)
    held = follow(lambda now: overlap.next(second if now > START + 20 * HOUR else first, now), 60)
    assert {one.chain for one in held} == {second.issuer.chain}


def test_a_new_root_of_a_mesh_from_a_folder(tmp_path: Path) -> None:
    rotated: list[datetime.datetime] = []

    def plane(now: datetime.datetime) -> Authority:
        if now >= START + 20 * HOUR and not rotated:
            rotated.append(now)
            rotate(tmp_path / "ca", "cluster.local", now)
        return open_state(tmp_path / "ca", "cluster.local", now)

    held = follow(plane, 90)
    signers = {one.leaf.issuer for one in held}
    assert len(signers) == 1
    assert all(len(one.roots) == 2 for one in held)
