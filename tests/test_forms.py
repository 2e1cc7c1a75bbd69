"""The hot rooms are in the form that this run is to test."""

import importlib
import os

import pytest

COMPILED = os.environ.get("AMBIENTD_COMPILE", "0") == "1"


@pytest.mark.parametrize(
    "module",
    [
        "ztunnel.http2.connection",
        "ztunnel.hbone.client",
        "ztunnel.relay.engine",
        "ztunnel.relay.stream",
        "ztunnel.tls.records",
        "ztunnel.mesh.policy_match",
    ],
)
def test_hot_rooms_are_compiled_where_that_was_asked_for(module: str) -> None:
    file = importlib.import_module(module).__file__
    assert file is not None
    assert file.endswith(".so" if COMPILED else ".py")
