"""The virtual firewall of deploy/examples/vfw, whole: VFs of two cards in the hands of a DPDK program in a pod.

card 3, wire, card 2: VF, bound for the pod -- net1, testpmd, net2 -- card 1: VF, bound by a policy, wire, card 0

DPDK numbers ports by address: the first network's is the second port.
"""

import json
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from devices.kubelet.api import deviceplugin_pb2 as api
from dpdk.plans import VFIO
from multus.cli.box import Sandbox
from multus.kube.objects import Pod
from tests.fake_apiserver import NETWORK_STATUS
from tests.vm.guest import firewall
from tests.vm.guest.attached import look, states
from tests.vm.guest.commands import Said, multusctl
from tests.vm.guest.container import Container
from tests.vm.guest.hardware import Hardware, driver, until
from tests.vm.guest.node import Node
from tests.vm.guest.test_kubelet import Cluster
from tests.vm.guest.wire import End, Frame, Pinging, come_through

EXAMPLE: Final = Path("deploy/examples/vfw")
INSIDE, OUTSIDE = "02:fe:00:00:00:01", "02:fe:00:00:00:02"
NEAR_VLAN, FAR_VLAN = 100, 200
MEMORY_MB: Final = 128
PACKETS: Final = 10_000
SNMP: Final = 161
PROCESSOR: Final = Path("/sys/devices/system/cpu/cpu1/online")
"""Off until here, and on from here on: with one processor a kernel does less."""


def documents(name: str) -> dict[str, dict[str, Any]]:
    """The objects of a file of the example, by kind and name."""
    return {
        f"{each['kind']}/{each['metadata']['name']}": each for each in yaml.safe_load_all((EXAMPLE / name).read_text())
    }


class Firewall:
    """The pod of the example on this machine, whose hugepages are fewer; what changes of it is said here."""

    def __init__(self, cluster: Cluster, hardware: Hardware, directory: Path) -> None:
        self.cluster = cluster
        self.node = cluster.node
        self.sink, self.outer, self.inner, self.source = hardware.cards
        self.inside, self.outside = self.inner.vf(0), self.outer.vf(0)
        self.directory = directory
        files = documents("pod.yaml")
        self._conf: dict[str, str] = files["ConfigMap/vfw"]["data"]
        self._pod = files["Pod/vfw"]
        resources = self._pod["spec"]["containers"][0]["resources"]["limits"]
        resources["hugepages-2Mi"] = f"{MEMORY_MB}Mi"
        self.resources = sorted(name for name in resources if name.startswith("intel.com/"))

    def create(self) -> Sandbox:
        """Networks and pod, as by kubectl, and the pod's sandbox."""
        for each in documents("networks.yaml").values():
            if each["kind"] == "NetworkAttachmentDefinition":
                metadata, conf = each["metadata"], each["spec"]["config"]
                self.cluster.server.nad(
                    metadata["name"], metadata["namespace"], config=conf, annotations=metadata["annotations"]
                )
        spec = {**self._pod["spec"], "nodeName": "box"}
        annotations = self._pod["metadata"]["annotations"]
        made = self.cluster.server.put("pods", "vfw", "vfw", spec=spec, annotations=annotations)
        sandbox = Sandbox(Pod(namespace="vfw", name="vfw", uid=made["metadata"]["uid"]))
        self.node.pods["vfw"] = sandbox
        return sandbox

    async def allocate(self) -> list[api.ContainerAllocateResponse]:
        """What the kubelet does before the sandbox is made; the device plugins' answers."""
        answers, devices = [], []
        for resource in self.resources:
            request = await self.cluster.kubelet.wait_registered(resource)
            async with self.cluster.kubelet.follow(request) as follower:
                await follower.until(lambda known: "Healthy" in known.health.values(), limit=40)
            ids = sorted(follower.health)
            async with self.cluster.kubelet.dial(request) as plugin:
                asked = api.AllocateRequest(container_requests=[api.ContainerAllocateRequest(devices_ids=ids)])
                answers.append((await plugin.Allocate(asked)).container_responses[0])
            devices.append((resource, ids))
        self.cluster.kubelet.pods["vfw", "vfw"] = [("firewall", devices)]
        return answers

    def status(self) -> Any:
        """Its network-status."""

        def text() -> Any:
            return self.cluster.server.get("pods", "vfw", "vfw")["metadata"]["annotations"].get(NETWORK_STATUS)

        return json.loads(until(text, "the network-status"))

    def container(self, sandbox: Sandbox, given: list[api.ContainerAllocateResponse]) -> Container:
        """Its ConfigMap is a folder. Where the flow rules are, there is the same as a program before the port."""
        conf = self.directory / "conf"
        conf.mkdir()
        (conf / "outside.o").write_bytes(firewall.program([(firewall.TCP, 23), (firewall.UDP, SNMP)]))
        rules = self._conf["rules"].replace("set fwd", "bpf-load rx OUTSIDE 0 J /etc/vfw/outside.o\nset fwd")
        peers = f"inside_peer={self.source.mac}\noutside_peer={self.sink.mac}\n"
        start = self._conf["start"].replace("--stats-period=10", "--stats-period=1 --total-num-mbufs=4096")
        for name, text in {**self._conf, "rules": rules, "peers": peers, "start": start}.items():
            (conf / name).write_text(text)
        return Container(
            sandbox,
            "exec sh /etc/vfw/start",
            given=given,
            folders={"/etc/vfw": conf},
            directory=self.directory,
            cpus="0-1",
            hugepages_mb=MEMORY_MB,
        )


