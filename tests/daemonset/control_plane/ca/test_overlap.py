"""Changing the authority so that no connection breaks."""

from __future__ import annotations

import datetime

from cryptography import x509

from daemonset.control_plane.ca.authority import Authority
from daemonset.control_plane.ca.issuer import Issuer, new_root
from daemonset.control_plane.ca.overlap import RootOverlap, roots_of

START = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
OVERLAP = datetime.timedelta(hours=48)
HOUR = datetime.timedelta(hours=1)


def make(name: str, *others: x509.Certificate) -> Authority:
    """An authority with a root of its own and an intermediate; ``others`` are trusted as well."""
    key, root = new_root(name, START)
    own_key, own = Issuer(key, (), root).new_intermediate(f"{name} 1", START)
    return Authority(Issuer(own_key, (own,), own), (root, *others))


OLD = make("old")
NEW = make("new")
[OLD_ROOT] = OLD.roots
[NEW_ROOT] = NEW.roots


def test_what_does_not_change_stays_equal() -> None:
    overlap = RootOverlap(OLD, OVERLAP)
    for hours in (0, 1, 100, 1000):
        assert overlap.next(OLD, START + hours * HOUR) == OLD


def test_another_root_is_handed_out_before_anything_is_signed_below_it() -> None:
    overlap = RootOverlap(OLD, OVERLAP)
    for hours in (0, 1, 47):
        now = overlap.next(NEW, START + hours * HOUR)
        assert now.issuer == OLD.issuer
        assert now.roots == (OLD_ROOT, NEW_ROOT)
    # Whoever holds a certificate from before is trusted until it has been renewed.
    for hours in (48, 49, 94):
        now = overlap.next(NEW, START + hours * HOUR)
        assert now.issuer == NEW.issuer
        assert set(now.roots) == {OLD_ROOT, NEW_ROOT}
        assert now.roots[0] == NEW_ROOT
    assert overlap.next(NEW, START + 97 * HOUR) == NEW


def test_a_new_intermediate_below_the_same_root_signs_at_once() -> None:
    key, root = new_root("one", START)
    issuer = Issuer(key, (), root)
    first, second = (
        Authority(Issuer(own_key, (own,), own), (root,))
        for own_key, own in (issuer.new_intermediate(f"one {n}", START) for n in range(2))
    )
    overlap = RootOverlap(first, OVERLAP)
    assert overlap.next(second, START) == second


def test_a_user_who_hands_out_both_roots_first_waits_no_longer() -> None:
    both = Authority(OLD.issuer, (OLD_ROOT, NEW_ROOT))
    overlap = RootOverlap(OLD, OVERLAP)
    assert overlap.next(both, START) == both
    assert overlap.next(both, START + 48 * HOUR) == both
    switched = Authority(NEW.issuer, (NEW_ROOT, OLD_ROOT))
    assert overlap.next(switched, START + 49 * HOUR) == switched


def test_a_change_that_is_taken_back_leaves_things_as_they_were() -> None:
    overlap = RootOverlap(OLD, OVERLAP)
    overlap.next(NEW, START)
    assert overlap.next(OLD, START + HOUR).issuer == OLD.issuer
    assert overlap.next(OLD, START + 60 * HOUR) == OLD


def test_a_root_that_comes_back_much_later_is_new_to_everybody() -> None:
    overlap = RootOverlap(OLD, OVERLAP)
    overlap.next(NEW, START)
    overlap.next(OLD, START + HOUR)
    assert overlap.next(OLD, START + 100 * HOUR) == OLD
    now = overlap.next(NEW, START + 101 * HOUR)
    assert now.issuer == OLD.issuer
    assert now.roots == (OLD_ROOT, NEW_ROOT)


def test_which_roots_an_authority_stands_below() -> None:
    assert roots_of(make("own", OLD_ROOT))[0] != OLD_ROOT
    key, root = new_root("alone", START)
    assert roots_of(Authority(Issuer(key, (), root), (OLD_ROOT, root))) == [root]
