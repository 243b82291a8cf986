"""Policies: what their webhook upstream refuses, and what is planned for the hardware as it is."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.config import ConfigError
from devices.inventory import PF, Inventory, build
from devices.linux.sysfs import Sysfs
from devices.policy import Change, Plan, Policy, describe, parse_policies, parse_policy, plan_numvfs, plan_policies
from devices.policy_pools import policy_pools
from devices.pools import assign
from tests.fake_sysfs import FakeSysfs

FIRST = "0000:03:00.0"
SECOND = "0000:04:00.0"


def document(name: str = "p", /, **spec: Any) -> dict[str, Any]:
    nics = {"pfNames": ["ens1"]}
    return {
        "apiVersion": "sriovnetwork.openshift.io/v1",
        "kind": "SriovNetworkNodePolicy",
        "metadata": {"name": name, "namespace": "any"},
        "spec": {"resourceName": "net", "numVfs": 4, "nicSelector": nics, **spec},
    }


def policy(name: str = "p", /, **spec: Any) -> Policy:
    return parse_policy(document(name, **spec))


def names(*pf_names: str) -> dict[str, Any]:
    return {"nicSelector": {"pfNames": list(pf_names)}}


@pytest.mark.parametrize("pf_names", [["ens1#0-3"], ["ens1"], ["ens1#0-1", "ens2#2-3"]])
def test_ranges_that_fit(pf_names: list[str]) -> None:  # 72
    assert [str(each) for each in policy(**names(*pf_names)).nics.pf_names] == pf_names


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (names("ens1#0-4"), 'VFs count from 0: did you mean "ens1#0-3"?'),  # 73
        (names("ens1#4-7"), 'did you mean "ens1"?'),
        (names("ens1#3-1"), 'did you mean "ens1#1-3"?'),  # 74
        (names("ens1#1"), 'did you mean "ens1#1-1"?'),  # 75
        (names("ens1#0,3"), 'did you mean "ens1#0-3"?'),
        (names("ens1#0-1#2-3"), 'a second "#"'),  # 76
        ({"nicSelector": {"vendor": "15b3"}, "numVfs": 129}, "at most 128"),  # 77
        ({"numVfs": 0}, "0 makes no VFs"),  # 78
        ({"numVfs": -1}, "not within"),
        ({"numVfs": "4"}, "whole number"),
        ({"numVfs": True}, "whole number"),
        ({"numVfs": None}, "missing"),
        ({"deviceType": "vfio-pci", "isRdma": True}, "isRdma with deviceType vfio-pci"),  # 80
        ({"deviceType": "vfio"}, 'did you mean "vfio-pci"?'),
        ({"deviceType": "netDevice"}, 'did you mean "netdevice"?'),
        ({"priority": 100}, "not within 0 to 99"),
        ({"mtu": -1}, "not within"),
        ({"resourceName": "a.b"}, 'did you mean "a_b"?'),
        ({"resourceName": ""}, "missing"),
        ({"nicSelector": {}}, "selects no NIC"),
        ({"nicSelector": None}, "selects no NIC"),
        ({"nicSelector": {"vendor": "0x8086"}}, 'did you mean "8086"?'),
        ({"nicSelector": {"netFilter": "openstack/NetworkID:x"}}, "OpenStack"),
        ({"nicSelector": {"pfName": ["ens1"]}}, 'did you mean "pfNames"?'),
        ({"numVFs": 3, "numVf": 4}, 'did you mean "numVfs"?'),
        ({"linkType": "ethernet"}, "one of eth, ib"),
        ({"eSwitchMode": "switchdev", "linkType": "IB"}, "Ethernet only"),
        ({"eSwitchMode": "switchdev"}, "externallyManaged: true"),
        ({"vdpaType": "vhost"}, "switchdev"),
        ({"bridge": {"ovs": {}}}, "bridge"),
        ({"nodeSelector": {"sriov": True}}, "in quotes"),
        ({"nodeSelector": []}, "labels"),
    ],
)
def test_what_is_refused_comes_with_the_nearest_right_answer(spec: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        policy(**spec)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "changed",
    [
        {"kind": "SriovNetwork"},
        {"apiVersion": "v1"},
        {"metadata": {}},
        {"metadata": None},
        {"metadata": {"name": "a\nb"}},
        {"spec": None},
        {"spec": []},
        {"sepc": {}},
    ],
)
def test_what_is_no_policy(changed: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        parse_policy(document() | changed)


def test_overlapping_ranges_are_refused() -> None:  # 79
    one, two = document("a", numVfs=6, **names("ens1#0-3")), document("b", numVfs=6, **names("ENS1#3-5"))
    with pytest.raises(ConfigError, match="policies a and b both want VFs 3-3 of ens1"):
        parse_policies([one, two])
    two["spec"]["nicSelector"]["pfNames"] = ["ens1#4-5"]
    assert len(parse_policies([one, two])) == 2


def test_policies_for_different_nodes_do_not_overlap() -> None:
    one, two = document("a", **names("ens1#0-3")), document("b", **names("ens1#0-3"))
    one["spec"]["nodeSelector"], two["spec"]["nodeSelector"] = {"rack": "1"}, {"rack": "2"}
    first, second = parse_policies([one, two])
    assert (first.is_for({"rack": "1"}), second.is_for({"rack": "1"})) == (True, False)


def test_policies_of_one_resource_agree_on_topology_and_have_names_of_their_own() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_policies([document(), document("q", excludeTopology=True), document(), None])
    assert len(caught.value.problems) == 3  # the topology, the name, and what is no object
    assert "policy 4" in caught.value.problems[0]


@pytest.fixture
def fake(tmp_path: Path) -> FakeSysfs:
    fake = FakeSysfs(tmp_path)
    fake.pf(FIRST, netdev="ens1", total=8, num=0)
    fake.pf(SECOND, netdev="ens2", total=8, num=4)
    return fake


def look(fake: FakeSysfs, guarded: Mapping[str, str] = {}) -> Inventory:
    return build(Sysfs(fake.sys, fake.dev).read(), guarded=guarded)


def pf(found: Inventory, bdf: str) -> PF:
    device = found.by_bdf[bdf]
    assert isinstance(device, PF)
    return device


def lines(found: Inventory, *policies: Policy, held: Mapping[str, str] = {}) -> list[str]:
    return describe(plan_policies(found, policies, held), found)


def refusal(plan: Plan) -> str:
    assert not plan.steps
    (refused,) = plan.refusals
    return str(refused)


def test_vfs_are_made_then_the_mtu_then_drivers(fake: FakeSysfs) -> None:
    found = look(fake)
    kernel = policy("kernel", numVfs=6, mtu=9000, **names("ens1#0-1"))
    dpdk = policy("dpdk", numVfs=6, resourceName="dpdk", deviceType="vfio-pci", **names("ens1#2-4"))
    plan = plan_policies(found, [kernel, dpdk])
    assert [step.change for step in plan.steps] == [
        *(Change.NUMVFS, Change.MTU, Change.MTU, Change.MTU),
        *(Change.DRIVER, Change.DRIVER, Change.DRIVER),
    ]
    assert describe(plan, found) == [
        "ens1 (0000:03:00.0): make 6 VFs (policy dpdk)",
        "ens1 (0000:03:00.0): MTU 1500 -> 9000 (policy dpdk)",
        "VFs 0-1 of ens1 (0000:03:00.0): MTU ? -> 9000 (policy kernel)",
        "VFs 2-4 of ens1 (0000:03:00.0): driver none -> vfio-pci (policy dpdk)",
    ]


def test_nothing_to_do_when_all_is_as_wanted(fake: FakeSysfs) -> None:
    assert lines(look(fake), policy(**names("ens2"), mtu=1500)) == ["nothing to change"]


def test_another_number_removes_all_first(fake: FakeSysfs) -> None:
    plan = plan_policies(look(fake), [policy(numVfs=6, **names("ens2"))])
    assert [(step.before, step.number) for step in plan.steps] == [("4", 0), ("0", 6)]


def test_a_vf_in_use_keeps_the_number(fake: FakeSysfs) -> None:
    found, bdf = look(fake), fake.vf_bdf(SECOND, 2)
    for count in (1, 6):
        said = refusal(plan_policies(found, [policy(numVfs=count, **names("ens2"))], {bdf: "pod a/b"}))
        assert "1 of its 4 VFs is in use" in said
        assert f"{bdf} by pod a/b" in said
    assert "in use" in refusal(plan_numvfs(found, pf(found, SECOND), 0, {bdf}))
    assert plan_policies(found, [policy(numVfs=4, **names("ens2"))], {bdf}) == Plan()


@pytest.mark.parametrize("vf", [False, True])
def test_a_nic_that_the_node_needs_is_not_touched(fake: FakeSysfs, vf: bool) -> None:
    bdf = fake.vf_bdf(SECOND, 0) if vf else SECOND
    found = look(fake, {bdf: "the node's IPv6 default route"})
    said = refusal(plan_policies(found, [policy(numVfs=6, mtu=9000, **names("ens2"))]))
    assert "the node's IPv6 default route" in said
    assert ("its VF 0" in said) is vf


def test_the_mtu_of_a_nic_that_the_node_needs_stays(fake: FakeSysfs) -> None:
    found = look(fake, {SECOND: "needed"})
    wanted = policy(mtu=9000, deviceType="vfio-pci", **names("ens2"))
    said = lines(found, wanted)
    assert said == [
        "VFs 0-3 of ens2 (0000:04:00.0): driver iavf -> vfio-pci (policy p)",
        "refused: ens2 (0000:04:00.0): its MTU stays 1500: the node needs it: needed",
    ]


@pytest.mark.parametrize(
    ("count", "says"), [(9, "it can have 0 to 8 VFs, not 9"), (-1, "it can have 0 to 8 VFs"), (8, "")]
)
def test_what_the_hardware_has(fake: FakeSysfs, count: int, says: str) -> None:
    found = look(fake)
    plan = plan_numvfs(found, pf(found, FIRST), count)
    assert (says in refusal(plan)) if says else [step.number for step in plan.steps] == [8]


def test_what_has_no_sriov(fake: FakeSysfs) -> None:
    fake.pf("0000:05:00.0", netdev="eth0")
    found = look(fake)
    assert "has no SR-IOV" in refusal(plan_numvfs(found, pf(found, "0000:05:00.0"), 1))
    assert "eth0 has no SR-IOV" in refusal(plan_policies(found, [policy(**names("eth0"))]))


def test_mellanox_has_no_more_than_128(fake: FakeSysfs) -> None:
    fake.pf("0000:05:00.0", netdev="ens5", total=200, vendor="15b3")
    assert "at most 128" in refusal(plan_policies(look(fake), [policy(numVfs=129, **names("ens5"))]))


def test_drivers_of_vfs(fake: FakeSysfs) -> None:
    fake.bind(fake.vf_bdf(SECOND, 0), "vfio-pci")
    fake.bind(fake.vf_bdf(SECOND, 1), "")
    found, used = look(fake), fake.vf_bdf(SECOND, 3)
    plan = plan_policies(found, [policy(**names("ens2"))])
    assert [(step.vf, step.before, step.value) for step in plan.steps] == [(0, "vfio-pci", ""), (1, "", "")]
    said = lines(found, policy(deviceType="vfio-pci", **names("ens2")), held={used: "pod a/b"})
    assert said[0] == "VF 1 of ens2 (0000:04:00.0): driver none -> vfio-pci (policy p)"
    assert said[1] == "VF 2 of ens2 (0000:04:00.0): driver iavf -> vfio-pci (policy p)"
    assert said[2] == (f"refused: VF 3 of ens2 (0000:04:00.0): stays with driver iavf: it is in use: {used} by pod a/b")


def test_the_lower_priority_number_counts(fake: FakeSysfs) -> None:
    low = policy("z", priority=10, numVfs=2, **names("ens1"))
    high = policy("a", priority=90, numVfs=8, deviceType="vfio-pci", **names("ens1"))
    said = lines(look(fake), high, low)
    assert said == [
        "ens1 (0000:03:00.0): make 2 VFs (policy z)",
        "note: ens1 (0000:03:00.0) gets 2 VFs as policy z says; policy a says 8",
    ]


def test_who_manages_it_elsewhere_has_to_make_them(fake: FakeSysfs) -> None:
    found = look(fake)
    assert "it has 4 VFs and policy p needs 6" in refusal(
        plan_policies(found, [policy(externallyManaged=True, numVfs=6, **names("ens2"))])
    )
    assert "its MTU is 1500" in refusal(
        plan_policies(found, [policy(externallyManaged=True, numVfs=2, mtu=9000, **names("ens2"))])
    )
    assert plan_policies(found, [policy(externallyManaged=True, numVfs=2, **names("ens2"))]) == Plan()


def test_another_link_type(fake: FakeSysfs) -> None:
    assert "its links are ether" in refusal(plan_policies(look(fake), [policy(linkType="IB", **names("ens2"))]))


def test_a_policy_for_no_nic_names_the_nearest(fake: FakeSysfs) -> None:
    assert lines(look(fake), policy(**names("ens22"))) == ['note: policy p selects no NIC here: did you mean "ens2"?']


def test_pools_of_policies(fake: FakeSysfs) -> None:
    fake.bind(fake.vf_bdf(SECOND, 3), "vfio-pci")
    found = look(fake)
    policies = [
        policy("kernel", resourceName="kernel", excludeTopology=True, **names("ens2#0-1")),
        policy("dpdk", resourceName="dpdk", deviceType="vfio-pci", **names("ens2#2-3")),
        policy("away", resourceName="away", **names("ens9")),
    ]
    config = policy_pools(found, policies, prefix="example.com")
    pools = assign(found, config)
    assert {name: [member.device.bdf for member in members] for name, members in pools.members.items()} == {
        "example.com/away": [],
        "example.com/dpdk": [fake.vf_bdf(SECOND, 3)],
        "example.com/kernel": [fake.vf_bdf(SECOND, 0), fake.vf_bdf(SECOND, 1)],
    }
    assert config.pool("example.com/kernel").exclude_topology


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["ens1#0-3", "p"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=8,
)
spec = st.dictionaries(
    st.sampled_from(["resourceName", "numVfs", "nicSelector", "mtu", "priority", "bridge", "nodeSelector", "vdpaType"]),
    values,
    max_size=5,
)


@given(st.lists(values | spec.map(lambda changed: document(**changed)), max_size=3))
def test_any_objects_are_policies_or_refused(documents: list[object]) -> None:
    try:
        policies = parse_policies(documents)
    except ConfigError as error:
        assert error.problems
        return
    assert plan_policies(Inventory(), policies).steps == ()
