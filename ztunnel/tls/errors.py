"""What can go wrong in TLS, told by the name the protocol gives it.

Every failure carries an alert (RFC 8446 section 6): either the one the peer sent us, or the
one that we owe the peer, in which case `TlsError.reply` holds the bytes that still have to be
written to the socket before it is closed.
"""

import enum
import ssl


class Alert(enum.IntEnum):
    """Alert descriptions of RFC 8446 section 6 (and 7301 for ALPN)."""

    CLOSE_NOTIFY = 0
    UNEXPECTED_MESSAGE = 10
    BAD_RECORD_MAC = 20
    RECORD_OVERFLOW = 22
    HANDSHAKE_FAILURE = 40
    BAD_CERTIFICATE = 42
    UNSUPPORTED_CERTIFICATE = 43
    CERTIFICATE_REVOKED = 44
    CERTIFICATE_EXPIRED = 45
    CERTIFICATE_UNKNOWN = 46
    ILLEGAL_PARAMETER = 47
    UNKNOWN_CA = 48
    ACCESS_DENIED = 49
    DECODE_ERROR = 50
    DECRYPT_ERROR = 51
    PROTOCOL_VERSION = 70
    INSUFFICIENT_SECURITY = 71
    INTERNAL_ERROR = 80
    INAPPROPRIATE_FALLBACK = 86
    USER_CANCELED = 90
    MISSING_EXTENSION = 109
    UNSUPPORTED_EXTENSION = 110
    UNRECOGNIZED_NAME = 112
    BAD_CERTIFICATE_STATUS_RESPONSE = 113
    UNKNOWN_PSK_IDENTITY = 115
    CERTIFICATE_REQUIRED = 116
    NO_APPLICATION_PROTOCOL = 120

    @property
    def label(self) -> str:
        """The name as the RFC spells it, `unknown_ca`."""
        return self.name.lower()


# Alerts by which a peer tells that it does not accept the certificate we presented.
_ABOUT_OUR_CERTIFICATE = frozenset(
    {
        Alert.BAD_CERTIFICATE,
        Alert.UNSUPPORTED_CERTIFICATE,
        Alert.CERTIFICATE_REVOKED,
        Alert.CERTIFICATE_EXPIRED,
        Alert.CERTIFICATE_UNKNOWN,
        Alert.UNKNOWN_CA,
        Alert.ACCESS_DENIED,
        Alert.CERTIFICATE_REQUIRED,
    }
)

_BY_LABEL = {alert.label: alert for alert in Alert}

# X509_V_ERR_* numbers of OpenSSL, for those whose alert is not bad_certificate. The table
# repeats what OpenSSL itself sends (its alert is encrypted, so it cannot be read back).
_BY_VERIFY_CODE = {
    2: Alert.UNKNOWN_CA,  # unable to get issuer certificate
    10: Alert.CERTIFICATE_EXPIRED,
    18: Alert.UNKNOWN_CA,  # self-signed leaf
    19: Alert.UNKNOWN_CA,  # self-signed certificate in chain
    20: Alert.UNKNOWN_CA,  # unable to get local issuer certificate
    21: Alert.UNKNOWN_CA,  # unable to verify the first certificate
    22: Alert.UNKNOWN_CA,  # chain too long
    23: Alert.CERTIFICATE_REVOKED,
    24: Alert.UNKNOWN_CA,  # issuer is not a CA
    26: Alert.UNSUPPORTED_CERTIFICATE,  # wrong purpose
}

# Reasons of OpenSSL whose text would mislead somebody who reads a mesh's log.
_BY_REASON = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": (
        Alert.CERTIFICATE_REQUIRED,
        "the peer presented no certificate",
    ),
    "WRONG_VERSION_NUMBER": (Alert.PROTOCOL_VERSION, "the peer does not speak TLS"),
    "HTTP_REQUEST": (Alert.PROTOCOL_VERSION, "the peer speaks plaintext HTTP, not TLS"),
    "UNSUPPORTED_PROTOCOL": (Alert.PROTOCOL_VERSION, "the peer does not offer TLS 1.3"),
    "NO_SHARED_CIPHER": (Alert.HANDSHAKE_FAILURE, "no cipher suite in common"),
    "NO_SUITABLE_KEY_SHARE": (Alert.HANDSHAKE_FAILURE, "no key exchange group in common"),
    "NO_SHARED_GROUP": (Alert.HANDSHAKE_FAILURE, "no key exchange group in common"),
}


class TlsError(Exception):
    """A TLS connection that failed, or a peer that ended it with a fatal alert.

    Attributes:
        alert: what the failure is called on the wire.
        from_peer: the peer told us so; otherwise we found it ourselves.
        reply: bytes to send to the peer before closing, possibly none.
    """

    def __init__(
        self, alert: Alert, words: str, *, from_peer: bool = False, reply: bytes = b""
    ) -> None:
        super().__init__(words)
        self.alert = alert
        self.from_peer = from_peer
        self.reply = reply


class PeerRefused(TlsError):
    """The peer's certificate chain is valid, but it is not who may talk to us here."""


def peer_alert(code: int) -> TlsError:
    """The error that stands for a fatal alert received from the peer."""
    try:
        alert = Alert(code)
    except ValueError:
        words = f"the peer ended the connection with the unknown TLS alert {code}"
        return TlsError(Alert.INTERNAL_ERROR, words, from_peer=True)
    words = f"the peer ended the connection with TLS alert {alert.label}"
    if alert in _ABOUT_OUR_CERTIFICATE:
        words = f"the peer refused our certificate: TLS alert {alert.label}"
    return TlsError(alert, words, from_peer=True)


def from_ssl(error: ssl.SSLError, reply: bytes = b"") -> TlsError:
    """Name an exception of the `ssl` module.

    Args:
        error: what `SSLObject` raised.
        reply: what it left to be sent, its alert most of the time.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        alert = _BY_VERIFY_CODE.get(error.verify_code, Alert.BAD_CERTIFICATE)
        words = f"the peer's certificate is not valid: {error.verify_message}"
        return TlsError(alert, words, reply=reply)
    reason = error.reason or ""
    if reason in _BY_REASON:
        alert, words = _BY_REASON[reason]
        return TlsError(alert, words, reply=reply)
    # Alerts received are reasons such as TLSV1_ALERT_UNKNOWN_CA or SSLV3_ALERT_BAD_CERTIFICATE;
    # the prefix tells only which RFC introduced the alert.
    _, marker, label = reason.partition("_ALERT_")
    if marker and label.lower() in _BY_LABEL:
        found = peer_alert(_BY_LABEL[label.lower()])
        found.reply = reply
        return found
    words = reason.replace("_", " ").lower() or str(error)
    return TlsError(Alert.HANDSHAKE_FAILURE, f"TLS failed: {words}", reply=reply)
