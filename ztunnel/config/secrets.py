"""Trust roots and tokens that may be a file, re-read whenever they are used, or a literal."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

SYSTEM_ROOTS = "SYSTEM"
_PEM_MARK = "-----BEGIN"


@dataclass(frozen=True, slots=True)
class RootCertificates:
    """Where the roots for a control-plane connection come from.

    ``value`` is a path, PEM text, or ``SYSTEM`` for the roots of the operating system.
    """

    value: str

    @property
    def path(self) -> Path | None:
        """The file to watch, or None where the roots are inline or the system's."""
        if self.value == SYSTEM_ROOTS or _PEM_MARK in self.value:
            return None
        return Path(self.value)

    def read(self) -> bytes | None:
        """The PEM text as it is now; None stands for the system's roots.

        Raises:
            OSError: the file cannot be read.
        """
        if self.value == SYSTEM_ROOTS:
            return None
        path = self.path
        return self.value.encode() if path is None else path.read_bytes()


@dataclass(frozen=True, slots=True)
class Token:
    """A bearer token: a file that is read at each use (the kubelet rotates it) or a literal."""

    path: Path | None = None
    literal: str | None = field(default=None, repr=False)

    @staticmethod
    def from_setting(value: str) -> Token:
        """A value that names an existing file or looks like a path is a path."""
        path = Path(value)
        if value.startswith(("/", "./", "../")) or (len(value) < 256 and path.exists()):
            return Token(path=path)
        return Token(literal=value)

    def read(self) -> str | None:
        """The token as it is now, without surrounding white space; None where there is none.

        Raises:
            OSError: the file cannot be read.
            ValueError: the token is empty or holds characters that a header cannot carry.
        """
        if self.path is None and self.literal is None:
            return None
        text = self.path.read_text() if self.path is not None else (self.literal or "")
        text = text.strip()
        if not text or not text.isascii() or not text.isprintable() or " " in text:
            raise ValueError(f"{self.path or 'AUTH_TOKEN'} holds no token that a header can carry")
        return text
