"""Many at once: pods that start together, and the runtime's DELs that come several at a time."""

import json
import time
from collections.abc import Iterator
from datetime import datetime
from statistics import quantiles
from typing import Any

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.flannel import OURS
from tests.cluster.pods import TWO, bridge, incomplete, nad, pod

CROWD = 100
ALONE = {"automountServiceAccountToken": False}
MACVLAN = {
    "cniVersion": "1.0.0",
    "name": "crowded",
    "type": "macvlan",
    "master": "eth0",
    "mode": "bridge",
    "ipam": {"type": "host-local", "subnet": "10.9.0.0/24"},
}


@pytest.fixture(autouse=True)
def networks(cluster: Cluster) -> Iterator[None]:
    """Two further networks; afterwards nothing of any pod is left on the node."""
    cluster.apply(nad("crowded", MACVLAN), nad("second", bridge("second", "10.8.0.0/24")))
    yield
    cluster.delete_all(seconds=120)


def failures(cluster: Cluster) -> dict[str, str]:
    """What the daemon's events say, by pod."""
    events = cluster.get("events", "--field-selector=reason=FailedAttachNetwork")["items"]
    return {each["involvedObject"]["name"]: each["message"] for each in events}


def latency(told: dict[str, Any]) -> float:
    """Seconds from a pod's creation until it was Ready, as its status has them (whole seconds)."""
    (ready,) = [each for each in told["status"]["conditions"] if each["type"] == "Ready"]
    begin, end = told["metadata"]["creationTimestamp"], ready["lastTransitionTime"]
    return (datetime.fromisoformat(end) - datetime.fromisoformat(begin)).total_seconds()


def test_a_hundred_pods_with_two_networks_start_at_once(cluster: Cluster) -> None:
    names = [f"crowd-{number}" for number in range(CROWD)]
    begin = time.monotonic()
    cluster.apply(*(pod(name, "crowded,second", spec=ALONE) for name in names))
    late: list[str] = []

    def settled() -> bool:
        pods = cluster.get("pods")["items"]
        late[:] = [each["metadata"]["name"] for each in pods if each["status"]["phase"] != "Running"]
        return len(pods) == CROWD and set(late) <= set(failures(cluster))

    cluster.node.wait(settled, "every pod to run, or to have an event", seconds=200, pause=1.0)
    took = time.monotonic() - begin
    assert incomplete(cluster, [name for name in names if name not in late]) == []
    assert not late, failures(cluster)
    spread = quantiles([latency(each) for each in cluster.get("pods")["items"]], n=100)
    print(f"{CROWD} pods with three networks: all after {took:.1f} s; pod latency {spread[49]:.0f}/{spread[98]:.0f} s")
    status = {each["metadata"]["name"]: each["metadata"]["annotations"] for each in cluster.get("pods")["items"]}
    for name in names:
        told = json.loads(status[name]["k8s.v1.cni.cncf.io/network-status"])
        assert {each["interface"] for each in told} | {"lo"} == TWO
    held = [ip for each in cluster.attachments() for item in each["attachments"] for ip in item["ips"]]
    assert len(held) == len(set(held)) == 3 * CROWD


def test_five_deletions_of_one_sandbox_at_once(cluster: Cluster) -> None:
    """What containerd does to a plugin, here for certain: by the runtime's own arguments, while it does so itself."""
    cluster.apply(pod("wanted-gone", "crowded,second"))
    cluster.wait_ready("wanted-gone")
    (held,) = cluster.attachments()
    who = held["pod"]
    conf = cluster.node.run("cat", f"/etc/cni/net.d/{OURS}")
    arguments = (
        f"IgnoreUnknown=1;K8S_POD_NAMESPACE={who['namespace']};K8S_POD_NAME={who['name']};"
        f"K8S_POD_INFRA_CONTAINER_ID={held['containerID']};K8S_POD_UID={who['uid']}"
    )
    env = {
        "CNI_COMMAND": "DEL",
        "CNI_CONTAINERID": held["containerID"],
        "CNI_NETNS": held["netns"],
        "CNI_IFNAME": "eth0",
        "CNI_PATH": "/opt/cni/bin",
        "CNI_ARGS": arguments,
    }
    call = " ".join(["env", *(f"'{key}={value}'" for key, value in env.items()), "/opt/cni/bin/multus", "<$conf"])
    script = f"conf=$(mktemp); cat >$conf; for n in 1 2 3 4 5; do ({call}; echo code $?) & done; wait; rm $conf"
    cluster.kubectl("delete", "pod", "wanted-gone", "--wait=false")
    said = cluster.node.run("sh", "-c", script, stdin=conf)
    assert said.split() == ["code", "0"] * 5
    assert cluster.attachments() == []
    events = cluster.get("events", "--field-selector=involvedObject.name=wanted-gone")["items"]
    assert [each["reason"] for each in events if each["type"] != "Normal"] == []
