"""A visit to a pod, for real: the thread comes back, nothing stays open, and a daemon makes a pod's networks on one."""

import json
import resource
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from devices.errors import DeviceError, NamespaceError
from devices.linux import link_changes, netns
from multus.cli.box import Box, Sandbox
from multus.cli.timeline import fetch
from multus.cni.errors import CNIError
from multus.delegates.visit import Visit
from multus.timeline import Timeline

NETWORKS = "k8s.v1.cni.cncf.io/networks"


def _where() -> str:
    return str(Path("/proc/thread-self/ns/net").readlink())


def _of(path: str) -> str:
    return f"net:[{Path(path).stat().st_ino}]"


def _descriptors() -> set[str]:
    return {each.name for each in Path("/proc/self/fd").iterdir()}


@pytest.fixture
def stays() -> Iterator[None]:
    """The thread is where it was in the end, and has nothing open that it had not."""
    where, count = _where(), len(_descriptors())
    yield
    assert _where() == where
    assert len(_descriptors()) == count


# ---------------------------------------------------------------- the thread and what it holds


@pytest.mark.usefixtures("stays")
def test_a_visit_has_a_socket_on_either_side(pod: Any) -> None:
    with Visit(pod.path) as visit:
        node, there = visit.node, visit.pod
        assert link_changes.find(there, "net1") is not None
        assert link_changes.find(node, "net1") is None
        assert (visit.node, visit.pod) == (node, there), "one of each for all that is done"
        assert _where() == _of("/proc/self/ns/net")
    assert (node.fileno(), there.fileno()) == (-1, -1)


@pytest.mark.usefixtures("stays")
@pytest.mark.parametrize(
    "first",
    [
        lambda visit: None,
        lambda visit: visit.node,
        lambda visit: visit.pod,
        lambda visit: (visit.namespace, visit.node_namespace, visit.node, visit.pod, visit.is_possible),
    ],
    ids=["nothing", "node", "pod", "everything"],
)
def test_whatever_was_opened_is_closed_after_an_error(pod: Any, first: Callable[[Visit], object]) -> None:
    with pytest.raises(ZeroDivisionError), Visit(pod.path) as visit:
        first(visit)
        with visit.inside():
            assert _where() == _of(pod.path)
            raise ZeroDivisionError


@pytest.mark.usefixtures("stays")
def test_in_the_pod_the_thread_has_the_pod_s_values(make_namespace: Callable[[], Any]) -> None:
    """And on the node the node's, before and after. The node is where the thread is: here another namespace."""
    node, pod = make_namespace(), make_namespace()
    name = "ipv4/conf/all/arp_notify"
    value = Path("/proc/sys/net", name)

    def visit() -> list[str]:
        seen = []
        with Visit(pod.path) as made:
            assert link_changes.find(made.pod, "lo") is not None
            assert _of(f"/proc/self/fd/{made.node_namespace}") == _of(node.path)
            link_changes.set_sysctl(name, "1")
            with made.inside():
                seen.append(value.read_text().strip())
            seen.append(value.read_text().strip())
            link_changes.set_sysctl(name, "0")
            with made.inside():
                link_changes.set_sysctl(name, "1")
            seen.append(value.read_text().strip())
            with made.inside():
                seen.append(value.read_text().strip())
        return seen

    assert netns.run_in(node.path, visit) == ["0", "1", "0", "1"]


@pytest.mark.usefixtures("stays")
@pytest.mark.parametrize("use", ["pod", "is_possible", "inside"])
def test_a_thread_that_is_in_the_pod_stays_there_until_it_leaves(pod: Any, use: str) -> None:
    """Whatever it asks of its visit there."""
    with Visit(pod.path) as visit:
        with visit.inside():
            if use == "inside":
                with visit.inside():
                    assert _where() == _of(pod.path)
            else:
                assert getattr(visit, use)
            assert _where() == _of(pod.path)
        assert _where() == _of("/proc/self/ns/net")


@pytest.mark.usefixtures("stays")
def test_a_pod_that_is_gone_cannot_be_visited(make_namespace: Callable[[], Any]) -> None:
    space = make_namespace()
    with Visit(space.path) as visit:
        assert visit.is_possible
        assert netns.delete(space.name)
        assert visit.is_possible, "what was opened holds it"
    with Visit(space.path) as visit:
        assert not visit.is_possible
        assert link_changes.find(visit.node, "lo") is not None, "the node can be looked at all the same"
        with pytest.raises(NamespaceError) as caught, visit.inside():
            raise AssertionError("nobody is in there")
        assert caught.value.gone


