"""The end: `kubectl delete -k` and the uninstallation leave the node as it was."""

from tests.cluster.cluster import Cluster
from tests.cluster.flannel import CONF, OURS
from tests.cluster.image import ROOT


def test_uninstalled_the_node_is_as_it_was(cluster: Cluster) -> None:
    deploy = ROOT / "deploy"
    cluster.delete_all()
    cluster.kubectl("delete", "-k", str(deploy / "plain"), "--wait=true", seconds=150)
    assert OURS in cluster.node.run("ls", "/etc/cni/net.d"), "networks must outlive the daemon"
    cluster.kubectl("apply", "-k", str(deploy / "uninstall"))
    cluster.kubectl("-n", "kube-system", "rollout", "status", "ds/multus-uninstall", "--timeout=60s", seconds=70)
    cluster.kubectl("delete", "-k", str(deploy / "uninstall"), "--wait=true")
    assert cluster.node.run("ls", "/etc/cni/net.d").split() == [CONF]
    assert "multus" not in cluster.node.run("ls", "/opt/cni/bin").split()
    assert cluster.node.run("sh", "-c", "ls /var/lib/cni/multus 2>/dev/null || true").split() == []
    assert cluster.kubectl("get", "crds").strip() in ("", "No resources found")
