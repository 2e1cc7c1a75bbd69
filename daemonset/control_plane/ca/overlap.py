"""Changing the authority so that no connection breaks. Pure.

Workloads learn of roots when they renew their certificates. So a new root is handed out for a
while before anything is signed below it, and an old one for as long after the last was signed:
whatever the user changes at once is carried out in that order. Both times are counted from when
this process first saw the change; one that starts afresh takes the Secret at its word.
"""

from __future__ import annotations

import datetime
from dataclasses import replace

from cryptography import x509

from daemonset.control_plane.ca.authority import Authority, is_issued


class RootOverlap:
    """Decides what is in force, from what is found.

    Args:
        first: what is in force at first, and trusted by everybody.
        overlap: how long it takes until every workload has renewed.
    """

    def __init__(self, first: Authority, overlap: datetime.timedelta) -> None:
        self._overlap = overlap
        self._current = first
        self._first_seen: dict[x509.Certificate, datetime.datetime] = {}
        self._last_seen: dict[x509.Certificate, datetime.datetime] = {}
        self._trusted = set(first.roots)

    def next(self, found: Authority, now: datetime.datetime) -> Authority:
        """The authority to have in force; equal to the one before where nothing changes."""
        for root in found.roots:
            since = self._first_seen.setdefault(root, now)
            if now - since >= self._overlap:
                self._trusted.add(root)
        for root in (*self._current.roots, *found.roots):
            self._last_seen.setdefault(root, now)
        self._last_seen.update(dict.fromkeys(found.roots, now))
        issuer = self._current.issuer
        if self._trusted & set(roots_of(found)):
            issuer = found.issuer
        signing = roots_of(replace(found, issuer=issuer, roots=tuple(self._last_seen)))
        self._last_seen.update(dict.fromkeys(signing, now))
        kept = [root for root, seen in self._last_seen.items() if now - seen < self._overlap]
        self._last_seen = {root: self._last_seen[root] for root in kept}
        # One that comes back after it was gone is as new to workloads as any other.
        self._first_seen = {
            root: self._first_seen[root] for root in kept if root in self._first_seen
        }
        self._trusted.intersection_update(kept)
        # The signer's root first: clients that read only one read that.
        roots = dict.fromkeys([*signing, *(root for root in found.roots if root in kept), *kept])
        self._current = Authority(issuer, tuple(roots))
        return self._current


def roots_of(authority: Authority) -> list[x509.Certificate]:
    """Those of its roots that its signing certificate stands below."""
    issuer = authority.issuer
    top = issuer.chain[-1] if issuer.chain else issuer.certificate
    return [root for root in authority.roots if root == top or is_issued(top, root)]