@pytest.mark.usefixtures("stays")
@pytest.mark.parametrize("path", ["/dev/null", "/proc/self/ns/mnt", "/run/netns/\0", ""])
def test_what_is_no_pod_cannot_be_visited(path: str) -> None:
    with Visit(path) as visit:
        assert not visit.is_possible
        with pytest.raises(NamespaceError), visit.inside():
            raise AssertionError("nobody is in there")


@contextmanager
def _descriptors_left(count: int) -> Iterator[None]:
    """So many more can be opened."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as held:
        highest = max(map(int, _descriptors())) + 1
        held.callback(resource.setrlimit, resource.RLIMIT_NOFILE, before)
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 16, before[1]))
        files = []
        with suppress(OSError):
            while True:
                files.append(held.enter_context(Path("/dev/null").open("rb", buffering=0)))
        for file in files[len(files) - count :]:
            file.close()
        yield


@pytest.mark.usefixtures("stays")
@pytest.mark.parametrize("use", ["node", "namespace", "pod", "is_possible", "node_namespace"])
def test_a_node_that_is_out_of_descriptors_says_so(pod: Any, use: str) -> None:
    """As an error of ours, after which a retry may help, wherever it runs out; and the thread is back."""
    outcomes = []
    for left in range(5):
        with Visit(pod.path) as visit:
            try:
                with _descriptors_left(left):
                    assert getattr(visit, use) is not False, "that is not to say that there is no pod"
                outcomes.append("done")
            except DeviceError as error:
                assert error.retry
                outcomes.append("refused")
            assert _where() == _of("/proc/self/ns/net")
    assert (outcomes[0], outcomes[-1]) == ("refused", "done")


@pytest.mark.usefixtures("stays")
def test_who_goes_into_a_pod_without_descriptors_hears_so(pod: Any) -> None:
    outcomes = []
    for left in range(5):
        try:
            with _descriptors_left(left):
                assert "net1" in netns.interface_names(pod.path)
            outcomes.append("done")
        except DeviceError as error:
            assert error.retry
            outcomes.append("refused")
    assert (outcomes[0], outcomes[-1]) == ("refused", "done")


def test_visits_at_the_same_time_do_not_move_each_other(make_namespace: Callable[[], Any]) -> None:
    spaces, wrong, before = [make_namespace() for _ in range(3)], list[str](), len(_descriptors())

    def look(space: Any) -> None:
        for _ in range(50):
            with Visit(space.path) as visit:
                _ = visit.node, visit.pod
                with visit.inside():
                    if _where() != _of(space.path):
                        wrong.append(space.name)
            if _where() != _of("/proc/self/ns/net"):
                wrong.append("not back")

    threads = [threading.Thread(target=look, args=(space,)) for space in spaces * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert wrong == []
    assert len(_descriptors()) == before


# ---------------------------------------------------------------- through the daemon

FIVE: dict[str, dict[str, Any]] = {
    "one": {"type": "macvlan", "master": "eth0", "ipam": {"type": "host-local", "subnet": "10.91.1.0/24"}},
    "two": {
        "type": "bridge",
        "bridge": "br2",
        "isGateway": True,
        "ipam": {"type": "host-local", "subnet": "10.91.2.0/24", "routes": [{"dst": "10.99.0.0/16"}]},
    },
    "three": {"type": "bridge", "bridge": "br3", "mtu": 1400, "ipam": {"type": "host-local", "subnet": "10.91.3.0/24"}},
    "four": {
        "type": "macvlan",
        "master": "eth0",
        "ipam": {"type": "static", "addresses": [{"address": "10.91.4.7/24", "gateway": "10.91.4.1"}]},
    },
    "five": {"type": "bridge", "bridge": "br5", "ipam": {"type": "host-local", "subnet": "10.91.5.0/24"}},
}
INTERFACES = ["eth0", "net1", "net2", "net3", "net4", "net5"]


def _give(box: Box, networks: dict[str, dict[str, Any]]) -> Sandbox:
    """The pod that asks for these, with multusd running."""
    for name, body in networks.items():
        box.nad(name, {"cniVersion": "1.0.0", **body})
    box.start()
    return box.pod("web", annotations={NETWORKS: ",".join(networks)})


def _timeline(box: Box) -> Timeline:
    return fetch(box.socket_dir / "multus.sock", "ADD", "multusctl-default-web", "eth0")


def _of_phase(timeline: Timeline, phase: str) -> list[str]:
    return [each.ifname for each in timeline.spans if each.phase == phase]


def _anonymous(value: Any, sandbox: Sandbox) -> Any:
    """Without what is made up each time: MACs, names of veths, the namespace's path."""
    if isinstance(value, dict):
        return {key: "MAC" if key == "mac" else _anonymous(each, sandbox) for key, each in value.items()}
    if isinstance(value, list):
        return [_anonymous(each, sandbox) for each in value]
    if isinstance(value, str):
        return "veth" if value.startswith("veth") else value.replace(sandbox.netns, "POD")
    return value


