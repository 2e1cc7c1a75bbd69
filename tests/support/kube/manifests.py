"""The manifests that users apply, as objects; and installing definitions in a test's cluster."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import yaml

from tests.support.kube.binaries import find
from tests.support.kube.cluster import ApiFailure, Cluster, Json

MANIFESTS = Path(__file__).resolve().parents[3] / "daemonset" / "manifests"
_SERVED_SECONDS = 60.0


def read_base(folder: Path) -> list[Json]:
    """What `kubectl kustomize` makes of a base of resources, and perhaps counts of replicas."""
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    # `sortOptions` of fifo is the order that they are read in here.
    known = {"apiVersion", "kind", "resources", "replicas", "sortOptions"}
    unknown = kustomization.keys() - known
    assert not unknown, f"{folder}: {unknown} is not supported here"
    found: list[Json] = []
    for name in kustomization["resources"]:
        path = folder / name
        if path.is_dir():
            found += read_base(path)
        else:
            found += [item for item in yaml.safe_load_all(path.read_text()) if item]
    for wanted in kustomization.get("replicas", ()):
        [item] = [
            item
            for item in found
            if (item["kind"], item["metadata"]["name"]) == ("Deployment", wanted["name"])
        ]
        item["spec"]["replicas"] = wanted["count"]
    return found


def kustomize(folder: Path) -> list[Json]:
    """What `kubectl kustomize` itself makes of any folder.

    Raises:
        Unavailable: there is no kubectl.
        subprocess.CalledProcessError: it refuses the folder; its words are on standard error.
    """
    command = [str(find("kubectl")), "kustomize", str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return [item for item in yaml.safe_load_all(done.stdout) if item]


def install(cluster: Cluster, definitions: list[Json]) -> None:
    """Apply CustomResourceDefinitions and wait until the API serves them."""
    for item in definitions:
        cluster.apply(item)
    deadline = time.monotonic() + _SERVED_SECONDS
    for item in definitions:
        while not _is_served(cluster, item):
            assert time.monotonic() < deadline, item["metadata"]["name"]
            time.sleep(0.05)


def _is_served(cluster: Cluster, item: Json) -> bool:
    """All versions, and in what the API says of itself as well: it may lag behind."""
    spec = item["spec"]
    for version in spec["versions"]:
        path = f"/apis/{spec['group']}/{version['name']}"
        try:
            known = {resource["kind"] for resource in cluster.call("GET", path)["resources"]}
            cluster.call("GET", f"{path}/{spec['names']['plural']}")
        except ApiFailure:
            return False
        if spec["names"]["kind"] not in known:
            return False
    return True


def gateway_api(kind: str, plural: str, *, namespaced: bool) -> Json:
    """A stand-in for a definition of the Gateway API: any object of that kind is accepted."""
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{plural}.gateway.networking.k8s.io",
            "annotations": {"api-approved.kubernetes.io": "unapproved, a test"},
        },
        "spec": {
            "group": "gateway.networking.k8s.io",
            "scope": "Namespaced" if namespaced else "Cluster",
            "names": {"kind": kind, "plural": plural, "listKind": f"{kind}List"},
            "versions": [
                {
                    "name": "v1",
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "schema": {"openAPIV3Schema": schema},
                }
            ],
        },
    }
