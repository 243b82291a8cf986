"""What goes wrong on real nodes: programs killed, restarted and upgraded while pods come and go."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import image
from tests.cluster.cluster import Cluster
from tests.cluster.pods import bridge, incomplete, nad, pod

MINUTE = 60.0


@pytest.fixture(autouse=True)
def network(cluster: Cluster) -> Iterator[None]:
    """A second network; afterwards nothing of any pod is left on the node."""
    cluster.apply(nad("second", bridge("second", "10.8.0.0/24")))
    yield
    cluster.delete_all()


def bring(cluster: Cluster, *names: str, seconds: int = 0) -> list[str]:
    """Pods with two further networks, which need nothing of the API server once the kubelet has them."""
    spec = {"automountServiceAccountToken": False, "terminationGracePeriodSeconds": seconds}
    cluster.apply(*(pod(name, "second,second", spec=spec) for name in names))
    return list(names)


def daemon_pid(cluster: Cluster) -> str:
    """As the node counts."""
    return cluster.node.run("pgrep", "-of", "[m]ultusd --config").strip()


def test_the_daemon_is_killed_while_pods_start_and_stop(cluster: Cluster) -> None:
    goes = bring(cluster, *(f"goes-{n}" for n in range(4)))
    cluster.wait_ready(*goes)
    stays = bring(cluster, *(f"stays-{n}" for n in range(4)))
    cluster.kubectl("delete", "pod", *goes, "--wait=false")
    cluster.node.run("kill", "-9", daemon_pid(cluster))
    cluster.wait_ready(*stays, seconds=120)
    assert incomplete(cluster, stays) == []


def test_the_daemon_is_upgraded_while_pods_start_and_stop(cluster: Cluster) -> None:
    new = f"{image.name_of_ours().rpartition(':')[0]}:next"
    cluster.node.run("ctr", "-n", "k8s.io", "image", "tag", "--force", image.name_of_ours(), new)
    goes = bring(cluster, *(f"goes-{n}" for n in range(4)))
    cluster.wait_ready(*goes)
    cluster.kubectl("-n", "kube-system", "set", "image", "ds/kube-multus-ds", f"install={new}", f"multus={new}")
    stays = bring(cluster, *(f"stays-{n}" for n in range(8)))
    cluster.kubectl("delete", "pod", *goes, "--wait=false")
    cluster.rolled_out()
    told = cluster.get("-n", "kube-system", "pod", cluster.daemon_pod())
    assert told["spec"]["containers"][0]["image"] == new
    cluster.wait_ready(*stays, seconds=120)
    assert incomplete(cluster, stays) == []


def test_the_daemon_has_no_memory_left_while_pods_start(cluster: Cluster) -> None:
    """The kernel ends it: its control group is given hardly more than it has, and plugins run in there."""
    pid = daemon_pid(cluster)
    groups = cluster.node.run("cat", f"/proc/{pid}/cgroup").splitlines()
    root = Path("/sys/fs/cgroup")
    if (root / "cgroup.controllers").exists():
        (mine,) = [root / line.split("::/")[1] for line in groups if line.startswith("0::")]
        limit = mine / "memory.max"
    else:
        (mine,) = [root / "memory" / line.split(":memory:/")[1] for line in groups if ":memory:" in line]
        limit = mine / "memory.limit_in_bytes"
    resident = next(each for each in cluster.node.run("cat", f"/proc/{pid}/status").splitlines() if "VmRSS" in each)
    limit.write_text(str(int(resident.split()[1]) * 1024 + (4 << 20)))
    names = bring(cluster, *(f"hungry-{n}" for n in range(8)))

    def ended() -> bool:
        (status,) = cluster.get("-n", "kube-system", "pod", cluster.daemon_pod())["status"]["containerStatuses"]
        reason = status["lastState"].get("terminated", {}).get("reason")
        return bool(reason == "OOMKilled" and status["ready"])

    cluster.node.wait(ended, "the daemon to be ended by the kernel and to come again", seconds=90)
    cluster.wait_ready(*names, seconds=120)
    assert incomplete(cluster, names) == []


def test_containerd_and_the_kubelet_are_restarted(cluster: Cluster) -> None:
    before = bring(cluster, "before")
    cluster.wait_ready(*before)
    cluster.node.restart("containerd")
    cluster.control.wait_for_containerd()
    cluster.node.restart("kubelet")  # which would end at once without it, and nobody here starts it again
    after = bring(cluster, "after")
    cluster.wait_ready(*before, *after, seconds=120)
    assert incomplete(cluster, before + after) == []


def test_pods_come_and_go_while_the_api_server_is_away_for_a_minute(cluster: Cluster) -> None:
    """The daemon is killed meanwhile, too: what it comes back to is its journal and nobody to ask."""
    goes = bring(cluster, *(f"goes-{n}" for n in range(4)), seconds=20)
    cluster.wait_ready(*goes)
    # They ignore SIGTERM, so that the kubelet tears them down when nobody can be asked any more.
    cluster.kubectl("delete", "pod", *goes, "--wait=false")
    pid = daemon_pid(cluster)
    cluster.node.run("kill", "-STOP", pid)  # so that nothing is done before the API server has gone
    comes = bring(cluster, *(f"comes-{n}" for n in range(4)))
    asking = "pgrep -xc multus || true"
    cluster.node.wait(lambda: int(cluster.node.run("sh", "-c", asking)) >= len(comes), "the kubelet to ask for them")
    cluster.node.stop("kube-apiserver", seconds=1)
    began = time.monotonic()
    cluster.node.run("kill", "-CONT", pid)

    def held(names: list[str]) -> bool:
        return {each["pod"]["name"] for each in cluster.attachments() if each["state"] == "attached"} >= set(names)

    cluster.node.wait(lambda: held(comes), "the new pods' networks", seconds=30)
    cluster.node.wait(lambda: not incomplete(cluster, comes), "the new pods", seconds=15)
    cluster.node.run("kill", "-9", daemon_pid(cluster))
    gone = lambda: not {each["pod"]["name"] for each in cluster.attachments()} & set(goes)  # noqa: E731
    cluster.node.wait(gone, "the old pods' networks to be taken down", seconds=50)
    time.sleep(max(0.0, MINUTE - (time.monotonic() - began)))
    cluster.control.start_api_server()
    cluster.wait_for_api()
    for name in ("kubelet", "kube-scheduler", "kube-controller-manager"):
        cluster.node.restart(name)  # by itself each would look for the API server again within a minute
    cluster.wait_ready(*comes, seconds=90)
    assert incomplete(cluster, comes) == []
    told = lambda: all(len(cluster.network_status(name) or ()) == 3 for name in comes)  # noqa: E731
    cluster.node.wait(told, "the new pods' network-status", seconds=60)


def test_forced_deletion_leaves_nothing(cluster: Cluster) -> None:
    names = bring(cluster, *(f"forced-{n}" for n in range(4)))
    cluster.wait_ready(*names)
    cluster.kubectl("delete", "pod", *names, "--force", "--grace-period=0")
    cluster.settled()  # as the one before, but nobody waited for the sandboxes
