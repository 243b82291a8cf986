"""What is done in this process: which configurations are understood, and what an address pool gives next.

The results and the kernel's state are held against the reference plugins in the kernel lane.
"""

import fcntl
import ipaddress
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.errors import DeviceError, KernelError, NamespaceError
from multus.cni.args import Pairs
from multus.cni.errors import CNIError, Code
from multus.cni.request import Command
from multus.cni.result import DNS, IP, Result, Route
from multus.delegates.chain import Prompt
from multus.delegates.native import reading, store
from multus.delegates.native.bridge import read_bridge, with_gateways
from multus.delegates.native.ipvlan import read_ipvlan
from multus.delegates.native.macvlan import read_macvlan
from multus.delegates.native.pool import Pool, candidates, read_pool, spell
from multus.delegates.native.printing import printed
from multus.delegates.native.reading import Unsupported
from multus.delegates.native.registry import NATIVE, chosen, native_delegates
from multus.delegates.native.removal import Removals
from multus.delegates.native.static import addresses
from multus.delegates.native.store import locked
from multus.delegates.native.vlan import read_vlan
from multus.delegates.plugin import Call
from multus.delegates.visit import Visit

HEAD: dict[str, Any] = {"cniVersion": "1.0.0", "name": "net"}
RANGE = {"subnet": "10.1.0.0/24"}


def call(body: dict[str, Any], args: Pairs = (), command: Command = Command.ADD) -> Call:
    conf = json.dumps({**HEAD, **body}).encode()
    return Call(command=command, conf=conf, container_id="c", netns="/run/netns/none", ifname="net1", args=args)


def host_local_conf(**ipam: Any) -> dict[str, Any]:
    return {"ipam": {"type": "host-local", **ipam}}


def pool(**ipam: Any) -> Pool:
    return read_pool(call(host_local_conf(**ipam)))


MACVLAN = {"type": "macvlan", "master": "eth0"}
IPVLAN = {"type": "ipvlan", "master": "eth0", "ipam": {"type": "static"}}
VLAN = {"type": "vlan", "master": "eth0", "vlanId": 5, "ipam": {"type": "static"}}
BRIDGE = {"type": "bridge"}
IGNORE = (("IgnoreUnknown", "1"),)

