"""What a node's daemon may do with its token, and what it may not."""

import json

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.control import NODE_NAME
from tests.cluster.node import NodeError

STATUS = "k8s.v1.cni.cncf.io/network-status"


@pytest.fixture
def token(cluster: Cluster) -> str:
    """A token as the daemon's own pod has: the API server knows its node."""
    bound = ("--bound-object-kind=Pod", f"--bound-object-name={cluster.daemon_pod()}")
    return cluster.kubectl("-n", "kube-system", "create", "token", "multus", *bound).strip()


@pytest.fixture(params=[NODE_NAME, "elsewhere"])
def node(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def bring_pod(cluster: Cluster, node: str) -> str:
    """A pod bound to a node, real or not."""
    name = f"victim-{node}"
    spec = {"nodeName": node, "containers": [{"name": "main", "image": "localhost/none:1"}]}
    metadata = {"name": name, "labels": {"app": "victim"}, "annotations": {"mine": "yes"}}
    cluster.apply({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    return name


def test_it_writes_the_status_of_its_own_pods_only(cluster: Cluster, token: str, node: str) -> None:
    pod = bring_pod(cluster, node)
    change = {"metadata": {"annotations": {STATUS: "[]"}}}
    try:
        if node == NODE_NAME:
            cluster.patch_status(token, pod, change)
            assert cluster.network_status(pod) == []
        else:
            with pytest.raises(NodeError, match="may only write to pods of its own node"):
                cluster.patch_status(token, pod, change)
    finally:
        cluster.kubectl("delete", "pod", pod, "--force", "--grace-period=0")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"metadata": {"annotations": {"theirs": "x"}}}, "may only change the annotation"),
        ({"metadata": {"annotations": {"mine": None}}}, "may only change the annotation"),
        ({"metadata": {"labels": {"app": "another"}}}, "may not change the labels"),
        ({"status": {"podIP": "10.0.0.66"}}, "may not change the status"),
    ],
    ids=["an annotation", "taking one away", "a label", "the status itself"],
)
def test_it_writes_nothing_else(cluster: Cluster, token: str, change: object, why: str) -> None:
    pod = bring_pod(cluster, NODE_NAME)
    try:
        with pytest.raises(NodeError, match=why):
            cluster.patch_status(token, pod, change)
    finally:
        cluster.kubectl("delete", "pod", pod, "--force", "--grace-period=0")


@pytest.mark.parametrize(
    "command",
    [
        ("get", "nodes"),
        ("get", "secrets", "-A"),
        ("get", "configmaps", "-A"),
        ("delete", "pod", "-n", "kube-system", "nobody"),
        ("annotate", "pod", "-n", "kube-system", "-l", "name=multus", "a=b"),
        ("get", "resourceclaims", "-A"),
    ],
    ids=" ".join,
)
def test_it_is_refused_the_rest(cluster: Cluster, token: str, command: tuple[str, ...]) -> None:
    with pytest.raises(NodeError, match=r"[Ff]orbidden"):
        cluster.as_token(token, *command)


def test_it_reports_in_the_name_of_its_own_node_only(cluster: Cluster, token: str) -> None:
    def event(name: str, node: str) -> dict[str, object]:
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": "default"},
            "involvedObject": {"apiVersion": "v1", "kind": "Pod", "namespace": "default", "name": "web"},
            "reason": "Test",
            "message": "a test",
            "type": "Normal",
            "source": {"component": "multus", "host": node},
            "reportingComponent": "multus",
            "reportingInstance": node,
        }

    cluster.as_token(token, "create", "-f", "-", stdin=json.dumps(event("told", NODE_NAME)))
    with pytest.raises(NodeError, match="in the name of its own node"):
        cluster.as_token(token, "create", "-f", "-", stdin=json.dumps(event("lied", "elsewhere")))


def test_a_token_without_a_node_writes_nothing(cluster: Cluster) -> None:
    loose = cluster.kubectl("-n", "kube-system", "create", "token", "multus").strip()
    pod = bring_pod(cluster, NODE_NAME)
    try:
        with pytest.raises(NodeError, match="own node"):
            cluster.patch_status(loose, pod, {"metadata": {"annotations": {STATUS: "[]"}}})
    finally:
        cluster.kubectl("delete", "pod", pod, "--force", "--grace-period=0")
