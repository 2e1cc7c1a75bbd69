"""Network configurations of CNI, and our place at their end (pure: text in, text out)."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

PLUGIN = "ambient-cni"
SUFFIXES = (".conf", ".conflist", ".json")
"""Of files that a runtime takes for configurations; the first by name counts."""


class ChainError(Exception):
    """A configuration that is none; the message says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What the plugin reads of its configuration, by the names it has there (see `plugin.c`)."""

    agentSocket: str
    unenrolledNamespacesFile: str
    excludeNamespaces: tuple[str, ...] = field(default=())
    patienceSeconds: int = 30

    def to_json(self) -> dict[str, Any]:
        """As it stands in the list of plugins."""
        return {"type": PLUGIN, **asdict(self), "excludeNamespaces": list(self.excludeNamespaces)}


def chained(name: str, text: str, entry: Entry) -> tuple[str, str]:
    """The configuration in file `name` with our plugin last: its name from now on, and its text.

    A single plugin's file (.conf) becomes a list. Both are as before where nothing is to be done.

    Raises:
        ChainError: it is no configuration that a runtime could use.
    """
    configuration = _parse(text)
    plugins = configuration.get("plugins")
    if plugins is None:
        if not isinstance(configuration.get("type"), str):
            raise ChainError("it has neither plugins nor a type")
        single = {k: v for k, v in configuration.items() if k not in ("cniVersion", "name")}
        configuration = {
            "cniVersion": configuration.get("cniVersion", "0.3.1"),
            "name": configuration.get("name", "network"),
            "plugins": [single],
        }
        name = f"{name.rpartition('.')[0]}.conflist"
    others = _others(configuration)
    if not others:
        raise ChainError("there is no other plugin in it: nothing would make the pods' interfaces")
    wanted = {**configuration, "plugins": [*others, entry.to_json()]}
    return name, text if wanted == _parse(text) else _format(wanted)


def unchained(text: str) -> str:
    """The configuration without our plugin; the same text where it is not in it.

    Raises:
        ChainError: it is no configuration.
    """
    configuration = _parse(text)
    if configuration.get("plugins") is None:
        return text
    others = _others(configuration)
    if others == configuration["plugins"]:
        return text
    return _format({**configuration, "plugins": others})


def plugins_in(text: str) -> tuple[str, ...]:
    """The types of a configuration's plugins, in order; none where it is no configuration."""
    try:
        plugins = _parse(text).get("plugins")
    except ChainError:
        return ()
    if not isinstance(plugins, list):
        return ()
    return tuple(str(each.get("type")) for each in plugins if isinstance(each, dict))


def _parse(text: str) -> dict[str, Any]:
    try:
        configuration = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ChainError(f"it is not JSON: {error}") from error
    if not isinstance(configuration, dict):
        raise ChainError("it is not a JSON object")
    return configuration


def _others(configuration: Mapping[str, Any]) -> list[dict[str, Any]]:
    plugins = configuration["plugins"]
    if not isinstance(plugins, list) or not all(isinstance(each, dict) for each in plugins):
        raise ChainError("plugins is not a list of objects")
    return [each for each in plugins if each.get("type") != PLUGIN]


def _format(configuration: Mapping[str, Any]) -> str:
    return json.dumps(configuration, indent=2) + "\n"
