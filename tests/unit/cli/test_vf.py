"""`multusctl vf` on a fake sysfs."""

import fcntl
import json
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import anyio
import pytest

from devices import guard
from devices.errors import KernelError, NamespaceError
from devices.ledger import KIND, Ledger
from devices.linux.sysfs import Sysfs
from multus.cli import asking, main
from multus.journal import Journal
from multus.sandbox import Attachment, Sandbox, State
from tests.fake_sysfs import FakeSysfs

PF = "0000:03:00.0"
Run = Callable[..., tuple[int, str, str]]


class Node:
    """The hardware, and what a kernel would make of a write to sriov_numvfs."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.fake = FakeSysfs(directory)
        self.fake.pf(PF, netdev="ens1", total=8, num=4)
        self.fake.pf("0000:00:04.0", netdev="eth0", driver="e1000")
        self.reasons = {"eth0": "the node's IPv4 default route"}
        self.written: list[int] = []
        self.refused: Sequence[int] = ()
        self.config = directory / "config.json"
        pool = {"resourceName": "net", "selectors": {"pfNames": ["ens1"]}}
        self.config.write_text(json.dumps({"resourceList": [pool]}))
        self.settings = directory / "daemon-config.json"
        self.set()

    def set(self, **keys: object) -> None:
        """Write the daemon's configuration."""
        places = {"cniDir": ".", "socketDir": "run", "deviceInfoDir": "info", "kubeletDir": "kubelet"}
        given = {key: str(self.directory / value) for key, value in places.items()}
        self.settings.write_text(json.dumps({**given, "deviceConfig": str(self.config), **keys}))

    def set_numvfs(self, bdf: str, count: int) -> None:
        if count in self.refused:
            raise KernelError(f"making {count} VFs on {bdf}", 12, "no room", hint="pci=realloc")
        self.written.append(count)
        self.fake.grow(bdf, count)

    def vf(self, index: int) -> str:
        return self.fake.vf_bdf(PF, index)

    async def attach(self, bdf: str) -> None:
        item = Attachment(
            position=0, network="default/net", ifname="net1", conf=b"{}", args=(), runtime={}, device_id=bdf
        )
        async with Journal.open(self.directory / "journal.db") as journal:
            await journal.begin(sandbox(item))

    async def give(self, owner: str, *devices: str) -> None:
        async with Journal.open(self.directory / "journal.db") as journal:
            ledger = Ledger(journal.records)
            await ledger.load()
            await ledger.give(owner, "intel.com/net", devices, now=1.0)


def sandbox(item: Attachment) -> Sandbox:
    return Sandbox(
        container_id="c1",
        ifname="eth0",
        netns="/run/netns/x",
        netns_id="1:2",
        boot_id="b",
        pod_namespace="default",
        pod_name="pod1",
        pod_uid="u",
        state=State.ATTACHED,
        attachments=(item,),
    )


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    node = Node(tmp_path)
    monkeypatch.setattr(guard, "read", lambda: node.reasons)
    monkeypatch.setattr(Sysfs, "set_numvfs", node.set_numvfs)
    return node