# A configuration that the plugin's program gets: what reads it, what is in it, and CNI_ARGS.
FOREIGN: list[tuple[Any, dict[str, Any], Pairs]] = [
    (read_macvlan, {**MACVLAN, "linkInContainer": True}, ()),
    (read_macvlan, {**MACVLAN, "Mode": "vepa"}, ()),
    (read_ipvlan, {**IPVLAN, "mode": "l4"}, ()),
    (read_ipvlan, {**IPVLAN, "master": ""}, ()),
    (read_ipvlan, {**IPVLAN, "ipam": {}}, ()),
    (read_ipvlan, {**IPVLAN, "linkInContainer": True}, ()),
    (read_ipvlan, {**IPVLAN, "mtu": -1}, ()),
    (read_ipvlan, IPVLAN, (("MAC", "02:00:00:00:00:01"),)),
    (read_vlan, {**VLAN, "vlanId": 4095}, ()),
    (read_vlan, {**VLAN, "vlanId": "5"}, ()),
    (read_vlan, {**VLAN, "master": ""}, ()),
    (read_vlan, {**VLAN, "ipam": {}}, ()),
    (read_vlan, {**VLAN, "linkInContainer": True}, ()),
    (read_vlan, {**VLAN, "cniVersion": "0.2.0"}, ()),
    (read_macvlan, {**MACVLAN, "mode": "source"}, ()),
    (read_macvlan, {**MACVLAN, "mtu": "1400"}, ()),
    (read_macvlan, {**MACVLAN, "mtu": -1}, ()),
    (read_macvlan, {**MACVLAN, "mac": "02-00-00-00-00-01"}, ()),
    (read_macvlan, {**MACVLAN, "master": ""}, ()),
    (read_macvlan, {**MACVLAN, "cniVersion": "0.2.0"}, ()),
    (read_macvlan, {**MACVLAN, "cniVersion": "1.1.0"}, ()),
    (read_macvlan, {**MACVLAN, "ipam": {"type": "../x"}}, ()),
    (read_macvlan, {**MACVLAN, "dns": {"nameserver": []}}, ()),
    (read_macvlan, {**MACVLAN, "runtimeConfig": {"Mac": "02:00:00:00:00:01"}}, ()),
    (read_macvlan, MACVLAN, (("K8S_POD_NAME", "p"),)),
    (read_macvlan, MACVLAN, (*IGNORE, ("A", "b=c"))),
    (read_bridge, {**BRIDGE, "vlan": 5}, ()),
    (read_bridge, {**BRIDGE, "ipMasq": True}, ()),
    (read_bridge, {**BRIDGE, "promiscMode": True}, ()),
    (read_bridge, {**BRIDGE, "forceAddress": True}, ()),
    (read_bridge, {**BRIDGE, "macspoofchk": True}, ()),
    (read_bridge, {**BRIDGE, "enabledad": True}, ()),
    (read_bridge, {**BRIDGE, "disableContainerInterface": True}, ()),
    (read_bridge, {**BRIDGE, "bridge": "a-name-that-is-too-long"}, ()),
    (read_pool, {}, ()),
    (read_pool, host_local_conf(), ()),
    (read_pool, host_local_conf(subnet="10.1.0.0/31"), ()),
    (read_pool, host_local_conf(subnet="10.1.0.1/24"), ()),
    (read_pool, host_local_conf(subnet="10.1.0.0"), ()),
    (read_pool, host_local_conf(subnet="10.1.0.0/255.255.255.0"), ()),
    (read_pool, host_local_conf(subnet="::ffff:10.1.0.0/120"), ()),
    (read_pool, host_local_conf(subnet="10.1.0.0/24", gateway="fd00::1"), ()),
    (read_pool, host_local_conf(subnet="10.1.0.0/24", rangeStart="10.1.0.9", rangeEnd="10.1.0.8"), ()),
    (read_pool, host_local_conf(subnet="10.1.0.0/24", rangeEnd="10.2.0.8"), ()),
    (read_pool, host_local_conf(subnet="10.1.0.0/24", rangestart="10.1.0.9"), ()),
    (read_pool, host_local_conf(subnet="10.1.0.0/24", exclude=["10.1.0.0/28"]), ()),
    (read_pool, host_local_conf(subnet="10.1.0.0/24", ranges=[[RANGE]]), ()),
    (read_pool, host_local_conf(ranges=[[RANGE, {"subnet": "fd00::/64"}]]), ()),
    (read_pool, host_local_conf(ranges=[[]]), ()),
    (read_pool, host_local_conf(subnet="10.1.0.0/24", routes=[{"dst": "0.0.0.0/0", "mtu": 1400}]), ()),
    (read_pool, host_local_conf(subnet="10.1.0.0/24", routes=[{"dst": "10.9.0.1/16"}]), ()),
    (read_pool, host_local_conf(subnet="10.1.0.0/24", dataDir="relative"), ()),
    (read_pool, {**host_local_conf(subnet="10.1.0.0/24"), "name": "a/b"}, ()),
    (read_pool, host_local_conf(subnet="10.1.0.0/24"), (*IGNORE, ("IP", "10.1.0.3,10.1.0.4"))),
    (addresses, {"ipam": {"type": "static", "addresses": [{"address": "10.1.0.7"}]}}, ()),
    (addresses, {"ipam": {"type": "static", "addresses": [{"address": "fe80::1%eth0/64"}]}}, ()),
    (addresses, {"ipam": {"type": "static"}}, (*IGNORE, ("GATEWAY", "10.1.0.1"))),
    (addresses, {"ipam": {"type": "static"}, "runtimeConfig": {"ips": ["x"]}}, ()),
]


