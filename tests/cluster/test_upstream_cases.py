"""Upstream's own end-to-end cases, with their manifests' content, on one node: eth0 stands for their workers' wire.

| upstream's script | here |
|---|---|
| test-simple-pod | `test_a_simple_pod` |
| test-simple-macvlan1 | `test_two_pods_choose_addresses_on_one_macvlan` |
| test-default-route1 | `test_the_way_out_is_where_the_pod_wants_it`, which upstream only prints |
| test-static-pod | `test_a_static_pod_has_its_networks` |
| test-connection-limit | test_settings.py |
| test-subdirectory-chaining | `test_plugins_of_a_subdirectory_are_chained` |
| test-subdirectory-chaining-passthru | test_settings.py |
| test-node-density-cni | test_crowd.py |
| the dynamic networks controller's | test_hotplug.py |
| test-dra-integration | not: it asks nothing of multus, and its driver needs a registry |
"""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.cluster import TOOLS, Cluster
from tests.cluster.control import NODE_NAME
from tests.cluster.flannel import NETWORK
from tests.cluster.pods import nad, pod, tuned

STATIC = "/etc/kubernetes/manifests/static-web.yaml"
MACVLAN = {"type": "macvlan", "master": "eth0", "mode": "bridge", "ipam": {"type": "static"}}


@pytest.fixture(scope="module", autouse=True)
def clean(bare_cluster: Cluster) -> Iterator[None]:
    """Nothing of any pod is left afterwards."""
    yield
    bare_cluster.node.run("rm", "-f", STATIC)
    bare_cluster.delete_all()


def selecting(name: str, element: dict[str, Any]) -> dict[str, Any]:
    """A pod of one network, in the annotation's JSON form."""
    return pod(name, json.dumps([element]), image=TOOLS)


def addresses(cluster: Cluster, name: str, interface: str) -> list[str]:
    (told,) = json.loads(cluster.exec(name, "ip", "-j", "-4", "address", "show", "dev", interface))
    return [f"{each['local']}/{each['prefixlen']}" for each in told["addr_info"]]


def gateways(cluster: Cluster, name: str) -> list[tuple[str, str]]:
    """Gateway and interface of each default route."""
    routes = json.loads(cluster.exec(name, "ip", "-j", "-4", "route", "show", "default"))
    return [(each["gateway"], each["dev"]) for each in routes]


def test_a_simple_pod(cluster: Cluster) -> None:
    simple = pod("simple-centos1")
    simple["spec"]["containers"][0]["securityContext"] = {"privileged": True}
    cluster.apply(simple)
    cluster.wait_ready("simple-centos1")
    assert cluster.interfaces("simple-centos1") == ["lo", "eth0"]


def test_two_pods_choose_addresses_on_one_macvlan(cluster: Cluster) -> None:
    plugins = [{**MACVLAN, "capabilities": {"ips": True}}, {"type": "tuning"}]
    wanted = {"macvlan1-worker1": "10.1.1.11/24", "macvlan1-worker2": "10.1.1.12/24"}
    cluster.apply(
        nad("macvlan1-config", {"cniVersion": "0.3.1", "plugins": plugins}),
        *(selecting(name, {"name": "macvlan1-config", "ips": [ip]}) for name, ip in wanted.items()),
    )
    cluster.wait_ready(*wanted)
    for name, ip in wanted.items():
        assert addresses(cluster, name, "net1") == [ip]
    cluster.exec("macvlan1-worker1", "ping", "-c", "1", "-W", "5", "10.1.1.12")


def test_the_way_out_is_where_the_pod_wants_it(cluster: Cluster) -> None:
    cluster.apply(
        nad("default-route-config", {"cniVersion": "0.3.1", "plugins": [MACVLAN]}),
        selecting(
            "default-route-worker1",
            {"name": "default-route-config", "ips": ["10.1.1.21/24"], "default-route": ["10.1.1.254"]},
        ),
        selecting("default-route-worker2", {"name": "default-route-config", "ips": ["10.1.1.22/24"]}),
    )
    cluster.wait_ready("default-route-worker1", "default-route-worker2")
    assert addresses(cluster, "default-route-worker1", "net1") == ["10.1.1.21/24"]
    assert addresses(cluster, "default-route-worker2", "net1") == ["10.1.1.22/24"]
    assert gateways(cluster, "default-route-worker1") == [("10.1.1.254", "net1")]
    assert gateways(cluster, "default-route-worker2") == [("10.244.0.1", "eth0")]


def test_a_static_pod_has_its_networks(cluster: Cluster) -> None:
    """The pod that the API server shows has another UID than the one that the runtime names."""
    ipam = {"type": "host-local", "subnet": "10.10.0.0/16"}
    config = {"cniVersion": "0.3.1", "name": "testnet", "type": "bridge", "bridge": "second0", "ipam": ipam}
    cluster.apply(nad("bridge-nad", config))
    cluster.node.run("mkdir", "-p", "/etc/kubernetes/manifests")
    cluster.node.run("tee", STATIC, stdin=json.dumps(pod("static-web", "bridge-nad")))
    name = f"static-web-{NODE_NAME}"
    cluster.node.wait(lambda: cluster.get("pod", name), "the kubelet to find the static pod")
    cluster.wait_ready(name)
    assert cluster.interfaces(name) == ["lo", "eth0", "net1"]


def test_plugins_of_a_subdirectory_are_chained(cluster: Cluster) -> None:
    with tuned(cluster, f"/etc/cni/net.d/{NETWORK}", "sysctl-modified") as filtering:
        assert filtering == "1"
