"""What is asked of both `sriov` plugins, and where the answers differ on purpose."""

from collections.abc import Mapping
from typing import Any, Final

from tests.vm.guest.beside import Differs
from tests.vm.guest.scenes import OWN_MAC, Scene

MAC: Final = "02:aa:00:00:00:01"
OTHER_MAC: Final = "02:00:00:00:00:99"
FULL: Final = {"vlan": 100, "vlanQoS": 3, "mac": MAC, "max_tx_rate": 200, "spoofchk": "off", "trust": "on"}


def static(*addresses: dict[str, str], **more: Any) -> dict[str, Any]:
    return {"ipam": {"type": "static", "addresses": list(addresses), **more}}


V4: Final = static({"address": "10.9.0.1/24", "gateway": "10.9.0.254"}, routes=[{"dst": "10.20.0.0/16"}])
POOL: Final = {"type": "host-local", "ranges": [[{"subnet": "10.9.1.0/24"}], [{"subnet": "fd00:9::/64"}]]}


def because(why: str, **ours: Any) -> Mapping[str, Differs]:
    """Ours by key, with _ for a space; `del_` is "del"."""
    return {key.rstrip("_").replace("_", " "): Differs(ours=value, why=why) for key, value in ours.items()}


def attached(mac: str = OWN_MAC, *, version: str = "1.0.0") -> dict[str, Any]:
    """What is there after an ADD without addresses that was done."""
    interface = {"name": "net1", "mac": mac, "mtu": 1500, "sandbox": "POD"}
    inside = {"mac": mac, "mtu": 1500, "up": True, "addresses": [], "routes": [], "announces": ["1", "1"]}
    return {"add": "done", "result": {"cniVersion": version, "interfaces": [interface]}, "host": "gone", "pod": inside}


NOT_DONE: Final[dict[str, Any]] = {"add": "refused", "result": None, "host": {}, "pod": None}
ROLLED_BACK: Final = (
    "a setting that fails takes back those before it; sriov-cni leaves them, and its DEL knows of nothing"
)
LOOSE: Final = 'whatever is not "on" turns it off in sriov-cni, in silence'
ASKED: Final = "DEL asks for addresses to be given back, whatever became of ADD, and says when nobody can do that"
DPDK_DEL: Final = "sriov-cni does not remember that the VF has no interface, and fails to find it"

SETTINGS: Final = (
    Scene(name="nothing but the device"),
    Scene(
        name="mac, not trusted",
        conf={"mac": MAC},
        differs=because(
            "igb lets a VF without trust not ask for its MAC, but it has the one that its PF gave it when it comes up",
            vf={"address": MAC},
            **attached(MAC),
        ),
    ),
    Scene(name="mac, trusted", conf={"mac": MAC, "trust": "on"}),
    Scene(name="mac in capitals", conf={"mac": MAC.upper(), "trust": "on"}),
    Scene(
        name="mac with dashes",
        conf={"mac": MAC.replace(":", "-"), "trust": "on"},
        differs=because(
            "sriov-cni sets it, waits for it to be read back with dashes, gives up, and leaves it set",
            vf={"address": MAC, "trust": True},
            vf_after={},
            **attached(MAC),
        ),
    ),
    Scene(name="vlan", conf={"vlan": 100}),
    Scene(name="vlan with priority", conf={"vlan": 100, "vlanQoS": 5}),
    Scene(name="the last vlan, named protocol", conf={"vlan": 4094, "vlanProto": "802.1Q"}),
    Scene(name="vlan 0 where there was none", conf={"vlan": 0}),
    Scene(name="vlan 0 where there was one", conf={"vlan": 0}, first=("ip link set {pf} vf 0 vlan 7 qos 2",)),
    Scene(name="no vlan where there was one", first=("ip link set {pf} vf 0 vlan 7",)),
    Scene(name="spoofchk off", conf={"spoofchk": "off"}),
    Scene(name="spoofchk on where it was off", conf={"spoofchk": "on"}, first=("ip link set {pf} vf 0 spoofchk off",)),
    Scene(name="trust on", conf={"trust": "on"}),
    Scene(name="trust off where it was on", conf={"trust": "off"}, first=("ip link set {pf} vf 0 trust on",)),
    Scene(name="a limit", conf={"max_tx_rate": 200}),
    Scene(
        name="no limit where there was one", conf={"max_tx_rate": 0}, first=("ip link set {pf} vf 0 max_tx_rate 300",)
    ),
    Scene(name="everything", conf={**FULL, **V4}, check=True),
    Scene(
        name="everything, over other values",
        conf=FULL,
        first=("ip link set {pf} vf 0 vlan 7 spoofchk off max_tx_rate 90",),
    ),
    Scene(name="a key that nobody knows", conf={"vlann": 100}),
)

