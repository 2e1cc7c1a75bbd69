"""Capture in one pod's namespace: apply, verify, repair, release, remove; stop when all else fails.

Everything is synchronous and safe to run in a worker thread. Applying is atomic and idempotent, and
only believed after the kernel's own listing has been compared with what was meant.
"""

import logging
import socket
from collections.abc import Sequence
from pathlib import Path

from daemonset.agent.capture_rules import (
    ANSWERS,
    HBONE_PORT,
    JOINING_TABLE,
    STOP_TABLE,
    TABLE,
    CaptureOptions,
    capture_table,
    stop_table,
)
from ztunnel.kernel import direct_rules
from ztunnel.linux import netns
from ztunnel.linux.conntrack import forget_direct_connections
from ztunnel.linux.netlink import NetlinkError
from ztunnel.linux.netns import NetworkNamespace
from ztunnel.linux.nft_tables import Table, differences
from ztunnel.linux.nftables import Nftables
from ztunnel.linux.routing import Routing
from ztunnel.linux.sock_diag import end_connections

logger = logging.getLogger("daemonset.agent")

MIGRATE = "net.ipv4.tcp_migrate_req"
"""Connections that wait to be accepted move to another listener of the same port when theirs goes:
what waits at a worker that dies is accepted by the next one."""


class CaptureError(Exception):
    """The rules are not what they must be; the message says which part, and why."""


