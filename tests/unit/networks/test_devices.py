"""Which network gets which of a pod's devices."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multus.networks.devices import DeviceShare
from multus.networks.errors import NetworkError

VF = "intel.com/sriov"
A, B, C, D = (f"0000:03:02.{number}" for number in range(4))


def taken(share: DeviceShare, number: int, resource: str = VF) -> list[str]:
    return [share.take(resource, network=f"test/net{index}") for index in range(number)]


@pytest.mark.parametrize(
    ("containers", "order"),
    [
        ([("app", [D, A])], [A, D]),  # sorted within a container
        ([("first", [D, C]), ("second", [B, A])], [C, D, A, B]),  # containers as the pod lists them
        ([("empty", []), ("second", [B, A])], [A, B]),
        ([("init", [B]), ("app", [B, A])], [B, A]),  # the kubelet reuses an init container's devices
        ([("app", [A, A])], [A]),
    ],
)
def test_order(containers: list[tuple[str, list[str]]], order: list[str]) -> None:
    share = DeviceShare({VF: containers})
    assert taken(share, len(order)) == order
    with pytest.raises(NetworkError):
        share.take(VF, network="test/one-more")


def test_each_resource_is_counted_for_itself() -> None:
    share = DeviceShare({VF: [("app", [A])], "example.com/nic": [("app", [A, "eth7"])]})
    assert taken(share, 1) == [A]
    assert taken(share, 2, "example.com/nic") == [A, "eth7"]


def test_a_container_or_a_device_can_be_asked_for() -> None:
    share = DeviceShare({VF: [("first", [A, B]), ("second", [C, D])]})
    assert share.take(VF, network="n", container="second") == C
    assert share.take(VF, network="n", device_id=B) == B
    assert share.take(VF, network="n", container="second", device_id=D) == D
    assert share.take(VF, network="n") == A


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({}, ["needs a device of resource 'intel.com/sriov'", "was given 2", "other networks have what fits"]),
        ({"device_id": A}, [f"needs device '{A}'", "was given 2", "other networks have what fits"]),
        ({"device_id": D}, [f"needs device '{D}'", "was given 2", "none of them fits"]),
        ({"container": "other"}, ["of container 'other'", "was given 2", "none of them fits"]),
        ({"container": "app"}, ["of container 'app'", "was given 2", "other networks have what fits"]),
        ({"container": "app", "device_id": D}, ["none of them fits"]),
    ],
)
def test_none_left(asked: dict[str, str], words: list[str]) -> None:
    share = DeviceShare({VF: [("app", [A]), ("side", [B])]})
    taken(share, 2)
    with pytest.raises(NetworkError) as caught:
        share.take(VF, network="test/net2", **asked)
    assert all(word in str(caught.value) for word in ["network 'test/net2'", *words])


def test_a_resource_that_the_pod_did_not_ask_for() -> None:
    """Upstream attaches without a device, and the plugin fails later with another story."""
    with pytest.raises(NetworkError, match="the pod was given 0 of that resource, and it asked for none"):
        DeviceShare({}).take(VF, network="test/net1")


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.lists(st.sampled_from([A, B, C, D]), max_size=4)), max_size=4))
def test_nothing_is_given_twice(containers: list[tuple[str, list[str]]]) -> None:
    share = DeviceShare({VF: containers})
    everything = {device for _, ids in containers for device in ids}
    given_out = taken(share, len(everything))
    assert sorted(given_out) == sorted(everything)
    with pytest.raises(NetworkError):
        share.take(VF, network="n")
