"""Network namespaces for real: threads go in and come back, nothing is left open, `ip netns` agrees."""

import errno
import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from devices.errors import KernelError, NamespaceError
from devices.linux import links, netns, routes, rtnetlink, syscalls


def _descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def _where() -> str:
    return str(Path("/proc/thread-self/ns/net").readlink())


def test_a_namespace_is_made_as_ip_netns_makes_it_and_goes(make_namespace: Callable[[], Any]) -> None:
    space = make_namespace()
    assert space.path == f"/run/netns/{space.name}"
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    assert space.name in listed
    assert netns.identity(space.path) not in (None, netns.identity("/proc/self/ns/net"))
    with pytest.raises(NamespaceError, match="already"):
        netns.create(space.name)
    assert netns.delete(space.name) is True
    assert netns.delete(space.name) is False
    assert netns.identity(space.path) is None
    assert not Path(space.path).exists()


def test_what_ip_netns_makes_is_ours_too() -> None:
    name = f"multus-test-ip-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        assert netns.interface_names(f"/run/netns/{name}") == ("lo",)
    finally:
        assert netns.delete(name) is True


def test_a_name_that_a_crash_left_without_a_namespace_can_be_removed() -> None:
    name = f"multus-test-left-{os.getpid()}"
    (netns.DIRECTORY / name).touch()
    assert netns.identity(str(netns.DIRECTORY / name)) is None
    assert netns.delete(name) is True
    assert not (netns.DIRECTORY / name).exists()


def test_a_path_through_a_process_leads_to_the_same_namespace(make_namespace: Callable[[], Any]) -> None:
    space = make_namespace()
    with subprocess.Popen(["ip", "netns", "exec", space.name, "sh", "-c", "echo; cat"], stdin=-1, stdout=-1) as held:
        assert held.stdout is not None
        held.stdout.readline()
        path = f"/proc/{held.pid}/ns/net"
        assert netns.identity(path) == netns.identity(space.path)
        held.communicate()


def test_the_function_runs_inside_and_the_caller_stays_outside(make_namespace: Callable[[], Any]) -> None:
    space, outside = make_namespace(), _where()
    threads = threading.active_count()
    inside = netns.run_in(space.path, _where)
    assert inside == f"net:[{Path(space.path).stat().st_ino}]"
    assert _where() == outside
    with pytest.raises(ZeroDivisionError):
        netns.run_in(space.path, divmod, 1, 0)
    assert _where() == outside
    assert netns.run_in("/proc/self/ns/net", _where) == outside
    assert threading.active_count() <= threads + 1  # the last thread may be about to end


