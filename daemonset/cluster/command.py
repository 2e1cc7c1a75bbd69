"""``ambient check`` and ``ambient uninstall``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path

import trio

from daemonset.cluster.check import as_json, as_lines, check_survey, exit_code, feature_lines
from daemonset.cluster.checks.server import wanted_access
from daemonset.cluster.removal import list_doomed
from daemonset.cluster.shell import add_cluster_arguments, with_client
from daemonset.cluster.survey import Survey, review, take_survey
from daemonset.cluster.uninstall import (
    NotUninstalledError,
    Uninstall,
    Wishes,
    needed_access,
    summary,
)
from daemonset.control_plane.translation.settings import DATAPLANE_MODE
from daemonset.kube.client import ApiError, KubeClient


def add_parsers(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add both; each sets ``run``, a function of the arguments that gives the exit code."""
    check = subparsers.add_parser(
        "check",
        help="what is wrong with a Kubernetes cluster, before and after installing the mesh",
        description="Looks at the cluster of the kubeconfig (KUBECONFIG, --context): versions,"
        " rights, other meshes, the network plugin and its policies, each node's kernel as its"
        " agent has tried it, and the mesh's own parts. Changes nothing. Exit status 1 where"
        " something does not work, or would not.",
    )
    add_cluster_arguments(check)
    check.add_argument(
        "--as-if",
        metavar="A,B",
        default="",
        help="namespaces to look at as if they were in the mesh already",
    )
    check.add_argument(
        "--this-node",
        action="store_true",
        help="try this machine's kernel instead (as root on a node, or by `kubectl debug node/…`)",
    )
    check.add_argument("-v", "--verbose", action="store_true", help="also what is worth knowing")
    check.add_argument(
        "-o", "--output", choices=("text", "json"), default="text", help="the form (%(default)s)"
    )
    check.set_defaults(run=_check)

    uninstall = subparsers.add_parser(
        "uninstall",
        help="take the mesh out of a Kubernetes cluster: pods first, then its parts",
        description="Has every pod leave the mesh, verifies on each node that nothing of it is"
        " left, and only then deletes the mesh's objects. The definitions of Istio's objects and"
        " the CA's Secret stay. A run that was stopped is gone on with by the next.",
    )
    add_cluster_arguments(uninstall)
    uninstall.add_argument("-y", "--yes", action="store_true", help="do not ask")
    uninstall.add_argument(
        "--cancel", action="store_true", help="take back a run that stopped: pods join again"
    )
    uninstall.add_argument(
        "--skip-node",
        action="append",
        default=[],
        metavar="NAME",
        help="do not wait for this node; may be repeated",
    )
    uninstall.add_argument(
        "--timeout", type=float, default=180.0, metavar="SECONDS", help="for a step (%(default).0f)"
    )
    uninstall.set_defaults(run=_uninstall)


def _check(arguments: argparse.Namespace) -> int:
    if arguments.this_node:
        return _check_this_node(arguments)
    named = [name for name in arguments.as_if.split(",") if name]

    async def look(client: KubeClient) -> int:
        survey = as_if(await take_survey(client, arguments.system_namespace), named)
        survey = await with_access(client, survey)
        findings = check_survey(survey)
        if arguments.output == "json":
            print(as_json(survey, findings))
        else:
            print("\n".join(as_lines(survey, findings, everything=arguments.verbose)))
        return exit_code(findings)

    return with_client(arguments.context, look)


def as_if(survey: Survey, namespaces: list[str]) -> Survey:
    """Pure: the same cluster with these namespaces in the mesh."""
    if not namespaces:
        return survey
    changed = []
    for item in survey.all("namespaces"):
        meta = item["metadata"]
        if meta["name"] in namespaces:
            labels = {**(meta.get("labels") or {}), DATAPLANE_MODE: "ambient"}
            item = {**item, "metadata": {**meta, "labels": labels}}
        changed.append(item)
    return replace(survey, objects={**survey.objects, "namespaces": changed})


async def with_access(client: KubeClient, survey: Survey) -> Survey:
    """The survey with the answers to who may do what; without them where nobody says.

    Raises:
        ApiUnavailableError: the API server does not answer.
    """
    try:
        access = tuple([await review(client, wanted) for wanted in wanted_access(survey)])
    except ApiError as error:
        return replace(survey, unseen={**survey.unseen, "reviews": str(error)})
    return replace(survey, access=access)


def _check_this_node(arguments: argparse.Namespace) -> int:
    if os.geteuid() != 0:
        print("ambient: --this-node tries what only root may: run it as root", file=sys.stderr)
        return 1
    from daemonset.agent.node_probe import probe_node

    features = probe_node(Path("/proc"))
    code, lines = feature_lines(features)
    if arguments.output == "json":
        print(json.dumps([asdict(feature) for feature in features], indent=1))
    else:
        print("\n".join(lines))
    return code


def _uninstall(arguments: argparse.Namespace) -> int:
    wishes = Wishes(frozenset(arguments.skip_node), arguments.timeout)

    async def uninstall(client: KubeClient) -> int:
        survey = await take_survey(client, arguments.system_namespace)
        run = Uninstall(client, survey, wishes, lambda line: print(line, flush=True))
        if arguments.cancel:
            await run.cancel()
            return 0
        root = survey.installation.settings.root_namespace
        doomed = [one async for one in list_doomed(client, arguments.system_namespace, root)]
        lines = summary(survey, doomed)
        if not lines:
            print(f"nothing is installed in {arguments.system_namespace}")
            return 0
        print("\n".join(lines))
        denied = [
            answer
            for wanted in needed_access(survey)
            if not (answer := await review(client, wanted)).allowed
        ]
        for access in denied:
            print(f"ambient: you may not {access}; nothing was changed", file=sys.stderr)
        if denied:
            return 1
        if not arguments.yes and not await trio.to_thread.run_sync(_agreed):
            return 1
        try:
            await run.run()
        except NotUninstalledError as error:
            print(f"ambient: {error}", file=sys.stderr)
            return 1
        return 0

    return with_client(arguments.context, uninstall)


def _agreed() -> bool:
    if not sys.stdin.isatty():
        print("ambient: say --yes where nobody can be asked", file=sys.stderr)
        return False
    return input("Go on? [y/N] ").strip().lower() in ("y", "yes")
