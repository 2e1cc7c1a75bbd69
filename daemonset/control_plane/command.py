"""``ambient control-plane``, ``validate``, ``token`` and ``rotate-root``."""

from __future__ import annotations

import argparse
import datetime
import logging
import os
import sys
import time
from collections import Counter
from pathlib import Path

import trio

from daemonset.control_plane.ca.generations import OVERLAP, rotate
from daemonset.control_plane.ca.issuer import AuthorityError
from daemonset.control_plane.ca.lifetimes import add_arguments as add_lifetimes
from daemonset.control_plane.ca.lifetimes import read_lifetimes
from daemonset.control_plane.ca.private_files import UnsafeFileError, make_private_folder
from daemonset.control_plane.ca.tokens import TokenSubject, open_token_key
from daemonset.control_plane.config import ControlPlaneConfig, ServingConfig
from daemonset.control_plane.server import ControlPlane, run_until_signal
from daemonset.control_plane.sources.folder import FolderError, read_folder
from daemonset.control_plane.translation.finding import Severity
from daemonset.control_plane.translation.service_addresses import SERVICE_IPS
from daemonset.control_plane.translation.settings import MeshSettings
from daemonset.control_plane.translation.translate import Translator


def add_parsers(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser],
) -> None:
    """Add both commands; each sets ``run``, a function of the arguments that returns the exit
    code."""
    serve = subparsers.add_parser(
        "control-plane",
        help="serve a folder of Kubernetes YAML, or a cluster, as a mesh",
        description="Reads a folder of Kubernetes YAML, or the Kubernetes API, and serves it to"
        " node proxies (ours or Istio's ztunnel): the workload API over delta xDS, and their"
        " certificates. Changes take effect at once; a file with an error is refused as a whole,"
        " and what it said before stays in force. /ready, /metrics and /debug/ are on the status"
        " port.",
    )
    serve.add_argument(
        "--source",
        required=True,
        metavar="FOLDER",
        help='the YAML, watched; or "kubernetes": the cluster that this pod is in, or that'
        " KUBECONFIG names",
    )
    serve.add_argument(
        "--context", metavar="NAME", help="of the kubeconfig (with --source kubernetes)"
    )
    _add_state(serve, "where keys and copies of good files are kept")
    serve.add_argument(
        "--ca",
        type=Path,
        metavar="FOLDER",
        help="an authority of your own: ca-cert.pem, ca-key.pem, cert-chain.pem, root-cert.pem"
        " (default: one is made and kept in the state folder)",
    )
    serve.add_argument("--address", default="127.0.0.1", help="to listen on (%(default)s)")
    serve.add_argument(
        "--xds-port",
        type=int,
        metavar="PORT",
        help="plaintext xDS (15010; with --source kubernetes off unless given)",
    )
    serve.add_argument("--no-plaintext", action="store_true", help="no plaintext xDS")
    serve.add_argument(
        "--tls-port", type=int, default=15012, metavar="PORT", help="xDS and CA (%(default)s)"
    )
    serve.add_argument(
        "--status-port", type=int, default=15014, metavar="PORT", help="HTTP (%(default)s)"
    )
    serve.add_argument(
        "--server-name",
        action="append",
        default=[],
        metavar="NAME",
        help="a name or address that clients reach it by, for its certificate; may be repeated",
    )
    serve.add_argument(
        "--node-proxy",
        action="append",
        default=[],
        metavar="NAMESPACE/ACCOUNT",
        help="who may ask for the identities of its node's pods; may be repeated"
        " (istio-system/ztunnel)",
    )
    add_lifetimes(serve)
    _add_mesh_arguments(serve)
    serve.set_defaults(run=_serve)
    validate = subparsers.add_parser(
        "validate",
        help="say what is wrong with a folder of Kubernetes YAML",
        description="Reads a folder as the control plane would and says what is wrong with it:"
        " file:line, object, field, and what that leads to. Exit status 1 when a file would be"
        " refused, or an object does not do what it says.",
    )
    validate.add_argument("folder", type=Path, metavar="FOLDER")
    validate.add_argument(
        "--strict", action="store_true", help="warnings lead to exit status 1 as well"
    )
    _add_mesh_arguments(validate)
    validate.set_defaults(run=_validate)
    token = subparsers.add_parser(
        "token",
        help="mint a token for a node's proxy",
        description="Prints a token (a signed JWT) with which a node's proxy shows the control"
        " plane who it is: put it into the file that AUTH_TOKEN names.",
    )
    _add_state(token, "the control plane's state folder")
    token.add_argument("--namespace", default="istio-system", help="of the account (%(default)s)")
    token.add_argument("--service-account", default="ztunnel", metavar="NAME", help="(%(default)s)")
    token.add_argument(
        "--node", required=True, metavar="NAME", help="the node whose pods it may speak for"
    )
    token.add_argument(
        "--lifetime", type=float, default=12 * 3600.0, metavar="SECONDS", help="(%(default).0f)"
    )
    token.set_defaults(run=_token)
    rotate = subparsers.add_parser(
        "rotate-root",
        help="make a new root certificate; it signs once every workload trusts it",
        description="Makes a new root of trust. A running control plane hands it out within a"
        " minute beside the old one, and signs with it after two days, when every workload has"
        " renewed its certificate and trusts both: no connection breaks.",
    )
    _add_state(rotate, "the control plane's state folder")
    rotate.add_argument(
        "--trust-domain", default="cluster.local", metavar="NAME", help="(%(default)s)"
    )
    rotate.set_defaults(run=_rotate_root)


