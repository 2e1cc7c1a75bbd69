"""How a virtual machine is told what to check, and how the results leave it.

A result is a line of JSON behind a mark.
"""

from __future__ import annotations

import json
from typing import Any, Final

MARK: Final = "@result@"
WANTED: Final = "/checks"  # a file of names
MODULES: Final = "/modules"  # a folder


def report(name: str, ok: bool, seconds: float, detail: Any) -> None:
    """Says how a check went. `detail` is the reason of a failure, or what was found."""
    line = json.dumps({"name": name, "ok": ok, "seconds": round(seconds, 2), "detail": detail})
    print(f"\n{MARK}{line}", flush=True)
