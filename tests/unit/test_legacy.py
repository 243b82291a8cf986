"""What an earlier Multus left on the node: whole, cut short by a power cut, and hostile."""

import base64
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multus import files, legacy_files
from multus.cni.conf import parse_conf
from multus.cni.request import Command, Request, ValidAttachment
from multus.cni.result import parse_result
from multus.legacy import load_sandbox, load_sandboxes, remove_legacy
from multus.sandbox import Attachment, Sandbox, State

CID = "7c1e1cd3a3c5be24f3a2b1b6b1d2a9f8c0d5e4f3a2b1c0d9e8f7a6b5c4d3e2f1"
BOOT = "boot-now"
ARGS = (
    ("IgnoreUnknown", "true"),
    ("K8S_POD_NAMESPACE", "ns"),
    ("K8S_POD_NAME", "pod"),
    ("K8S_POD_INFRA_CONTAINER_ID", CID),
    ("K8S_POD_UID", "uid"),
)
FLANNEL = {
    "cniVersion": "0.3.1",
    "name": "cbr0",
    "plugins": [{"type": "flannel"}, {"type": "portmap", "capabilities": {"portMappings": True}}],
}
MACVLAN = {"cniVersion": "0.3.0", "name": "macvlan-conf", "type": "macvlan", "master": "eth0"}
SRIOV = {"cniVersion": "0.3.1", "name": "sriov-net", "type": "sriov", "deviceID": "0000:03:02.1"}
RESULT = {
    "cniVersion": "0.3.1",
    "interfaces": [{"name": "net1", "mac": "02:00:00:00:00:01", "sandbox": "/var/run/netns/x"}],
    "ips": [{"version": "4", "interface": 0, "address": "192.168.1.200/24", "gateway": "192.168.1.1"}],
    "dns": {},
}


def delegate(conf: Any, name: str = "", **more: Any) -> dict[str, Any]:
    """One network as Multus wrote it, with the lossy copies of its configuration beside the bytes."""
    is_list = "plugins" in conf
    return {
        "Conf": {} if is_list else {key: conf[key] for key in ("cniVersion", "name", "type") if key in conf},
        "ConfList": {"name": conf.get("name", ""), "plugins": None} if is_list else {},
        "Name": name,
        **more,
        "IsFilterV4Gateway": False,
        "IsFilterV6Gateway": False,
        "Bytes": base64.b64encode(json.dumps(conf).encode()).decode(),
    }


def cached(conf: Any, ifname: str, *, cid: str = CID, **more: Any) -> dict[str, Any]:
    """What libcni kept of one attachment."""
    return {
        "kind": "cniCacheV1",
        "containerId": cid,
        "config": base64.b64encode(json.dumps(conf).encode()).decode(),
        "ifName": ifname,
        "networkName": conf["name"],
        "netns": "/var/run/netns/x",
        "cniArgs": [list(pair) for pair in ARGS],
        "result": RESULT,
        **more,
    }


def keep(directory: Path, conf: Any, ifname: str, *, cid: str = CID, body: Any = None, **more: Any) -> Path:
    results = directory / "results"
    results.mkdir(exist_ok=True)
    path = results / f"{conf['name']}-{cid}-{ifname}"
    written = cached(conf, ifname, cid=cid, **more) if body is None else body
    path.write_text(written if isinstance(written, str) else json.dumps(written))
    return path


def scratch(directory: Path, body: Any, cid: str = CID) -> Path:
    path = directory / cid
    path.write_text(body if isinstance(body, str) else json.dumps(body))
    return path


def whole(directory: Path, cid: str = CID) -> None:
    """A pod with its default network and a macvlan, everything written."""
    scratch(directory, [delegate(FLANNEL, "cbr0"), delegate(MACVLAN, "default/macvlan-conf")], cid)
    keep(directory, FLANNEL, "eth0", cid=cid, capabilityArgs={"portMappings": [{"hostPort": 80, "containerPort": 80}]})
    keep(directory, MACVLAN, "net1", cid=cid)


