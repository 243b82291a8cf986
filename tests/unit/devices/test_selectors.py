"""Selectors of config.json: upstream's rules, and ours where upstream is wrong."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.config import ConfigError
from devices.selectors import Candidate, DeviceType, Ranged, Selector, parse_ranged, parse_selectors


def one(kind: DeviceType = DeviceType.NET, /, **keys: Any) -> Selector:
    (selector,) = parse_selectors(keys, kind, "selectors", [])
    return selector


def vf(pf_name: str, index: int) -> Candidate:
    return Candidate(bdf="0000:03:02.0", pf="0000:86:00.2", pf_name=pf_name, index=index)


@pytest.mark.parametrize(
    ("pf_names", "pf_name", "selected"),
    [
        (["ens0", "ens2f0#1", "ens2f1#0,3-5,7"], "ens0", {0, 1, 2, 3, 4, 5, 6, 7}),  # 1
        (["ens0", "ens2f0#1", "ens2f1#0,3-5,7"], "eth0", set()),  # 2
        (["ens0", "ens2f0#1", "ens2f1#0,3-5,7"], "ens2f0", {1}),  # 3, 4
        (["ens0", "ens2f0#1", "ens2f1#0,3-5,7"], "ens2f1", {0, 3, 4, 5, 7}),  # 5, 6
        (["ENS2F1#0"], "ens2f1", {0}),  # 7
        (["a#0-1", "a#4-5"], "a", {0, 1, 4, 5}),  # 8: upstream never looks at the second one
        (["a#1", "a"], "a", {0, 1, 2, 3, 4, 5, 6, 7}),
        ([], "a", {0, 1, 2, 3, 4, 5, 6, 7}),
    ],
)
def test_ranges_of_a_pf_by_name(pf_names: list[str], pf_name: str, selected: set[int]) -> None:
    selector = one(pfNames=pf_names)
    assert {index for index in range(8) if selector.matches(vf(pf_name, index))} == selected


def test_ranges_of_a_pf_by_address() -> None:  # 15
    selector = one(rootDevices=["0000:86:00.2#0-2,5,7"])
    assert {index for index in range(8) if selector.matches(vf("any", index))} == {0, 1, 2, 5, 7}


def test_a_pf_is_never_selected_by_a_pf_name() -> None:  # 20
    assert not one(pfNames=["ens0"]).matches(Candidate(bdf="0000:03:00.0"))


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("a#1#2", "a#1,2"),  # 9: upstream selects nothing, and says so in its log only
        ("a#1-2-3", ""),  # 10
        ("a#x", ""),  # 11
        ("a#0,x", "a#0"),  # 12: upstream selects VF 0
        ("a#0, 3", "a#0,3"),  # 13: upstream selects VF 0
        ("a#5-3", "a#3-5"),  # 14: upstream selects nothing, without a word
        ("a#", ""),
        ("a#,1", "a#1"),
        ("a#99999", ""),
        ("a#٣", ""),
        ("#1", ""),
        (" a#1", "a#1"),
        ("", ""),
    ],
)
def test_a_range_that_cannot_be_read_is_refused_with_what_was_meant(text: str, near: str) -> None:
    with pytest.raises(ConfigError) as caught:
        one(pfNames=[text])
    assert "pfNames[0]" in caught.value.message
    assert (f'did you mean "{near}"?' in caught.value.hint) == bool(near)
    if near:
        assert str(parse_ranged(near, "")) == near


@pytest.mark.parametrize(
    ("keys", "device", "matches"),
    [
        ({"vendors": ["8086"]}, {"vendor": "8086"}, True),  # 16
        ({"vendors": ["8087"]}, {"vendor": "8086"}, False),
        ({"vendors": ["0x8086"]}, {"vendor": "8086"}, False),
        ({"devices": ["154c", "1889"]}, {"device": "1889"}, True),  # 17
        ({"devices": ["154c", "1889"]}, {"device": "154c"}, True),
        ({"devices": ["154c", "1889"]}, {"device": "1592"}, False),
        ({"devices": ["154C"]}, {"device": "154c"}, False),
        ({"drivers": ["vfio-pci"]}, {"driver": "iavf"}, False),  # 18
        ({"linkTypes": ["ether", "infiniband"]}, {"link_type": "ether"}, True),  # 19
        ({"linkTypes": ["ether", "infiniband"]}, {"link_type": "infiniband"}, True),
        ({"linkTypes": ["infiniband"]}, {"link_type": "ether"}, False),
        ({"acpiIndexes": ["101"]}, {"acpi_index": "101"}, True),  # 21
        ({"acpiIndexes": ["101"]}, {"acpi_index": "1010"}, False),
        ({"pciAddresses": ["0000:03:02.0"]}, {}, True),
        ({"pciAddresses": ["0000:03:02.1"]}, {}, False),
        ({"isRdma": True}, {"rdma": True}, True),
        ({"isRdma": True}, {}, False),
        ({"isRdma": False}, {"rdma": True}, True),
        ({"vdpaType": "vhost"}, {"vdpa_type": "vhost"}, True),
        ({"vdpaType": "vhost"}, {}, False),
        ({"needVhostNet": True}, {}, True),
        ({"vendors": ["8086"], "drivers": ["iavf"]}, {"vendor": "8086", "driver": "iavf"}, True),
        ({"vendors": ["8086"], "drivers": ["iavf"]}, {"vendor": "8086", "driver": "igbvf"}, False),
        ({"VENDORS": ["8087"]}, {"vendor": "8086"}, False),  # keys match in any case, as in Go
        ({"vendors": None}, {"vendor": "8086"}, True),
    ],
)
def test_what_a_selector_matches(keys: dict[str, Any], device: dict[str, Any], matches: bool) -> None:
    assert one(**keys).matches(Candidate(bdf="0000:03:02.0", **device)) is matches


def test_acpi_index_counts_for_accelerators() -> None:
    """Documented upstream, and not implemented there: it would select every accelerator."""
    selector = one(DeviceType.ACCELERATOR, acpiIndexes=["101"])
    assert not selector.matches(Candidate(bdf="0000:03:02.0", acpi_index="102"))


def test_rdma_and_vdpa_exclude_one_another_in_one_object_only() -> None:  # 22
    with pytest.raises(ConfigError, match="exclude one another"):
        one(isRdma=True, vdpaType="vhost")
    assert len(parse_selectors([{"isRdma": True}, {"vdpaType": "vhost"}], DeviceType.NET, "s", [])) == 2


@pytest.mark.parametrize(("types", "valid"), [(["sf"], True), (["eth"], False), ([], False), (["sf", "eth"], False)])
def test_auxiliary_types(types: list[str], valid: bool) -> None:  # 23
    if valid:
        assert one(DeviceType.AUXILIARY, auxTypes=types).aux_types == ("sf",)
        return
    with pytest.raises(ConfigError, match="auxTypes"):
        one(DeviceType.AUXILIARY, auxTypes=types)


def test_an_object_is_a_list_of_one() -> None:  # 24
    keys = {"vendors": ["8086"]}
    assert parse_selectors(keys, DeviceType.NET, "s", []) == parse_selectors([keys], DeviceType.NET, "s", [])


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"vendor": ["8086"], "drivers": ["iavf"]}, 'unknown key "vendor", did you mean "vendors"?; ignored'),
        ({"pfName": ["a"], "drivers": ["iavf"]}, 'did you mean "pfNames"?'),
        ({"vendors": ["0x8086"]}, 'did you mean "8086"?'),
        ({"devices": ["154C"]}, 'did you mean "154c"?'),
        ({"devices": ["junk"]}, "matches nothing"),
        ({"pciAddresses": ["03:02.0"]}, 'did you mean "0000:03:02.0"?'),
        ({"linkTypes": ["ethernet"]}, 'did you mean "ether"?'),
        ({"auxTypes": ["sf"], "drivers": ["iavf"]}, "auxTypes is a selector of auxNetDevice"),
        ({}, "selects every device"),
    ],
)
def test_what_upstream_ignores_is_said(keys: dict[str, Any], said: str) -> None:
    warnings: list[str] = []
    parse_selectors(keys, DeviceType.NET, "selectors", warnings)
    (warning,) = warnings
    assert warning.startswith("selectors")
    assert said in warning


@pytest.mark.parametrize(
    ("keys", "hint"),
    [
        ({"vendors": "8086"}, 'write ["8086"]'),
        ({"vendors": [8086]}, 'write it in quotes: "8086"'),
        ({"isRdma": "true"}, ""),
        ({"vdpaType": "vhst"}, ""),
    ],
)
def test_values_of_the_wrong_kind_are_refused(keys: dict[str, Any], hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        one(**keys)
    assert caught.value.hint == hint


@given(st.text(max_size=30) | st.from_regex(r"[a-z]{1,3}#[0-9,\- #x]{0,12}", fullmatch=True))
def test_any_text_is_a_range_or_a_config_error(text: str) -> None:
    try:
        ranged = parse_ranged(text, "x")
    except ConfigError as error:
        assert str(error).isprintable()
        return
    assert parse_ranged(str(ranged), "x") == ranged
    assert ranged == Ranged(name=ranged.name, spans=ranged.spans)
