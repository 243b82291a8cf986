"""Which devices a pod has: from a kubelet on real sockets, its checkpoint, and resource claims."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest
from grpclib.const import Status

from devices.errors import DeviceError
from devices.giving import PoolError
from devices.ledger import Allocation
from multus.assignments import AssignmentError, KubeletAssignments, NoAssignments, PoolAssignments
from multus.dra import ClaimError
from multus.errors import MultusError, NodeError
from multus.kube.claims import AllocatedDevice, Claim, Slice, SliceDevice
from multus.kube.cluster import ClusterError, NotFoundError
from multus.kube.objects import ClaimUse, ExtendedClaim, Pod, PodClaim, RequestMapping
from multus.networks.devices import DeviceShare, Wish
from multus.sandbox import Sandbox, State
from tests.fake_kubelet import FakeKubelet, Get

pytestmark = pytest.mark.anyio

VF, OTHER = "intel.com/sriov", "intel.com/other"
POD = Pod(namespace="ns", name="pod", uid="the-uid")
DRIVER = "sriov.example"


class FakeClaims:
    """Claims by name, and slices by driver; counts what is asked."""

    def __init__(self, claims: Sequence[Claim] = (), slices: Mapping[str, Sequence[Slice]] | None = None) -> None:
        self.claims = {claim.name: claim for claim in claims}
        self.by_driver = slices or {}
        self.asked: list[str] = []
        self.hanging = False

    async def claim(self, namespace: str, name: str) -> Claim:
        self.asked.append(f"{namespace}/{name}")
        if self.hanging:
            await anyio.sleep_forever()
        if name not in self.claims:
            raise NotFoundError(f"no claim {name}")
        return self.claims[name]

    async def slices(self, driver: str) -> tuple[Slice, ...]:
        self.asked.append(driver)
        return tuple(self.by_driver.get(driver, ()))


def checkpoint(directory: Path, *entries: tuple[str, str, str, Any]) -> None:
    """Entries are (pod uid, container, resource, DeviceIDs)."""
    path = directory / "device-plugins" / "kubelet_internal_checkpoint"
    path.parent.mkdir(exist_ok=True)
    keys = ("PodUID", "ContainerName", "ResourceName", "DeviceIDs")
    written = [dict(zip(keys, entry, strict=True)) for entry in entries]
    path.write_text(json.dumps({"Data": {"PodDeviceEntries": written}, "Checksum": 1}))


def claim(name: str, *devices: tuple[str, str], pool: str = "node-1") -> Claim:
    """Devices are (request, device)."""
    allocated = tuple(AllocatedDevice(request=req, driver=DRIVER, pool=pool, device=dev) for req, dev in devices)
    return Claim(namespace="ns", name=name, allocated=allocated)


def offered(*devices: tuple[str, str, str], pool: str = "node-1", generation: int = 1) -> dict[str, list[Slice]]:
    """Devices are (name, resource, device id)."""
    made = tuple(SliceDevice(name=name, resource=resource, device_id=id_) for name, resource, id_ in devices)
    return {DRIVER: [Slice(name="s", driver=DRIVER, pool=pool, generation=generation, devices=made)]}


async def test_without_a_kubelet() -> None:
    assert await NoAssignments().devices(POD, [VF]) == {}


async def test_from_pod_resources(tmp_path: Path) -> None:
    async with FakeKubelet(tmp_path) as kubelet:
        kubelet.pods["ns", "pod"] = [
            ("b", [(VF, ["0000:03:02.3", "0000:03:02.0"]), ("gpu", ["g"])]),
            ("empty", []),
            ("a", [(VF, ["0000:03:02.1"]), (OTHER, ["x"])]),
        ]
        found = await KubeletAssignments(tmp_path, None).devices(POD, [VF, OTHER, "example.com/none"])
    assert found == {  # containers as the kubelet lists them, sorted within, and nothing that was not asked for
        VF: [("b", ("0000:03:02.0", "0000:03:02.3")), ("a", ("0000:03:02.1",))],
        OTHER: [("a", ("x",))],
    }


@pytest.mark.parametrize("get", ["served", "unimplemented", "disabled"])
async def test_a_pod_that_was_given_nothing(tmp_path: Path, get: Get) -> None:
    """The kubelet's word counts: no other source is asked."""
    checkpoint(tmp_path, ("the-uid", "c", VF, ["1"]))
    async with FakeKubelet(tmp_path, get=get):
        assert await KubeletAssignments(tmp_path, None).devices(POD, [VF]) == {}


