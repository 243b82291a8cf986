"""The virtual firewall in deploy/examples is one that our own parsers take, and its parts fit together."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from devices.kubelet.allocate import Grant, environment, ports_name
from devices.linux.nodes import Nodes
from devices.pools import parse_config
from dpdk.eal import Port
from dpdk.hugepages import Pages
from dpdk.portmap import make_map, port_table
from multus.delegates.sriov_conf import parse_sriov
from multus.dpdk_pod import container_of, lacking, memory_mb
from multus.kube.manifests import parse_manifests
from multus.networks.selection import parse_selections

DEPLOY = Path(__file__).parents[3] / "deploy"
EXAMPLE = DEPLOY / "examples/vfw"
RESOURCES = ["intel.com/vfw_inside", "intel.com/vfw_outside"]
# The inside port's address is the higher one: DPDK gives it number 1.
PORTS = (
    Port(network="vfw/inside", interface="net1", pci="0000:3b:0a.0", numa=0, driver="vfio-pci"),
    Port(network="vfw/outside", interface="net2", pci="0000:3b:02.0", numa=0, driver="vfio-pci"),
)


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((EXAMPLE / name).read_text()))


def test_its_networks_are_valid_and_bind_a_vf_each() -> None:
    found = parse_manifests((EXAMPLE / "networks.yaml").read_bytes(), where="networks.yaml")
    assert found.warnings == ()
    assert [(nad.namespace, nad.name, nad.resource) for nad in found.nads] == [
        ("vfw", "inside", RESOURCES[0]),
        ("vfw", "outside", RESOURCES[1]),
    ]
    for nad, vlan in zip(found.nads, (100, 200), strict=True):
        conf = parse_sriov(json.dumps({**json.loads(nad.config), "deviceID": "0000:3b:02.0"}).encode(), ())
        assert (conf.vf.vlan, conf.driver, conf.unknown) == (vlan, "vfio-pci", ())


def test_the_pod_asks_for_these_networks_and_lacks_nothing() -> None:
    found = parse_manifests((EXAMPLE / "pod.yaml").read_bytes(), where="pod.yaml")
    assert found.warnings == ()
    (pod,) = found.pods
    assert [(each.namespace, each.name) for each in parse_selections(pod.networks, pod.namespace)] == [
        ("vfw", "inside"),
        ("vfw", "outside"),
    ]
    _, manifest = documents("pod.yaml")
    (container,) = manifest["spec"]["containers"]
    resources = container["resources"]
    assert resources["requests"] == resources["limits"]
    assert [name for name in resources["limits"] if "/" in name] == RESOURCES
    limits = container_of(pod, RESOURCES)
    assert memory_mb(limits, PORTS) == {0: 512}
    assert lacking(limits, PORTS, (Pages(node=0, size_kb=2048, total=256, free=256),)) == ()
    hugepages = re.search(r"--size 2M --count (\d+)", (EXAMPLE / "README.md").read_text())
    assert hugepages is not None
    assert int(hugepages[1]) * 2 >= 512


def test_the_pools_are_those_resources_and_the_overlays() -> None:
    (config,) = documents("pools.yaml")
    parsed = parse_config(config["data"]["config.json"].encode(), where="config.json")
    assert parsed.warnings == ()
    assert [pool.resource for pool in parsed.pools[:2]] == RESOURCES
    assert {pool.driver for pool in parsed.pools[:2]} == {"vfio-pci"}
    assert parsed.pools[2:] == parse_config((DEPLOY / "dpdk/config.json").read_bytes()).pools
    overlay = yaml.safe_load((DEPLOY / "dpdk/kustomization.yaml").read_text())
    (made,) = overlay["configMapGenerator"]
    assert (config["metadata"]["name"], config["metadata"]["namespace"]) == (made["name"], overlay["namespace"])


@pytest.fixture
def container(tmp_path: Path) -> tuple[dict[str, str], str, Path]:
    """Its files and variables, as in the container; testpmd prints its arguments."""
    folder, conf, programs = tmp_path / "ports", tmp_path / "conf", tmp_path / "bin"
    for each in (folder, conf, programs):
        each.mkdir()
    made = make_map(PORTS, pod="vfw/vfw", sandbox="c1", memory_mb={0: 512})
    (folder / "ports").write_bytes(port_table(made))
    (folder / "eal").write_text(" ".join(made.eal) + "\n")
    data = documents("pod.yaml")[0]["data"]
    for name, text in data.items():
        (conf / name).write_text(text)
    (programs / "dpdk-testpmd").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (programs / "dpdk-testpmd").chmod(0o755)
    grant = Grant(id=PORTS[0].pci, nodes=Nodes(group="7"), ports=str(folder))
    told = environment(RESOURCES[0], [grant])
    assert told[ports_name(RESOURCES[0])] == f"/run/multus/dpdk/{PORTS[0].pci}"
    told[ports_name(RESOURCES[0])] = str(folder)
    script = data["start"].replace("/tmp/", f"{tmp_path}/").replace("/etc/vfw", str(conf))
    return {**told, "PATH": f"{programs}:{os.environ['PATH']}"}, script, tmp_path


def test_its_script_makes_the_right_command_line(container: tuple[dict[str, str], str, Path]) -> None:
    env, script, root = container
    done = subprocess.run(["sh", "-c", script], env=env, capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    words = done.stdout.splitlines()
    own, rest = words.index("--"), words
    assert rest[:2] == ["-l", rest[1]]
    assert rest[2:own] == [
        *("-a", PORTS[0].pci, "-a", PORTS[1].pci, "--socket-mem", "512", "--in-memory", "--iova-mode", "va")
    ]
    assert rest[own + 1 :] == [
        f"--cmdline-file={root}/rules",
        "--stats-period=10",
        "--eth-peer=1,02:fe:00:00:01:00",
        "--eth-peer=0,02:fe:00:00:02:00",
    ]
    rules = (root / "rules").read_text().splitlines()
    assert [(rule.split()[2], rule.split(" dst is ")[1].split()[0]) for rule in rules if rule.startswith("flow")] == [
        ("0", "23"),  # outside
        ("0", "161"),
        ("1", "25"),  # inside
    ]
