"""The walk-through, step by step, with the manifests of deploy/examples. The steps build on each other."""

from typing import Any

import pytest
import yaml

from tests.cluster.cluster import TOOLS, Cluster
from tests.cluster.flannel import CONF, OURS
from tests.cluster.image import ROOT
from tests.cluster.node import NodeError
from tests.cluster.pods import pod

NAD = "network-attachment-definitions.k8s.cni.cncf.io"


def example(name: str) -> list[dict[str, Any]]:
    """An example's objects, with the one image that this cluster has."""
    objects: list[dict[str, Any]] = list(yaml.safe_load_all((ROOT / "deploy/examples" / name).read_text()))
    for each in objects:
        for container in each["spec"].get("containers", ()) if each["kind"] == "Pod" else ():
            container["image"] = TOOLS
    return objects


def test_a_node_without_a_network_is_not_ready(bare_cluster: Cluster) -> None:
    assert not bare_cluster.node_ready()


def test_the_node_gets_ready_through_our_configuration(bare_cluster: Cluster) -> None:
    bare_cluster.bring_default_network()
    bare_cluster.deploy("plain")
    bare_cluster.node.wait(bare_cluster.node_ready, "the node to be Ready")
    assert bare_cluster.node.run("ls", "/etc/cni/net.d").split() == [OURS, CONF]


def test_the_crd_is_there(cluster: Cluster) -> None:
    assert NAD in cluster.kubectl("get", "crds")
    cluster.kubectl("wait", "--for=condition=Established", f"crd/{NAD}", "--timeout=10s")


@pytest.mark.parametrize("config", ["macvlan", "[]", "cniVersion: 1.0.0\ntype: macvlan\n", "{{ .Values.conf }} x"])
def test_the_api_server_refuses_what_is_no_configuration(cluster: Cluster, config: str) -> None:
    nad = {"apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition", "metadata": {"name": "bad"}}
    with pytest.raises(NodeError, match=r"spec\.config must be a JSON object"):
        cluster.apply({**nad, "spec": {"config": config}})


@pytest.mark.parametrize("spec", [{}, {"spec": {}}, {"spec": {"config": ""}}, {"spec": {"config": "\n {\n}\n"}}])
def test_the_api_server_takes_what_a_file_of_the_node_completes(cluster: Cluster, spec: dict[str, Any]) -> None:
    nad = {"apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition", "metadata": {"name": "good"}}
    cluster.apply({**nad, **spec})
    cluster.kubectl("delete", "net-attach-def", "good")


def test_a_pod_without_annotation_has_the_cluster_network(cluster: Cluster) -> None:
    cluster.apply(*example("samplepod.yaml"))
    cluster.wait_ready("samplepod")
    assert cluster.interfaces("samplepod") == ["lo", "eth0"]
    told = cluster.exec("samplepod", "ip", "-d", "address")
    assert "inet 10.244.0." in told
    assert "mtu 1450" in told, "VXLAN takes 50 bytes of every packet"


def test_a_network_is_defined(cluster: Cluster) -> None:
    cluster.apply(*example("macvlan-conf.yaml"))
    assert "macvlan-conf" in cluster.kubectl("get", "net-attach-def")


def test_a_pod_has_both_networks(cluster: Cluster) -> None:
    cluster.apply(*example("multipod.yaml"))
    cluster.wait_ready("multipod")
    assert cluster.interfaces("multipod") == ["lo", "eth0", "net1"]
    told = cluster.exec("multipod", "ip", "-d", "address")
    assert "inet 192.168.1.200/24" in told
    assert "macvlan mode bridge" in told


def test_its_status_says_so(cluster: Cluster) -> None:
    first, second = cluster.network_status("multipod")
    assert (first["interface"], first["default"]) == ("eth0", True)
    assert (second["name"], second["interface"]) == ("default/macvlan-conf", "net1")
    assert second["ips"][0].startswith("192.168.1.2")
    assert second["mac"] in cluster.exec("multipod", "ip", "link", "show", "net1")


def test_pods_choose_addresses_interface_names_and_the_way_out(cluster: Cluster) -> None:
    cluster.apply(*example("pair.yaml"))
    cluster.wait_ready("left", "right")
    assert "10.1.1.11/24" in cluster.exec("left", "ip", "-4", "address", "show", "net1")
    assert "10.1.1.12/24" in cluster.exec("right", "ip", "-4", "address", "show", "lan0")
    assert "via 10.1.1.254 dev net1" in cluster.exec("left", "ip", "route", "show", "default")
    assert "dev eth0" in cluster.exec("right", "ip", "route", "show", "default")
    cluster.exec("left", "ping", "-c", "1", "-W", "5", "10.1.1.12")


def test_what_is_not_there_is_told_on_the_pod(cluster: Cluster) -> None:
    cluster.apply(pod("hopeful", "no-such-network"))
    cluster.node.wait(
        lambda: "no-such-network" in cluster.kubectl("get", "events", "--field-selector=reason=FailedAttachNetwork"),
        "an event",
    )
    cluster.delete("hopeful")


def test_pods_and_networks_survive_a_restart_of_the_daemon(cluster: Cluster) -> None:
    before, status = cluster.daemon_pod(), cluster.network_status("multipod")
    cluster.kubectl("-n", "kube-system", "delete", "pod", before, "--wait=false")
    cluster.apply(pod("meanwhile", "macvlan-conf"))
    cluster.wait_ready("meanwhile", seconds=90)
    assert cluster.interfaces("meanwhile") == ["lo", "eth0", "net1"]
    assert cluster.daemon_pod() != before
    assert cluster.interfaces("multipod") == ["lo", "eth0", "net1"]
    assert cluster.network_status("multipod") == status
    cluster.delete("meanwhile")


def test_deletion_leaves_nothing(cluster: Cluster) -> None:
    cluster.delete("samplepod", "multipod", "left", "right")
    cluster.settled()
