"""Admission policies in force, and what the API server then says of an object."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import dataclass

from tests.support.admission_cases import AROUND, CASES, NAMESPACE, ROOT, Json, Verdict
from tests.support.kube.cluster import Cluster
from tests.support.kube.manifests import MANIFESTS, install, read_base
from tests.support.kube.objects import policy

PATIENCE = 60.0
DRY_RUN = "dryRun=All&fieldManager=test&force=true"


@dataclass(frozen=True)
class Answer:
    """What the API server said of an object."""

    verdict: Verdict
    words: str


def ask(cluster: Cluster, item: Json, query: str = DRY_RUN) -> Answer:
    """Apply an object, by default without effect; a refusal or a warning of any policy counts."""
    with contextlib.closing(cluster.connect()) as connection:
        headers = {"Content-Type": "application/apply-patch+yaml", "Accept": "application/json"}
        path = f"{cluster.path(item)}?{query}"
        connection.request("PATCH", path, json.dumps(item), headers)
        response = connection.getresponse()
        body: Json = json.loads(response.read())
        warnings = response.headers.get_all("Warning") or []
    if response.status < 300:
        ours = [text for text in warnings if "ValidatingAdmissionPolicy" in text]
        return Answer(Verdict.WARNED if ours else Verdict.FINE, "\n".join(warnings))
    return Answer(Verdict.REFUSED, f"{response.status} {body['message']}")


def put_in_force(cluster: Cluster) -> None:
    """Install the definitions and the policies, and wait until all of them are obeyed."""
    install(cluster, read_base(MANIFESTS / "crds"))
    cluster.namespace(ROOT)
    for item in (*AROUND, *read_base(MANIFESTS / "validation")):
        cluster.apply(item)
    # Policies come into force a moment later, each by itself.
    canaries = [
        (policy(NAMESPACE, "canary", {"rule": 1}), Verdict.REFUSED),
        (policy(NAMESPACE, "canary", {"action": "AUDIT"}), Verdict.WARNED),
    ]
    for kind in ("PeerAuthentication", "ServiceEntry", "WorkloadEntry"):
        bad = next(
            case.object
            for case in CASES
            if case.object["kind"] == kind and case.verdict is Verdict.REFUSED and not case.by_type
        )
        canaries.append((bad, Verdict.REFUSED))
    warned = {case.object["kind"]: case for case in CASES if case.verdict is Verdict.WARNED}
    canaries += [(case.object, case.verdict) for case in warned.values()]
    deadline = time.monotonic() + PATIENCE
    for item, verdict in canaries:
        while (answer := ask(cluster, item)).verdict is not verdict:
            assert time.monotonic() < deadline, (item, answer.words)
            time.sleep(0.1)
