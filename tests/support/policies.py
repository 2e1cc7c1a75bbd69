"""Policies of the namespace whose pods the proxies of a test serve."""

from tests.support.proxies import NAMESPACE
from ztunnel.mesh.policy import (
    Authorization,
    Match,
    PolicyAction,
    PolicyScope,
    StringMatch,
    StringMatchKind,
)

CLIENT = StringMatch(StringMatchKind.EXACT, f"cluster.local/ns/{NAMESPACE}/sa/client")
ANYBODY = StringMatch(StringMatchKind.PRESENCE)


def policy(
    name: str,
    action: PolicyAction,
    match: Match,
    scope: PolicyScope = PolicyScope.NAMESPACE,
) -> Authorization:
    """One rule of one match."""
    return Authorization(name, NAMESPACE, scope, action, rules=(((match,),),))


DENY_CLIENT = policy("deny-client", PolicyAction.DENY, Match(principals=(CLIENT,)))

STRICT = policy("strict", PolicyAction.DENY, Match(not_principals=(ANYBODY,)))
"""Who has no identity may not come in."""
