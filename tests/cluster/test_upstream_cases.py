"""Upstream's own end-to-end cases, with their manifests' content, that the walk-through does not have already."""

import base64
import json
import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.cluster import BUSYBOX, DEFAULT_NETWORK, NODE_NAME, Cluster
from tests.cluster.test_operations import configure

STATIC = "/etc/kubernetes/manifests/static-web.yaml"
CHAINED = {"type": "tuning", "sysctl": {"net.ipv4.conf.eth0.arp_filter": "1"}}

_POST = """
import json, socket, sys
path, body = sys.argv[1:]
with socket.socket(socket.AF_UNIX) as client:
    client.connect("/run/multus/multus.sock")
    head = f"POST {path} HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: {len(body)}\\r\\n\\r\\n"
    client.sendall((head + body).encode())
    answer = b""
    while chunk := client.recv(65536):
        answer += chunk
print(answer.decode())
"""


def simple(name: str, networks: str = "") -> dict[str, Any]:
    container = {"name": "main", "image": BUSYBOX, "command": ["sleep", "1000000"]}
    annotations = {"k8s.v1.cni.cncf.io/networks": networks} if networks else {}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "annotations": annotations},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [container]},
    }


def nad(name: str, config: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "k8s.cni.cncf.io/v1",
        "kind": "NetworkAttachmentDefinition",
        "metadata": {"name": name},
        "spec": {"config": json.dumps(config)},
    }


@pytest.fixture(autouse=True)
def clean(cluster: Cluster) -> Iterator[None]:
    """Nothing of any pod is left afterwards, and the default network is as it was."""
    yield
    cluster.node.run("rm", "-f", STATIC)
    cluster.kubectl("delete", "pods", "--all", "--wait=true", "--timeout=60s", seconds=70)
    cluster.node.run("ip", "link", "delete", "second0", check=False)
    cluster.settled()


def test_a_static_pod_has_its_networks(cluster: Cluster) -> None:
    """The pod that the API server shows has another UID than the one that the runtime names."""
    config = {
        "cniVersion": "0.3.1",
        "name": "bridge-nad",
        "type": "bridge",
        "bridge": "second0",
        "ipam": {"type": "host-local", "subnet": "10.9.1.0/24"},
    }
    cluster.apply(nad("bridge-nad", config))
    cluster.node.run("mkdir", "-p", "/etc/kubernetes/manifests")
    cluster.node.run("tee", STATIC, stdin=json.dumps(simple("static-web", "bridge-nad")))
    name = f"static-web-{NODE_NAME}"
    cluster.node.wait(lambda: cluster.get("pod", name), "the kubelet to find the static pod")
    cluster.wait_ready(name)
    assert cluster.interfaces(name) == ["lo", "eth0", "net1"]


def test_one_connection_at_a_time_is_enough_for_six_pods(cluster: Cluster) -> None:
    configure(cluster, connectionLimit=1)
    try:
        names = [f"queued-{number}" for number in range(6)]
        cluster.apply(*(simple(name) for name in names))
        cluster.wait_ready(*names, seconds=90)
    finally:
        configure(cluster)


def test_plugins_of_a_subdirectory_are_chained(cluster: Cluster) -> None:
    directory = f"/etc/cni/net.d/{DEFAULT_NETWORK['name']}"
    cluster.node.run("mkdir", "-p", directory)
    cluster.node.run("tee", f"{directory}/sysctl.conf", stdin=json.dumps({"name": "chained", **CHAINED}))
    try:
        cluster.apply(simple("chained"))
        cluster.wait_ready("chained")
        assert cluster.exec("chained", "cat", "/proc/sys/net/ipv4/conf/eth0/arp_filter").strip() == "1"
        cluster.delete("chained")
        cluster.settled()
    finally:
        cluster.node.run("rm", "-r", directory)


def test_an_auxiliary_chain_is_run_after_the_default_network(cluster: Cluster) -> None:
    directory = "/etc/cni/net.d/vendor-cni-chain"
    configure(cluster, auxiliaryCNIChainName="vendor-cni-chain")
    cluster.node.run("mkdir", "-p", directory)
    cluster.node.run("tee", f"{directory}/sysctl.conf", stdin=json.dumps({"name": "chained", **CHAINED}))
    try:
        cluster.apply(simple("auxiliary"))
        cluster.wait_ready("auxiliary")
        assert cluster.exec("auxiliary", "cat", "/proc/sys/net/ipv4/conf/eth0/arp_filter").strip() == "1"
        cluster.delete("auxiliary")
        cluster.settled()
    finally:
        cluster.node.run("rm", "-r", directory)
        configure(cluster)


def test_a_network_is_plugged_into_a_running_pod(cluster: Cluster) -> None:
    """What the hot-plug controller sends; the pod's own deletion then takes the network down."""
    cluster.apply(simple("plugged"))
    cluster.wait_ready("plugged")
    (held,) = json.loads(cluster.in_daemon("multusctl", "attachments", "--json"))
    config = {
        "cniVersion": "1.0.0",
        "name": "late",
        "type": "bridge",
        "bridge": "second0",
        "capabilities": {"ips": True},
        "ipam": {"type": "static"},
    }
    env = {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": held["containerID"],
        "CNI_NETNS": held["netns"],
        "CNI_IFNAME": "late0",
        "CNI_PATH": "/opt/cni/bin",
        "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=plugged;"
        f"K8S_POD_INFRA_CONTAINER_ID={held['containerID']};K8S_POD_UID={held['pod']['uid']}",
    }
    body = {
        "env": env,
        "config": base64.b64encode(json.dumps(config).encode()).decode(),
        "interfaceAttributes": {"ips": ["10.9.2.7/24"]},
    }
    answer = cluster.node.run(sys.executable, "-c", _POST, "/delegate", json.dumps(body))
    assert re.match(r"HTTP/1\.1 200 ", answer), answer
    assert "10.9.2.7/24" in cluster.exec("plugged", "ip", "address", "show", "late0")