async def test_many_pods_at_once(tmp_path: Path) -> None:
    found: dict[str, Any] = {}
    async with FakeKubelet(tmp_path) as kubelet:
        kubelet.pods = {("ns", f"pod-{number}"): [("c", [(VF, [str(number)])])] for number in range(40)}
        kubelet.limited = 20
        assignments = KubeletAssignments(tmp_path, None)

        async def ask(name: str) -> None:
            found[name] = await assignments.devices(Pod(namespace="ns", name=name), [VF])

        async with anyio.create_task_group() as group:
            for _, name in kubelet.pods:
                group.start_soon(ask, name)
    assert found == {f"pod-{number}": {VF: [("c", (str(number),))]} for number in range(40)}


@pytest.mark.parametrize(
    ("containers", "order"), [((), ["a", "b", "c"]), (("c", "a", "b"), ["c", "a", "b"]), (("b",), ["b", "a", "c"])]
)
async def test_from_the_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, containers: tuple[str, ...], order: list[str]
) -> None:
    """By name, as the file has no order, unless the pod says which container comes first."""
    checkpoint(
        tmp_path,
        ("the-uid", "b", VF, {"1": ["b2"], "0": ["b1"]}),
        ("the-uid", "c", VF, ["c1"]),
        ("another", "a", VF, ["no"]),
        ("the-uid", "a", VF, {"0": ["a1"]}),
        ("the-uid", "a", "gpu", {"0": ["g"]}),
    )
    ids = {"a": ("a1",), "b": ("b1", "b2"), "c": ("c1",)}
    pod = Pod(namespace="ns", name="pod", uid="the-uid", containers=containers)
    found = await KubeletAssignments(tmp_path, None).devices(pod, [VF])
    assert found == {VF: [(name, ids[name]) for name in order]}
    assert "pod ns/pod: no PodResources from" in caplog.text
    assert "reading the kubelet's checkpoint" in caplog.text


@pytest.mark.parametrize("how", ["hanging", "failing"])
async def test_a_kubelet_that_does_not_answer(tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str) -> None:
    checkpoint(tmp_path, ("the-uid", "c", VF, ["1"]))
    async with FakeKubelet(tmp_path) as kubelet:
        kubelet.hanging = how == "hanging"
        kubelet.failing = Status.INTERNAL if how == "failing" else None
        found = await KubeletAssignments(tmp_path, None, timeout=0.1).devices(POD, [VF])
    assert found == {VF: [("c", ("1",))]}
    assert "reading the kubelet's checkpoint" in caplog.text


async def test_nobody_can_say(tmp_path: Path) -> None:
    with pytest.raises(AssignmentError) as caught:
        await KubeletAssignments(tmp_path, None).devices(POD, [VF])
    assert caught.value.retry
    assert "which devices pod ns/pod was given" in str(caught.value)
    assert "no PodResources from" in str(caught.value)
    assert "error reading file" in str(caught.value)


@pytest.mark.parametrize(
    "pod", [Pod(namespace="ns", name="pod"), Pod(namespace="ns", name="pod", uid="the-uid", static=True)]
)
async def test_a_checkpoint_that_cannot_tell_whose(tmp_path: Path, pod: Pod) -> None:
    """Without the uid; and a static pod's is not the one that the kubelet uses."""
    checkpoint(tmp_path, ("the-uid", "c", VF, ["1"]), ("", "c", VF, ["2"]))
    with pytest.raises(AssignmentError, match="without its UID"):
        await KubeletAssignments(tmp_path, None).devices(pod, [VF])


