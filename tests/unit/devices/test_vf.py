"""From wanted to steps, carried out with read-back, and back: without any kernel."""

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.errors import KernelError
from devices.linux.vfs import (
    NO_MAC,
    QINQ,
    SetLinkState,
    SetMac,
    SetRate,
    SetSpoofchk,
    SetTrust,
    SetVlan,
    Step,
    VFState,
)
from devices.vf import (
    TRIES,
    VFConfig,
    VFError,
    apply,
    as_shown,
    asked,
    difference,
    locate,
    plan_restore,
    plan_vf,
    restore,
    touched_by,
)
from tests.fake_vf_kernel import PF, FakeKernel, refuse_all, vf_bdf

FRESH = VFState(
    mac=NO_MAC, vlan=0, qos=0, proto=0x8100, spoofchk=True, trust=False, link_state="auto", min_tx=0, max_tx=0
)
GROUPS = ("vlan", "mac", "rate", "spoofchk", "trust", "link_state")


@pytest.mark.parametrize(
    ("wanted", "steps"),
    [
        (VFConfig(), ()),
        (VFConfig(vlan=1234), (SetVlan(vlan=1234),)),
        (VFConfig(vlan=5, qos=3, proto=QINQ), (SetVlan(vlan=5, qos=3, proto=QINQ),)),
        (VFConfig(vlan=0), ()),  # which some drivers refuse to set
        (VFConfig(mac="02:00:00:00:00:01"), (SetMac(mac="02:00:00:00:00:01"),)),
        (VFConfig(max_tx=100), (SetRate(min_tx=0, max_tx=100),)),
        (VFConfig(min_tx=10), (SetRate(min_tx=10, max_tx=0),)),
        (VFConfig(min_tx=0, max_tx=0), ()),
        (VFConfig(spoofchk=True, trust=False, link_state="auto"), ()),
        (
            VFConfig(
                link_state="disable", trust=True, spoofchk=False, min_tx=1, max_tx=2, mac="02:00:00:00:00:01", vlan=9
            ),
            (
                SetVlan(vlan=9),
                SetMac(mac="02:00:00:00:00:01"),
                SetRate(min_tx=1, max_tx=2),
                SetSpoofchk(on=False),
                SetTrust(on=True),
                SetLinkState(state="disable"),
            ),
        ),
    ],
)
def test_plan(wanted: VFConfig, steps: tuple[Step, ...]) -> None:
    assert plan_vf(FRESH, wanted) == steps


def test_what_the_driver_does_not_tell_is_set_all_the_same() -> None:
    wanted = VFConfig(vlan=0, spoofchk=True, trust=False, link_state="auto", min_tx=0)
    assert touched_by(plan_vf(VFState(), wanted)) == ("vlan", "rate", "spoofchk", "trust", "link_state")


def test_the_rate_that_is_not_given_stays() -> None:
    limited = msgspec.structs.replace(FRESH, min_tx=50, max_tx=100)
    assert plan_vf(limited, VFConfig(max_tx=200)) == (SetRate(min_tx=50, max_tx=200),)
    with pytest.raises(VFError, match="min_tx_rate 200 is above max_tx_rate 100"):
        plan_vf(limited, VFConfig(min_tx=200))


def _states() -> st.SearchStrategy[VFState]:
    maybe: Any = lambda values: st.none() | st.sampled_from(values)  # noqa: E731
    return st.builds(
        VFState,
        mac=st.sampled_from([NO_MAC, "02:00:00:00:00:01"]),
        vlan=st.sampled_from([0, 5, 4094]),
        qos=st.sampled_from([0, 3]),
        proto=st.sampled_from([0x8100, QINQ]),
        spoofchk=maybe([True, False]),
        trust=maybe([True, False]),
        link_state=maybe(["auto", "enable", "disable"]),
        min_tx=st.sampled_from([0, 10]),
        max_tx=st.sampled_from([0, 100]),
    )


@settings(deadline=None)
@given(before=_states(), wanted=_states())
def test_a_way_there_is_a_way_back(before: VFState, wanted: VFState) -> None:
    kernel = FakeKernel()
    kernel.vfs[0] = before
    place = locate(kernel, vf_bdf(0))
    config = VFConfig(
        mac=wanted.mac,
        vlan=wanted.vlan,
        qos=wanted.qos or 0,
        proto=wanted.proto or 0x8100,
        spoofchk=wanted.spoofchk if before.spoofchk is not None else None,
        trust=wanted.trust if before.trust is not None else None,
        link_state=wanted.link_state if before.link_state is not None else None,
        min_tx=wanted.min_tx,
        max_tx=wanted.max_tx,
    )
    steps = plan_vf(before, config)
    apply(kernel, place, steps)
    assert difference(asked(before, config), kernel.vfs[0]) == []
    restore(kernel, place, before, touched_by(steps))
    after = kernel.vfs[0]
    if not before.vlan:  # without a VLAN, its protocol says nothing
        after = msgspec.structs.replace(after, proto=before.proto)
    assert after == before
    assert plan_restore(before, kernel.vfs[0], GROUPS) == ()