MACS: Final = (
    Scene(name="the runtime's mac", conf={"trust": "on", "runtimeConfig": {"mac": MAC}}),
    Scene(name="mac of CNI_ARGS", conf={"trust": "on"}, args=(("IgnoreUnknown", "1"), ("MAC", MAC))),
    Scene(
        name="mac of runtime, CNI_ARGS and conf",
        conf={"trust": "on", "mac": "02:aa:00:00:00:03", "runtimeConfig": {"mac": MAC}},
        args=(("IgnoreUnknown", "1"), ("MAC", "02:aa:00:00:00:02")),
    ),
    Scene(
        name="mac of CNI_ARGS and conf",
        conf={"trust": "on", "mac": "02:aa:00:00:00:03"},
        args=(("IgnoreUnknown", "1"), ("MAC", MAC)),
    ),
    Scene(name="CNI_ARGS with others", args=(("IgnoreUnknown", "1"), ("K8S_POD_NAME", "a"), ("X", "y"))),
    Scene(
        name="CNI_ARGS with others, not to be ignored",
        args=(("X", "y"),),
        differs=because("arguments that are for others are no reason to leave a pod without network", **attached()),
    ),
)

ADDRESSES: Final = (
    Scene(name="an address with gateway and route", conf=V4),
    Scene(
        name="addresses of both families with a name server",
        conf=static({"address": "10.9.0.1/24"}, {"address": "fd00:9::1/64"}, dns={"nameservers": ["10.9.0.53"]}),
    ),
    Scene(name="addresses of host-local", conf={"ipam": POOL}),
    Scene(name="an address plugin without addresses", conf=static()),
    Scene(
        name="an address plugin that is not there",
        conf={"vlan": 5, "ipam": {"type": "nowhere"}},
        differs=because(ASKED, del_="refused", del_again="refused"),
    ),
    Scene(name="an address plugin without type", conf={"ipam": {}}),
    Scene(name="version 0.3.1", conf={"cniVersion": "0.3.1", **V4}),
    Scene(name="version 0.4.0", conf={"cniVersion": "0.4.0", **V4}),
    Scene(name="version 0.2.0", conf={"cniVersion": "0.2.0", **V4}),
    Scene(name="version 1.1.0", conf={"cniVersion": "1.1.0"}),
    Scene(
        name="version 1.1.0, which the address plugin does not know",
        conf={"cniVersion": "1.1.0", **V4},
        differs=because(ASKED, del_="refused", del_again="refused"),
    ),
    Scene(name="no version", conf={"cniVersion": None, **V4}),
)

REFUSED: Final = (
    Scene(name="vlan 4095", conf={"vlan": 4095}),
    Scene(name="vlan -1", conf={"vlan": -1}),
    Scene(
        name="vlan as text",
        conf={"vlan": "100"},
        differs=because(
            "a DEL that fails for the configuration's sake would hold the pod up for good",
            del_="done",
            del_again="done",
        ),
    ),
    Scene(name="priority without vlan", conf={"vlanQoS": 1}),
    Scene(name="priority 8", conf={"vlan": 100, "vlanQoS": 8}),
    Scene(name="priority with vlan 0", conf={"vlan": 0, "vlanQoS": 1}),
    Scene(name="protocol without vlan", conf={"vlanProto": "802.1q"}),
    Scene(name="protocol nobody knows", conf={"vlan": 100, "vlanProto": "802"}),
    Scene(name="protocol 802.1ad with vlan 0", conf={"vlan": 0, "vlanProto": "802.1ad"}),
    Scene(name="link state nobody knows", conf={"link_state": "up"}),
    Scene(name="no device", conf={"deviceID": None}),
    Scene(name="a device that is not there", conf={"deviceID": "0000:ff:1f.7"}),
    Scene(name="mac of letters", conf={"mac": "pod"}),
    Scene(name="mac of a group", conf={"mac": "03:aa:00:00:00:01"}),
    Scene(name="mac of zeros", conf={"mac": "00:00:00:00:00:00"}),
    Scene(name="spoofchk ON", conf={"spoofchk": "ON"}, differs=because(LOOSE, vf={}, **NOT_DONE)),
    Scene(name="trust yes", conf={"trust": "yes"}, differs=because(LOOSE, **NOT_DONE)),
    Scene(name="a limit below the guarantee", conf={"min_tx_rate": 300, "max_tx_rate": 200}),
    Scene(name="no such network namespace", conf=FULL, netns="/run/netns/none"),
)