# claims


def user(name: str, *uses: tuple[str, str]) -> PodClaim:
    return PodClaim(
        claim=name, uses=tuple(ClaimUse(container=container, request=request) for container, request in uses)
    )


def pod_with(*claims: PodClaim, extended: ExtendedClaim | None = None) -> Pod:
    return Pod(namespace="ns", name="pod", uid="u", containers=("init", "a", "b"), claims=claims, extended=extended)


async def test_claims_are_added_to_what_the_kubelet_says(tmp_path: Path) -> None:
    claims = FakeClaims(
        [claim("nics", ("fast", "d2"), ("fast", "d1")), claim("gpus", ("gpu", "g"))],
        offered(("d1", VF, "0000:04:00.1"), ("d2", VF, "0000:04:00.2"), ("d3", VF, "no"), ("g", "", "")),
    )
    async with FakeKubelet(tmp_path) as kubelet:
        kubelet.pods["ns", "pod"] = [("a", [(VF, ["0000:03:02.0"])]), ("b", [(OTHER, ["x"])])]
        pod = pod_with(user("nics", ("b", "")), user("gpus", ("a", "")))
        found = await KubeletAssignments(tmp_path, claims).devices(pod, [VF, OTHER])
    assert found == {VF: [("a", ("0000:03:02.0",)), ("b", ("0000:04:00.1", "0000:04:00.2"))], OTHER: [("b", ("x",))]}
    assert claims.asked == ["ns/nics", DRIVER, "ns/gpus"]  # slices once a driver


@pytest.mark.parametrize(
    ("uses", "holders"),
    [
        ([("a", ""), ("b", "")], [("a", ("1", "2")), ("b", ("1", "2"))]),
        ([("b", "fast"), ("a", "slow")], [("a", ("2",)), ("b", ("1",))]),
        ([("b", "fast/first")], [("b", ("1",)), ("", ("2",))]),
        ([("b", "fas")], [("", ("1", "2"))]),
        ([], [("", ("1", "2"))]),
    ],
)
async def test_whose_a_claimed_device_is(
    tmp_path: Path, uses: list[tuple[str, str]], holders: list[tuple[str, tuple[str, ...]]]
) -> None:
    claims = FakeClaims(
        [claim("nics", ("fast/first", "d1"), ("slow", "d2"))], offered(("d1", VF, "1"), ("d2", VF, "2"))
    )
    async with FakeKubelet(tmp_path):
        found = await KubeletAssignments(tmp_path, claims).devices(pod_with(user("nics", *uses)), [VF])
    assert found == {VF: holders}


@pytest.mark.parametrize(
    "slices",
    [
        {},
        offered(("d1", VF, "1"), pool="node-2"),  # another node's
        offered(("d1", "", "1")),
        offered(("d1", VF, "")),
        offered(("d1", OTHER, "1")),
        {DRIVER: [*offered(("d1", VF, "old"))[DRIVER], *offered(("d2", VF, "new"), generation=2)[DRIVER]]},
    ],
)
async def test_claimed_devices_that_are_no_such_network_s(tmp_path: Path, slices: dict[str, list[Slice]]) -> None:
    claims = FakeClaims([claim("nics", ("r", "d1"))], slices)
    async with FakeKubelet(tmp_path) as kubelet:
        kubelet.pods["ns", "pod"] = [("a", [(VF, ["kept"])])]
        found = await KubeletAssignments(tmp_path, claims).devices(pod_with(user("nics", ("a", ""))), [VF])
    assert found == {VF: [("a", ("kept",))]}