@pytest.fixture
def vfw(tmp_path: Path, hardware: Hardware) -> Iterator[Firewall]:
    """A node with hugepages, the pool of the example and a policy in place of its other; nothing runs yet."""
    _, outer, inner, _ = hardware.cards
    PROCESSOR.write_text("1")
    inner.create(1)
    outer.create(1)
    config = json.loads(documents("pools.yaml")["ConfigMap/multus-devices"]["data"]["config.json"])
    pool = config["resourceList"][0]
    pool["selectors"] = [{"pfNames": [inner.netdev]}]
    (tmp_path / "pools.json").write_text(json.dumps({"resourceList": [pool]}))
    policy = {
        "apiVersion": "sriovnetwork.openshift.io/v1",
        "kind": "SriovNetworkNodePolicy",
        "metadata": {"name": "outside"},
        "spec": {
            "resourceName": "vfw_outside",
            "numVfs": 1,
            "deviceType": VFIO,
            "nicSelector": {"pfNames": [outer.netdev]},
        },
    }
    settings = {"deviceConfig": str(tmp_path / "pools.json"), "sriovPolicies": [policy]}
    try:
        assert multusctl("dpdk", "hugepages", "--size", "2M", "--count", str(MEMORY_MB // 2)).code == 0
        with Node(tmp_path / "node", settings=settings) as node:
            made = Cluster(node)
            try:
                yield Firewall(made, hardware, tmp_path)
            finally:
                made.close()
    finally:
        assert multusctl("dpdk", "hugepages", "--size", "2M", "--count", "0").code == 0


def crosses(source: End, sink: End, frame: Frame, by: str) -> Frame | None:
    """A frame as it comes out at the other side, sent again while it does not."""
    for _ in range(20):
        source.send(frame)
        found = sink.heard(by, seconds=0.5)
        if found is not None:
            return found
    return None


def test_a_pod_forwards_filters_and_goes(vfw: Firewall) -> None:
    node = vfw.node
    node.start()
    until(lambda: driver(vfw.outside) == VFIO, "the policy to bind the VF", seconds=60)
    before = look(vfw.inner), states(vfw.outer), driver(vfw.outside)
    given = vfw.cluster.do(vfw.allocate())
    sandbox = vfw.create()
    node.cni("ADD", sandbox)

    # Bound, with the MAC and VLAN of the networks, before anything runs in the pod.
    assert (driver(vfw.inside), driver(vfw.outside)) == (VFIO, VFIO)
    for card, mac, vlan in ((vfw.inner, INSIDE, NEAR_VLAN), (vfw.outer, OUTSIDE, FAR_VLAN)):
        assert (states(card)[0].mac, states(card)[0].vlan, states(card)[0].spoofchk) == (mac, vlan, True)
    eth0, *networks = vfw.status()
    told = [(each["interface"], each["device-info"]["pci"]["pci-address"], each["mac"]) for each in networks]
    assert told == [("net1", vfw.inside, INSIDE), ("net2", vfw.outside, OUTSIDE)]
    assert sorted(link["ifname"] for link in json.loads(sandbox.run("ip", "-j", "link"))) == ["eth0", "lo"]

    info = ("--info", str(node.directory / "devinfo"))
    with vfw.container(sandbox, given) as container:
        assert ready(*info) == Said(code=0, text="  ok  DPDK has all that it needs\n")
        container.go()
        forward(vfw, container, eth0["ips"][0])
        line = multusctl("dpdk", "eal", "vfw/vfw", "--pid", str(container.pid), *info).text
        words = Path(f"/proc/{container.pid}/cmdline").read_text().split("\0")
        assert sorted(words[: words.index("--")]) == sorted(shlex.split(line))
        assert ready(*info).code == 0  # the memory that it has taken is its own
        held(vfw, container)
        assert container.stop() == 0, container.said
    node.cni("DEL", sandbox)

    after = look(vfw.inner), states(vfw.outer), driver(vfw.outside)
    until(lambda: look(vfw.inner) == before[0], lambda: f"{before[0]}: {look(vfw.inner)}")
    assert after[1:] == before[1:]
    assert list((node.directory / "devinfo/dpdk").rglob("*.json")) == []
    assert node.recorded() == []


def ready(*words: str) -> Said:
    """What a container of the pod lacks, asked on the node."""
    return multusctl("dpdk", "check", "vfw/vfw", *words)


def forward(vfw: Firewall, container: Container, address: str) -> None:
    """Both ways by the wire, with what each network sets; then many, while the management path is used."""
    near = Frame(source=vfw.source.mac, target=INSIDE, vlan=NEAR_VLAN)
    far = Frame(source=vfw.sink.mac, target=OUTSIDE, vlan=FAR_VLAN)
    until(lambda: "Port statistics" in container.said, lambda: container.said, seconds=60)
    with End(vfw.source) as source, End(vfw.sink) as sink:
        out = crosses(source, sink, near, OUTSIDE)
        assert out == Frame(source=OUTSIDE, target=vfw.sink.mac, vlan=FAR_VLAN), container.said
        back = crosses(sink, source, far, INSIDE)
        assert back == Frame(source=INSIDE, target=vfw.source.mac, vlan=NEAR_VLAN)
        # A frame without the network's VLAN is none of its frames.
        source.send(Frame(source=vfw.source.mac, target=INSIDE, vlan=0))
        source.send(Frame(source=vfw.source.mac, target=INSIDE, vlan=NEAR_VLAN + 1))
        assert sink.heard(OUTSIDE, seconds=1) is None
        # The rules are the filter's: this VF has none of its own, which testpmd says in so many words.
        assert container.said.count("Function not implemented") >= 3
        begin = time.monotonic()
        pinging = Pinging(address, count=15)
        through = come_through(vfw.source, vfw.sink, INSIDE, count=PACKETS, vlan=NEAR_VLAN)
        print(f"{through} of {PACKETS} frames in {time.monotonic() - begin:.1f} s")
        assert through > 0.99 * PACKETS  # a machine that gets no processor for a while loses some
        assert pinging.lost() == 0
        few = 500
        assert come_through(vfw.sink, vfw.source, OUTSIDE, count=few, vlan=FAR_VLAN) > 0.9 * few
        assert come_through(vfw.sink, vfw.source, OUTSIDE, count=few, vlan=FAR_VLAN, port=SNMP) < 0.1 * few
        assert come_through(vfw.source, vfw.sink, INSIDE, count=few, vlan=NEAR_VLAN, port=SNMP) > 0.9 * few


def held(vfw: Firewall, container: Container) -> None:
    """The VF is not taken from the pod, and who has it is said."""
    state = str(vfw.node.state)
    found = json.loads(multusctl("dpdk", "status", "--json", "--cni-dir", state).text)
    rows = {each["pci"]: each for each in found["devices"]}
    for bdf in (vfw.inside, vfw.outside):
        assert rows[bdf]["pod"].startswith("pod vfw/vfw (net"), rows[bdf]
        words = [each["words"] for each in rows[bdf]["holders"]]
        assert words == [f"process {container.pid} (dpdk-testpmd) of pod vfw/vfw"]
    refused = multusctl("dpdk", "unbind", vfw.inside, "--cni-dir", state)
    assert refused.code == 1
    assert f"{vfw.inside} is in use by pod vfw/vfw" in refused.text
    assert driver(vfw.inside) == VFIO
