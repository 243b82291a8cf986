"""The virtual firewall in deploy/examples is one that our own parsers take, and its parts fit together."""

import json
from pathlib import Path
from typing import Any

import yaml

from devices.kubelet.allocate import environment_name
from devices.pools import parse_config
from multus.delegates.sriov_conf import parse_sriov
from multus.kube.manifests import parse_manifests
from multus.networks.selection import parse_selections

EXAMPLE = Path(__file__).parents[3] / "deploy/examples/vfw"


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((EXAMPLE / name).read_text()))


def test_its_networks_are_valid_and_take_a_vf_each() -> None:
    found = parse_manifests((EXAMPLE / "networks.yaml").read_bytes(), where="networks.yaml")
    assert found.warnings == ()
    assert [(nad.namespace, nad.name, nad.resource) for nad in found.nads] == [
        ("vfw", "inside", "intel.com/vfw_inside"),
        ("vfw", "outside", "intel.com/vfw_outside"),
    ]
    for nad, vlan in zip(found.nads, (100, 200), strict=True):
        conf = {**json.loads(nad.config), "deviceID": "0000:3b:02.0"}
        assert parse_sriov(json.dumps(conf).encode(), ()).vf.vlan == vlan


def test_the_pod_asks_for_these_networks_and_their_resources() -> None:
    found = parse_manifests((EXAMPLE / "pod.yaml").read_bytes(), where="pod.yaml")
    assert found.warnings == ()
    (pod,) = found.pods
    assert [(each.namespace, each.name) for each in parse_selections(pod.networks, pod.namespace)] == [
        ("vfw", "inside"),
        ("vfw", "outside"),
    ]
    config, manifest = documents("pod.yaml")
    (container,) = manifest["spec"]["containers"]
    resources = container["resources"]
    assert resources["requests"] == resources["limits"]
    asked = [name for name in resources["limits"] if "/" in name]
    assert asked == ["intel.com/vfw_inside", "intel.com/vfw_outside"]
    assert all(f"${environment_name(name)}" in config["data"]["start"] for name in asked)
    assert container["securityContext"]["capabilities"]["add"] == ["IPC_LOCK"]


def test_the_pools_are_those_resources() -> None:
    (config,) = documents("pools.yaml")
    parsed = parse_config(config["data"]["config.json"].encode(), where="config.json")
    assert [pool.resource for pool in parsed.pools] == ["intel.com/vfw_inside", "intel.com/vfw_outside"]
    assert parsed.warnings == ()
