"""Plans of policies carried out on a fake sysfs: in order, up to the first failure of a PF, and again after a crash."""

import errno
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest

from devices.errors import DeviceError, KernelError
from devices.inventory import build
from devices.policy import Change, Plan, Policy, parse_policy, plan_policies
from devices.policy_apply import Applier, Failure, Outcome
from tests.fake_policy_kernel import ONE, TWO, Crash, PolicyKernel

pytestmark = pytest.mark.anyio


def policy(name: str, *pf_names: str, num: int = 4, **spec: Any) -> Policy:
    spec = {"resourceName": name, "numVfs": num, "nicSelector": {"pfNames": list(pf_names)}, **spec}
    return parse_policy({"metadata": {"name": name}, "spec": spec})


class Node(PolicyKernel):
    """Its policies, and who holds its VFs."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.policies: list[Policy] = []
        self.held: Mapping[str, str] = {}

    async def plan(self) -> Plan:
        return plan_policies(build(self.read(), guarded={}), self.policies, self.held)

    async def apply(self, **options: Any) -> Outcome:
        applier = Applier(self, self, self, **{"settle": 0.0, **options})
        return await applier.apply(await self.plan(), self.plan)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    node = Node(tmp_path)
    node.policies = [
        policy("net", "ens1#0-1", num=4, mtu=9000),
        policy("dpdk", "ens1#2-3", num=4, deviceType="vfio-pci"),
        policy("two", "ens2", num=2),
    ]
    return node


WANTED = {"ens1": [(9000, "iavf")] * 2 + [(0, "vfio-pci")] * 2, "ens2": [(1500, "iavf")] * 2}
STEPS = [
    "ens1 has 4",
    "ens1 mtu 9000",
    "ens10 mtu 9000",
    "ens11 mtu 9000",
    "ens12 to vfio-pci for policy dpdk",
    "ens13 to vfio-pci for policy dpdk",
]


def on_one(node: Node) -> list[str]:
    return [call for call in node.calls if call.startswith("ens1")]


async def test_everything_in_order_and_then_nothing(node: Node) -> None:
    outcome = await node.apply()
    assert node.shape == WANTED
    assert on_one(node) == STEPS
    assert [call for call in node.calls if call.startswith("ens2")] == ["ens2 has 2"]
    assert (outcome.failures, outcome.plan) == ((), Plan())
    assert sorted(step.pf for step in outcome.done) == [ONE] * 6 + [TWO]
    assert all(step.bdf for step in outcome.done)
    node.calls.clear()
    assert await node.apply() == Outcome()
    assert node.calls == []


@pytest.mark.parametrize("step", STEPS)
async def test_a_pf_is_given_up_at_its_first_failure_and_only_that(node: Node, step: str) -> None:
    node.refused[step] = KernelError("it", errno.EIO, "refused")
    outcome = await node.apply()
    together = {STEPS[4]: [STEPS[5]]}  # VFs change their driver together: each that can
    assert on_one(node) == STEPS[: STEPS.index(step)] + together.get(step, [])
    assert node.shape["ens2"] == WANTED["ens2"]
    (failure,) = outcome.failures
    assert (failure.step.pf, failure.reason) == (ONE, "it: refused")
    assert failure.retry == (failure.step.change is not Change.NUMVFS)
    assert str(failure).startswith("policy ")
    del node.refused[step]  # what it was is mended: the rest is made, and only that
    assert (await node.apply()).failures == ()
    assert sorted(on_one(node)) == sorted(STEPS)
    assert node.shape == WANTED


@pytest.mark.parametrize("step", STEPS)
async def test_after_a_crash_planning_anew_completes_it(node: Node, step: str) -> None:
    node.policies.pop()
    node.refused[step] = Crash()
    with pytest.raises(BaseExceptionGroup) as crash:
        await node.apply()
    assert crash.group_contains(Crash)
    node.refused.clear()
    await node.apply()
    assert node.calls == STEPS
    assert node.shape["ens1"] == WANTED["ens1"]


async def test_a_crash_between_removing_and_making(node: Node) -> None:
    node.fake.grow(ONE, 3)
    node.refused["ens1 has 4"] = Crash()
    with pytest.raises(BaseExceptionGroup):
        await node.apply()
    assert node.shape["ens1"] == []
    node.refused.clear()
    await node.apply()
    assert node.shape == WANTED


async def test_another_number_takes_away_those_that_are_there(node: Node) -> None:
    node.fake.grow(ONE, 2)
    before = {node.fake.vf_bdf(ONE, index) for index in range(2)}
    await node.apply()
    assert on_one(node) == ["ens1 has 0", *STEPS]
    assert node.gone == before


@pytest.mark.parametrize("again", [True, False])
async def test_a_number_that_the_kernel_refuses_leaves_those_that_were_there(node: Node, again: bool) -> None:
    node.fake.grow(ONE, 2)
    node.refused["ens1 has 4"] = KernelError("making 4 VFs", errno.ENOMEM, "no room", hint="pci=realloc")
    if not again:
        node.refused["ens1 has 2"] = KernelError("making 2 VFs", errno.EIO, "broken")
    (failure,) = (await node.apply()).failures
    assert failure.retry
    said = (
        "its 2 VFs were made again (pci=realloc)" if again else "nor can its 2 VFs be made again: making 2 VFs: broken"
    )
    assert failure.reason == f"making 4 VFs: no room; {said}"
    assert len(node.shape["ens1"]) == (2 if again else 0)
    assert node.shape["ens2"] == WANTED["ens2"]


async def test_a_kernel_that_does_something_else(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "set_numvfs", lambda bdf, count: node.fake.grow(bdf, count - 1))
    outcome = await node.apply()
    assert {failure.reason.split(" (")[0] for failure in outcome.failures} == {
        "it has 3 VFs after it was told 4",
        "it has 1 VFs after it was told 2",
    }


async def test_somebody_who_undoes_it_again_and_again(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    async def contested(addresses: Sequence[str], driver: str, *, owner: str) -> dict[str, DeviceError]:
        node.calls.append(f"bound {len(addresses)}")
        return {}

    monkeypatch.setattr(node, "bind", contested)
    (failure,) = (await node.apply()).failures
    assert "undone by somebody else" in failure.reason
    assert node.calls.count("bound 2") == 1


async def test_a_vf_in_use_is_not_touched_and_the_rest_is_done(node: Node) -> None:
    node.fake.grow(ONE, 4)
    node.held = {node.fake.vf_bdf(ONE, 3): "pod a/b"}
    outcome = await node.apply()
    assert on_one(node) == [step for step in STEPS[1:] if not step.startswith("ens13")]
    assert ["pod a/b" in refusal.reason for refusal in outcome.plan.refusals] == [True]


async def test_a_pf_that_is_left_alone(node: Node) -> None:
    applier = Applier(node, node, node)
    await applier.apply(await node.plan(), node.plan, only=TWO)
    assert node.calls == ["ens2 has 2"]


async def test_a_vf_that_became_another(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.fake.grow(ONE, 4)
    plan = await node.plan()
    node.fake.grow(ONE, 0)
    node.fake.grow(TWO, 2)
    outcome = await Applier(node, node, node).apply(plan, node.plan)
    (failure,) = outcome.failures
    assert failure.retry
    assert failure.reason == "it is gone"
    assert on_one(node) == ["ens1 mtu 9000"]


async def test_a_driver_back_and_the_mtu_of_the_interface_that_it_makes(node: Node) -> None:
    """An MTU can be planned only once the driver has made the interface."""
    node.policies = [policy("net", "ens1", num=2, mtu=9000)]
    node.vf_netdevs = False
    node.fake.grow(ONE, 2, driver="vfio-pci", netdevs=False)
    await node.apply()
    assert node.calls[1:] == [
        "ens10 to the kernel for policy net",
        "ens11 to the kernel for policy net",
        "ens10 mtu 9000",
        "ens11 mtu 9000",
    ]


async def test_interfaces_that_come_late_are_waited_for(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.policies.pop()
    node.vf_netdevs = False
    looks = 0
    read = node.read_one

    def slow(bdf: str) -> Any:
        nonlocal looks
        looks += 1
        record = read(bdf)
        if record is not None and record.physfn and not record.netdev and record.driver == "iavf" and looks > 12:
            node.fake.netdev(bdf, f"late{record.vf_index}")
        return record

    monkeypatch.setattr(node, "read_one", slow)
    assert (await node.apply(settle=30.0)).plan == Plan()
    assert node.shape["ens1"] == WANTED["ens1"]


@pytest.fixture
def stuck(node: Node) -> Iterator[threading.Event]:
    """A kernel that does not come back from making VFs on the first card until it is let go."""
    release = threading.Event()
    make = node.set_numvfs

    def hang(bdf: str, count: int) -> None:
        if bdf == ONE:
            assert release.wait(30)
        make(bdf, count)

    node.set_numvfs = hang  # type: ignore[method-assign]
    yield release
    release.set()


async def test_a_kernel_that_hangs_holds_up_nobody_else(node: Node, stuck: threading.Event) -> None:
    applier = Applier(node, node, node, deadline=0.2)

    async def failure() -> Failure:
        failures = (await applier.apply(await node.plan(), node.plan)).failures
        return next(each for each in failures if each.step.pf == ONE)

    first = await failure()
    assert first.retry
    assert "still works on it" in first.reason
    with anyio.fail_after(20):
        while node.shape["ens2"] != WANTED["ens2"]:
            await failure()
    assert (await failure()).reason.startswith("the kernel still works on its VFs")  # one write at a time
    stuck.set()
    with anyio.fail_after(10):
        while (outcome := await applier.apply(await node.plan(), node.plan)).failures:
            await anyio.sleep(0.01)
    assert outcome.plan == Plan()
    assert node.shape == WANTED


async def test_hardware_that_cannot_be_looked_at(node: Node) -> None:
    async def blind() -> Plan:
        raise DeviceError("not now")

    with pytest.raises(DeviceError, match="not now"):
        await Applier(node, node, node).apply(await node.plan(), blind)


async def test_every_step_names_its_change(node: Node) -> None:
    outcome = await node.apply()
    kinds = [step.change for step in outcome.done if step.pf == ONE]
    assert kinds == [Change.NUMVFS, Change.MTU, Change.MTU, Change.MTU, Change.DRIVER, Change.DRIVER]
