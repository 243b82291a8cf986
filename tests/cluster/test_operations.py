"""What an operator does: looks at a node, prepares other overlays, changes from one to another."""

import json

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.image import ROOT


@pytest.mark.parametrize("overlay", ["plain", "sriov", "dpdk"])
def test_the_api_server_takes_every_overlay(cluster: Cluster, overlay: str) -> None:
    said = cluster.kubectl("apply", "--dry-run=server", "-k", str(ROOT / "deploy" / overlay))
    assert "daemonset.apps/kube-multus-ds" in said
    assert ("clusterrole.rbac.authorization.k8s.io/multus-claims" in said) is (overlay != "plain")


def told(cluster: Cluster) -> str:
    return cluster.in_daemon("multusctl", "doctor", check=False)


def test_a_doctor_finds_nothing_wrong(cluster: Cluster) -> None:
    cluster.node.wait(lambda: "nothing is wrong" in told(cluster), "a node that is well")


def test_a_doctor_names_the_right_that_is_missing(cluster: Cluster) -> None:
    rules = cluster.get("clusterrole", "multus")["rules"]
    kept = [each for each in rules if each["resources"] != ["events"]]
    assert len(kept) == len(rules) - 1
    cluster.kubectl("patch", "clusterrole", "multus", "--type=merge", "-p", json.dumps({"rules": kept}))
    try:
        missing = "RBAC does not allow to create events"
        cluster.node.wait(
            lambda: missing in cluster.in_daemon("multusctl", "doctor", check=False),
            "the doctor to name it",
            seconds=20,
        )
    finally:
        cluster.kubectl("apply", "-k", str(ROOT / "deploy/plain"))


def test_the_daemon_may_be_patched_by_an_overlay_and_back(cluster: Cluster) -> None:
    """An upgrade, as the DaemonSet's controller does it: also from a container with more rights to one with fewer."""
    for overlay in ("sriov", "plain"):
        cluster.deploy(overlay)
        mine = cluster.get("-n", "kube-system", "pod", cluster.daemon_pod())
        (container,) = mine["spec"]["containers"]
        assert container["securityContext"].get("privileged", False) is (overlay == "sriov")
