"""The stand for all other tests here: is this the Kubernetes API that they take it for?"""

from __future__ import annotations

import pytest

from tests.support.kube.binaries import KUBERNETES
from tests.support.kube.cluster import ApiFailure, Cluster


def test_the_api_is_of_the_version_that_was_built(cluster: Cluster) -> None:
    assert cluster.call("GET", "/version")["gitVersion"] == KUBERNETES


def test_objects_are_applied_and_deleted(cluster: Cluster) -> None:
    cluster.namespace("first", colour="red")
    item = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "it", "namespace": "first"},
        "data": {"a": "1"},
    }
    cluster.apply(item)
    assert cluster.call("GET", cluster.path(item))["data"] == {"a": "1"}
    cluster.delete(item)
    with pytest.raises(ApiFailure) as failure:
        cluster.call("GET", cluster.path(item))
    assert failure.value.status == 404


def test_a_token_speaks_for_its_account_and_has_no_rights(cluster: Cluster) -> None:
    cluster.namespace("second")
    meta = {"name": "someone", "namespace": "second"}
    cluster.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta})
    token = cluster.token("second", "someone")
    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    answer = cluster.call(
        "POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", review, token=token
    )
    assert answer["status"]["userInfo"]["username"] == "system:serviceaccount:second:someone"
    with pytest.raises(ApiFailure) as failure:
        cluster.call("GET", "/api/v1/pods", token=token)
    assert failure.value.status == 403


def test_what_it_holds_outlives_the_api_server(cluster: Cluster) -> None:
    cluster.namespace("third")
    cluster.stop_api()
    with pytest.raises(OSError):
        cluster.call("GET", "/readyz")
    cluster.start_api()
    assert cluster.call("GET", "/api/v1/namespaces/third")["metadata"]["name"] == "third"