@pytest.mark.parametrize(("read", "body", "args"), FOREIGN)
def test_what_is_left_to_the_program(read: Any, body: dict[str, Any], args: Pairs) -> None:
    with pytest.raises(Unsupported):
        read(call(body, args))


@pytest.mark.anyio
@pytest.mark.parametrize("plugin", NATIVE)
@pytest.mark.parametrize("command", list(Command))
async def test_it_is_left_to_the_program_unchanged(plugin: str, command: Command) -> None:
    ran: list[tuple[str, Call]] = []

    async def runner(name: str, asked: Call) -> bytes:
        ran.append((name, asked))
        return b"{}"

    asked = call({"cniVersion": "9.9.9"}, command=command)
    answer = await native_delegates(NATIVE, runner)[plugin](plugin, asked)
    done_here = plugin == "static" and command is Command.DEL  # which does nothing, whatever it is given
    assert (answer, ran) == ((b"", []) if done_here else (b"{}", [(plugin, asked)]))


def test_only_what_is_chosen_is_done_here() -> None:
    async def runner(name: str, asked: Call) -> bytes:
        raise AssertionError(name)

    assert set(native_delegates((), runner)) == set()
    assert set(native_delegates(("macvlan", "ipvlan"), runner)) == {"macvlan", "ipvlan"}
    assert set(native_delegates(NATIVE, runner)) == set(NATIVE)


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (None, set(NATIVE)),
        ([], set()),
        (["macvlan", "host-local"], {"macvlan", "host-local"}),
        (["-bridge", "-portmap"], set(NATIVE) - {"bridge", "portmap"}),
        (["macvlan", "bridge", "-bridge"], {"macvlan"}),
    ],
)
def test_types_are_chosen_or_left_out(tmp_path: Path, wanted: list[str] | None, found: set[str]) -> None:
    assert set(chosen(wanted, bin_dir=str(tmp_path))) == found


def test_a_script_in_a_program_s_place_is_executed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "macvlan").write_text("#!/bin/sh\nexec /opt/cni/bin/macvlan.real\n")
    (tmp_path / "bridge").write_bytes(b"\x7fELF and so on")
    assert set(chosen(None, bin_dir=str(tmp_path))) == set(NATIVE) - {"macvlan"}
    assert f"{tmp_path}/macvlan is a script" in caplog.text


def test_a_type_that_there_is_none_of_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert chosen(["brigde"], bin_dir=str(tmp_path)) == ()
    assert "'brigde' is not done natively, only bandwidth, bridge" in caplog.text


@given(
    st.binary(max_size=300), st.sampled_from([read_macvlan, read_ipvlan, read_vlan, read_bridge, read_pool, addresses])
)
def test_any_bytes_are_the_programs(data: bytes, read: Any) -> None:
    with pytest.raises(Unsupported):
        read(Call(command=Command.ADD, conf=data))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=8)
    | st.sampled_from(["10.1.0.0/24", "fd00::/64", "::1"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "subnet", "ranges", "routes", "dst", "gw", "addresses", "address", "ips", "cni"]),
            inner,
        )
    ),
    max_leaves=12,
)


@given(
    st.dictionaries(st.sampled_from(["ipam", "args", "runtimeConfig", "dns", "mtu", "master", "mac", "name"]), JSON),
    st.sampled_from([read_macvlan, read_ipvlan, read_vlan, read_bridge, read_pool, addresses]),
)
def test_a_configuration_is_read_or_is_the_programs(body: dict[str, Any], read: Any) -> None:
    try:
        read(call(body))
    except Unsupported:
        return


def _next(made: Pool, last: str = "", count: int = 4) -> list[str]:
    found = candidates(made.sets[0], ipaddress.ip_address(last) if last else None)
    return [str(address) for address, _ in found][:count]


