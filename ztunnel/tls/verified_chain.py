"""The chain that OpenSSL verified, for revocation checks.

Python 3.13 made this public; before that the same call is there since 3.10, one level deeper.
"""

import ssl
from typing import Any


def verified_chain(tls: ssl.SSLObject) -> tuple[bytes, ...]:
    """The peer's certificates, DER, leaf first and trust anchor last.

    Where the interpreter offers neither call, the leaf alone.
    """
    public: Any = getattr(tls, "get_verified_chain", None)
    if public is not None:
        return tuple(public())
    inner: Any = getattr(tls, "_sslobj", None)
    private: Any = getattr(inner, "get_verified_chain", None)
    chain = private() if private is not None else None
    if chain:
        # ENCODING_DER of the `_ssl` module.
        return tuple(certificate.public_bytes(2) for certificate in chain)
    leaf = tls.getpeercert(binary_form=True)
    return (leaf,) if leaf else ()
