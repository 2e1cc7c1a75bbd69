"""What stands in for an object that cannot be read, and of which no good version is known. Pure.

A policy that vanishes because of a mistake in it would open what it should close. It is replaced
by one that refuses everything in its scope, as far as the scope can be read, until it is mended.
Other kinds guard nothing: they are left out.
"""

from __future__ import annotations

from daemonset.control_plane.objects.authorization_policy import AuthorizationPolicy, Rule
from daemonset.control_plane.objects.located import Located
from daemonset.control_plane.objects.meta import read_meta
from daemonset.control_plane.objects.peer_authentication import (
    MutualTLSMode,
    PeerAuthentication,
    read_workload_selector,
)
from daemonset.control_plane.objects.section import ObjectError, Section
from daemonset.control_plane.objects.selector import LabelSelector

CONSEQUENCES = {
    "AuthorizationPolicy": "everything that it selects is refused until it can be read",
    "PeerAuthentication": "everything that it selects is STRICT until it can be read",
}


def stand_in(kind: str, value: Located) -> AuthorizationPolicy | PeerAuthentication | None:
    """The closed form of an object; None for kinds that guard nothing."""
    if kind not in CONSEQUENCES:
        return None
    try:
        root = Section(value)
        meta = read_meta(root, kind, namespaced=True)
        selector = _selector(root)
    except ObjectError:
        return None  # not even a name: the API server holds no such object
    if kind == "PeerAuthentication":
        return PeerAuthentication(meta, selector, MutualTLSMode.STRICT, {})
    everything = Rule("spec.rules[0]", (), (), ())
    # What was only to be tried out refuses nobody, with or without mistakes.
    dry_run = meta.annotations.get("istio.io/dry-run") == "true"
    return AuthorizationPolicy(meta, selector, (), "DENY", (everything,), "", dry_run)


def _selector(root: Section) -> LabelSelector | None:
    try:
        return read_workload_selector(root.section("spec"))
    except ObjectError:
        return None  # the whole namespace
