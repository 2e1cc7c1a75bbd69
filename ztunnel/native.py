"""What the compiler of the hot rooms must be told, and a plain interpreter must not mind."""

from typing import TYPE_CHECKING

__all__ = ["mypyc_attr"]

if TYPE_CHECKING:
    from mypy_extensions import mypyc_attr
else:

    def mypyc_attr(**attributes):
        """The compiler reads it in the source; see mypyc's documentation of native classes."""
        return lambda compiled: compiled