HARDWARE: Final = (
    # What QEMU's igb cannot do: the settings before it are made, and have to be undone.
    Scene(
        name="igb has no link state",
        conf={"vlan": 100, "spoofchk": "off", "link_state": "enable"},
        differs=because(ROLLED_BACK, vf={}, vf_after={}),
    ),
    Scene(name="igb has no 802.1ad", conf={"vlan": 100, "vlanProto": "802.1AD"}),
    Scene(
        name="igb has no guarantee",
        conf={"vlan": 100, "min_tx_rate": 100},
        differs=because(ROLLED_BACK, vf={}, vf_after={}),
    ),
)

LIVES: Final = (
    Scene(name="the pod changed its interface", conf=FULL, meanwhile=("ip -n {pod} link set net1 mtu 1400",)),
    Scene(
        name="the pod renamed its interface",
        conf={"vlan": 100},
        meanwhile=("ip -n {pod} link set net1 down", "ip -n {pod} link set net1 name other"),
        differs=because(
            "a VF's interface is found by its device; sriov-cni fails once, then forgets the VF in the pod",
            del_="done",
            host_after={},
        ),
    ),
    Scene(
        name="the pod is gone before DEL",
        conf=FULL,
        meanwhile=("ip netns del {pod}",),
        differs=because(
            "the interface gets its name, MAC and MTU back wherever it is; there it is called net1", host_after={}
        ),
    ),
    Scene(
        name="the pod is gone, DEL knows no namespace",
        conf=FULL,
        meanwhile=("ip netns del {pod}",),
        del_netns="",
        differs=because("sriov-cni forgets the VF without putting anything back", vf_after={}, host_after={}),
    ),
    Scene(
        name="the interface was up",
        first=("ip link set {host} up",),
        differs=because("it was so before", host_after={}),
    ),
    Scene(name="the interface had another mtu", first=("ip link set {host} mtu 1400",)),
    Scene(name="a second pod wants it", conf={"vlan": 100}, again=True),
    Scene(
        name="net1 is taken",
        conf=FULL,
        first=(f"ip -n {{pod}} link add net1 address {OTHER_MAC} type dummy",),
        differs=because(
            "sriov-cni leaves the VF in the pod and takes the other interface out of it instead",
            host={},
            pod={"mac": OTHER_MAC, "mtu": 1500, "up": False, "addresses": [], "routes": [], "announces": ["0", "0"]},
            host_after={},
        ),
    ),
    Scene(
        name="CHECK after the vlan was changed",
        conf={"vlan": 100},
        check=True,
        meanwhile=("ip link set {pf} vf 0 vlan 9",),
        differs=because("its CHECK looks at nothing", check="refused"),
    ),
)

DPDK: Final = (
    Scene(name="vfio: nothing but the device", driver="vfio-pci", differs=because(DPDK_DEL, del_="done")),
    Scene(name="vfio: everything", driver="vfio-pci", conf={**FULL, **V4}, differs=because(DPDK_DEL, del_="done")),
    Scene(
        name="vfio: the PF had given a mac",
        driver="vfio-pci",
        first=(f"ip link set {{pf}} vf 0 mac {MAC}",),
        differs=because(DPDK_DEL, del_="done"),
    ),
    Scene(
        name="vfio: igb has no link state",
        driver="vfio-pci",
        conf={"vlan": 100, "link_state": "disable"},
        differs=because(ROLLED_BACK, vf={}, vf_after={}),
    ),
    Scene(name="vfio: no such network namespace", driver="vfio-pci", conf={"vlan": 100}, netns="/run/netns/none"),
)

ROWS: Final = (*SETTINGS, *MACS, *ADDRESSES, *REFUSED, *HARDWARE, *LIVES, *DPDK)