def test_a_range_without_its_gateway_and_broadcast() -> None:
    made = pool(subnet="10.1.0.0/29")
    assert _next(made, count=9) == [f"10.1.0.{n}" for n in (2, 3, 4, 5, 6)]
    assert _next(made, "10.1.0.4", count=9) == [f"10.1.0.{n}" for n in (5, 6, 2, 3, 4)]
    assert _next(made, "10.9.9.9") == ["10.1.0.2", "10.1.0.3", "10.1.0.4", "10.1.0.5"]
    assert spell(made.sets[0]) == "10.1.0.1-10.1.0.6"
    assert _next(pool(subnet="fd00::/126"), count=9) == ["fd00::2", "fd00::3"]


def test_ranges_of_a_set_one_after_another() -> None:
    first = {"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.8", "rangeEnd": "10.1.0.9"}
    second = {"subnet": "10.2.0.0/24", "rangeStart": "10.2.0.8", "rangeEnd": "10.2.0.9", "gateway": "10.2.0.8"}
    made = pool(ranges=[[first, second]])
    assert _next(made) == ["10.1.0.8", "10.1.0.9", "10.2.0.9"]
    assert _next(made, "10.1.0.9") == ["10.2.0.9", "10.1.0.8", "10.1.0.9"]
    assert _next(made, "10.2.0.9") == ["10.1.0.8", "10.1.0.9", "10.2.0.9"]
    assert spell(made.sets[0]) == "10.1.0.8-10.1.0.9,10.2.0.8-10.2.0.9"


@given(st.integers(1, 14), st.integers(1, 14), st.integers(0, 15))
def test_every_address_is_tried_once(one: int, other: int, last: int) -> None:
    start, end = min(one, other), max(one, other)
    made = pool(subnet="10.1.0.0/28", rangeStart=f"10.1.0.{start}", rangeEnd=f"10.1.0.{end}")
    tried = _next(made, f"10.1.0.{last}", count=99)
    assert sorted(tried) == sorted(f"10.1.0.{n}" for n in range(max(start, 2), end + 1))
    if start <= last <= end and f"10.1.0.{last}" in tried:
        assert tried[-1] == f"10.1.0.{last}"


def test_requested_addresses_in_their_order() -> None:
    body = {
        **host_local_conf(subnet="10.1.0.0/24"),
        "args": {"cni": {"ips": ["10.1.0.4", "10.1.0.3"], "labels": [1]}},
        "runtimeConfig": {"ips": ["10.1.0.5/24"], "portMappings": []},
    }
    found = read_pool(call(body, (*IGNORE, ("IP", "10.1.0.3/24"))))
    assert [str(each) for each in found.requested] == ["10.1.0.3", "10.1.0.4", "10.1.0.5"]


def test_gateways_of_a_bridge() -> None:
    conf = read_bridge(call({**BRIDGE, "isDefaultGateway": True}))
    given_ips = Result(ips=(IP(address="fd00::7/64"), IP(address="10.1.0.7/24", gateway="10.1.0.9")))
    found = with_gateways(given_ips, conf)
    assert [ip.gateway for ip in found.ips] == ["fd00::1", "10.1.0.9"]
    assert found.routes == (Route(dst="::/0", gw="fd00::1"), Route(dst="0.0.0.0/0", gw="10.1.0.9"))
    assert with_gateways(given_ips, read_bridge(call(BRIDGE))) == given_ips


def test_dns_is_always_printed() -> None:
    assert json.loads(printed(Result(), "1.0.0")) == {"cniVersion": "1.0.0", "dns": {}}
    assert json.loads(printed(Result(dns=DNS(domain="d")), "1.0.0"))["dns"] == {"domain": "d"}
    assert json.loads(printed(Result(), "0.4.0"))["dns"] == {}