def load(directory: Path, *, cid: str = CID, **more: Any) -> Sandbox | None:
    fields: dict[str, Any] = {"ifname": "eth0", "args": ARGS, "conf": b'{"cniVersion":"1.0.0"}', **more}
    return load_sandbox(directory, Request(command=Command.DEL, container_id=cid, **fields), BOOT)


def attachments(directory: Path, **more: Any) -> Sequence[Attachment]:
    sandbox = load(directory, **more)
    return sandbox.attachments if sandbox else ()


def ifnames(directory: Path, **more: Any) -> list[str]:
    return [item.ifname for item in attachments(directory, **more)]


def test_everything_is_there(tmp_path: Path) -> None:
    whole(tmp_path)
    sandbox = load(tmp_path)
    assert sandbox is not None
    assert sandbox.key == (CID, "eth0")
    assert (sandbox.state, sandbox.boot_id, sandbox.netns) == (State.DELETING, BOOT, "")
    assert (sandbox.pod_namespace, sandbox.pod_name, sandbox.pod_uid) == ("ns", "pod", "uid")
    first, second = sandbox.attachments
    assert (first.position, first.network, first.ifname, first.default, first.after) == (0, "cbr0", "eth0", True, ())
    assert first.runtime == {"portMappings": [{"hostPort": 80, "containerPort": 80}]}
    assert [plugin.type for plugin in parse_conf(first.conf, where="").plugins] == ["flannel", "portmap"]
    assert (second.position, second.network, second.ifname) == (1, "default/macvlan-conf", "net1")
    assert (second.default, second.after, second.args) == (False, (0,), ARGS)  # so that it is deleted first
    assert json.loads(second.conf) == MACVLAN
    assert second.result is not None
    assert parse_result(second.result, where="").ips[0].address == "192.168.1.200/24"
    assert json.loads(second.result)["cniVersion"] == "1.1.0"


def test_nothing_is_there(tmp_path: Path) -> None:
    assert load(tmp_path) is None
    assert load(tmp_path / "absent") is None
    whole(tmp_path, cid="another")
    assert load(tmp_path) is None


def test_only_the_list(tmp_path: Path) -> None:
    """The attachments failed, or libcni's files are gone: what the list has stands in for them."""
    asked = {
        "ifnameRequest": "fast0",
        "macRequest": "02:00:00:00:00:09",
        "ipRequest": ["10.0.0.9/24"],
        "infinibandGUIDRequest": "24:8a:07:03:00:8d:ae:2e",
        "deviceID": "0000:03:02.1",
        "resourceName": "intel.com/sriov",
    }
    scratch(tmp_path, [delegate(FLANNEL, "cbr0"), delegate(MACVLAN, "ns/m"), delegate(SRIOV, "ns/sriov", **asked)])
    first, second, third = attachments(tmp_path, ifname="eth7")
    assert (first.ifname, second.ifname, third.ifname) == ("eth7", "net1", "fast0")
    assert (first.args, first.runtime, first.result) == (ARGS, {}, None)
    assert third.runtime == {
        "mac": "02:00:00:00:00:09",
        "ips": ["10.0.0.9/24"],
        "infinibandGUID": "24:8a:07:03:00:8d:ae:2e",
        "deviceID": "0000:03:02.1",
    }
    assert (third.device_id, third.resource) == ("0000:03:02.1", "intel.com/sriov")
    assert third.device_info == f"ns-sriov-{CID}_fast0"
    assert (second.device_id, second.resource, second.device_info) == ("", "", "")