def _attached(box: Box, sandbox: Sandbox) -> dict[str, Any]:
    """Attach the pod: the answer, what it is told, its interfaces and routes, and the address plugins' files."""
    result = box.cni("ADD", sandbox).result
    links = json.loads(sandbox.run("ip", "-j", "-4", "addr"))
    return {
        "result": _anonymous(result, sandbox),
        "status": _anonymous(box.status("web"), sandbox),
        "interfaces": {
            link["ifname"]: (link["mtu"], [(each["local"], each["prefixlen"]) for each in link["addr_info"]])
            for link in links
        },
        "routes": sandbox.run("ip", "-4", "route").splitlines(),
        "files": {str(path.relative_to(box.ipam)): path.read_text() for path in box.ipam.rglob("*") if path.is_file()},
    }


def _left(box: Box) -> list[str]:
    """Bridges stay, as the plugin leaves them."""
    return [each for each in box.leftovers() if not each.startswith("interface br")]


def test_a_pod_s_networks_are_made_on_one_visit_and_are_what_programs_make(make_box: Callable[..., Box]) -> None:
    ways: dict[str, dict[str, Any]] = {}
    for way, native in (("ours", None), ("programs", [])):
        box = make_box(settings={"nativeDelegates": native})
        sandbox = _give(box, FIVE)
        ways[way] = _attached(box, sandbox)
        timeline = _timeline(box)
        if way == "ours":
            networks = [each for each in timeline.spans if each.phase == "network"]
            assert [each.ifname for each in networks] == INTERFACES
            assert all(one.end <= other.begin for one, other in pairwise(networks)), "one thread makes them"
            assert _of_phase(timeline, "turn") == ["eth0"]
        else:
            assert sorted(_of_phase(timeline, "turn")) == INTERFACES
        box.cni("DEL", sandbox)
        assert _left(box) == []
    assert ways["ours"] == ways["programs"]
    assert sorted(ways["ours"]["interfaces"]) == INTERFACES


def test_networks_that_wait_for_a_program_are_made_on_a_second_visit(make_box: Callable[..., Box]) -> None:
    """The default network's portmap is a program here: its bridge is made on the first."""
    box = make_box(settings={"nativeDelegates": ["-portmap"]})
    sandbox = _give(box, FIVE)
    box.cni("ADD", sandbox)
    timeline = _timeline(box)
    assert _of_phase(timeline, "turn") == ["eth0", "eth0", "net1"]
    plugins = [each for each in timeline.spans if each.phase == "plugin"]
    assert [(each.ifname, each.what) for each in plugins[:3]] == [
        ("eth0", "bridge"),
        ("eth0", "portmap"),
        ("net1", "macvlan"),
    ]
    assert [each.ifname for each in plugins[2:]] == INTERFACES[1:]
    assert all(one.end <= other.begin for one, other in pairwise(plugins))
    box.cni("DEL", sandbox)
    assert _left(box) == []


def test_a_network_that_fails_in_the_middle_undoes_those_before_it(make_box: Callable[..., Box]) -> None:
    """Its range has one address, which is the gateway's: there is none to give."""
    box = make_box()
    full = {"type": "host-local", "subnet": "10.91.3.0/24", "rangeStart": "10.91.3.1", "rangeEnd": "10.91.3.1"}
    sandbox = _give(box, {**FIVE, "three": {**FIVE["three"], "ipam": full}})
    with pytest.raises(CNIError, match="no IP addresses available in range set: ") as caught:
        box.cni("ADD", sandbox)
    assert 'network "default/three"' in caught.value.message
    assert _of_phase(_timeline(box), "network") == INTERFACES[:4]
    assert [link["ifname"] for link in json.loads(sandbox.run("ip", "-j", "link"))] == ["lo"]
    assert _left(box) == []
    bridges = box.host("ip", "-br", "link")
    assert "br2" in bridges and "br5" not in bridges, "those before it were made, those after it not begun"
    box.nad("three", {"cniVersion": "1.0.0", **FIVE["three"]})
    box.cni("ADD", sandbox)
    box.cni("DEL", sandbox)
    assert _left(box) == []
