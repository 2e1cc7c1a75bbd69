"""``ambient control-plane`` and ``ambient validate``."""

from __future__ import annotations

import argparse
import datetime
import logging
import os
import signal
import sys
import time
from pathlib import Path

import trio

from daemonset.control_plane.ca.generations import OVERLAP, rotate
from daemonset.control_plane.ca.issuer import AuthorityError
from daemonset.control_plane.ca.private_files import UnsafeFileError, make_private_folder
from daemonset.control_plane.ca.tokens import TokenSubject, open_token_key
from daemonset.control_plane.config import ControlPlaneConfig
from daemonset.control_plane.server import ControlPlane
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
        "control-plane", help="serve a folder of Kubernetes YAML as a mesh"
    )
    serve.add_argument("--source", type=Path, required=True, metavar="FOLDER")
    serve.add_argument(
        "--state",
        type=Path,
        default=default_state(),
        metavar="FOLDER",
        help="keys and copies of good files (default: %(default)s)",
    )
    serve.add_argument(
        "--ca",
        type=Path,
        metavar="FOLDER",
        help="an authority of your own: ca-cert.pem, ca-key.pem, cert-chain.pem, root-cert.pem",
    )
    serve.add_argument("--address", default="127.0.0.1", help="to listen on (%(default)s)")
    serve.add_argument("--xds-port", type=int, default=15010, help="plaintext xDS (%(default)s)")
    serve.add_argument("--no-plaintext", action="store_true", help="no plaintext xDS")
    serve.add_argument("--tls-port", type=int, default=15012, help="xDS and CA (%(default)s)")
    serve.add_argument("--status-port", type=int, default=15014, help="HTTP (%(default)s)")
    serve.add_argument(
        "--server-name",
        action="append",
        default=[],
        metavar="NAME",
        help="a name or address for the serving certificate; may be repeated",
    )
    serve.add_argument(
        "--node-proxy",
        action="append",
        default=[],
        metavar="NAMESPACE/ACCOUNT",
        help="who may ask for the identities of a node's pods (istio-system/ztunnel)",
    )
    _add_mesh_arguments(serve)
    serve.set_defaults(run=_serve)
    validate = subparsers.add_parser(
        "validate", help="say what is wrong with a folder of Kubernetes YAML"
    )
    validate.add_argument("folder", type=Path, metavar="FOLDER")
    validate.add_argument("--strict", action="store_true", help="warnings are errors too")
    _add_mesh_arguments(validate)
    validate.set_defaults(run=_validate)
    token = subparsers.add_parser("token", help="mint a token for a node's proxy")
    token.add_argument("--state", type=Path, default=default_state(), metavar="FOLDER")
    token.add_argument("--namespace", default="istio-system")
    token.add_argument("--service-account", default="ztunnel")
    token.add_argument("--node", required=True, help="the node whose pods it may speak for")
    token.add_argument("--lifetime", type=float, default=12 * 3600.0, metavar="SECONDS")
    token.set_defaults(run=_token)
    rotate = subparsers.add_parser(
        "rotate-root", help="make a new root; it signs once every workload trusts it"
    )
    rotate.add_argument("--state", type=Path, default=default_state(), metavar="FOLDER")
    rotate.add_argument("--trust-domain", default="cluster.local")
    rotate.set_defaults(run=_rotate_root)


def default_state() -> Path:
    """/var/lib/ambient for root, else the user's state folder (XDG base directories)."""
    if os.geteuid() == 0:
        return Path("/var/lib/ambient/control-plane")
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local/state")
    return Path(base) / "ambient/control-plane"


def _add_mesh_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--trust-domain", default="cluster.local")
    parser.add_argument("--cluster-domain", default="cluster.local")
    parser.add_argument("--cluster-id", default="Kubernetes")
    parser.add_argument("--root-namespace", default="istio-system")
    parser.add_argument("--revision", default="default")
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
    defaults = ControlPlaneConfig(arguments.source, arguments.state)
    config = ControlPlaneConfig(
        source=arguments.source,
        state=arguments.state,
        settings=_settings(arguments),
        given_ca=arguments.ca,
        address=arguments.address,
        xds_port=None if arguments.no_plaintext else arguments.xds_port,
        tls_port=arguments.tls_port,
        status_port=arguments.status_port,
        server_names=tuple(arguments.server_name),
        node_proxies=frozenset(arguments.node_proxy) or defaults.node_proxies,
    )
    code = 0
    try:
        trio.run(_run_until_signal, ControlPlane(config))
    except* (FolderError, AuthorityError, UnsafeFileError, OSError) as group:
        for error in group.exceptions:
            print(error, file=sys.stderr)
        code = 1
    return code


async def _run_until_signal(plane: ControlPlane) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(plane.run)
            async for _ in signals:
                nursery.cancel_scope.cancel()


def _token(arguments: argparse.Namespace) -> int:
    subject = TokenSubject(arguments.namespace, arguments.service_account, node=arguments.node)
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
    print(f"made a new root; it is handed out now and signs in {OVERLAP}")
    return 0


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
    failing = Severity.WARNING if arguments.strict else Severity.ERROR
    bad = any(finding.severity >= failing for finding in findings)
    return 1 if bad or state.problems or (arguments.strict and state.ignored) else 0