@pytest.mark.parametrize(
    "body",
    [
        "",
        "[]",
        "null",
        "{}",
        '""',
        "[",
        json.dumps([delegate(FLANNEL), delegate(MACVLAN)])[:-50],
        "\0" * 4096,  # what a power cut leaves on ext4 and xfs
        "[" * 100_000,
        None,
    ],
)
def test_a_list_that_says_nothing(tmp_path: Path, body: str | None) -> None:
    """What libcni kept says the rest, in the order of the interfaces' names."""
    if body is not None:
        scratch(tmp_path, body)
    assert load(tmp_path) is None
    for number in (10, 2, 1):
        keep(tmp_path, MACVLAN | {"name": f"m{number}"}, f"net{number}")
    keep(tmp_path, MACVLAN | {"name": "other"}, "data0")
    keep(tmp_path, FLANNEL, "eth0")
    found = attachments(tmp_path)
    assert [item.ifname for item in found] == ["eth0", "net1", "net2", "net10", "data0"]
    assert [item.position for item in found] == [0, 1, 2, 3, 4]
    assert [item.after for item in found] == [(), (0,), (1,), (2,), (3,)]
    assert found[1].network == "m1"
    assert found[0].default
    assert all(item.result for item in found)


def test_a_list_in_which_one_network_cannot_be_used(tmp_path: Path) -> None:
    """The others keep their places, and with them their interfaces' names."""
    bad: list[Any] = [
        None,
        {},
        delegate(MACVLAN) | {"Bytes": "%"},
        delegate(MACVLAN) | {"Bytes": None},
        delegate({"type": "macvlan"}),  # no name: libcni never ran it
        delegate(MACVLAN | {"type": "multus"}),
        delegate(MACVLAN | {"type": "../../evil"}),
        delegate(MACVLAN | {"name": "../evil"}),
        delegate(MACVLAN, ifnameRequest="a/b"),
        delegate(MACVLAN, ifnameRequest="x" * 16),
        delegate(MACVLAN, ifnameRequest=7),
    ]
    scratch(tmp_path, [delegate(FLANNEL), *bad, delegate(SRIOV)])
    found = attachments(tmp_path)
    assert [(item.ifname, item.position, item.after) for item in found] == [
        ("eth0", 0, ()),
        (f"net{len(bad) + 1}", len(bad) + 1, (0,)),
    ]


@pytest.mark.parametrize("body", ["", "{", "[]", "null", "\0" * 100, '{"kind":"cniCacheV1"}', '{"cniVersion":"9.9.9"}'])
def test_a_result_that_says_nothing(tmp_path: Path, body: str) -> None:
    whole(tmp_path)
    keep(tmp_path, MACVLAN, "net1", body=body)
    first, second = attachments(tmp_path)
    assert first.result is not None
    assert (second.ifname, second.args, second.runtime, second.result) == ("net1", ARGS, {}, None)
    assert json.loads(second.conf) == MACVLAN


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("config", "%"),
        ("config", 5),
        ("config", base64.b64encode(b"{").decode()),
        ("config", base64.b64encode(b'{"name":"x"}').decode()),
        ("cniArgs", [["A"]]),
        ("cniArgs", [["A", "b;C=d"]]),
        ("cniArgs", {"A": "b"}),
        ("capabilityArgs", []),
        ("result", []),
        ("result", {"cniVersion": "1.0.0", "ips": 7}),
        ("netns", 7),
        ("networkName", None),
        ("ifName", None),
    ],
)
def test_a_result_with_one_bad_value(tmp_path: Path, key: str, value: Any) -> None:
    """Its other values are used."""
    whole(tmp_path)
    good = attachments(tmp_path)[1]
    keep(tmp_path, MACVLAN, "net1", **{key: value})
    changed = attachments(tmp_path)[1]
    assert (changed.ifname, changed.conf, changed.args) == (good.ifname, good.conf, good.args)
    assert (changed.result is None) == (key == "result")


def test_capability_arguments_that_nothing_can_write(tmp_path: Path) -> None:
    text = json.dumps(cached(MACVLAN, "net1", capabilityArgs="HERE")).replace('"HERE"', '{"n": %s}' % ("9" * 40))
    keep(tmp_path, MACVLAN, "net1", body=text)
    (item,) = attachments(tmp_path)
    json.dumps(item.runtime)
    assert item.result is not None


