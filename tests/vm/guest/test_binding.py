"""Binding survives what can happen in between, and a DPDK program runs on the arguments that we generate."""

import json
import os
import re
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from dpdk.containers import read_container
from dpdk.drivers import Binder
from dpdk.eal import Port, Wanted, eal_arguments, port_map
from dpdk.errors import HeldError
from dpdk.hugepages import read_pages, set_pages
from dpdk.iommu import group_node, is_viable, read_group
from dpdk.kernel import Kernel
from dpdk.plans import VFIO
from dpdk.readiness import readiness
from multus.journal import Journal
from tests.vm.guest.hardware import PCI, Card, Hardware, driver, run, until

pytestmark = pytest.mark.anyio

PACKETS = 10_000
MAC = "02:d0:00:00:00:0c"


@asynccontextmanager
async def binder(directory: Path, kernel: Kernel | None = None) -> AsyncIterator[Binder]:
    """With the node's own journal, as the daemon has it."""
    async with Journal.open(directory / "journal.db") as journal:
        yield Binder(kernel or Kernel(), journal.records)


def look(card: Card, index: int) -> tuple[str, str, str, str]:
    """What has to be the same after as before: driver, override, admin MAC, the interface's MAC."""
    bdf = card.vf(index)
    netdev = card.vf_netdev(index)
    address = (PCI / "devices" / bdf / "net" / netdev / "address").read_text().strip() if netdev else ""
    override = (PCI / "devices" / bdf / "driver_override").read_text().strip()
    return driver(bdf), override, Kernel().admin_mac(card.bdf, index), address


async def test_the_kernel_finds_the_group_viable_and_the_port_has_the_mac(hardware: Hardware, tmp_path: Path) -> None:
    card = hardware.cards[0]
    bdf = card.create(2)[0]
    before = look(card, 0)
    async with binder(tmp_path) as tool:
        await tool.apply_bind(await tool.plan(bdf, VFIO))
        assert look(card, 0)[2] == before[3]
        kernel = Kernel()
        group = read_group(kernel.sysfs, bdf)
        assert group is not None
        assert is_viable(group_node(kernel.sysfs, group)) is True
        await tool.restore(bdf)
    assert look(card, 0) == before


async def test_an_interface_with_an_address_is_not_taken(hardware: Hardware, tmp_path: Path) -> None:
    card = hardware.cards[0]
    bdf = card.create(1)[0]
    run(f"ip link set {card.vf_netdev(0)} up")
    run(f"ip addr add 10.77.0.1/24 dev {card.vf_netdev(0)}")
    async with binder(tmp_path) as tool:
        plan = await tool.plan(bdf, VFIO)
        assert any("10.77.0.1/24" in reason for reason in plan.refusals), plan
    assert driver(bdf) == "igbvf"


async def test_vfs_removed_while_bound_leave_nothing_to_put_back(hardware: Hardware, tmp_path: Path) -> None:
    card = hardware.cards[0]
    bdf = card.create(1)[0]
    async with binder(tmp_path) as tool:
        await tool.apply_bind(await tool.plan(bdf, VFIO))
        await anyio.to_thread.run_sync(card.write, "sriov_numvfs", 0)
        assert await tool.recover() == {bdf: None}
        assert await tool.records() == {}


class Dying(Kernel):
    """The process is gone, without a word, after so many changes."""

    def __init__(self, changes: int) -> None:
        super().__init__()
        self.left = changes
        for name in ("write", "write_driver", "probe"):
            setattr(self.sysfs, name, self._counted(getattr(self.sysfs, name)))

    def set_admin_mac(self, pf: str, index: int, mac: str) -> None:
        self._counted(super().set_admin_mac)(pf, index, mac)

    def _counted(self, function: Callable[..., None]) -> Callable[..., None]:
        def called(*arguments: object) -> None:
            if self.left == 0:
                os._exit(77)
            self.left -= 1
            function(*arguments)

        return called


async def bind(directory: Path, bdf: str, kernel: Kernel | None = None) -> None:
    async with binder(directory, kernel) as tool:
        await tool.apply_bind(await tool.plan(bdf, VFIO, mac=MAC))


async def restore(directory: Path, bdf: str, kernel: Kernel | None = None) -> None:
    async with binder(directory, kernel) as tool:
        await tool.restore(bdf)


async def recover(directory: Path, bdf: str) -> None:
    async with binder(directory) as tool:
        await tool.recover()
        await tool.restore(bdf)
        assert await tool.records() == {}


def die(directory: Path, bdf: str, changes: int, *, back: bool) -> int:
    """Bind, or restore, in a process of its own that dies; its exit code."""
    child = os.fork()
    if child == 0:
        try:
            anyio.run(restore if back else bind, directory, bdf, Dying(changes))
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # fork, from Python 3.12 on
@pytest.mark.parametrize("back", [False, True], ids=["bind", "restore"])
def test_a_crash_between_any_two_steps_is_put_right(hardware: Hardware, tmp_path: Path, back: bool) -> None:
    card = hardware.cards[0]
    bdf = card.create(1)[0]
    before = look(card, 0)
    codes = []
    for changes in range(6):
        if back:
            anyio.run(bind, tmp_path, bdf)
        codes.append(die(tmp_path, bdf, changes, back=back))
        anyio.run(recover, tmp_path, bdf)
        assert look(card, 0) == before, f"died after {changes} changes"
        if codes[-1] == 0:
            break
    assert codes == [77] * 4 + [0], "MAC, override, unbind and probe, in this order or another"


