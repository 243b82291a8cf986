"""What goes wrong on real nodes: programs killed and restarted while pods come and go."""

import json
from collections.abc import Iterator

import pytest

from tests.cluster.cluster import BUSYBOX, Cluster

BRIDGE = {
    "cniVersion": "1.0.0",
    "name": "second",
    "type": "bridge",
    "bridge": "second0",
    "ipam": {"type": "host-local", "subnet": "10.8.0.0/24"},
}


@pytest.fixture(autouse=True)
def network(cluster: Cluster) -> Iterator[None]:
    """A second network; afterwards nothing of any pod is left on the node."""
    nad = {"apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition", "metadata": {"name": "second"}}
    cluster.apply({**nad, "spec": {"config": json.dumps(BRIDGE)}})
    yield
    cluster.kubectl("delete", "pods", "--all", "--wait=true", "--timeout=60s", seconds=70)
    cluster.node.run("ip", "link", "delete", "second0", check=False)
    cluster.settled()


def bring(cluster: Cluster, *names: str) -> None:
    container = {"name": "main", "image": BUSYBOX, "command": ["sleep", "1000000"]}
    spec = {"terminationGracePeriodSeconds": 0, "containers": [container]}
    cluster.apply(*(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "annotations": {"k8s.v1.cni.cncf.io/networks": "second,second"}},
            "spec": spec,
        }
        for name in names
    ))  # fmt: skip


def complete(cluster: Cluster, *names: str) -> bool:
    """Whether every pod has all of its networks: none may come up with fewer."""
    return all(set(cluster.interfaces(name)) == {"lo", "eth0", "net1", "net2"} for name in names)


def kill_daemon(cluster: Cluster) -> None:
    cluster.node.run("sh", "-c", "kill -9 $(pgrep -f '[m]ultusd --config')")


def test_the_daemon_is_killed_while_pods_start_and_stop(cluster: Cluster) -> None:
    stays, goes = [f"stays-{n}" for n in range(4)], [f"goes-{n}" for n in range(4)]
    bring(cluster, *goes)
    cluster.wait_ready(*goes)
    bring(cluster, *stays)
    cluster.kubectl("delete", "pod", *goes, "--wait=false")
    kill_daemon(cluster)
    cluster.wait_ready(*stays, seconds=120)
    assert complete(cluster, *stays)


def test_containerd_and_the_kubelet_are_restarted(cluster: Cluster) -> None:
    bring(cluster, "before")
    cluster.wait_ready("before")
    cluster.node.restart("containerd")
    cluster.node.wait(lambda: cluster.node.run("ctr", "version", check=False), "containerd")
    cluster.node.restart("kubelet")  # which would end at once without it, and nobody here starts it again
    bring(cluster, "after")
    cluster.wait_ready("before", "after", seconds=120)
    assert complete(cluster, "before", "after")


def test_pods_are_deleted_while_the_api_server_is_away(cluster: Cluster) -> None:
    bring(cluster, "one", "two")
    cluster.wait_ready("one", "two")
    # They ignore SIGTERM, so that the kubelet tears them down when nobody can be asked any more.
    cluster.kubectl("delete", "pod", "one", "two", "--grace-period=6", "--wait=false")
    cluster.node.stop("kube-apiserver", seconds=1)
    cluster.node.wait(lambda: not cluster.node.run("ls", "/run/netns").split(), "both sandboxes to go", seconds=40)
    cluster.restart_api()


def test_forced_deletion_leaves_nothing(cluster: Cluster) -> None:
    names = [f"forced-{n}" for n in range(4)]
    bring(cluster, *names)
    cluster.wait_ready(*names)
    cluster.kubectl("delete", "pod", *names, "--force", "--grace-period=0")
    cluster.settled()  # as the one before, but nobody waited for the sandboxes