@pytest.mark.parametrize("order", [1, -1])
async def test_only_the_newest_generation_of_a_pool_counts(tmp_path: Path, order: int) -> None:
    old, new = offered(("d1", VF, "old"))[DRIVER], offered(("d1", VF, "new"), generation=2)[DRIVER]
    claims = FakeClaims([claim("nics", ("r", "d1"))], {DRIVER: [*old, *new][::order]})
    async with FakeKubelet(tmp_path):
        found = await KubeletAssignments(tmp_path, claims).devices(pod_with(user("nics", ("a", ""))), [VF])
    assert found == {VF: [("a", ("new",))]}


async def test_a_claim_without_an_allocation(tmp_path: Path) -> None:
    claims = FakeClaims([Claim(namespace="ns", name="nics")])
    async with FakeKubelet(tmp_path):
        with pytest.raises(ClaimError, match="claim nics has no device allocation"):
            await KubeletAssignments(tmp_path, claims).devices(pod_with(user("nics")), [VF])


async def test_a_claim_that_is_not_there(tmp_path: Path) -> None:
    async with FakeKubelet(tmp_path):
        with pytest.raises(ClusterError, match="no claim nics"):
            await KubeletAssignments(tmp_path, FakeClaims()).devices(pod_with(user("nics")), [VF])


async def test_claims_that_take_too_long(tmp_path: Path) -> None:
    claims = FakeClaims()
    claims.hanging = True
    async with FakeKubelet(tmp_path):
        assignments = KubeletAssignments(tmp_path, claims, claims_timeout=0.05)
        with pytest.raises(AssignmentError, match=r"were not read within 0\.05 s") as caught:
            await assignments.devices(pod_with(user("nics")), [VF])
    assert caught.value.retry


