"""SPIFFE identities of workloads."""

from __future__ import annotations

import re
from typing import NamedTuple

_SCHEME = "spiffe://"
# Characters that the SPIFFE ID standard (section 2) allows in a trust domain or a path segment.
# Capitals are not allowed in trust domains there, but meshes with such names exist.
_SEGMENT = re.compile(r"[A-Za-z0-9._-]+\Z")
_MAX_LENGTH = 2048  # SPIFFE ID, section 2.3


class IdentityError(ValueError):
    """A URI that is not spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT."""


def valid_segment(text: str) -> bool:
    """Whether `text` can be a trust domain, namespace or service account in an identity."""
    return _SEGMENT.match(text) is not None and text not in (".", "..")


class Identity(NamedTuple):
    """Who a workload is: the service account that it runs as.

    A named tuple, because identities are keys of hot dictionaries.
    """

    trust_domain: str
    namespace: str
    service_account: str

    @property
    def principal(self) -> str:
        """The identity as policies write it: the URI without its scheme."""
        return f"{self.trust_domain}/ns/{self.namespace}/sa/{self.service_account}"

    @property
    def uri(self) -> str:
        """The identity as certificates carry it, in a URI subject alternative name."""
        return _SCHEME + self.principal

    def __str__(self) -> str:
        return self.uri

    @classmethod
    def parse(cls, uri: str) -> Identity:
        """Read spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT.

        Raises:
            IdentityError: anything else, also more or fewer parts.
        """
        if not uri.startswith(_SCHEME):
            raise IdentityError(f"{uri!r} does not begin with {_SCHEME}")
        if len(uri) > _MAX_LENGTH:
            raise IdentityError(f"{len(uri)} characters are more than SPIFFE allows")
        parts = uri[len(_SCHEME) :].split("/")
        if len(parts) != 5 or parts[1] != "ns" or parts[3] != "sa":
            raise IdentityError(f"{uri!r} is not spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/ACCOUNT")
        for part in parts[::2]:
            if not valid_segment(part):
                raise IdentityError(f"{uri!r} has an empty or illegal part {part!r}")
        return cls(parts[0], parts[2], parts[4])