def test_what_others_change_between_two_locks_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "net"
    walks: list[str] = []
    walk = store._walk

    def counted(path: str) -> list[tuple[str, bytes]]:
        walks.append(path)
        return walk(path)

    def held(container: str) -> list[str]:
        with locked(str(tmp_path), "net") as held:
            return held.held(container, "net1")

    monkeypatch.setattr(store, "_walk", counted)
    with locked(str(tmp_path), "net") as mine:
        assert mine.held("c1", "net1") == []
        assert mine.reserve("10.1.0.2", "c1", "net1") and mine.reserve("10.1.0.3", "c2", "net1")
    assert (held("c1"), held("c2"), held("c3")) == (["10.1.0.2"], ["10.1.0.3"], [])
    assert walks == [str(directory)], "nothing has changed since"
    with locked(str(tmp_path), "net") as mine:
        mine.release("c1", "net1", known=["10.1.0.2"])
    assert held("c1") == [] and len(walks) == 1
    (directory / "10.1.0.3").unlink()  # by a program, at once: within the same tick of the kernel's clock, perhaps
    assert held("c2") == []
    time.sleep(0.02)
    (directory / "10.1.0.4").write_bytes(b"c4\r\nnet1")
    (directory / "10.1.0.5").write_bytes(b"c5")  # of a version that did not tell interfaces apart
    assert (held("c4"), held("c5")) == (["10.1.0.4"], ["10.1.0.5"])
    with locked(str(tmp_path), "net") as mine:
        mine.release("c5", "net1")
        mine.give_back("10.1.0.4")
    assert (held("c4"), held("c5")) == ([], [])
    assert sorted(path.name for path in directory.iterdir()) == ["lock"]


def test_addresses_that_are_known_are_released_without_a_look_at_the_others(tmp_path: Path) -> None:
    with locked(str(tmp_path), "net") as held:
        for address, owner in (("10.1.0.2", "c1"), ("fd00::2", "c1"), ("10.1.0.3", "c2"), ("10.1.0.4", "c1")):
            assert held.reserve(address, owner, "net1")
        held.release("c1", "net1", known=["10.1.0.2", "fd00::2"])
        assert held.held("c1", "net1") == ["10.1.0.4"]  # which the caller says it does not have
        held.release("c1", "net1", known=["10.1.0.3"])  # somebody else's: all are looked for
        assert held.held("c1", "net1") == [] and held.held("c2", "net1") == ["10.1.0.3"]


def test_what_an_add_gave_is_told_by_its_result() -> None:
    body = {**host_local_conf(**RANGE), "prevResult": {"ips": [{"address": "10.1.0.9/24"}, {"address": "FD00::9/64"}]}}
    assert read_pool(call(body)).given == ("10.1.0.9", "fd00::9")
    for odd in ({"ips": [{"address": "x"}]}, {"ips": 5}, "x", None):
        assert read_pool(call({**body, "prevResult": odd})).given == ()


@pytest.mark.parametrize("nameless", [True, False])
def test_files_of_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nameless: bool) -> None:
    if not nameless:
        monkeypatch.setattr(os, "O_TMPFILE", os.O_DIRECTORY)  # EISDIR, as where there are no files without names
    with locked(str(tmp_path), "net") as held:
        assert held.reserve("10.1.0.2", " c1 ", "net1") and not held.reserve("10.1.0.2", "c2", "net1")
        assert held.reserve("fd00::2", "c1", "net1") and held.reserve("10.1.0.3", "c1", "net2")
        held.remember(0, "10.1.0.3")
        assert (held.last(0), held.last(1)) == ("10.1.0.3", "")
        (tmp_path / "net" / "10.1.0.4").write_bytes(b"c1\n")  # of a version that knew no interfaces
        assert sorted(held.held("c1", "net1")) == ["10.1.0.2", "10.1.0.4", "fd00::2"]
        held.release("c1", "net1")
        assert sorted(held.held("c1", "net1")) == ["10.1.0.4"]
        held.release("c1", "net1")
        held.give_back("10.1.0.9")
    left = {path.name: path.read_bytes() for path in (tmp_path / "net").iterdir()}
    assert left == {"lock": b"", "last_reserved_ip.0": b"10.1.0.3", "10.1.0.3": b"c1\r\nnet2"}


