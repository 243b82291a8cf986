"""config.json, and who is in which pool as the hardware changes."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.config import ConfigError
from devices.inventory import Inventory, build
from devices.linux.sysfs import Sysfs
from devices.pool_config import Health, PoolConfig
from devices.pools import Pools, assign, parse_config
from tests.fake_sysfs import FakeSysfs

PF = "0000:03:00.0"


def config(*resources: dict[str, Any]) -> PoolConfig:
    return parse_config(json.dumps({"resourceList": list(resources)}).encode())


def resource(name: str = "net", **keys: Any) -> dict[str, Any]:
    return {"resourceName": name, "selectors": {"drivers": ["iavf", "vfio-pci"]}, **keys}


@pytest.fixture
def fake(tmp_path: Path) -> FakeSysfs:
    fake = FakeSysfs(tmp_path)
    fake.pf(PF, netdev="ens1f0", total=8, num=4)
    return fake


def look(fake: FakeSysfs, **guarded: str) -> Inventory:
    return build(Sysfs(fake.sys, fake.dev).read(), guarded=guarded)


def members(pools: Pools, name: str = "intel.com/net") -> dict[str, str]:
    return {member.device.bdf: member.reason for member in pools.members[name]}


@pytest.mark.parametrize(
    ("keys", "hint"),
    [
        ({"resourceName": "junk.net.0"}, 'did you mean "junk_net_0"?'),  # 28
        ({"resourceName": ""}, "it names the resource"),  # 29
        ({"resourceName": "intel.com/net"}, 'did you mean "net"?'),
        ({"resourceName": "-net"}, 'did you mean "net"?'),
        ({"resourceName": "x" * 64}, f'did you mean "{"x" * 63}"?'),
        ({"resourceName": 7}, 'write it in quotes: "7"'),
        ({"resourcePrefix": "Intel.com"}, 'did you mean "intel.com"?'),
        ({"resourcePrefix": "intel.com/"}, 'did you mean "intel.com"?'),
        ({"deviceType": "foo"}, "one of netDevice, accelerator, auxNetDevice"),  # 31
        ({"deviceType": "netdevice"}, 'did you mean "netDevice"?'),
        ({"health": ["carier"]}, 'did you mean "carrier"?'),
        ({"health": "carrier"}, 'write ["carrier"]'),
        ({"preferred": "packed"}, 'did you mean "pack"?'),
        ({"driver": "vfio_pci"}, 'did you mean "vfio-pci"?'),
        ({"driver": "uio_pci_generic"}, "is unknown"),  # the number of its node is not known before
        ({"excludeTopology": "yes"}, "true or false"),
        ({"additionalInfo": {"*": {"a": 1}}}, "not a string"),
        ({"additionalInfo": {"*": "a"}}, "an object"),
        ({"additionalInfo": []}, "an object"),
        ({"selectors": {"pfNames": ["a#1-x"]}}, "neither"),
        ({"selectors": ["x"]}, "an object"),
    ],
)
def test_what_is_refused_comes_with_the_nearest_right_answer(keys: dict[str, Any], hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(resource(**keys) if "resourceName" not in keys else resource() | keys)
    assert hint in str(caught.value)
    assert "resourceList[0]" in str(caught.value)


def test_everything_wrong_is_said_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        config(resource("a.b"), resource(), resource(deviceType="foo"))
    assert [each.split(".")[0] for each in caught.value.problems] == ["resourceList[0]", "resourceList[2]"]


def test_a_resource_is_there_once() -> None:  # 30
    with pytest.raises(ConfigError, match=r"resourceList\[1\]: intel.com/net is already at resourceList\[0\]"):
        config(resource(), resource())
    assert len(config(resource(), resource(resourcePrefix="example.com")).pools) == 2


def test_defaults_and_names() -> None:  # 27
    (pool,) = config(resource("sriov-net_0")).pools
    assert pool.resource == "intel.com/sriov-net_0"
    assert pool.health == frozenset(Health)
    assert (pool.preferred, pool.exclude_topology, pool.kind) == ("spread", False, "netDevice")


def test_keys_of_ours() -> None:
    (pool,) = config(resource(health=["presence"], preferred="pack", excludeTopology=True)).pools
    assert pool.health == frozenset({Health.PRESENCE})
    assert (pool.preferred, pool.exclude_topology) == ("pack", True)
    assert config(resource(health=[])).pools[0].health == frozenset()
    assert [config(resource(driver=each)).pools[0].driver for each in ("vfio-pci", "mlx5_core", "")] == [
        *("vfio-pci", "mlx5_core", "")
    ]


@pytest.mark.parametrize("selectors", [{}, {"selectors": []}])
def test_a_pool_without_selectors_is_left_out(selectors: dict[str, Any]) -> None:
    """Rule 25. Upstream dies of a missing key by a nil dereference."""
    found = config({"resourceName": "none", **selectors}, resource())
    assert [pool.name for pool in found.pools] == ["net"]
    assert "need at least one selector" in found.warnings[0]


def test_unknown_keys_warn() -> None:
    data = {"resourceList": [resource(excludeTopolgy=True, other=1)], "resourcelist2": 1}
    found = parse_config(json.dumps(data).encode())
    assert [pool.name for pool in found.pools] == ["net"]
    assert any('did you mean "excludeTopology"?' in each for each in found.warnings)
    assert any('"other"' in each and "did you mean" not in each for each in found.warnings)
    assert len(found.warnings) == 3


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"junk", b"[]", b"null", b"{}", b'{"resourceList": {}}', b"\xff", b"[" * 100_000),
        *(b'{"resourceList": [null]}', b'{"resourceList": [1' + b"0" * 5000 + b"]}", b'{"resourceLst": []}'),
    ],
)
def test_what_is_no_config(data: bytes) -> None:
    with pytest.raises(ConfigError):
        parse_config(data)


def test_a_misspelled_list_is_named() -> None:
    with pytest.raises(ConfigError, match='did you mean "resourceList"'):
        parse_config(b'{"resourceLst": []}')


def test_no_such_pool_names_the_nearest() -> None:
    found = config(resource("sriov_kernel"), resource("sriov_dpdk"))
    for wrong, near in (("intel.com/sriov-dpdk", "sriov_dpdk"), ("nokia.com/sriov_kernel", "sriov_kernel")):
        with pytest.raises(ConfigError, match=f'did you mean "intel.com/{near}"'):
            found.pool(wrong)


def test_additional_information() -> None:  # 32
    (pool,) = config(resource(additionalInfo={"*": {"a": "1", "b": "1"}, "0000:03:02.0": {"a": "2"}})).pools
    assert pool.extra("0000:03:02.0") == {"a": "2", "b": "1"}
    assert pool.extra("0000:03:02.1") == {"a": "1", "b": "1"}


def test_the_first_pool_in_the_file_wins_and_it_is_said(fake: FakeSysfs) -> None:  # 26
    found = look(fake)
    pools = assign(found, config(resource("a", selectors={"pfNames": ["ens1f0#0-1"]}), resource("b")))
    assert list(members(pools, "intel.com/a")) == [fake.vf_bdf(PF, 0), fake.vf_bdf(PF, 1)]
    assert list(members(pools, "intel.com/b")) == [fake.vf_bdf(PF, 2), fake.vf_bdf(PF, 3)]
    (overlap,) = pools.overlaps
    assert overlap.startswith("intel.com/b does not get 2 devices that it selects, as intel.com/a comes first")


def test_a_pf_with_vfs_is_not_offered_and_one_without_is(fake: FakeSysfs) -> None:  # 42
    fake.pf("0000:04:00.0", netdev="ens2f0", total=8, num=0)
    fake.pf("0000:05:00.0", netdev="ens3f0", total=8, num=0)
    guarded = {"0000:05:00.0": "default route"}
    pools = assign(look(fake, **guarded), config(resource(selectors={"vendors": ["8086"]})))
    assert list(members(pools)) == [*(fake.vf_bdf(PF, index) for index in range(4)), "0000:04:00.0"]


def test_a_vf_that_the_node_needs_or_without_driver_is_not_offered(fake: FakeSysfs) -> None:
    needed, bare = fake.vf_bdf(PF, 0), fake.vf_bdf(PF, 1)
    fake.bind(bare, "")
    pools = assign(look(fake, **{needed: "the node's address"}), config(resource(selectors={"vendors": ["8086"]})))
    assert list(members(pools)) == [fake.vf_bdf(PF, 2), fake.vf_bdf(PF, 3)]


def test_an_empty_pool_is_there(fake: FakeSysfs) -> None:
    assert members(assign(look(fake), config(resource(selectors={"vendors": ["15b3"]})))) == {}


def test_the_link_of_the_pf(fake: FakeSysfs) -> None:
    fake.carrier("ens1f0", False)
    found = look(fake)
    assert set(members(assign(found, config(resource()))).values()) == {"the link of its PF ens1f0 is down"}
    assert set(members(assign(found, config(resource(health=["driver", "presence"])))).values()) == {""}


def test_a_member_that_lost_its_driver_is_not_healthy(fake: FakeSysfs) -> None:
    bdf, wanted = fake.vf_bdf(PF, 0), config(resource())
    before = assign(look(fake), wanted)
    fake.bind(bdf, "")
    after = assign(look(fake), wanted, before=before)
    assert members(after)[bdf] == "no driver has it, it was iavf"
    assert bdf not in members(assign(look(fake), config(resource(health=["carrier"])), before=before))
    fake.bind(bdf, "iavf")
    assert members(assign(look(fake), wanted, before=after))[bdf] == ""


def test_a_member_that_goes_with_its_pf_is_not_healthy_and_comes_back(fake: FakeSysfs) -> None:
    bdf, wanted = fake.vf_bdf(PF, 0), config(resource())
    first = assign(look(fake), wanted)
    away = assign(Inventory(), wanted, before=first)
    assert members(away)[bdf] == "it and its PF are not there"
    assert members(assign(Inventory(), config(resource(health=["carrier"])), before=first)) == {}
    assert members(assign(look(fake), wanted, before=away)) == members(first)


def test_fewer_vfs_is_a_smaller_pool_except_for_those_in_use(fake: FakeSysfs) -> None:
    wanted, held = config(resource()), fake.vf_bdf(PF, 3)
    before = assign(look(fake), wanted)
    fake.grow(PF, 2)
    after = assign(look(fake), wanted, before=before, held={held: ""})
    assert members(after) == {fake.vf_bdf(PF, 0): "", fake.vf_bdf(PF, 1): "", held: "it is not there"}
    assert list(members(assign(look(fake), wanted, before=after))) == [fake.vf_bdf(PF, 0), fake.vf_bdf(PF, 1)]


def test_a_device_in_use_stays_in_its_pool_whatever_driver_it_has(fake: FakeSysfs) -> None:
    wanted = config(
        resource("kernel", selectors={"drivers": ["iavf"]}), resource("dpdk", selectors={"drivers": ["vfio-pci"]})
    )
    bdf = fake.vf_bdf(PF, 0)
    before = assign(look(fake), wanted)
    fake.bind(bdf, "vfio-pci")
    during = assign(look(fake), wanted, before=before, held={bdf: ""})
    assert members(during, "intel.com/kernel")[bdf] == ""
    assert list(members(assign(look(fake), wanted, before=during), "intel.com/dpdk")) == [bdf]


def test_what_did_not_change_is_not_asked_again(fake: FakeSysfs) -> None:
    found, wanted = look(fake), config(resource())
    before = assign(found, wanted)
    after = assign(found, wanted, before=before)
    assert after == before
    assert all(after.by_bdf[bdf] is member for bdf, member in before.by_bdf.items())
    fake.bind(fake.vf_bdf(PF, 0), "vfio-pci")
    changed, kernel = look(fake), config(resource(selectors={"drivers": ["iavf"]}))
    assert assign(changed, kernel, before=assign(found, kernel)).members == assign(changed, kernel).members
    other = config(resource("other"))
    assert assign(found, other, before=before) == assign(found, other)


def test_a_config_that_selects_less_takes_devices_out(fake: FakeSysfs) -> None:
    held, broken = fake.vf_bdf(PF, 2), fake.vf_bdf(PF, 3)
    before = assign(look(fake), config(resource()))
    fake.bind(broken, "")
    fewer = config(resource(selectors={"pfNames": ["ens1f0#0"]}))
    after = assign(look(fake), fewer, before=before, held={held: ""})
    assert members(after) == {fake.vf_bdf(PF, 0): "", held: ""}
    assert assign(look(fake), config(), before=after, held={held: ""}).by_bdf == {}


keys = st.text(max_size=5) | st.sampled_from(
    ["resourceName", "resourcePrefix", "deviceType", "selectors", "additionalInfo", "vendors", "pfNames", "health"]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(["a#1", "8086", "netDevice"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)


@given(st.binary(max_size=60) | values.map(lambda value: json.dumps({"resourceList": value}).encode()))
def test_any_config_is_read_or_refused(data: bytes) -> None:
    try:
        found = parse_config(data)
    except ConfigError as error:
        assert error.problems
        return
    assert assign(Inventory(), found).members.keys() == {pool.resource for pool in found.pools}


@given(st.lists(values, max_size=2))
def test_any_resource_is_read_or_refused(selectors: list[object]) -> None:
    data = {"resourceList": [{"resourceName": "a", "selectors": selectors}]}
    try:
        parse_config(json.dumps(data).encode())
    except ConfigError as error:
        assert "resourceList[0]" in str(error)