def _add_state(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        "--state",
        type=Path,
        default=default_state(),
        metavar="FOLDER",
        help=f"{what} (%(default)s)",
    )


def default_state() -> Path:
    """/var/lib/ambient for root, else the user's state folder (XDG base directories)."""
    if os.geteuid() == 0:
        return Path("/var/lib/ambient/control-plane")
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local/state")
    return Path(base) / "ambient/control-plane"


def _add_mesh_arguments(parser: argparse.ArgumentParser) -> None:
    for option, default, what in (
        ("trust-domain", "cluster.local", "first part of all identities"),
        ("cluster-domain", "cluster.local", "end of the names of services"),
        ("cluster-id", "Kubernetes", "what the cluster is called"),
        ("root-namespace", "istio-system", "where policies hold for the whole mesh"),
        ("revision", "default", "configuration with another label istio.io/rev is left out"),
    ):
        parser.add_argument(
            f"--{option}", default=default, metavar="NAME", help=f"{what} (%(default)s)"
        )
    parser.add_argument(
        "--like-istio",
        action="store_true",
        help="let pass what Istio lets pass, where this mesh refuses",
    )


def _settings(arguments: argparse.Namespace) -> MeshSettings:
    return MeshSettings(
        cluster_id=arguments.cluster_id,
        trust_domain=arguments.trust_domain,
        cluster_domain=arguments.cluster_domain,
        root_namespace=arguments.root_namespace,
        revision=arguments.revision,
        like_istio=arguments.like_istio,
        service_ips=SERVICE_IPS,
    )


def _serve(arguments: argparse.Namespace) -> int:
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    if arguments.source == "kubernetes":
        from daemonset.control_plane.kubernetes_command import serve_kubernetes

        return serve_kubernetes(arguments, _settings(arguments))
    code = 0
    try:
        trio.run(run_until_signal, ControlPlane(folder_config(arguments)))
    except* (FolderError, AuthorityError, UnsafeFileError, OSError) as group:
        for error in group.exceptions:
            print(error, file=sys.stderr)
        code = 1
    return code


def folder_config(arguments: argparse.Namespace) -> ControlPlaneConfig:
    """What the arguments of a control plane that stands on a folder say."""
    defaults = ServingConfig()
    plaintext = defaults.xds_port if arguments.xds_port is None else arguments.xds_port
    return ControlPlaneConfig(
        source=Path(arguments.source),
        state=arguments.state,
        settings=_settings(arguments),
        given_ca=arguments.ca,
        address=arguments.address,
        xds_port=None if arguments.no_plaintext else plaintext,
        tls_port=arguments.tls_port,
        status_port=arguments.status_port,
        server_names=tuple(arguments.server_name),
        node_proxies=frozenset(arguments.node_proxy) or defaults.node_proxies,
        lifetimes=read_lifetimes(arguments),
    )


def _token(arguments: argparse.Namespace) -> int:
    subject = TokenSubject(arguments.namespace, arguments.service_account, node=arguments.node)
    if not (arguments.state / "tokens").is_dir():
        print(
            f"{arguments.state} has no key yet, one is made: only a control plane that runs with"
            " this --state will accept the token",
            file=sys.stderr,
        )
    try:
        signer = open_token_key(arguments.state)
    except (AuthorityError, UnsafeFileError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(signer.mint(subject, time.time(), arguments.lifetime))
    return 0


def _rotate_root(arguments: argparse.Namespace) -> int:
    try:
        make_private_folder(arguments.state)
        now = datetime.datetime.now(datetime.UTC)
        rotate(arguments.state / "ca", arguments.trust_domain, now)
    except (UnsafeFileError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    hours = OVERLAP.total_seconds() / 3600
    print(f"made a new root; it is handed out now and signs in {hours:.0f} hours")
    return 0


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number > 1 else ''}" if number else ""


def _validate(arguments: argparse.Namespace) -> int:
    try:
        state = read_folder(arguments.folder)
    except FolderError as error:
        print(error, file=sys.stderr)
        return 1
    for problem in state.problems:
        print(problem)
    for kind, place in state.ignored.items():
        print(f"{place}: warning: {kind} plays no part in the mesh and is ignored")
    settings = _settings(arguments)
    findings = Translator(settings).translate(state.objects).findings
    for finding in findings:
        print(f"{state.place(finding.object, finding.field)}: {finding}")
    counts = Counter(finding.severity for finding in findings)
    found = [
        _counted(len(state.problems) + counts[Severity.ERROR], "error"),
        _counted(counts[Severity.WARNING] + len(state.ignored), "warning"),
    ]
    summary = ", ".join(filter(None, found)) or "nothing is wrong"
    # Not on standard output: what stands there has a line for each thing that is wrong.
    objects = _counted(len(state), "object") or "no objects"
    print(f"{arguments.folder}: {objects}, {summary}", file=sys.stderr)
    failing = Severity.WARNING if arguments.strict else Severity.ERROR
    bad = any(finding.severity >= failing for finding in findings)
    return 1 if bad or state.problems or (arguments.strict and state.ignored) else 0