async def test_claims_alone_without_a_kubelet(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    claims = FakeClaims([claim("nics", ("r", "d1"))], offered(("d1", VF, "1")))
    assignments, pod = KubeletAssignments(tmp_path, claims), pod_with(user("nics", ("a", "")))
    assert await assignments.devices(pod, [VF]) == {VF: [("a", ("1",))]}
    assert "claims alone say" in caplog.text
    with pytest.raises(AssignmentError):  # for the other, it cannot be told
        await assignments.devices(pod, [VF, OTHER])


async def test_pods_without_claims_ask_for_none(tmp_path: Path) -> None:
    claims = FakeClaims()
    async with FakeKubelet(tmp_path):
        assert await KubeletAssignments(tmp_path, claims).devices(pod_with(), [VF]) == {}
    assert claims.asked == []


# extended resources


def extended(*mappings: tuple[str, str, str]) -> Pod:
    """Mappings are (container, resource, request)."""
    made = tuple(RequestMapping(container=con, resource=res, request=req) for con, res, req in mappings)
    return pod_with(extended=ExtendedClaim(claim="ext", mappings=made))


async def test_extended_resources(tmp_path: Path) -> None:
    claims = FakeClaims(
        [claim("ext", ("r0", "d1"), ("r1", "d2"), ("r2", "gpu"))],
        offered(("d1", VF, "1"), ("d2", OTHER, "2"), ("gpu", "", "")),
    )
    pod = extended(("b", VF, "r0"), ("a", OTHER, "r1"), ("a", "gpu", "r2"))
    async with FakeKubelet(tmp_path):
        found = await KubeletAssignments(tmp_path, claims).devices(pod, [VF, OTHER])
    assert found == {VF: [("b", ("1",))], OTHER: [("a", ("2",))]}


async def test_extended_resources_of_no_network(tmp_path: Path) -> None:
    claims = FakeClaims()
    async with FakeKubelet(tmp_path):
        assert await KubeletAssignments(tmp_path, claims).devices(extended(("a", "gpu", "r0")), [VF]) == {}
    assert claims.asked == []


@pytest.mark.parametrize("slices", [{}, offered(("d1", OTHER, "1")), offered(("d1", "", "1")), offered(("d1", VF, ""))])
async def test_extended_resources_that_do_not_match(tmp_path: Path, slices: dict[str, list[Slice]]) -> None:
    claims = FakeClaims([claim("ext", ("r0", "d1"))], slices)
    async with FakeKubelet(tmp_path):
        with pytest.raises(ClaimError, match=r"claim ext gives container a sriov\.example/node-1/d1 for resource"):
            await KubeletAssignments(tmp_path, claims).devices(extended(("a", VF, "r0")), [VF])


async def test_extended_claim_without_an_allocation(tmp_path: Path) -> None:
    claims = FakeClaims([Claim(namespace="ns", name="ext")])
    async with FakeKubelet(tmp_path):
        with pytest.raises(ClaimError, match="has no device allocation"):
            await KubeletAssignments(tmp_path, claims).devices(extended(("a", VF, "r0")), [VF])


# pools of our own


class FakePools:
    """One pool of so many devices."""

    def __init__(self, size: int) -> None:
        self.free = [f"d{number}" for number in range(size)]
        self.held: dict[tuple[str, str], tuple[str, ...]] = {}
        self.broken = False

    @property
    def allocations(self) -> list[Allocation]:
        return [Allocation(owner=owner, resource=res, devices=ids) for (owner, res), ids in self.held.items()]

    async def allocate(self, resource: str, count: int, *, owner: str, wanted: Sequence[str] = ()) -> tuple[str, ...]:
        if resource != VF:
            raise DeviceError(f"no pool {resource}")
        had = self.held.get((owner, resource), ())
        for device in wanted:
            if device not in had:
                if device not in self.free:
                    raise PoolError(f"{device} is not free", retry=True)
                self.free.remove(device)
                had = (device, *had)
        if len(self.free) + len(had) < count:
            raise PoolError(f"{owner} needs {count} devices", retry=True)
        while len(had) < count:
            had = (self.free.pop(), *had)
        self.held[owner, resource] = had
        return had

    async def release(self, owner: str) -> tuple[str, ...]:
        if self.broken:
            raise DeviceError("the disk is full")
        found = [key for key in self.held if key[0] == owner]
        for key in found:
            self.free += self.held.pop(key)
        return ()


class Own:
    """Assignments from pools, the sandboxes there are, and a clock."""

    def __init__(self, size: int) -> None:
        self.pools = FakePools(size)
        self.sandboxes: list[Sandbox] = []
        self.now = 1000.0
        self.assignments = PoolAssignments(self.pools, self.attached, grace=100.0, clock=lambda: self.now)

    async def attached(self) -> Sequence[Sandbox]:
        return self.sandboxes

    def attach(self, name: str, *, created: float = 0.0) -> Sandbox:
        made = Sandbox(
            container_id=f"c{len(self.sandboxes)}",
            ifname="eth0",
            state=State.ATTACHED,
            netns="",
            netns_id="",
            boot_id="",
            pod_namespace="ns",
            pod_name=name,
            pod_uid="",
            created=created or self.now,
        )
        self.sandboxes.append(made)
        return made

    async def detach(self, sandbox: Sandbox) -> None:
        self.sandboxes.remove(sandbox)
        await self.assignments.removed(sandbox)

    async def ask(self, name: str, count: int = 1) -> list[str]:
        wishes = {VF: [Wish()] * count}
        found = await self.assignments.devices(Pod(namespace="ns", name=name, containers=("a", "b")), wishes)
        ((holder, ids),) = found[VF]
        assert holder == "a"
        return list(ids)


async def test_devices_of_our_own_pools() -> None:
    own = Own(3)
    assert await own.ask("one", 2) == ["d1", "d2"]
    assert await own.ask("one", 2) == ["d1", "d2"]  # the runtime tries again
    sandbox = own.attach("one")
    assert await own.ask("two") == ["d0"]
    await own.detach(sandbox)
    assert len(await own.ask("three", 2)) == 2


async def test_a_pool_that_is_empty() -> None:
    own = Own(1)
    await own.ask("one")
    own.attach("one")
    own.now += 1000
    with pytest.raises(NodeError, match="pod ns/two needs 1 devices") as caught:
        await own.ask("two")
    assert caught.value.retry
    with pytest.raises(MultusError, match="no pool gpu"):
        await own.assignments.devices(POD, {"gpu": [Wish()]})


@pytest.mark.parametrize(
    ("wishes", "expected"),
    [
        ([Wish(device_id="d0")], [("a", ("d0",))]),
        ([Wish(), Wish(device_id="d0")], [("a", ("d0", "d3"))]),
        ([Wish(container="b"), Wish()], [("a", ("d3",)), ("b", ("d2",))]),
        ([Wish(container="b"), Wish(device_id="d0")], [("a", ("d0",)), ("b", ("d3",))]),
        ([Wish(container="a"), Wish(device_id="d0", container="b")], [("a", ("d3",)), ("b", ("d0",))]),
        ([Wish(container="b")] * 2, [("b", ("d2", "d3"))]),
        ([Wish(container="other")], [("a", ("d3",))]),  # the plan refuses it: the pod has no such container
    ],
)
async def test_what_networks_wish(wishes: list[Wish], expected: list[tuple[str, tuple[str, ...]]]) -> None:
    own = Own(4)
    pod = Pod(namespace="ns", name="pod", containers=("a", "b"))
    for _ in range(2):  # the runtime tries again
        found = await own.assignments.devices(pod, {VF: wishes})
        assert found == {VF: expected}
        share = DeviceShare(found)
        for wish in sorted(wishes, key=lambda each: (not each.device_id, not each.container)):
            if wish.container != "other":
                given = share.take(VF, network="n", device_id=wish.device_id, container=wish.container)
                assert wish.device_id in ("", given)


async def test_a_device_that_is_wished_and_not_free() -> None:
    own = Own(2)
    await own.assignments.devices(POD, {VF: [Wish(device_id="d0")]})
    with pytest.raises(NodeError, match="d0 is not free"):
        await own.assignments.devices(Pod(namespace="ns", name="other"), {VF: [Wish(device_id="d0")]})


async def test_what_was_given_for_nothing_is_taken_back_when_it_is_needed() -> None:
    """An ADD that was refused after it had its devices: they wait for its next try, but not for ever."""
    own = Own(1)
    await own.ask("one")
    own.now += 50
    with pytest.raises(NodeError):
        await own.ask("two")
    own.now += 60
    assert await own.ask("two") == ["d0"]


async def test_a_late_delete_takes_nothing_from_the_next_sandbox() -> None:
    own = Own(2)
    await own.ask("pod")
    first = own.attach("pod")
    own.now += 10
    assert await own.ask("pod") == ["d1"]  # the sandbox is made anew: the ADD comes before the DEL of the old one
    await own.detach(first)
    assert await own.ask("other") == ["d0"]
    second = own.attach("pod")
    third = own.attach("pod")
    await own.detach(second)
    assert own.pools.held["pod ns/pod", VF] == ("d1",)  # one is left
    await own.detach(third)
    assert ("pod ns/pod", VF) not in own.pools.held


async def test_what_people_took_by_hand_is_theirs() -> None:
    own = Own(2)
    await own.pools.allocate(VF, 1, owner="by hand")
    await own.ask("gone")
    own.now += 1000
    await own.assignments.collect()
    assert [each.owner for each in own.pools.allocations] == ["by hand"]


async def test_a_delete_does_not_fail_for_what_cannot_be_taken_back(caplog: pytest.LogCaptureFixture) -> None:
    own = Own(1)
    await own.ask("pod")
    sandbox = own.attach("pod")
    own.pools.broken = True
    await own.detach(sandbox)
    assert "taken back later: the disk is full" in caplog.text
    own.pools.broken = False
    own.now += 1000
    assert await own.ask("next") == ["d0"]


def test_grpc_is_imported_only_when_a_kubelet_is_asked() -> None:
    code = (
        "import sys, multus.assignments; sys.exit(any(name in sys.modules for name in ('grpclib', 'google.protobuf')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
