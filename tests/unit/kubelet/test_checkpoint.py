"""The kubelet's checkpoint, of several Kubernetes versions."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.kubelet import checkpoint
from devices.kubelet.allocation import ContainerDevices, Devices
from devices.kubelet.checkpoint import decode_checkpoint, read_checkpoint
from devices.kubelet.errors import KubeletError

UID = "970a395d-bb3b-11e8-89df-408d5c537d23"
VF = "intel.com/sriov"


def entry(container: str, ids: Any, resource: str = VF, uid: str = UID) -> dict[str, Any]:
    return {
        "PodUID": uid,
        "ContainerName": container,
        "ResourceName": resource,
        "DeviceIDs": ids,
        "AllocResp": "CiUKC1NSSU9WX1ZG",
    }


def written(*entries: dict[str, Any]) -> bytes:
    data = {"PodDeviceEntries": list(entries), "RegisteredDevices": {VF: ["0000:03:02.3", "0000:03:02.0"]}}
    return json.dumps({"Data": data, "Checksum": 229855270}).encode()


def held(container: str, *ids: str, resource: str = VF) -> ContainerDevices:
    return ContainerDevices(container=container, devices=(Devices(resource=resource, ids=ids),))


@pytest.mark.parametrize(
    "ids",
    [
        ["0000:03:02.3", "0000:03:02.0"],  # before Kubernetes 1.20
        {"0": ["0000:03:02.3", "0000:03:02.0"]},
        {"1": ["0000:03:02.3"], "0": ["0000:03:02.0"]},
        {"0": ["0000:03:02.0", "0000:03:02.3"], "1": None},
        {"-1": ["0000:03:02.3", "0000:03:02.0", "0000:03:02.3"]},
    ],
)
def test_both_shapes_of_device_ids(ids: Any) -> None:
    assert decode_checkpoint(written(entry("c", ids)), UID, where="here") == (
        held("c", "0000:03:02.0", "0000:03:02.3"),
    )


def test_only_this_pod_and_containers_by_name() -> None:
    data = written(
        entry("b", {"0": ["1"]}),
        entry("a", {"0": ["9"]}, uid="other"),
        entry("a", {"0": ["2"]}),
        entry("b", {"0": ["g"]}, resource="gpu"),
        entry("b", ["0"]),
    )
    assert decode_checkpoint(data, UID, where="here") == (
        held("a", "2"),
        ContainerDevices(
            container="b", devices=(Devices(resource=VF, ids=("0", "1")), Devices(resource="gpu", ids=("g",)))
        ),
    )


@pytest.mark.parametrize(
    "data",
    [
        written(),
        written(entry("c", ["1"], uid="other")),
        b'{"Data":{"PodDeviceEntries":null,"RegisteredDevices":{}},"Checksum":1}',
        b'{"Data":{}}',
    ],
)
def test_nothing_given(data: bytes) -> None:
    assert decode_checkpoint(data, UID, where="here") == ()


def test_no_ids() -> None:
    assert decode_checkpoint(written(entry("c", None)), UID, where="here") == (held("c"),)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"{}",
        b'{"Data":null}',
        b'{"Data":{"PodDeviceEntries":{}}}',
        b'{"Data":{"PodDeviceEntries":[null]}}',
        b'{"Data":{"PodDeviceEntries":[{"PodUID":"x"}]}}',
        written(entry("c", "0000:03:02.0")),
        written(entry("c", {"0": [1]})),
        written(entry("c", ["1"]))[:-40],
        b'{"Data":{"PodDeviceEntries":' + b"[" * 100_000,
        b'{"Data":\xff}',
    ],
)
def test_no_checkpoint(data: bytes) -> None:
    with pytest.raises(KubeletError, match="here is no device checkpoint"):
        decode_checkpoint(data, UID, where="here")


@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_only_its_own_error(data: bytes) -> None:
    try:
        decode_checkpoint(data, UID, where="here")
    except KubeletError:
        return
    assert json.loads(data)["Data"] is not None


def test_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    path.write_bytes(written(entry("c", {"0": ["1"]})))
    assert read_checkpoint(path, UID) == (held("c", "1"),)


def test_without_a_uid(tmp_path: Path) -> None:
    with pytest.raises(KubeletError, match="without its UID"):
        read_checkpoint(tmp_path / "checkpoint", "")


def test_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KubeletError, match=r"error reading file .*No such file or directory"):
        read_checkpoint(tmp_path / "absent", UID)
    with pytest.raises(KubeletError, match=r"error reading file .*Is a directory"):
        read_checkpoint(tmp_path, UID)
    path = tmp_path / "checkpoint"
    path.write_bytes(written())
    monkeypatch.setattr(checkpoint, "MAX_SIZE", 10)
    with pytest.raises(KubeletError, match="is larger than 10 bytes"):
        read_checkpoint(path, UID)