def test_a_lock_is_waited_for_and_not_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "net").mkdir()
    with (tmp_path / "net" / "lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        monkeypatch.setattr(store, "_PATIENCE", 0.02)
        with pytest.raises(CNIError, match="is held all the time") as caught, locked(str(tmp_path), "net"):
            pytest.fail("it is locked")
        assert caught.value.code == Code.TRY_AGAIN_LATER
        monkeypatch.setattr(store, "_PATIENCE", 20.0)
        threading.Timer(0.02, fcntl.flock, (other, fcntl.LOCK_UN)).start()
        with locked(str(tmp_path), "net") as held:
            assert held.reserve("10.1.0.2", "c", "net1")


@pytest.mark.anyio
async def test_a_directory_that_cannot_be_used(tmp_path: Path) -> None:
    async def runner(name: str, asked: Call) -> bytes:
        raise AssertionError(name)

    (tmp_path / "file").write_text("")
    body = host_local_conf(subnet="10.1.0.0/24", dataDir=str(tmp_path / "file"))
    with pytest.raises(CNIError, match="not a directory") as caught:
        await native_delegates(NATIVE, runner)["host-local"]("host-local", call(body))
    assert caught.value.code == Code.INTERNAL


@pytest.mark.anyio
async def test_an_address_is_not_taken_when_another_cannot_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def runner(name: str, asked: Call) -> bytes:
        raise AssertionError(name)

    one = [{"subnet": "10.1.0.0/24"}]
    two = [{"subnet": "10.2.0.0/24", "rangeStart": "10.2.0.1", "rangeEnd": "10.2.0.1"}]
    body = host_local_conf(ranges=[one, two], dataDir=str(tmp_path))
    delegate = native_delegates(NATIVE, runner)["host-local"]
    with pytest.raises(CNIError, match="failed to allocate for range 1: no IP addresses available in range set"):
        await delegate("host-local", call(body))
    assert {path.name for path in (tmp_path / "net").iterdir()} == {"lock"}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.Store, "remember", full)
    with pytest.raises(CNIError, match="no space left on device"):
        await delegate("host-local", call(host_local_conf(ranges=[one], dataDir=str(tmp_path))))
    assert {path.name for path in (tmp_path / "net").iterdir()} == {"lock"}


@pytest.mark.anyio
async def test_removals_of_a_pod_are_carried_out_together() -> None:
    carried_out: list[tuple[str, set[str]]] = []

    def remove_all(path: str, names: set[str]) -> dict[str, DeviceError]:
        carried_out.append((path, set(names)))
        if path == "/refused":
            raise NamespaceError("it is no namespace")
        return {"bad": KernelError("failed to delete", 95, "not supported")} if "bad" in names else {}

    removals = Removals(remove_all)
    outcomes: dict[str, str] = {}

    async def remove(path: str, ifname: str) -> None:
        asked = Call(command=Command.DEL, conf=b"{}", netns=path, ifname=ifname)
        with removals.announced(path):
            await anyio.sleep(0)
            try:
                await removals.remove("macvlan", asked)
                outcomes[ifname] = ""
            except CNIError as error:
                outcomes[ifname] = error.message

    async with anyio.create_task_group() as group:
        for path, ifname in (("/a", "a1"), ("/a", "bad"), ("/a", "a2"), ("/b", "b1"), ("/refused", "r1")):
            group.start_soon(remove, path, ifname)
    assert sorted(carried_out) == [("/a", {"a1", "bad", "a2"}), ("/b", {"b1"}), ("/refused", {"r1"})]
    assert [name for name, error in sorted(outcomes.items()) if error] == ["bad", "r1"]
    await remove("/a", "a1")
    assert carried_out[-1] == ("/a", {"a1"}) and not removals._pods


@pytest.mark.anyio
async def test_a_removal_that_is_long_in_coming_is_not_waited_for() -> None:
    carried_out: list[set[str]] = []

    def remove_all(path: str, names: set[str]) -> dict[str, DeviceError]:
        carried_out.append(set(names))
        return {}

    removals = Removals(remove_all)
    asked = Call(command=Command.DEL, conf=b"{}", netns="/a", ifname="a1")
    with removals.announced("/a"), removals.announced("/a"):  # the second never comes
        with anyio.CancelScope() as scope:
            scope.cancel()  # whoever began it ends it
            await removals.remove("macvlan", asked)
        assert carried_out == [{"a1"}]


