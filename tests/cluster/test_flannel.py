"""Flannel under our configuration: the pods' default network leaves the node as VXLAN."""

import json
import sys

from tests.cluster.cluster import Cluster
from tests.cluster.control import NODE_NAME
from tests.cluster.flannel import CONF
from tests.cluster.pods import pod

PEER, PEER_PODS, PEER_MAC = "10.200.0.2", "10.244.7", "02:00:00:00:00:02"
# Another node as flanneld knows one: its annotations, and the subnet that the cluster gave it.
OTHER = {
    "apiVersion": "v1",
    "kind": "Node",
    "metadata": {
        "name": "other",
        "annotations": {
            "flannel.alpha.coreos.com/backend-type": "vxlan",
            "flannel.alpha.coreos.com/backend-data": json.dumps({"VNI": 1, "VtepMAC": "02:00:00:00:07:00"}),
            "flannel.alpha.coreos.com/kube-subnet-manager": "true",
            "flannel.alpha.coreos.com/public-ip": PEER,
        },
    },
    "spec": {"podCIDR": f"{PEER_PODS}.0/24", "podCIDRs": [f"{PEER_PODS}.0/24"], "unschedulable": True},
}
# What comes out at the other end of the node's wire: outer and inner destination of the first VXLAN frame with a ping.
_LISTEN = """
import json, socket, time
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800)) as wire:
    wire.bind(("wire0", 0))
    wire.settimeout(20)
    print("listening", flush=True)
    end = time.monotonic() + 20
    while time.monotonic() < end:
        outer = wire.recv(65535)[14:]
        head = (outer[0] & 15) * 4
        inner = outer[head + 8 + 8 + 14 :]
        if outer[9] == 17 and outer[head + 2 : head + 4] == (8472).to_bytes(2, "big") and inner[9:10] == b"\\x01":
            vni = int.from_bytes(outer[head + 12 : head + 15], "big")
            print(json.dumps([socket.inet_ntoa(outer[16:20]), vni, socket.inet_ntoa(inner[16:20])]))
            break
"""


def test_a_packet_for_another_node_leaves_in_vxlan(cluster: Cluster) -> None:
    node = cluster.node
    cluster.apply(OTHER, pod("sender"))
    try:
        cluster.wait_ready("sender")
        node.wait(lambda: PEER_PODS in node.run("ip", "route", "show", "dev", "flannel.1"), "flanneld's route")
        node.run("ip", "neighbour", "replace", PEER, "lladdr", PEER_MAC, "dev", "eth0")
        node.start("listener", sys.executable, "-c", _LISTEN)
        node.wait(lambda: "listening" in node.tail("listener"), "the other end to listen", watch="listener")
        cluster.kubectl("exec", "sender", "--", "ping", "-c", "2", "-W", "1", f"{PEER_PODS}.9", check=False)
        node.wait(lambda: "[" in node.tail("listener"), "the packet to come out")
        assert json.loads(node.tail("listener").splitlines()[-1]) == [PEER, 1, f"{PEER_PODS}.9"]
    finally:
        node.stop("listener", seconds=1)
        cluster.kubectl("delete", "node", "other", "--ignore-not-found")
        cluster.delete_all()


def test_flannel_gives_the_node_its_subnet(cluster: Cluster) -> None:
    (subnet,) = cluster.get("node", NODE_NAME)["spec"]["podCIDRs"]
    gateway = subnet.replace(".0/24", ".1/24")
    assert f"FLANNEL_SUBNET={gateway}" in cluster.node.run("cat", "/run/flannel/subnet.env")
    assert json.loads(cluster.node.run("cat", f"/etc/cni/net.d/{CONF}"))["plugins"][0]["type"] == "flannel"
    (link,) = json.loads(cluster.node.run("ip", "-j", "-d", "link", "show", "flannel.1"))
    assert link["linkinfo"]["info_kind"] == "vxlan"
