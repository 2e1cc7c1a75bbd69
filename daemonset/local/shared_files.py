"""Small files of the run directory through which the parts of a local mesh tell each other things
that a cluster would hold in its API."""

from pathlib import Path


def addresses_file(run: Path) -> Path:
    """Pod (``namespace/name``) -> its addresses, as JSON; kept by the mesh."""
    return run / "addresses.json"


def captured_file(run: Path, node: str) -> Path:
    """The pods (``namespace/name``) that a node's agent has captured, as a JSON list."""
    return run / "captured" / f"{node}.json"


def root_file(run: Path) -> Path:
    """The roots that all parts of the mesh trust, as PEM."""
    return run / "root-cert.pem"


def token_file(run: Path, node: str) -> Path:
    """The token of a node's proxy."""
    return run / "nodes" / node / "token"
