"""What the compiler of the hot rooms must be told, and a plain interpreter must not mind; and which
of the two runs here."""

from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from typing import TYPE_CHECKING

__all__ = ["form", "is_compiled", "mypyc_attr"]

if TYPE_CHECKING:
    from mypy_extensions import mypyc_attr
else:

    def mypyc_attr(**attributes):
        """The compiler reads it in the source; see mypyc's documentation of native classes."""
        return lambda compiled: compiled


def is_compiled() -> bool:
    """Do the hot rooms run as machine code? They are compiled all together, or none of them is."""
    found = find_spec("ztunnel.mesh.address")
    return found is not None and str(found.origin).endswith(tuple(EXTENSION_SUFFIXES))


def form() -> str:
    """The form that runs here, in words."""
    return "compiled" if is_compiled() else "plain Python"
