"""With other settings than those of deploy, all at once: a change takes a restart. Two are cases of upstream."""

import json
import sys
from collections.abc import Iterator

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.image import ROOT
from tests.cluster.pods import pod, tuned

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


@pytest.fixture(scope="module")
def configured(bare_cluster: Cluster) -> Iterator[Cluster]:
    bare_cluster.bring_multus()
    configure(bare_cluster, connectionLimit=1, auxiliaryCNIChainName="vendor-cni-chain", metricsPort=9099)
    yield bare_cluster
    bare_cluster.delete_all()
    configure(bare_cluster)


def test_one_connection_at_a_time_is_enough_for_a_deployment(configured: Cluster) -> None:
    template = {"metadata": {"labels": {"app": "limited"}}, "spec": pod("any")["spec"]}
    spec = {"replicas": 6, "selector": {"matchLabels": {"app": "limited"}}, "template": template}
    configured.apply({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "limited"}, "spec": spec})
    try:
        configured.kubectl("rollout", "status", "deployment/limited", "--timeout=90s", seconds=100)
        assert configured.get("deployment", "limited")["status"]["readyReplicas"] == 6
    finally:
        configured.kubectl("delete", "deployment", "limited", "--cascade=foreground", "--wait=true")


def test_an_auxiliary_chain_is_run_after_the_default_network(configured: Cluster) -> None:
    with tuned(configured, "/etc/cni/net.d/vendor-cni-chain", "sysctl-modified") as filtering:
        assert filtering == "1"


def test_it_is_seen_by_prometheus(configured: Cluster) -> None:
    script = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:9099/metrics').read().decode())"
    told = configured.node.run(sys.executable, "-c", script)
    assert "multus_build_info" in told
    assert 'multus_api_requests_total{code="200",resource="pods",verb="list"}' in told