# ---------------------------------------------------------------- what is done on a visit, and what is kept


async def _nobody(plugin: str, call: Call) -> bytes:
    raise AssertionError(f"{plugin} is executed")


def prompt(plugin: str) -> Prompt:
    delegate: object = native_delegates(NATIVE, _nobody)[plugin]
    assert isinstance(delegate, Prompt)
    return delegate


FOUR = {"type": "host-local", **RANGE}
SIX = {"type": "host-local", "subnet": "fd00::/64"}
BOTH = {"type": "host-local", "ranges": [[RANGE], [{"subnet": "fd00::/64"}]]}
STATIC_FOUR = {"type": "static", "addresses": [{"address": "10.1.0.9/24"}]}
STATIC_SIX = {"type": "static", "addresses": [{"address": "fd00::9/64"}]}
ASKED_SIX = {"capabilities": {"ipRanges": True}, "runtimeConfig": {"ipRanges": [[{"subnet": "fd00::/64"}]]}}


@pytest.mark.parametrize(
    ("plugin", "body", "at_once"),
    [
        ("macvlan", {**MACVLAN, "ipam": FOUR}, True),
        ("macvlan", {**MACVLAN, "ipam": STATIC_FOUR}, True),
        ("macvlan", MACVLAN, True),
        ("ipvlan", {**IPVLAN, "ipam": FOUR}, True),
        ("vlan", {**VLAN, "ipam": FOUR}, True),
        ("bridge", {**BRIDGE, "isDefaultGateway": True, "ipam": FOUR}, True),
        # Addresses that take time until they are usable.
        ("macvlan", {**MACVLAN, "ipam": SIX}, False),
        ("macvlan", {**MACVLAN, "ipam": BOTH}, False),
        ("macvlan", {**MACVLAN, "ipam": STATIC_SIX}, False),
        ("macvlan", {**MACVLAN, "ipam": FOUR, **ASKED_SIX}, False),
        ("bridge", {**BRIDGE, "isGateway": True, "ipam": SIX}, False),
        # Addresses of a program, or a configuration that is one for the program.
        ("macvlan", {**MACVLAN, "ipam": {"type": "dhcp"}}, False),
        ("macvlan", {**MACVLAN, "ipam": {**FOUR, "unknown": 1}}, False),
        ("macvlan", {**MACVLAN, "ipam": FOUR, "linkInContainer": True}, False),
        ("bridge", {**BRIDGE, "vlan": 5, "ipam": FOUR}, False),
    ],
)
def test_what_is_done_on_a_visit(plugin: str, body: dict[str, Any], at_once: bool) -> None:
    assert (prompt(plugin).at_once(plugin, call(body)) is not None) is at_once


def test_only_an_add_is_done_on_a_visit() -> None:
    for command in (Command.DEL, Command.CHECK):
        assert prompt("macvlan").at_once("macvlan", call({**MACVLAN, "ipam": FOUR}, command=command)) is None


def test_which_delegates_do_anything_on_a_visit() -> None:
    delegates: dict[str, object] = dict(native_delegates(NATIVE, _nobody))
    found = sorted(name for name, each in delegates.items() if isinstance(each, Prompt))
    assert found == ["bandwidth", "bridge", "ipvlan", "macvlan", "portmap", "vlan"]


PREVIOUS = {"cniVersion": "1.0.0", "ips": [{"address": "10.1.0.2/24"}], "routes": [{"dst": "0.0.0.0/0"}]}
PORT = {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}


