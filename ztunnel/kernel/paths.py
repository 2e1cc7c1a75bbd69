"""Which kernel paths this process may use."""

import logging
from typing import Final

from ztunnel.kernel.pipes import Pipes
from ztunnel.kernel.sockmap import Sockmap

NOT_TRIED: Final = "not tried yet"

log = logging.getLogger("ztunnel.kernel")


class KernelPaths:
    """The paths that are on; None, or False, stands for one that is off.

    Attributes:
        sockmap: joins the two sockets of a flow of small messages.
        pipes: for splice, which moves bulk.
        ktls: the kernel seals and opens the TLS records of tunnels that carry bulk.
        reasons: why a path is off, by its name; empty text where it is on.
    """

    __slots__ = ("ktls", "pipes", "reasons", "sockmap")

    def __init__(
        self,
        sockmap: Sockmap | None = None,
        pipes: Pipes | None = None,
        ktls: bool = False,
    ) -> None:
        self.sockmap = sockmap
        self.pipes = pipes
        self.ktls = ktls
        self.reasons: Final = {
            "sockmap": NOT_TRIED if sockmap is None else "",
            "splice": NOT_TRIED if pipes is None else "",
            "ktls": "" if ktls else NOT_TRIED,
        }

    def splice_failed(self, error: OSError) -> None:
        """The kernel refuses what it did when it was probed: the path is off from now on."""
        if self.pipes is not None:
            self.reasons["splice"] = f"refused while in use: {error.strerror or error}"
            log.warning("splice is off: %s", self.reasons["splice"])
            self.pipes.close()
            self.pipes = None

    def ktls_failed(self, error: OSError) -> None:
        """The same for kTLS; tunnels that use it go on."""
        if self.ktls:
            self.reasons["ktls"] = f"refused while in use: {error.strerror or error}"
            log.warning("ktls is off: %s", self.reasons["ktls"])
            self.ktls = False

    def close(self) -> None:
        """Gives everything back."""
        if self.sockmap is not None:
            self.sockmap.close()
        if self.pipes is not None:
            self.pipes.close()
