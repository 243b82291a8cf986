"""What the dynamic networks controller sends to /delegate when a running pod's annotation changes: its own cases."""

import base64
import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from tests.cluster.cluster import TOOLS, Cluster
from tests.cluster.pods import nad, pod

PLAIN = {"type": "macvlan", "master": "eth0", "mode": "bridge"}
TENANT = {"cniVersion": "0.3.0", "disableCheck": True, "name": "tenant-network", "plugins": [PLAIN]}
STATIC = {**PLAIN, "capabilities": {"ips": True}, "ipam": {"type": "static"}}
WITH_IPAM = {**TENANT, "name": "tenant-network-ipam", "plugins": [STATIC, {"type": "tuning"}]}
ADDRESS, MAC = "10.10.10.111/24", "02:03:04:05:06:07"
_POST = """
import socket, sys
path, body = sys.argv[1:]
with socket.socket(socket.AF_UNIX) as client:
    client.connect("/run/multus/multus.sock")
    head = f"POST {path} HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: {len(body)}\\r\\n\\r\\n"
    client.sendall((head + body).encode())
    answer = b""
    while chunk := client.recv(65536):
        answer += chunk
head, _, body = answer.partition(b"\\r\\n\\r\\n")
print(head.split()[1].decode(), body.decode())
"""


@pytest.fixture(params=["", "tenant-network"], ids=["only the default network", "a network from the beginning"])
def networks(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def running(cluster: Cluster, networks: str) -> Iterator[dict[str, Any]]:
    """What the journal has of a running pod; nothing of it is left afterwards."""
    cluster.apply(nad("tenant-network", TENANT), pod("tiny-winy-pod", networks, image=TOOLS))
    try:
        cluster.wait_ready("tiny-winy-pod")
        (held,) = cluster.attachments()
        yield held
    finally:
        cluster.delete_all()


def call(
    cluster: Cluster,
    held: Mapping[str, Any],
    command: str,
    interface: str,
    config: Mapping[str, Any],
    attributes: Mapping[str, Any] = {},
) -> dict[str, Any]:
    """One request; the body of its answer."""
    arguments = (
        f"IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={held['pod']['name']};"
        f"K8S_POD_INFRA_CONTAINER_ID={held['containerID']};K8S_POD_UID={held['pod']['uid']}"
    )
    env = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": held["containerID"],
        "CNI_NETNS": held["netns"],
        "CNI_IFNAME": interface,
        "CNI_PATH": "/opt/cni/bin",
        "CNI_ARGS": arguments,
    }
    coded = base64.b64encode(json.dumps(config).encode()).decode()
    body = {"env": env, "config": coded, "interfaceAttributes": attributes}
    answer = cluster.node.run(sys.executable, "-c", _POST, "/delegate", json.dumps(body))
    status, _, said = answer.strip().partition(" ")
    assert status == "200", answer
    return dict(json.loads(said)) if said else {}


def links(cluster: Cluster) -> dict[str, dict[str, Any]]:
    told = json.loads(cluster.exec("tiny-winy-pod", "ip", "-j", "-d", "address"))
    return {each["ifname"]: each for each in told if each["ifname"] not in ("lo", "eth0")}


def test_networks_are_plugged_into_a_running_pod_and_out_again(
    cluster: Cluster, running: dict[str, Any], networks: str
) -> None:
    begin = {"net1"} if networks else set()
    assert set(links(cluster)) == begin
    call(cluster, running, "ADD", "ens58", TENANT, {"mac": "02:03:04:05:06:08"})
    told = call(cluster, running, "ADD", "ens202", WITH_IPAM, {"ips": [ADDRESS], "mac": MAC})
    assert ADDRESS in json.dumps(told)
    there = links(cluster)
    assert set(there) == begin | {"ens58", "ens202"}
    assert there["ens58"]["linkinfo"]["info_kind"] == "macvlan"
    assert there["ens58"]["address"] == "02:03:04:05:06:08"
    assert there["ens202"]["address"] == MAC
    assert [each["local"] for each in there["ens202"]["addr_info"] if each["family"] == "inet"] == ["10.10.10.111"]
    (held,) = cluster.attachments()
    assert {each["interface"] for each in held["attachments"] if each["hotplug"]} == {"ens58", "ens202"}

    call(cluster, running, "DEL", "ens202", WITH_IPAM)
    assert set(links(cluster)) == begin | {"ens58"}
    for interface in begin:  # also what the pod came with may go
        call(cluster, running, "DEL", interface, TENANT)
    assert set(links(cluster)) == {"ens58"}  # and this one goes with the pod