def test_only_what_was_touched_is_put_back_and_the_mac() -> None:
    now = VFState(
        mac="02:00:00:00:00:09",
        vlan=8,
        qos=1,
        proto=0x8100,
        spoofchk=False,
        trust=True,
        link_state="enable",
        min_tx=1,
        max_tx=2,
    )
    assert plan_restore(FRESH, now, ()) == (SetMac(mac=NO_MAC),)
    assert plan_restore(FRESH, now, ("trust",)) == (SetMac(mac=NO_MAC), SetTrust(on=False))
    assert touched_by(plan_restore(FRESH, now, GROUPS)) == GROUPS
    assert plan_restore(VFState(), now, GROUPS) == ()


@pytest.mark.parametrize(
    ("code", "hint"),
    [(95, "cannot do this"), (93, "cannot do this"), (22, "does not take this value"), (1, "root is needed")],
)
def test_a_refusal_says_what_to_do(code: int, hint: str) -> None:
    kernel = FakeKernel()
    kernel.before = refuse_all(KernelError("x", code, "told to fail"), "set_vf")
    with pytest.raises(VFError, match=r"ens1f0 does not set trust on for VF 1 .*: told to fail") as caught:
        apply(kernel, locate(kernel, vf_bdf(1)), [SetTrust(on=True)])
    assert hint in caught.value.hint
    assert kernel.pauses == 0


def test_a_driver_that_stays_busy_is_given_up() -> None:
    kernel = FakeKernel()
    kernel.before = refuse_all(KernelError("x", 16, "busy"), "set_vf")
    with pytest.raises(VFError, match="busy") as caught:
        apply(kernel, locate(kernel, vf_bdf(0)), [SetTrust(on=True)])
    assert caught.value.retry
    assert len(kernel.calls) == TRIES


def test_everything_is_put_back_that_can_be() -> None:
    kernel = FakeKernel()
    place = locate(kernel, vf_bdf(0))
    before = kernel.vfs[0]
    steps = plan_vf(before, VFConfig(vlan=5, trust=True, spoofchk=False))
    apply(kernel, place, steps)

    def no_vlan(number: int, call: tuple[Any, ...]) -> None:
        if call[0] == "set_vf" and isinstance(call[2], SetVlan):
            raise KernelError("x", 5, "no")

    kernel.before = no_vlan
    with pytest.raises(VFError, match="does not set vlan 0"):
        restore(kernel, place, before, touched_by(steps))
    assert kernel.vfs[0] == msgspec.structs.replace(before, vlan=5)


def test_rates_may_be_rounded_when_they_are_set_but_stay_what_they_became() -> None:
    kernel = FakeKernel()
    place = locate(kernel, vf_bdf(0))
    wanted = SetRate(min_tx=0, max_tx=120)
    kernel._set = lambda vf, step: kernel.vfs.update({vf: msgspec.structs.replace(FRESH, max_tx=100)})  # type: ignore[method-assign]
    made = apply(kernel, place, [wanted])
    assert made is not None
    assert as_shown(wanted, made) == SetRate(min_tx=0, max_tx=100)
    assert difference([as_shown(wanted, made)], made) == []
    for now in (
        FRESH,
        msgspec.structs.replace(FRESH, max_tx=101),
        msgspec.structs.replace(FRESH, min_tx=1, max_tx=100),
    ):
        assert difference([as_shown(wanted, made)], now) == [
            f"it has min_tx_rate {now.min_tx} max_tx_rate {now.max_tx} instead of min_tx_rate 0 max_tx_rate 100"
        ]
    kernel._set = lambda vf, step: None  # type: ignore[method-assign]
    kernel.vfs[0] = FRESH
    with pytest.raises(VFError, match="but has min_tx_rate 0 max_tx_rate 0"):
        apply(kernel, place, [wanted])


def test_what_a_driver_does_not_tell_is_no_difference() -> None:
    everything = VFConfig(
        mac="02:00:00:00:00:01", vlan=9, spoofchk=False, trust=True, link_state="disable", min_tx=1, max_tx=2
    )
    assert difference(asked(FRESH, everything), VFState()) == []


def test_where_a_vf_is() -> None:
    kernel = FakeKernel()
    place = locate(kernel, vf_bdf(1))
    assert (place.pf, place.pf_netdev, place.pf_ifindex, place.index) == (PF, "ens1f0", 2, 1)
    assert (place.netdev, place.userspace) == ("ens1f0v1", False)
    kernel.userspace(1)
    place = locate(kernel, vf_bdf(1))
    assert (place.netdev, place.userspace) == ("", True)
    with pytest.raises(VFError, match="is no VF"):
        locate(kernel, PF)
    with pytest.raises(VFError, match="there is no network device") as caught:
        locate(kernel, "0000:99:00.0")
    assert caught.value.gone


def test_a_driver_that_cannot_take_a_mac_away_gets_the_vfs_own() -> None:
    kernel = FakeKernel()
    place = locate(kernel, vf_bdf(0))
    before = kernel.vfs[0]
    apply(kernel, place, [SetMac(mac="02:00:00:00:00:99")])

    def no_zeros(number: int, call: tuple[Any, ...]) -> None:
        if call[0] == "set_vf" and call[2] == SetMac(mac=NO_MAC):
            raise KernelError("x", 22, "Invalid argument")

    kernel.before = no_zeros
    with pytest.raises(VFError, match="Invalid argument"):
        restore(kernel, place, before, ("mac",))
    restore(kernel, place, before, ("mac",), own_mac="02:00:00:00:00:10")
    assert kernel.vfs[0].mac == "02:00:00:00:00:10"