def test_what_ran_is_what_is_undone(tmp_path: Path) -> None:
    """libcni's record is of the configuration that ran; the list was written before it."""
    scratch(tmp_path, [delegate(FLANNEL), delegate(MACVLAN, "ns/m")])
    keep(tmp_path, MACVLAN | {"master": "eth9"}, "net1", cniArgs=[["A", "b"]], capabilityArgs={"mac": "x"})
    second = attachments(tmp_path)[1]
    assert json.loads(second.conf)["master"] == "eth9"
    assert (second.network, second.args, second.runtime) == ("ns/m", (("A", "b"),), {"mac": "x"})


def test_a_network_that_was_plugged_later(tmp_path: Path) -> None:
    """The list never had it, and so its address leaked when the pod went."""
    whole(tmp_path)
    keep(tmp_path, SRIOV, "hot0")
    found = attachments(tmp_path)
    assert [(item.ifname, item.position, item.after) for item in found] == [
        ("eth0", 0, ()),
        ("net1", 1, (0,)),
        ("hot0", 2, (1,)),
    ]


def test_a_result_of_an_old_libcni(tmp_path: Path) -> None:
    """Before 0.8 the result alone was kept: of no use by itself."""
    keep(tmp_path, MACVLAN, "net1", body={"cniVersion": "0.2.0", "ip4": {"ip": "10.0.0.2/24"}})
    assert load(tmp_path) is None
    scratch(tmp_path, [delegate(FLANNEL), delegate(MACVLAN)])
    second = attachments(tmp_path)[1]
    assert second.result is not None
    assert parse_result(second.result, where="").ips[0].address == "10.0.0.2/24"
    assert json.loads(second.conf) == MACVLAN


def test_device_information(tmp_path: Path) -> None:
    path = f"/var/run/k8s.cni.cncf.io/devinfo/cni/ns-sriov-{CID}_net1"
    keep(tmp_path, SRIOV, "net1", capabilityArgs={"CNIDeviceInfoFile": path})
    assert attachments(tmp_path)[0].device_info == f"ns-sriov-{CID}_net1"
    for hostile in ("/etc/passwd", "..", "", 7, f"/x/ns-sriov-{CID}_net2"):
        keep(tmp_path, SRIOV, "net1", capabilityArgs={"CNIDeviceInfoFile": hostile})
        assert attachments(tmp_path)[0].device_info == ""


@pytest.mark.parametrize(("conf", "version"), [(b'{"cniVersion":"1.0.0"}', "1.0.0"), (b"{}", ""), (b"{", "")])
def test_a_list_without_a_version_is_in_ours(tmp_path: Path, conf: bytes, version: str) -> None:
    without = {key: value for key, value in FLANNEL.items() if key != "cniVersion"}
    scratch(tmp_path, [delegate(without)])
    (item,) = attachments(tmp_path, conf=conf)
    assert parse_conf(item.conf, where="").cni_version == version


@pytest.mark.parametrize("version", ["9.9.9", "x", 7, None])
def test_our_own_version_cannot_be_used(tmp_path: Path, version: Any) -> None:
    without = {key: value for key, value in FLANNEL.items() if key != "cniVersion"}
    scratch(tmp_path, [delegate(without)])
    (item,) = attachments(tmp_path, conf=json.dumps({"cniVersion": version}).encode())
    assert parse_conf(item.conf, where="").cni_version == ""


def test_the_namespace_of_the_call(tmp_path: Path) -> None:
    whole(tmp_path)
    sandbox = load(tmp_path, netns="/proc/self/ns/net")
    assert sandbox is not None
    assert sandbox.netns == "/proc/self/ns/net"
    assert sandbox.netns_id
    for gone in ("/var/run/netns/gone", "/etc/passwd", ""):
        sandbox = load(tmp_path, netns=gone)
        assert sandbox is not None
        assert (sandbox.netns, sandbox.netns_id) == ("", "")


def test_a_call_that_does_not_name_the_pod(tmp_path: Path) -> None:
    whole(tmp_path)
    for args in ((), (("K8S_POD_NAMESPACE", "../x"), ("K8S_POD_NAME", "y"))):
        sandbox = load(tmp_path, args=args)
        assert sandbox is not None
        assert (sandbox.pod_namespace, sandbox.pod_name, sandbox.pod_uid) == ("ns", "pod", "uid")