@pytest.mark.parametrize(
    ("plugin", "body", "at_once"),
    [
        ("portmap", {"prevResult": PREVIOUS}, True),
        ("bandwidth", {"prevResult": PREVIOUS}, True),
        ("portmap", {"prevResult": PREVIOUS, "runtimeConfig": {"portMappings": []}}, True),
        ("portmap", {"prevResult": PREVIOUS, "runtimeConfig": {"portMappings": [PORT]}}, False),
        ("bandwidth", {"prevResult": PREVIOUS, "ingressRate": 5}, False),
        ("portmap", {}, False),
    ],
)
def test_a_chained_plugin_without_work_gives_on_what_it_is_given(
    plugin: str, body: dict[str, Any], at_once: bool
) -> None:
    work = prompt(plugin).at_once(plugin, call({"type": plugin, **body}))
    assert (work is not None) is at_once
    if work is not None:
        assert work(Visit("/run/netns/none")) == Result(
            ips=(IP(address="10.1.0.2/24"),), routes=(Route(dst="0.0.0.0/0"),)
        )


def test_a_configuration_is_read_once_unless_it_is_one_pod_s_alone() -> None:
    asked: list[bytes] = []

    @reading.kept
    def read(conf: bytes) -> object:
        asked.append(conf)
        if b"refused" in conf:
            raise Unsupported("no")
        return object()

    plain, chained, refused = b'{"name": "n"}', b'{"prevResult": {}}', b'{"refused": 1}'
    assert read(plain) is read(bytes(bytearray(plain))) and asked == [plain]
    assert read(b'{"name": "other"}') is not read(plain)
    asked.clear()
    assert read(chained) is not read(chained) and asked == [chained] * 2
    asked.clear()
    for _ in range(2):
        with pytest.raises(Unsupported):
            read(refused)
    assert asked == [refused] * 2


def test_a_configuration_that_was_read_is_not_another_call_s() -> None:
    """The same configuration, and what CNI_ARGS of each pod make of it."""
    macs = ["02:00:00:00:00:01", "02:00:00:00:00:02", ""]
    assert [read_macvlan(call(MACVLAN, (*IGNORE, ("MAC", mac)))).mac for mac in macs] == macs
    assert [read_bridge(call(BRIDGE, (*IGNORE, ("MAC", mac)))).mac for mac in macs] == macs
    by_capability = {**MACVLAN, "runtimeConfig": {"mac": "02:00:00:00:00:09"}}
    assert read_macvlan(call(by_capability, (*IGNORE, ("MAC", macs[0])))).mac == "02:00:00:00:00:09"
    by_conf = {**MACVLAN, "mac": "02:00:00:00:00:09"}
    assert read_macvlan(call(by_conf, (*IGNORE, ("MAC", macs[0])))).mac == macs[0]


def test_ranges_are_read_once_and_what_a_pod_asks_for_each_time() -> None:
    plain = pool(**RANGE)
    wanted = read_pool(call(host_local_conf(**RANGE), (*IGNORE, ("IP", "10.1.0.7"))))
    assert wanted.sets is plain.sets
    assert [[str(each) for each in found.requested] for found in (plain, wanted)] == [[], ["10.1.0.7"]]
    asked = read_pool(call({**host_local_conf(**RANGE), "runtimeConfig": {"ipRanges": [[{"subnet": "10.2.0.0/24"}]]}}))
    assert [spell(each) for each in asked.sets] == ["10.2.0.1-10.2.0.254", "10.1.0.1-10.1.0.254"]
    assert pool(**RANGE).sets is plain.sets and len(plain.sets) == 1


def test_ranges_that_a_pod_asks_for_must_not_overlap_the_network_s() -> None:
    body = {**host_local_conf(**RANGE), "runtimeConfig": {"ipRanges": [[{"subnet": "10.1.0.128/25"}]]}}
    for _ in range(2):
        with pytest.raises(Unsupported):
            read_pool(call(body))
    alone = {**host_local_conf(), "runtimeConfig": {"ipRanges": [[RANGE]]}}
    assert [spell(each) for each in read_pool(call(alone)).sets] == ["10.1.0.1-10.1.0.254"]
    with pytest.raises(Unsupported):
        read_pool(call(host_local_conf()))