@pytest.fixture
def run(node: Node, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(command: str, *arguments: str) -> tuple[int, str, str]:
        options = ["--settings", str(node.settings), "--sysfs", str(node.fake.sys)]
        code = main(["vf", command, *arguments, *options])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def test_create(node: Node, run: Run) -> None:
    code, out, _ = run("create", "ens1", "6")
    assert (code, node.written) == (0, [0, 6])
    assert "ens1 has 6 VFs" in out
    assert node.vf(5) in out


def test_create_by_address_what_is_there_does_nothing(node: Node, run: Run) -> None:
    assert run("create", PF, "4")[:2] == (0, "nothing to change\n")
    assert node.written == []


def test_a_dry_run_says_the_steps_and_does_nothing(node: Node, run: Run) -> None:
    code, out, _ = run("create", "ens1", "6", "--dry-run")
    assert (code, node.written) == (0, [])
    assert out.splitlines() == [
        "ens1 (0000:03:00.0): remove all 4 VFs",
        "ens1 (0000:03:00.0): make 6 VFs",
        "note: the 4 VFs that are there go first: a PF takes another number only then",
    ]


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
@pytest.mark.parametrize(
    ("count", "says"), [("9", "it can have 0 to 8 VFs, not 9"), ("-1", "it can have 0 to 8 VFs, not -1")]
)
def test_more_than_the_hardware_has_is_refused(node: Node, run: Run, count: str, says: str, dry: list[str]) -> None:
    code, _, err = run("create", *dry, "ens1", count)
    assert (code, node.written) == (1, [])
    assert says in err


@pytest.mark.parametrize("name", ["ens1", "ens1v0"])
def test_what_would_cut_the_node_off_is_refused(node: Node, run: Run, name: str) -> None:
    node.reasons = {name: "the node's IPv4 default route"}
    code, _, err = run("create", "ens1", "0")
    assert (code, node.written) == (1, [])
    assert "the node's IPv4 default route" in err


def test_when_it_cannot_be_told_what_the_node_needs_nothing_is_changed(
    node: Node, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> dict[str, str]:
        raise NamespaceError("cannot be read")

    monkeypatch.setattr(guard, "read", fail)
    code, _, err = run("create", "ens1", "0")
    assert (code, node.written) == (1, [])
    assert "cannot be read" in err


def test_a_vf_of_a_pod_is_not_removed(node: Node, run: Run) -> None:
    anyio.run(node.attach, node.vf(1))
    code, _, err = run("create", "ens1", "0")
    assert (code, node.written) == (1, [])
    assert f"{node.vf(1)} by pod default/pod1 (net1)" in err


def test_a_vf_whose_interface_is_elsewhere_is_not_removed(node: Node, run: Run) -> None:
    node.fake.remove_netdev("ens1v2")
    code, _, err = run("create", "ens1", "0")
    assert (code, node.written) == (1, [])
    assert node.vf(2) in err


def test_a_vf_that_was_allocated_is_not_removed(node: Node, run: Run) -> None:
    assert run("allocate", "net")[0] == 0
    code, _, err = run("create", "ens1", "0")
    assert (code, node.written) == (1, [])
    assert "by hand: operator" in err


def test_when_the_kernel_refuses_the_old_vfs_come_back(node: Node, run: Run) -> None:
    node.refused = [6]
    code, _, err = run("create", "ens1", "6")
    assert (code, node.written) == (1, [0, 4])
    assert "no room; its 4 VFs were made again" in err
    node.refused, node.written = [4, 6], []
    code, _, err = run("create", "ens1", "6")
    assert (code, node.written) == (1, [0])
    assert "nor can its 4 VFs be made again" in err


def policy(name: str, num: int, **spec: object) -> dict[str, object]:
    spec = {"resourceName": name, "numVfs": num, "nicSelector": {"pfNames": ["ens1"]}, **spec}
    return {"metadata": {"name": name}, "spec": spec}


ELSEWHERE = {"nodeSelector": {"rack": "8"}}
PRESENT, ADDRESS = {"pfNames": ["ens1#0-3"]}, {"rootDevices": [PF]}


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
@pytest.mark.parametrize(
    ("policies", "count", "refused_by"),
    [
        ([policy("fast", 4)], "6", "policy fast says that it has 4 VFs"),
        ([policy("fast", 4)], "0", "policy fast says that it has 4 VFs"),
        ([policy("fast", 4, nicSelector=PRESENT)], "6", "policy fast says that it has 4 VFs"),
        ([policy("fast", 4, nicSelector=ADDRESS)], "6", "policy fast says that it has 4 VFs"),
        ([policy("low", 4, priority=90), policy("high", 2, priority=1)], "6", "policy high says that it has 2 VFs"),
        ([policy("few", 2), policy("many", 5)], "6", "policy many says that it has 5 VFs"),
        ([policy("elsewhere", 2, **ELSEWHERE), policy("here", 5)], "6", "policy here says that it has 5 VFs"),
        ([policy("fast", 6)], "6", ""),
        ([policy("theirs", 6, externallyManaged=True)], "7", ""),
        ([policy("elsewhere", 4, **ELSEWHERE)], "6", ""),
        ([policy("another", 4, nicSelector={"pfNames": ["ens2"]})], "6", ""),
        ([policy("impossible", 9)], "6", ""),
        ([], "6", ""),
    ],
)
def test_what_a_policy_would_undo_is_refused(
    node: Node, run: Run, policies: list[dict[str, object]], count: str, refused_by: str, dry: list[str]
) -> None:
    node.set(sriovPolicies=policies, nodeLabels={"rack": "7"})
    code, _, err = run("create", "ens1", count, *dry)
    if refused_by:
        assert (code, node.written) == (1, [])
        assert f"ens1 ({PF}): {refused_by}, and would undo this" in err
        name = refused_by.split()[1]
        assert f"change numVfs of SriovNetworkNodePolicy {name}" in err
    else:
        assert (code, node.written) == (0, [] if dry else [0, int(count)])


def test_policies_of_a_folder_count_too_and_must_be_understood(node: Node, run: Run) -> None:
    folder = node.directory / "policies"
    folder.mkdir()
    node.set(policies=str(folder))
    assert run("create", "ens1", "5")[0] == 0
    (folder / "p.json").write_text(json.dumps(policy("fast", 4)))
    code, _, err = run("create", "ens1", "6")
    assert (code, node.written) == (1, [0, 5])
    assert "policy fast says that it has 4 VFs" in err
    (folder / "p.json").write_text("{")
    code, _, err = run("create", "ens1", "6")
    assert (code, node.written) == (1, [0, 5])
    assert f"{folder / 'p.json'}" in err


def test_what_is_there_is_not_made_again_whatever_policies_say(node: Node, run: Run) -> None:
    node.set(sriovPolicies=[policy("fast", 6)])
    assert run("create", "ens1", "4")[:2] == (0, "nothing to change\n")


@pytest.mark.parametrize(
    ("device", "says"),
    [("ens2", 'did you mean "ens1"?'), ("ens1v0", "is a VF itself"), ("0000:99:00.0", "no NIC or VF")],
)
def test_what_is_no_pf(run: Run, device: str, says: str) -> None:
    code, _, err = run("create", device, "1")
    assert code == 1
    assert says in err


def test_show(node: Node, run: Run) -> None:
    node.fake.pf("0000:04:00.0", netdev="ens2", total=8, num=1)
    assert run("allocate", "net", "--owner", "me")[1] == f"{node.vf(0)}\n"
    code, out, _ = run("show")
    assert code == 0
    assert "ens2" in out
    _, out, _ = run("show", "ens1")
    assert "ens2" not in out
    assert out.rstrip().splitlines()[-4].endswith("by hand: me")
    _, out, _ = run("show", node.vf(2))
    assert node.vf(2) in out
    assert node.vf(1) not in out
    _, out, _ = run("show", node.vf(2), "--json")
    (pf,) = json.loads(out)["devices"]
    assert [vf["address"] for vf in pf["vfs"]] == [node.vf(2)]
    assert run("show", "junk")[0] == 1


def test_allocate_and_release(node: Node, run: Run) -> None:
    assert run("allocate", "net", "--count", "3")[1].split() == [node.vf(index) for index in range(3)]
    assert run("allocate", "intel.com/net")[1].split() == [node.vf(3)]
    code, _, err = run("allocate", "net")
    assert code == 1
    assert "needs 5 devices of intel.com/net: 0 of 4 are free" in err
    assert f"{node.vf(0)}: by hand: operator has it" in err
    assert run("release", node.vf(1))[0] == 0
    assert run("allocate", "net", "--owner", "other")[1].split() == [node.vf(1)]
    assert run("release", "ens1v0")[0] == 0
    code, _, err = run("release", node.vf(0))
    assert code == 1
    assert "is not allocated" in err
    assert run("allocate", "net", "--count", "2")[0] == 1  # the others are still taken


def test_what_is_gone_can_be_released(node: Node, run: Run) -> None:
    assert run("allocate", "net")[0] == 0
    bdf = node.vf(0)
    node.fake.grow(PF, 0)
    assert run("release", bdf)[0] == 0


def test_a_dry_run_of_an_allocation_records_nothing(node: Node, run: Run) -> None:
    assert run("allocate", "net", "--count", "4", "--dry-run")[0] == 0
    assert run("allocate", "net", "--count", "4")[0] == 0
    assert "would release" in run("release", node.vf(0), "--dry-run")[1]
    assert run("allocate", "net")[0] == 1


def test_what_a_pod_has_is_neither_allocated_nor_released(node: Node, run: Run) -> None:
    anyio.run(node.attach, node.vf(0))
    anyio.run(node.give, "default/pod2", node.vf(1))
    assert run("allocate", "net")[1].split() == [node.vf(2)]
    for index, says in ((0, "in use by pod default/pod1"), (1, "given by the daemon: default/pod2")):
        code, _, err = run("release", node.vf(index))
        assert code == 1
        assert says in err


def test_a_damaged_record_breaks_nothing_and_keeps_its_devices(node: Node, run: Run) -> None:
    async def write() -> None:
        async with Journal.open(node.directory / "journal.db") as journal:
            await journal.records.save("x", KIND, b"junk")
            await journal.records.save("by hand: me intel.com/net", KIND, f'{{"devices": ["{node.vf(0)}", 7'.encode())

    anyio.run(write)
    assert run("allocate", "net")[1].split() == [node.vf(1)]
    assert "by hand: me" in run("show", node.vf(0))[1]
    assert run("release", node.vf(0))[0] == 0
    assert run("allocate", "net", "--count", "3")[0] == 0


def test_a_daemon_that_is_about_to_serve_is_not_raced(node: Node, run: Run) -> None:
    """It holds the state directory before it reads who has what, and its socket answers only after that."""
    with (node.directory / "multusd.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, out, err = run("allocate", "net")
        assert (code, out) == (1, "")
        assert f"a multusd holds {node.directory}, and does not answer yet" in err
        assert run("allocate", "net", "--dry-run")[0] == 0
    assert run("allocate", "net")[0] == 0


def test_a_daemon_that_does_not_answer_is_waited_for_and_nothing_is_given(
    node: Node, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "_PATIENCE", 0.1)
    (node.directory / "run").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        # A path of pytest's may be too long for an address: it is bound where it is short.
        descriptor = os.open(node.directory / "run", os.O_PATH)
        try:
            server.bind(f"/proc/self/fd/{descriptor}/multus.sock")
        finally:
            os.close(descriptor)
        server.listen()
        code, out, err = run("allocate", "net")
    assert (code, out) == (1, "")
    assert "it does not answer in time" in err
    assert run("allocate", "net")[0] == 0  # its socket is dead now


def test_policies_make_pools_too(node: Node, run: Run) -> None:
    """As the daemon does: `show` and `allocate` know the pools of sriovPolicies, and for which node they are."""
    spec = {"resourceName": "fast", "numVfs": 4, "nicSelector": {"pfNames": ["ens1#2-3"]}}
    policy = {"metadata": {"name": "p"}, "spec": {**spec, "nodeSelector": {"rack": "7"}}}
    node.config.write_text(json.dumps({"resourceList": []}))
    node.set(sriovPolicies=[policy])
    assert 'no pool "fast"' in run("allocate", "fast")[2]
    node.set(sriovPolicies=[policy], nodeLabels={"rack": "7"})
    (line,) = [line for line in run("show")[1].splitlines() if node.vf(2) in line]
    assert "intel.com/fast" in line
    assert run("allocate", "fast", "--count", "2")[1].split() == [node.vf(2), node.vf(3)]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nett"], 'did you mean "intel.com/net"?'),
        (["net", "--count", "0"], "--count is at least 1"),
        (["net", "--count", "5"], "needs 5 devices of intel.com/net: 4 of 4 are free"),
    ],
)
def test_allocations_that_are_refused(run: Run, arguments: list[str], says: str) -> None:
    code, _, err = run("allocate", *arguments)
    assert code == 1
    assert says in err


def test_no_config(node: Node, run: Run) -> None:
    node.config.unlink()
    assert run("allocate", "net")[0] == 1
