"""What a control plane stands on: where its objects, its keys and its callers' identities come
from. One for a folder on one machine here; one for Kubernetes beside it.
"""

from __future__ import annotations

import datetime
from typing import Protocol

import trio

from daemonset.control_plane.ca.authenticator import Verifier
from daemonset.control_plane.ca.authority import Authority, load_given
from daemonset.control_plane.ca.generations import open_state
from daemonset.control_plane.ca.private_files import make_private_folder, write_private
from daemonset.control_plane.ca.tokens import TokenSigner, TokenVerifier, open_token_key
from daemonset.control_plane.conditions import Judgement
from daemonset.control_plane.config import ControlPlaneConfig
from daemonset.control_plane.objects.meta import ObjectKey
from daemonset.control_plane.objects.objectset import ObjectSet
from daemonset.control_plane.sources.folder import FolderSource
from daemonset.control_plane.sources.last_good import LastGood
from daemonset.control_plane.sources.problem import Problem
from daemonset.control_plane.sources.source import Source


class Backend(Protocol):
    """``authority`` is what it is at first; all of it is used in the trio thread."""

    @property
    def source(self) -> Source: ...

    @property
    def verifier(self) -> Verifier: ...

    @property
    def authority(self) -> Authority: ...

    @property
    def signer(self) -> TokenSigner | None:
        """For tokens of our own, where nobody else makes them."""
        ...

    async def read_authority(self) -> Authority:
        """The authority as it is now. Raises whatever reading it raises."""
        ...

    async def hand_out_roots(self, roots_pem: str) -> None:
        """Put the roots where those who need them look. Called again when they change."""
        ...

    def judged(self, judgement: Judgement) -> None:
        """The objects have been translated (again)."""
        ...

    async def run(self) -> None:
        """What must run while the control plane serves; may end at once."""
        ...

    async def finish(self) -> None:
        """Return when nothing is left to be done before an end in peace."""
        ...

    def __str__(self) -> str:
        """Where the objects come from, for the log."""
        ...


class FolderBackend:
    """A folder of YAML, keys under a state folder, tokens of our own.

    Keys are opened or made at once (AuthorityError, UnsafeFileError, OSError).
    """

    def __init__(self, config: ControlPlaneConfig) -> None:
        self._config = config
        make_private_folder(config.state)
        self.source = _Folder(config)
        self.authority = self._open_authority()
        self._write_roots(self.authority.roots_pem)
        self.signer: TokenSigner | None = open_token_key(config.state)
        self.verifier = TokenVerifier(self.signer.public_key)

    async def read_authority(self) -> Authority:
        return await trio.to_thread.run_sync(self._open_authority)

    async def hand_out_roots(self, roots_pem: str) -> None:
        self._write_roots(roots_pem)

    def judged(self, judgement: Judgement) -> None:
        """Files have no status: what there is to say stands in the log and in findings."""

    async def run(self) -> None:
        return

    async def finish(self) -> None:
        """Nobody waits for it."""

    def __str__(self) -> str:
        return str(self._config.source)

    def _write_roots(self, roots_pem: str) -> None:
        """Beside the keys, for whoever reads the roots from a file."""
        write_private(self._config.state / "root-cert.pem", roots_pem.encode())

    def _open_authority(self) -> Authority:
        now = datetime.datetime.now(datetime.UTC)
        if self._config.given_ca is not None:
            return load_given(self._config.given_ca, now)
        trust_domain = self._config.settings.trust_domain
        return open_state(self._config.state / "ca", trust_domain, now, self._config.overlap)


class _Folder:
    """A FolderSource as a Source."""

    def __init__(self, config: ControlPlaneConfig) -> None:
        self._config = config
        self._folder = FolderSource(config.source, LastGood(config.state / "last-good"))

    @property
    def objects(self) -> ObjectSet:
        return self._folder.state.objects

    @property
    def problems(self) -> tuple[Problem, ...]:
        return self._folder.state.problems

    @property
    def off(self) -> tuple[str, ...]:
        return ()

    def place(self, key: ObjectKey, field: str = "") -> str:
        return self._folder.state.place(key, field)

    async def open(self, nursery: trio.Nursery) -> None:
        self._folder.load(refuse_errors=self._config.refuse_errors)

    async def next_change(self) -> None:
        await self._folder.next_change(self._config.poll_interval)
