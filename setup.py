"""Compiles the hot rooms with mypyc where asked to: ``AMBIENTD_COMPILE=1 pip install .``

Without that variable, or a C compiler, nothing is lost but speed: the same files run as they are.
mypy is needed for such a build only, and pip gets it for it. Everything else is in pyproject.toml.
"""

import os
import sys
import tomllib
from pathlib import Path
from typing import Any

from setuptools import setup

HOT = (
    "ztunnel/http2/*.py",
    "ztunnel/hbone/*.py",
    "ztunnel/relay/buffers.py",
    "ztunnel/relay/connect.py",
    "ztunnel/relay/engine.py",
    "ztunnel/relay/flow.py",
    "ztunnel/relay/kernel_tunnel.py",
    "ztunnel/relay/leaving.py",
    "ztunnel/relay/pair.py",
    "ztunnel/relay/piped.py",
    "ztunnel/relay/stream.py",
    "ztunnel/relay/stream_owner.py",
    "ztunnel/relay/tunnel.py",
    "ztunnel/tls/key_schedule.py",
    "ztunnel/tls/records.py",
    "ztunnel/mesh/address.py",
    "ztunnel/mesh/authorize.py",
    "ztunnel/mesh/connection.py",
    "ztunnel/mesh/load_balance.py",
    "ztunnel/mesh/selection.py",
    "ztunnel/mesh/outbound.py",
    "ztunnel/mesh/policy_index.py",
    "ztunnel/mesh/policy_match.py",
)
TYPED = ("trio", "cryptography", "hpack")  # libraries whose types the compiler goes by
MYPY = "mypy>=1.18,<3"
# Strictness is for CI, which has the types of everything.
OPTIONS = [
    "--config-file=",
    "--python-version=3.11",
    "--ignore-missing-imports",
    "--explicit-package-bases",
]


def hot_rooms() -> list[str]:
    """The files to compile; a package's own file holds nothing that is hot."""
    root = Path(__file__).parent
    found = sorted(path for pattern in HOT for path in root.glob(pattern))
    return [str(path.relative_to(root)) for path in found if path.name != "__init__.py"]


def needed() -> list[str]:
    """What such a build needs, in the versions that pyproject.toml names."""
    with open(Path(__file__).with_name("pyproject.toml"), "rb") as file:
        dependencies: list[str] = tomllib.load(file)["project"]["dependencies"]
    return [MYPY, *(wanted for wanted in dependencies if wanted.startswith(TYPED))]


def compiled() -> dict[str, Any]:
    """What setup() must know for it."""
    if os.environ.get("AMBIENTD_COMPILE", "0") != "1":
        return {}
    try:
        from mypyc.build import mypycify
    except ImportError:
        if "egg_info" in sys.argv:  # pip asks what the build needs
            return {"setup_requires": needed()}
        raise
    level = os.environ.get("MYPYC_OPT_LEVEL", "3")  # 0 for who wants it soon, not fast
    modules = mypycify(OPTIONS + hot_rooms(), opt_level=level, debug_level="0")
    return {"setup_requires": needed(), "ext_modules": modules}


setup(**compiled())
