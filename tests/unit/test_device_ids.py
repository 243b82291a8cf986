"""Which devices an attachment is about, by whatever is left of its record."""

import pytest

from multus.byhand import attached
from multus.device_ids import device_ids
from multus.sandbox import Attachment, Sandbox, State

A, B = "0000:03:02.0", "0000:03:02.1"


@pytest.mark.parametrize(
    ("device", "conf", "result", "partial", "expected"),
    [
        (A, b"{}", None, None, {A}),
        ("", b"{}", None, None, set()),
        ("", b'{"type": "sriov", "deviceID": "0000:03:02.0"}', None, None, {A}),
        ("", b'{"type":"host-device","pciBusID":"03:02.0"}', None, None, {A}),
        ("", b"{}", b'{"interfaces":[{"name":"net1","pciID":"0000:03:02.1"}]}', None, {B}),
        ("", b"{}", None, b'{"interfaces":[{"name":"net1","pciID":"0000:03:02.1"}]}', {B}),
        ("", b"", b'\xff{"interfaces":[{"pciID":"0000:03:02.1", "mac', None, {B}),  # cut off, and not UTF-8
        (A, b'{"deviceID":"0000:03:02.0"}', b'{"pciID":"0000:03:02.0"}', None, {A}),
        ("", b'{"deviceID":"0000:03:02.9","mac":"0000:03:02.1","deviceIDs":["0000:03:02.0"]}', None, None, set()),
        ("mdev-1", b"{}", None, None, {"mdev-1"}),  # another plugin's devices have other names
    ],
)
def test_device_ids(device: str, conf: bytes, result: bytes | None, partial: bytes | None, expected: set[str]) -> None:
    item = Attachment(
        position=1, network="n", ifname="net1", conf=conf, device_id=device, result=result, partial=partial
    )
    assert device_ids(item) == expected
    sandbox = Sandbox(
        container_id="c",
        ifname="eth0",
        state=State.ATTACHED,
        netns="",
        netns_id="",
        boot_id="",
        pod_namespace="ns",
        pod_name="pod",
        pod_uid="u",
        attachments=(item,),
    )
    assert attached([sandbox]) == dict.fromkeys(expected, "pod ns/pod (net1)")
