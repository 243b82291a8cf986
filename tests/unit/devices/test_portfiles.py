"""Files for DPDK programs: a folder is made when a device is given out, and the device nodes go with its driver."""

from pathlib import Path

import pytest

from devices import inventory, pools, portfiles
from devices.errors import DeviceError
from devices.giving import Giver
from devices.kubelet.allocate import Grant, device_specs
from devices.ledger import Ledger, Memory
from devices.linux.pci_address import AddressError
from devices.linux.sysfs import Sysfs
from devices.pool_config import parse_config
from devices.portfiles import PortFilesError
from tests.fake_sysfs import FakeSysfs

PF = "0000:03:00.0"
BDF = "0000:03:02.0"


def test_written_read_and_removed(tmp_path: Path) -> None:
    assert portfiles.prepare(tmp_path, BDF) == tmp_path / "dpdk" / BDF
    assert portfiles.read(tmp_path, BDF, portfiles.MAP, limit=9) == b""
    portfiles.write(tmp_path, BDF, {portfiles.MAP: b"{}", portfiles.EAL: b"-a x"})
    path = portfiles.folder(tmp_path, BDF)
    assert sorted(each.name for each in path.iterdir()) == ["eal", "map.json"]
    assert {each.stat().st_mode & 0o777 for each in path.iterdir()} == {0o444}  # a container's user may be anybody
    assert portfiles.read(tmp_path, BDF, portfiles.EAL, limit=2) == b"-a"
    portfiles.clear(tmp_path, BDF)
    portfiles.clear(tmp_path, BDF)
    assert list(path.iterdir()) == []


def test_the_next_pod_does_not_see_what_the_last_one_had(tmp_path: Path) -> None:
    portfiles.write(tmp_path, BDF, {portfiles.MAP: b"{}"})
    assert list(portfiles.prepare(tmp_path, BDF).iterdir()) == []


@pytest.mark.parametrize("name", ["../../etc", "", "gpu-0", "0000:03:02.0/..", "0000:03:02.9"])
def test_no_other_name_is_a_folder(tmp_path: Path, name: str) -> None:
    for call in (portfiles.prepare, portfiles.clear, portfiles.folder):
        with pytest.raises(AddressError):
            call(tmp_path, name)


def test_a_disk_that_refuses(tmp_path: Path) -> None:
    (tmp_path / "dpdk").write_text("in the way")
    for run in (
        lambda: portfiles.prepare(tmp_path, BDF),
        lambda: portfiles.write(tmp_path, BDF, {portfiles.MAP: b""}),
        lambda: portfiles.read(tmp_path, BDF, portfiles.MAP, limit=1),
        lambda: portfiles.clear(tmp_path, BDF),
    ):
        with pytest.raises(PortFilesError, match="files for DPDK"):
            run()


class Node:
    """A giver on a PF with two VFs that iavf has, each in a group of its own."""

    def __init__(self, root: Path, pool: str) -> None:
        self.tree = FakeSysfs(root)
        self.tree.pf(PF, netdev="ens1", total=8, num=2, group=10)
        sysfs = Sysfs(self.tree.sys, self.tree.dev)
        self.info = root / "info"
        self.giver = Giver(sysfs=sysfs, info=self.info, ledger=Ledger(Memory()))
        text = f'{{"resourceList": [{{"resourceName": "vfw", "selectors": {{"pfNames": ["ens1"]}}{pool}}}]}}'
        self.giver.config = parse_config(text.encode())
        self.giver.inventory = inventory.build(sysfs.read(), guarded={})
        self.giver.pools = pools.assign(self.giver.inventory, self.giver.config)
        self.bdf = self.tree.vf_bdf(PF, 0)

    async def grant(self) -> Grant:
        (found,) = await self.giver.grant("intel.com/vfw", [self.bdf])
        return found


@pytest.mark.anyio
async def test_nodes_of_a_driver_that_it_will_have(tmp_path: Path) -> None:
    """The kubelet wants to know them before the network is attached; the container is made after that."""
    node = Node(tmp_path, ', "driver": "vfio-pci"')
    grant = await node.grant()
    assert [spec.host for spec in device_specs([grant])] == ["/dev/vfio/vfio", "/dev/vfio/11"]
    assert grant.ports == str(node.info / "dpdk" / node.bdf)
    assert Path(grant.ports).is_dir()


@pytest.mark.anyio
async def test_a_device_of_the_kernels_gets_nothing_of_that(tmp_path: Path) -> None:
    node = Node(tmp_path, "")
    grant = await node.grant()
    assert device_specs([grant]) == ()
    assert grant.ports == ""
    assert not (node.info / "dpdk").exists()
    node.tree.bind(node.bdf, "vfio-pci")
    bound = await node.grant()
    assert [spec.host for spec in device_specs([bound])] == ["/dev/vfio/vfio", "/dev/vfio/11"]
    assert Path(bound.ports).is_dir()


@pytest.mark.anyio
async def test_a_folder_that_cannot_be_made_fails_no_pod(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    node = Node(tmp_path, ', "driver": "vfio-pci"')
    node.info.mkdir()
    (node.info / "dpdk").write_text("in the way")
    assert (await node.grant()).ports == ""
    assert "files for DPDK" in caplog.text
    with pytest.raises(DeviceError):
        portfiles.prepare(node.info, node.bdf)