@contextmanager
def forwarder(arguments: tuple[str, ...], options: list[str], log: Path) -> Iterator[Callable[[str], None]]:
    """testpmd at its prompt; gives what types a command into it."""
    command = ["dpdk-testpmd", *arguments, "--", *options]
    with log.open("w") as output:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, bufsize=0)
    standard = process.stdin
    assert standard is not None

    def type_(line: str) -> None:
        standard.write(f"{line}\n".encode())

    try:
        until(lambda: "testpmd>" in log.read_text() or process.poll() is not None, "testpmd's prompt", seconds=40)
        assert process.poll() is None, log.read_text()
        yield type_
        type_("quit")
        assert process.wait(20) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()
        standard.close()


def send(card: Card, target: str, *, count: int, vlan: int = 0) -> None:
    """UDP frames from a card by the kernel's packet generator."""
    run("modprobe pktgen")
    proc = Path("/proc/net/pktgen")
    (proc / "kpktgend_0").write_text("rem_device_all\n")  # it takes off the last character, whatever that is
    (proc / "kpktgend_0").write_text(f"add_device {card.netdev}\n")
    settings = [f"count {count}", "pkt_size 64", "ratep 2000", "dst 10.1.0.2", f"dst_mac {target}"]
    for line in [*settings, *([f"vlan_id {vlan}"] if vlan else [])]:
        (proc / card.netdev).write_text(f"{line}\n")
    (proc / "pgctrl").write_text("start\n")  # returns at the end
    (proc / "kpktgend_0").write_text("rem_device_all\n")


def received(card: Card) -> int:
    return int((card.path / "net" / card.netdev / "statistics/rx_packets").read_text())


def passes(source: Card, sink: Card, target: str) -> bool:
    start = received(sink)
    send(source, target, count=50, vlan=7)
    return received(sink) - start >= 40


async def test_testpmd_forwards_with_generated_arguments(hardware: Hardware, tmp_path: Path) -> None:
    """Card 0 - wire - VF of card 1 (VLAN 7) - testpmd - VF of card 2 - wire - card 3."""
    source, inner, outer, sink = hardware.cards
    macs = {"inside": "02:d0:00:00:00:0a", "outside": "02:d0:00:00:00:0b"}
    vfs = {"inside": inner.create(1)[0], "outside": outer.create(1)[0]}
    before = [look(inner, 0), look(outer, 0)]
    run(f"ip link set {inner.netdev} vf 0 vlan 7")
    numa = read_pages()[0].node
    set_pages(numa, 2048, 128)
    async with binder(tmp_path) as tool:
        for network, bdf in vfs.items():
            await tool.apply_bind(await tool.plan(bdf, VFIO, mac=macs[network]))
        # The second network first: DPDK numbers its ports by address all the same.
        ports = [
            Port(network=f"vfw/{name}", interface=interface, pci=vfs[name], driver=VFIO, mac=macs[name])
            for name, interface in (("outside", "net1"), ("inside", "net2"))
        ]
        container = read_container(devices=["/dev/vfio/vfio"])
        wanted = Wanted(cpus=container.cpus[:2], ports=ports, memory_mb={max(numa, 0): 64}, iova="va")
        assert [each.what for each in readiness(container, wanted) if each.fatal] == []
        numbers = {each["network"]: each["port"] for each in json.loads(port_map(ports))["ports"]}
        log = tmp_path / "testpmd.log"
        options = ["-i", "--nb-cores=1", "--forward-mode=mac", "--total-num-mbufs=4096"]
        options.append(f"--eth-peer={numbers['vfw/outside']},{sink.mac}")
        options.append(f"--eth-peer={numbers['vfw/inside']},{source.mac}")
        with forwarder(eal_arguments(wanted), options, log) as command:
            found = set(re.findall(r"^Port (\d+): (\S+)$", log.read_text(), re.MULTILINE))
            assert found == {(str(numbers[f"vfw/{network}"]), mac.upper()) for network, mac in macs.items()}
            command("start")
            with pytest.raises(HeldError, match="dpdk-testpmd"):
                await tool.restore(vfs["inside"], hold=0)
            until(lambda: passes(source, sink, macs["inside"]), lambda: log.read_text()[-2000:], seconds=20)
            start = received(sink)
            send(source, macs["inside"], count=PACKETS, vlan=7)
            until(
                lambda: received(sink) - start >= PACKETS, lambda: f"{PACKETS}: {received(sink) - start} came through"
            )
            start = received(sink)
            send(source, macs["inside"], count=200)
            time.sleep(0.5)
            assert received(sink) - start < 100, "untagged frames are not in the VLAN of the network"
            command("stop")
        for bdf in vfs.values():
            await tool.restore(bdf)
    run(f"ip link set {inner.netdev} vf 0 vlan 0")
    set_pages(numa, 2048, 0)
    assert [look(inner, 0), look(outer, 0)] == before
