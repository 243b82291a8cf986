"""What an operator does: looks at a node, reads metrics, upgrades, prepares other overlays."""

import json
import sys

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.image import ROOT

_CONFIG = ROOT / "deploy/base/daemon-config.json"


def configure(cluster: Cluster, **changed: object) -> None:
    """The daemon's file with some keys changed, and daemons that have read it."""
    settings = {**json.loads(_CONFIG.read_text()), **changed}
    cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "multus-daemon-config", "namespace": "kube-system"},
            "data": {"daemon-config.json": json.dumps(settings)},
        }
    )
    cluster.kubectl("-n", "kube-system", "rollout", "restart", "ds/kube-multus-ds")
    cluster.rolled_out()


@pytest.mark.parametrize("overlay", ["plain", "sriov", "dpdk"])
def test_the_api_server_takes_every_overlay(cluster: Cluster, overlay: str) -> None:
    told = cluster.kubectl("apply", "--dry-run=server", "-k", str(ROOT / "deploy" / overlay))
    assert "daemonset.apps/kube-multus-ds" in told
    assert ("clusterrole.rbac.authorization.k8s.io/multus-claims" in told) is (overlay != "plain")


def test_a_doctor_finds_nothing_wrong(cluster: Cluster) -> None:
    cluster.node.wait(
        lambda: "nothing is wrong" in cluster.in_daemon("multusctl", "doctor", check=False), "a node that is well"
    )


def test_it_is_seen_by_prometheus(cluster: Cluster) -> None:
    configure(cluster, metricsPort=9099)
    script = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:9099/metrics').read().decode())"
    told = cluster.node.run(sys.executable, "-c", script)
    assert "multus_build_info" in told
    assert 'multus_api_requests_total{code="200",resource="pods",verb="list"}' in told
    configure(cluster)


def test_the_daemon_may_be_patched_by_an_overlay_and_back(cluster: Cluster) -> None:
    """An upgrade, as the DaemonSet's controller does it: also from a container with more rights to one with fewer."""
    for overlay in ("sriov", "plain"):
        cluster.deploy(overlay)
        told = cluster.get("-n", "kube-system", "pod", cluster.daemon_pod())
        (container,) = told["spec"]["containers"]
        assert container["securityContext"].get("privileged", False) is (overlay == "sriov")