# names


@pytest.mark.parametrize("cid", ["a-b", "a", "b", "net-a"])
def test_ids_networks_and_interfaces_with_hyphens(tmp_path: Path, cid: str) -> None:
    """`net-a-b-c-d` may be taken apart in many ways: what the file says counts."""
    for other in ("a-b", "a", "b", "net-a"):
        keep(tmp_path, MACVLAN | {"name": "x-net"}, "net-1", cid=other)
    found = load(tmp_path, cid=cid)
    assert found is not None
    assert [(item.ifname, item.network) for item in found.attachments] == [("net-1", "x-net")]
    remove_legacy(tmp_path, cid)
    assert load(tmp_path, cid=cid) is None
    assert len(list((tmp_path / "results").iterdir())) == 3


def test_stale_files_are_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes with hundreds of thousands of them are known: a name is all that is looked at."""
    whole(tmp_path)
    results = tmp_path / "results"
    for number in range(10_000):
        os.mknod(results / f"cbr0-{number:064x}-eth0")
    opened: list[str] = []
    original = files.read_small

    def reading(path: Path, *, limit: int) -> bytes:
        opened.append(path.name)
        return original(path, limit=limit)

    monkeypatch.setattr(legacy_files, "read_small", reading)
    assert ifnames(tmp_path) == ["eth0", "net1"]
    assert [each.container_id for each in load_sandboxes(tmp_path, valid(CID, "x", "y"), BOOT)] == [CID]
    remove_legacy(tmp_path, CID)
    assert {CID in name for name in opened if name not in ("x", "y")} == {True}
    assert len(list(results.iterdir())) == 10_000


@pytest.mark.parametrize("cid", ["journal.db", "journal.db-wal", "multusd.lock", "spool", "results", "..", "a/b", ""])
def test_our_own_files_are_nobody_s(tmp_path: Path, cid: str) -> None:
    for name in ("journal.db", "journal.db-wal", "multusd.lock"):
        scratch(tmp_path, [delegate(FLANNEL)], name)
    for name in ("spool", "results", "a"):
        (tmp_path / name).mkdir()
    scratch(tmp_path, [delegate(FLANNEL)], "a/b")
    before = sorted(tmp_path.rglob("*"))
    assert load(tmp_path, cid=cid) is None or cid == "a/b"
    remove_legacy(tmp_path, cid)
    assert load_sandboxes(tmp_path, valid(cid), BOOT) == []
    assert sorted(tmp_path.rglob("*")) == before


def test_what_is_no_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / CID).mkdir()
    (tmp_path / "results").write_text("")
    assert load(tmp_path) is None
    remove_legacy(tmp_path, CID)
    assert "cannot be listed" in caplog.text
    assert f"of container {CID} stays" in caplog.text
    (tmp_path / CID).rmdir()
    os.mkfifo(tmp_path / CID)
    assert load(tmp_path) is None


# removing


def test_remove(tmp_path: Path) -> None:
    whole(tmp_path)
    whole(tmp_path, "other")
    keep(tmp_path, MACVLAN, "net2", body="")  # cut short
    remove_legacy(tmp_path, CID)
    remove_legacy(tmp_path, CID)
    assert load(tmp_path) is None
    assert not (tmp_path / CID).exists()
    assert not [path for path in (tmp_path / "results").iterdir() if CID in path.name]
    assert ifnames(tmp_path, cid="other") == ["eth0", "net1"]


def test_remove_where_nothing_is(tmp_path: Path) -> None:
    remove_legacy(tmp_path, CID)
    remove_legacy(tmp_path / "absent", CID)
    assert list(tmp_path.iterdir()) == []


# garbage collection


def valid(*container_ids: str, ifname: str = "eth0") -> list[ValidAttachment]:
    return [ValidAttachment(container_id=each, ifname=ifname) for each in container_ids]


def test_sandboxes_that_still_run(tmp_path: Path) -> None:
    for cid in ("one", "two", "gone"):
        whole(tmp_path, cid)
    found = load_sandboxes(tmp_path, valid("two", "one", "unknown", "two"), BOOT)
    assert [sandbox.key for sandbox in found] == [("two", "eth0"), ("one", "eth0")]
    first = found[0]
    assert (first.state, first.boot_id, first.netns) == (State.ATTACHED, BOOT, "/var/run/netns/x")
    assert (first.pod_namespace, first.pod_name, first.pod_uid) == ("ns", "pod", "uid")
    assert [(item.ifname, item.args) for item in first.attachments] == [("eth0", ARGS), ("net1", ARGS)]


def test_sandboxes_without_anything_of_libcni(tmp_path: Path) -> None:
    scratch(tmp_path, [delegate(FLANNEL), delegate(MACVLAN)])
    (sandbox,) = load_sandboxes(tmp_path, valid(CID), BOOT)
    assert [item.ifname for item in sandbox.attachments] == ["eth0", "net1"]
    assert (sandbox.pod_name, sandbox.netns) == ("", "")


def test_a_container_that_is_not_wholly_known_is_left_out(tmp_path: Path) -> None:
    """Its missing network's address would be freed while the pod uses it."""
    whole(tmp_path)
    path = tmp_path / CID
    good = path.read_text()

    def known() -> bool:
        return bool(load_sandboxes(tmp_path, valid(CID), BOOT))

    assert known()
    for cut in ("", "[]", "null", good[:-9]):
        path.write_text(cut)
        assert not known()
    path.write_text(json.dumps([*json.loads(good), {"Name": "ns/x", "Bytes": None}]))
    assert not known()
    path.unlink()
    assert not known()
    path.write_text(good)
    keep(tmp_path, MACVLAN, "net1", body="")  # the list has that network
    assert known()
    plugged = keep(tmp_path, SRIOV, "hot0")
    assert known()
    plugged.write_text("")
    assert not known()
    plugged.write_text(json.dumps(RESULT))
    assert not known()
    plugged.write_text(json.dumps(cached(SRIOV, "hot0", cid="x")))  # another's, for all that its name says
    assert known()