def test_callers_at_the_same_time_do_not_move_each_other(make_namespace: Callable[[], Any]) -> None:
    spaces = [make_namespace() for _ in range(4)]
    wrong: list[str] = []

    def look(space: Any) -> None:
        outside, expected = _where(), f"net:[{Path(space.path).stat().st_ino}]"
        for _ in range(50):
            if netns.run_in(space.path, _where) != expected or _where() != outside:
                wrong.append(space.name)

    threads = [threading.Thread(target=look, args=(space,)) for space in spaces * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_thread_that_asks_is_the_one_that_goes_in(make_namespace: Callable[[], Any]) -> None:
    """None is made for it."""
    space = make_namespace()
    assert netns.run_in(space.path, threading.get_ident) == threading.get_ident()


@pytest.fixture
def opened(pod: Any) -> Iterator[int]:
    """A descriptor of the pod's namespace; in the end nothing else is open that was not before."""
    before = _descriptors()
    descriptor = netns.open_file(pod.path)
    yield descriptor
    os.close(descriptor)
    assert _descriptors() == before


@pytest.mark.parametrize("with_home", [False, True])
def test_the_block_is_inside_and_what_follows_is_not(pod: Any, opened: int, with_home: bool) -> None:
    outside, expected = _where(), f"net:[{Path(pod.path).stat().st_ino}]"
    home = netns.open_file("/proc/thread-self/ns/net") if with_home else -1
    try:
        for _ in range(2):
            with netns.inside(pod.path, opened, home=home):
                assert _where() == expected
            assert _where() == outside
        with pytest.raises(ZeroDivisionError), netns.inside(pod.path, opened, home=home):
            raise ZeroDivisionError
        assert _where() == outside
    finally:
        if with_home:
            os.close(home)  # it is still whose it was


def test_a_block_within_another_ends_where_it_began(pod: Any, opened: int, make_namespace: Callable[[], Any]) -> None:
    other = make_namespace()
    outside, first, second = _where(), *(f"net:[{Path(each.path).stat().st_ino}]" for each in (pod, other))
    with netns.inside(pod.path, opened):
        assert netns.run_in(other.path, _where) == second
        assert _where() == first
        with pytest.raises(ZeroDivisionError):
            netns.run_in(other.path, divmod, 1, 0)
        assert _where() == first
    assert _where() == outside


def test_what_cannot_be_entered_leaves_the_thread_where_it_is(make_namespace: Callable[[], Any]) -> None:
    space, outside, before = make_namespace(), _where(), _descriptors()
    for path in ("/dev/null", "/proc/self/ns/mnt"):
        descriptor = netns.open_file(path)
        with pytest.raises(NamespaceError, match="is not a network") as caught, netns.inside(path, descriptor):
            raise AssertionError("it was entered")
        assert path in caught.value.message and not caught.value.gone
        os.close(descriptor)
    netns.delete(space.name)
    with pytest.raises(NamespaceError) as caught:
        netns.open_file(space.path)
    assert caught.value.gone
    assert (_where(), _descriptors()) == (outside, before)


def test_a_thread_that_cannot_come_back_does_nothing_before_it_can(
    pod: Any, opened: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As where the kernel has no memory for a moment: it must not go on in the pod with the next one's work."""
    enter, refusals = syscalls.enter, iter([errno.ENOMEM, errno.ENOMEM])

    def sometimes(descriptor: int) -> None:
        if descriptor != opened and (code := next(refusals, 0)):
            raise OSError(code, os.strerror(code))
        enter(descriptor)

    monkeypatch.setattr(syscalls, "enter", sometimes)
    monkeypatch.setattr(netns, "_LEAVE_PAUSE", 0.001)
    outside = _where()
    with netns.inside(pod.path, opened):
        pass
    assert _where() == outside
    assert [record.levelname for record in caplog.records] == ["CRITICAL"] * 2


def test_the_names_of_interfaces(pod: Any) -> None:
    names = netns.interface_names(pod.path)
    assert sorted(names) == ["eth0", "eth0p", "lo", "net1", "net1p"]
    pod.ip("link del net1")
    assert sorted(netns.interface_names(pod.path)) == ["eth0", "eth0p", "lo"]


def test_many_interfaces_take_more_than_one_message(make_namespace: Callable[[], Any]) -> None:
    space = make_namespace()
    batch = "\n".join(f"link add v{index} type veth peer name p{index}" for index in range(60))
    subprocess.run(["ip", "-n", space.name, "-batch", "-"], input=batch, text=True, check=True)
    wanted = {"lo"} | {f"{end}{index}" for end in "vp" for index in range(60)}
    assert set(netns.interface_names(space.path)) == wanted
    assert {link.name for link in links.snapshot(space.path)} == wanted


def test_a_snapshot_says_what_ip_says(pod: Any) -> None:
    pod.ip("link add name br0 type bridge")
    pod.ip("link set net1p master br0 mtu 1400")
    pod.ip("link add link eth0 name mv0 type macvlan mode bridge")
    pod.ip("addr add 10.9.9.1 peer 10.9.9.2/32 dev eth0")
    pod.ip("link set net1 down")
    told = {item["ifname"]: item for item in json.loads(pod.ip("-j -d addr show"))}
    found = {link.name: link for link in links.snapshot(pod.path)}
    assert found.keys() == told.keys()
    for name, link in found.items():
        item = told[name]
        assert (link.index, link.mac, link.mtu) == (item["ifindex"], item["address"], item["mtu"])
        assert link.up == ("UP" in item["flags"])
        assert link.kind == item.get("linkinfo", {}).get("info_kind", "")
        assert {(each.address, each.scope) for each in link.addresses} == {
            (f"{each['local']}/{each['prefixlen']}", each["scope"]) for each in item["addr_info"]
        }
    assert found["eth0"].peer_index == found["eth0p"].index
    assert found["mv0"].peer_index == found["eth0"].index
    assert found["net1p"].master_index == found["br0"].index
    assert not found["net1"].up
    assert not found["net1p"].running
    assert [link.index for link in links.snapshot(pod.path)] == sorted(link.index for link in found.values())


def test_what_we_read_is_what_pyroute2_reads(pod: Any) -> None:
    pod.ip("route add default via 10.0.0.1 dev eth0 metric 7")
    pod.ip("route add 192.0.2.0/24 table 100 nexthop via 10.0.0.1 dev eth0 nexthop via 10.1.0.1 dev net1")
    pod.ip("-6 route add default via fd00:a::1 dev eth0")
    with netns.iproute(pod.path) as ipr:
        names = {link["index"]: link.get_attr("IFLA_IFNAME") for link in ipr.get_links()}
        wanted = {
            (
                (route.get_attr("RTA_DST") or ("::" if route["family"] == 10 else "0.0.0.0"), route["dst_len"]),
                route.get_attr("RTA_TABLE"),
                route.get_attr("RTA_PRIORITY") or 0,
                route.get_attr("RTA_GATEWAY") or "",
            )
            for family in (2, 10)
            for route in ipr.get_routes(family=family)
            if not route.get_attr("RTA_MULTIPATH")
        }
    assert {link.index: link.name for link in links.snapshot(pod.path)} == names
    found = routes.snapshot(pod.path)
    single = {
        (
            (route.destination.partition("/")[0], int(route.destination.partition("/")[2])),
            route.table,
            route.metric,
            route.hops[0].gateway if route.hops else "",
        )
        for route in found
        if len(route.hops) < 2
    }
    assert single == wanted
    many = [route for route in found if len(route.hops) == 2]
    assert [(route.destination, route.table) for route in many] == [("192.0.2.0/24", 100)]
    assert [(hop.gateway, names[hop.index]) for hop in many[0].hops] == [("10.0.0.1", "eth0"), ("10.1.0.1", "net1")]


def test_pyroute2_works_in_the_namespace_and_makes_none_that_is_missing(pod: Any) -> None:
    with netns.iproute(pod.path) as ipr:
        index = ipr.link_lookup(ifname="net1")[0]
        ipr.link("set", index=index, mtu=1300)
    assert next(link.mtu for link in links.snapshot(pod.path) if link.name == "net1") == 1300
    with pytest.raises(NamespaceError), netns.iproute(pod.path + "-absent"):
        pass
    assert not Path(pod.path + "-absent").exists()


def test_nothing_stays_open_after_a_thousand_visits(pod: Any) -> None:
    visits: list[Callable[[], object]] = [
        lambda: netns.identity(pod.path),
        lambda: netns.interface_names(pod.path),
        lambda: netns.run_in(pod.path, int),
        lambda: netns.open_socket(pod.path).close(),
        lambda: links.snapshot(pod.path),
        lambda: routes.snapshot(pod.path),
    ]

    def refused() -> None:
        with pytest.raises(ZeroDivisionError):
            netns.run_in(pod.path, divmod, 1, 0)
        with pytest.raises(NamespaceError):
            netns.interface_names("/dev/null")
        with netns.open_socket(pod.path) as connection, pytest.raises(KernelError):
            rtnetlink.change(connection, 0x3FF, 0, bytes(16), "a test")

    def library() -> None:
        with netns.iproute(pod.path) as ipr:
            ipr.get_links()

    library()
    refused()
    before = _descriptors()
    for _ in range(1000):
        for visit in visits:
            visit()
    for _ in range(100):
        refused()
        library()
    assert _descriptors() == before


def test_a_namespace_lives_no_longer_than_its_name(make_namespace: Callable[[], Any]) -> None:
    """A visit must not hold it: the kernel frees the interfaces, and the other end of a veth with them."""
    space, other = make_namespace(), make_namespace()
    space.ip(f"link add here type veth peer name there netns {other.name}")
    assert "there" in netns.interface_names(other.path)
    netns.interface_names(space.path)
    links.snapshot(space.path)
    netns.delete(space.name)
    for _ in range(200):
        if "there" not in netns.interface_names(other.path):
            return
        threading.Event().wait(0.05)  # the kernel takes namespaces down in the background
    pytest.fail("the namespace is still there 10 s after its name went")
