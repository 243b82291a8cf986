"""Pools asked of both device plugins, and where the answers differ on purpose."""

from typing import Any, Final

from tests.vm.guest.beside import NOTHING, Differs
from tests.vm.guest.pool_scenes import NO_POOLS, PoolRow


def pool(selectors: Any, name: str = "net", **more: Any) -> dict[str, Any]:
    return {"resourceName": name, "resourcePrefix": "vm.example", "selectors": selectors, **more}


NET: Final = "vm.example/net"
VARIABLE: Final = "PCIDEVICE_VM_EXAMPLE_NET"
VFIO: Final = {"mount": "/dev/vfio/vfio", "dev-mount": "/dev/vfio/GROUP"}
BOTH: Final = {
    "devices": {"LEFT0": ["Healthy", None], "LEFT2": ["Healthy", None]},
    "env": {
        VARIABLE: "LEFT0,LEFT2",
        f"{VARIABLE}_INFO": {
            "LEFT0": {"generic": {"deviceID": "LEFT0"}},
            "LEFT2": {"generic": {"deviceID": "LEFT2"}, "vfio": VFIO},
        },
    },
    "nodes": ["/dev/vfio/GROUP /dev/vfio/GROUP rw", "/dev/vfio/vfio /dev/vfio/vfio rw"],
}
UNREADABLE: Final = Differs(ours=True, why="a range that cannot be read is refused, not read as some or none of it")
PARTLY: Final = {NO_POOLS: UNREADABLE, NET: Differs(ours=NOTHING, why=UNREADABLE.why)}

NAMED: Final = (
    PoolRow(name="all of a vendor", pools=[pool({"vendors": ["8086"]})]),
    PoolRow(name="a vendor in hex with 0x", pools=[pool({"vendors": ["0x8086"]})]),
    PoolRow(name="devices", pools=[pool({"devices": ["10ca", "ffff"]})]),
    PoolRow(name="a device in capitals", pools=[pool({"devices": ["10CA"]})]),
    PoolRow(name="the kernel's driver", pools=[pool({"drivers": ["igbvf"]})]),
    PoolRow(name="vfio-pci", pools=[pool({"drivers": ["vfio-pci"]})]),
    PoolRow(name="addresses", pools=[pool({"pciAddresses": ["LEFT0", "RIGHT1", "0000:ff:00.0"]})]),
    PoolRow(name="the PF's address", pools=[pool({"rootDevices": ["LEFT-BDF"]})]),
    PoolRow(name="the PF's address with numbers", pools=[pool({"rootDevices": ["LEFT-BDF#0-1", "RIGHT-BDF#1"]})]),
    PoolRow(name="a PF by name", pools=[pool({"pfNames": ["RIGHT"]})]),
    PoolRow(name="numbers of a PF", pools=[pool({"pfNames": ["LEFT#0,2", "RIGHT#1"]})]),
    PoolRow(
        name="a PF named twice",
        pools=[pool({"pfNames": ["LEFT#0", "LEFT#2"]})],
        differs={NET: Differs(ours=BOTH, why="upstream never looks at the second")},
    ),
    PoolRow(
        name="numbers the wrong way round",
        pools=[pool({"pfNames": ["LEFT#2-0"]})],
        differs={NO_POOLS: UNREADABLE},
    ),
    PoolRow(name="a number and a letter", pools=[pool({"pfNames": ["LEFT#0,x"]})], differs=PARTLY),
    PoolRow(name="a number after a space", pools=[pool({"pfNames": ["LEFT#0, 1"]})], differs=PARTLY),
    PoolRow(name="two number signs", pools=[pool({"pfNames": ["LEFT#0#1"]})], differs={NO_POOLS: UNREADABLE}),
    PoolRow(name="kinds of link", pools=[pool({"linkTypes": ["ether"]})]),
    PoolRow(name="infiniband", pools=[pool({"linkTypes": ["infiniband"]})]),
    PoolRow(name="rdma", pools=[pool({"isRdma": True, "vendors": ["8086"]})]),
    PoolRow(name="all keys have to fit", pools=[pool({"pfNames": ["LEFT"], "drivers": ["vfio-pci"]})]),
)

SHAPES: Final = (
    PoolRow(name="a list of selectors", pools=[pool([{"pfNames": ["LEFT#0"]}, {"pfNames": ["RIGHT#0"]}])]),
    PoolRow(name="an empty list of selectors", pools=[pool([]), pool({"pfNames": ["LEFT"]}, "other")]),
    PoolRow(name="the first pool has it", pools=[pool({"pfNames": ["LEFT"]}), pool({"vendors": ["8086"]}, "rest")]),
    PoolRow(name="keys in other case", pools=[pool({"PFNAMES": ["LEFT#0"]})]),
    PoolRow(name="a key that nobody knows", pools=[pool({"pfNames": ["LEFT#0"], "colour": ["red"]})]),
    PoolRow(name="without topology", pools=[pool({"pfNames": ["LEFT#0"]}, excludeTopology=True)]),
    PoolRow(
        name="more information",
        pools=[
            pool({"pfNames": ["LEFT"]}, additionalInfo={"*": {"a": "1", "b": "2"}, "LEFT1": {"a": "3"}}),
        ],
    ),
    PoolRow(name="accelerators", pools=[pool({"vendors": ["8086"]}, deviceType="accelerator")]),
    PoolRow(name="the prefix of the program", pools=[{"resourceName": "net_1", "selectors": {"pfNames": ["LEFT#0"]}}]),
)

WRONG: Final = (
    PoolRow(name="a kind that nobody knows", pools=[pool({"pfNames": ["LEFT"]}, deviceType="disk")]),
    PoolRow(name="a name with a dot", pools=[pool({"pfNames": ["LEFT"]}, "a.b")]),
    PoolRow(name="no name", pools=[pool({"pfNames": ["LEFT"]}, "")]),
    PoolRow(name="one name twice", pools=[pool({"pfNames": ["LEFT"]}), pool({"pfNames": ["RIGHT"]})]),
    PoolRow(
        name="no pools",
        pools=[],
        differs={NO_POOLS: Differs(ours=NOTHING, why="the file is followed: there may be some later")},
    ),
)

POOL_ROWS: Final = (*NAMED, *SHAPES, *WRONG)