def test_hostile_attachments_of_the_runtime(tmp_path: Path) -> None:
    whole(tmp_path)
    (tmp_path / "secret").write_text(json.dumps([delegate(FLANNEL)]))
    hostile = [
        *valid("../secret", "results/../secret", "", ".", "\0"),
        *valid(CID, ifname="a/b"),
        *valid(CID, ifname=""),
    ]
    assert load_sandboxes(tmp_path / "results", hostile, BOOT) == []
    assert [sandbox.key for sandbox in load_sandboxes(tmp_path, [*hostile, *valid(CID)], BOOT)] == [(CID, "eth0")]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
        max_leaves=8,
    ),
    st.sampled_from(["Bytes", "Name", "ifnameRequest", "ipRequest", "deviceID", "resourceName"]),
    st.sampled_from(["config", "cniArgs", "capabilityArgs", "result", "ifName", "networkName", "netns", "kind"]),
    st.integers(min_value=0, max_value=400),
)
def test_nothing_is_raised_whatever_the_files_say(
    tmp_path_factory: pytest.TempPathFactory, value: Any, key: str, other: str, cut: int
) -> None:
    directory = tmp_path_factory.getbasetemp() / "fuzzed-legacy"
    directory.mkdir(exist_ok=True)
    for body in (
        json.dumps([delegate(FLANNEL) | {key: value}]),
        json.dumps([delegate(FLANNEL)])[:cut],
        json.dumps(value),
    ):
        scratch(directory, body)
        keep(directory, FLANNEL, "eth0", **{other: value})
        keep(directory, MACVLAN, "net1", body=json.dumps(value))
        keep(directory, SRIOV, "net2", body=json.dumps(cached(SRIOV, "net2"))[:cut])
        load(directory)
        load_sandboxes(directory, valid(CID, "x"), BOOT)
    remove_legacy(directory, CID)
    assert not (directory / CID).exists()
