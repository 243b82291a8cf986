"""A node that loses its power: processes, namespaces, interfaces and /run are gone, disks keep what they had."""

import sys
from collections.abc import Iterator

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.pods import bridge, incomplete, nad, pod

_CUT = """
pkill -9 containerd-shim
groups=$(find /sys/fs/cgroup/{cgroup} /sys/fs/cgroup/*/{cgroup} -depth -type d -path '*/kubepods*' 2>/dev/null)
for group in $groups; do xargs -r kill -9 <$group/cgroup.procs; done
awk '$2 ~ "^/var/lib/kubelet/pods/" {{print $2}}' /proc/self/mounts | sort -r | xargs -r umount -l
umount -l /run
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/netns /run/lock
for link in $(ip -o link | cut -d: -f2 | cut -d@ -f1); do
  case $link in lo|eth0|wire0) ;; *) ip link delete $link 2>/dev/null ;; esac
done
for table in filter nat mangle raw; do iptables -t $table -F; iptables -t $table -X; done
for group in $groups; do rmdir $group; done
true
"""
# The kernel's own boot id stays: to the daemon, what it wrote down is of another boot all the same.
_AGE = """
import sqlite3
with sqlite3.connect("/var/lib/cni/multus/journal.db") as journal:
    journal.execute("UPDATE sandbox SET boot_id = '00000000-0000-0000-0000-000000000000'")
journal.close()
"""
_OWNERS = "for each in /var/lib/cni/networks/*/[0-9]*.[0-9]*; do head -n 1 $each | tr -d '\\r'; done"


@pytest.fixture(autouse=True)
def network(cluster: Cluster) -> Iterator[None]:
    """A second network; afterwards nothing of any pod is left on the node."""
    cluster.apply(nad("second", bridge("second", "10.8.0.0/24")))
    yield
    cluster.delete_all()


def test_a_node_that_lost_its_power_comes_back_with_every_network(cluster: Cluster) -> None:
    node, names = cluster.node, [f"lasting-{n}" for n in range(6)]
    cluster.apply(*(pod(name, "second,second") for name in names))
    cluster.wait_ready(*names)
    before = {each["containerID"] for each in cluster.attachments()}

    for name in ("kubelet", "containerd"):
        node.stop(name, seconds=0.0)
    node.run("sh", "-c", _CUT.format(cgroup=node.cgroup))
    node.run(sys.executable, "-c", _AGE)
    assert node.run("ls", "/run/netns").split() == []

    cluster.control.prepare_network()
    cluster.control.start_containerd()
    cluster.control.wait_for_containerd()
    cluster.control.start_kubelet()

    def back() -> bool:
        held = cluster.attachments()
        attached = [each["pod"]["name"] for each in held if each["state"] == "attached"]
        return sorted(attached) == sorted(names) and not before & {each["containerID"] for each in held}

    node.wait(back, "every pod's networks in new namespaces", seconds=150, pause=0.5)
    cluster.wait_ready(*names, seconds=60)
    assert incomplete(cluster, names) == []
    now = {each["containerID"] for each in cluster.attachments()}
    assert set(node.run("sh", "-c", _OWNERS).split()) == now, "addresses of before are still taken"