class Capture:
    """The capture of one namespace, which the caller keeps open meanwhile."""

    def __init__(
        self, namespace: NetworkNamespace, options: CaptureOptions, proc: Path = Path("/proc")
    ) -> None:
        """`proc` is where settings of the namespace can be written (see `netns.set_sysctl`)."""
        self.options = options
        self._proc = proc
        self._namespace = namespace
        self._migrate_before: str | None = None

    def apply(self) -> None:
        """Put the rules in place, if they are not there as they should be, and verify them.

        Connections from before are ended: those of a pod that has just joined have nobody at their
        far end who would encrypt them, and would go on in the clear for as long as they last.
        Connections are left alone when the pod was captured all along, only by other options, and
        not when whoever captured it was killed before it had ended them.
        Raises CaptureError.
        """
        self._apply(suspect=False)

    def _apply(self, *, suspect: bool) -> None:
        table = capture_table(self.options)
        try:
            with Nftables(self._namespace) as nftables, Routing(self._namespace) as routing:
                for family in self._families():
                    routing.add(ANSWERS, family)
                found = nftables.read(TABLE)
                wrong = differences(table, found)
                joining = JOINING_TABLE in nftables.table_names()
                if found is None or (wrong and (suspect or not _captures(found))):
                    nftables.replace(table, Table(JOINING_TABLE, ()))
                    joining = True
                elif wrong:
                    nftables.change(found, table)
                if joining:
                    self._end_connections(aborting=found is None and not suspect)
                    nftables.delete(JOINING_TABLE)
                wrong = differences(table, nftables.read(TABLE))
                wrong += self._missing_routes(routing)
            self._set_migrate(captured_before=found is not None)
        except OSError as error:
            raise CaptureError(explained("cannot capture", error)) from error
        if wrong:
            raise CaptureError("the kernel did not keep what was applied: " + "; ".join(wrong))

    def check(self) -> list[str]:
        """What is not as it was applied, in words; an empty list when all is well.

        Raises CaptureError when the kernel cannot be asked.
        """
        try:
            with Nftables(self._namespace) as nftables, Routing(self._namespace) as routing:
                wrong = differences(capture_table(self.options), nftables.read(TABLE))
                return wrong + self._missing_routes(routing)
        except OSError as error:
            raise CaptureError(explained("cannot verify capture", error)) from error

    def repair(self) -> list[str]:
        """Bring back what somebody has taken away; returns what it was.

        Connections that were made in the meantime are ended, they may be in the clear. Raises
        CaptureError when it cannot be repaired.
        """
        wrong = self.check()
        if wrong:
            self._apply(suspect=True)
        return wrong

    def release(self) -> None:
        """Take in no new connections, and go on with those that there are. Raises CaptureError."""
        try:
            with Nftables(self._namespace) as nftables:
                found = nftables.read(TABLE)
                if found is not None:
                    nftables.change(found, capture_table(self.options, redirecting=False))
        except OSError as error:
            raise CaptureError(explained("cannot end capture", error)) from error

    def remove(self) -> None:
        """Leave the namespace as it was found. Raises CaptureError."""
        try:
            with Nftables(self._namespace) as nftables, Routing(self._namespace) as routing:
                nftables.delete(TABLE, STOP_TABLE, JOINING_TABLE)
                for family in self._families():
                    routing.remove(ANSWERS, family)
                    routing.resume(family)
        except OSError as error:
            raise CaptureError(explained("cannot remove capture", error)) from error
        self._restore_migrate()

    def stop(self) -> str:
        """Cut the namespace off, because it cannot be captured. Returns how that was done.

        Raises CaptureError when not even that is possible.
        """
        try:
            with Nftables(self._namespace) as nftables:
                nftables.replace(stop_table())
            return "nothing gets in or out"
        except OSError as error:
            refused = error
        try:
            with Routing(self._namespace) as routing:
                for family in self._families():
                    routing.stop(family)
        except OSError as error:
            raise CaptureError(explained("cannot stop the pod's traffic", error)) from refused
        return "nothing gets out (a routing rule, since nftables refuses)"

    def resume(self) -> None:
        """Undo `stop`, also that of an agent before this one. Raises CaptureError."""
        try:
            with Nftables(self._namespace) as nftables, Routing(self._namespace) as routing:
                if STOP_TABLE in nftables.table_names():
                    nftables.delete(STOP_TABLE)
                for family in self._families():
                    routing.resume(family)
        except OSError as error:
            raise CaptureError(explained("cannot lift the stop", error)) from error

    def is_present(self) -> bool:
        """Whether any of our tables is there. Raises CaptureError."""
        try:
            with Nftables(self._namespace) as nftables:
                return bool({TABLE, STOP_TABLE} & set(nftables.table_names()))
        except OSError as error:
            raise CaptureError(explained("cannot ask for rules", error)) from error

    def _families(self) -> Sequence[int]:
        # Where IPv6 is off, its routing tables refuse every change.
        with self._namespace.enter():
            if netns.has_ipv6():
                return (socket.AF_INET, socket.AF_INET6)
        return (socket.AF_INET,)

    def _missing_routes(self, routing: Routing) -> list[str]:
        wrong = []
        for family in self._families():
            wrong += routing.missing(ANSWERS, family)
        return wrong

    def _end_connections(self, *, aborting: bool) -> None:
        if aborting:
            # Nothing goes through ztunnel yet, so that all there is is in the clear. Resets reach
            # both sides; a packet that is redirected in the middle of a connection would leave
            # the far one waiting.
            try:
                end_connections(self._namespace, (HBONE_PORT,))
            except NetlinkError as error:
                logger.info("connections from before the capture end when they are used: %s", error)
        try:
            # Those that were made since the rules are there are captured already, and live on.
            forget_direct_connections(self._namespace, ANSWERS.mask | direct_rules.TAG_MASK)
        except NetlinkError as error:
            # Without conntrack netlink: connections that were not tracked before end nevertheless.
            logger.warning("connections from before the capture may go on: %s", error)

    def _set_migrate(self, *, captured_before: bool) -> None:
        if self._migrate_before is not None:
            return
        try:
            with self._namespace.enter():
                before = netns.sysctl(MIGRATE, self._proc)
                if before != "1":
                    netns.set_sysctl(MIGRATE, 1, self._proc)
        except FileNotFoundError:
            logger.info("this kernel has no %s (5.14 and later have)", MIGRATE)
            self._migrate_before = ""
        except OSError as error:
            # Worth a line, not a pod: it only matters when a worker dies.
            logger.warning("cannot set %s: %s", MIGRATE, error)
            self._migrate_before = ""
        else:
            # An agent before this one has set it; 0 is what namespaces begin with.
            self._migrate_before = "0" if captured_before else before

    def _restore_migrate(self) -> None:
        if self._migrate_before:
            with self._namespace.enter():
                netns.set_sysctl(MIGRATE, self._migrate_before, self._proc)
        self._migrate_before = None


def _captures(table: Table) -> bool:
    return any(chain.name == "outbound" and chain.rules for chain in table.chains)


def explained(what: str, error: OSError) -> str:
    """`what`, the error, and which part of a transaction it was about."""
    notes = getattr(error, "__notes__", [])
    return f"{what}: {error}" + "".join(f"; {note}" for note in notes)
