"""Which network waits for which."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multus.networks.order import Node, order


def nodes(*masters: tuple[str, ...], last: bool = False) -> list[Node]:
    """Position 0 is eth0, the others are net1 and so on; each with the interfaces that it builds on."""
    made = [
        Node(position=position, ifname=f"net{position}" if position else "eth0", masters=names)
        for position, names in enumerate(masters)
    ]
    return [*made, Node(position=len(made), ifname=f"net{len(made)}", last=True)] if last else made


@pytest.mark.parametrize(
    ("given_nodes", "expected"),
    [
        ([], {}),
        (nodes(()), {0: ()}),
        (nodes((), (), ()), {0: (), 1: (0,), 2: (0,)}),
        (nodes((), (), ("net1",)), {0: (), 1: (0,), 2: (0, 1)}),
        (nodes((), (), (), ("net1", "net2")), {0: (), 1: (0,), 2: (0,), 3: (0, 1, 2)}),  # a bond
        (nodes((), ("net2",), ()), {0: (), 1: (0, 2), 2: (0,)}),  # the master may come later in the annotation
        (nodes((), ("net2",), ("net3",), ()), {0: (), 1: (0, 2), 2: (0, 3), 3: (0,)}),
        (nodes((), ("eth0",)), {0: (), 1: (0,)}),
        (nodes(("net1",), ()), {0: (), 1: (0,)}),  # the host's net1: nothing of the pod is there yet
        (nodes((), ("net1",)), {0: (), 1: (0,)}),  # a host interface of the same name
        (nodes((), ("ens1f0",)), {0: (), 1: (0,)}),
        (nodes((), ("net2",), ("net1",)), {0: (), 1: (0,), 2: (0, 1)}),  # a circle: the later one waits
        (
            nodes((), ("net2",), ("net3",), ("net1",)),
            {0: (), 1: (0, 2), 2: (0,), 3: (0, 1)},  # what looks back is kept first, then what closes no circle
        ),
        (nodes((), (), ("net1",), last=True), {0: (), 1: (0,), 2: (0, 1), 3: (0, 1, 2)}),
        (nodes((), ("net2",), last=True), {0: (), 1: (0,), 2: (0, 1)}),  # nobody can wait for the last one
        ([Node(position=1, ifname="a", last=True), Node(position=2, ifname="b", masters=("a",))], {1: (), 2: ()}),
    ],
)
def test_order(given_nodes: list[Node], expected: dict[int, tuple[int, ...]]) -> None:
    assert order(given_nodes) == expected


def test_one_after_the_other() -> None:
    assert order(nodes((), ("net2",), (), last=True), sequential=True) == {0: (), 1: (0,), 2: (0, 1), 3: (0, 1, 2)}


def test_positions_may_be_missing() -> None:
    """A network that was refused is not there to be waited for."""
    assert order([Node(position=2, ifname="net2", masters=("net1",)), Node(position=4, ifname="net4", last=True)]) == {
        2: (),
        4: (2,),
    }


def _can_finish(waits: dict[int, tuple[int, ...]]) -> bool:
    done: set[int] = set()
    while ready := {position for position, before in waits.items() if position not in done and done.issuperset(before)}:
        done |= ready
    return done == set(waits)


NAMES = st.sampled_from(["eth0", *(f"net{number}" for number in range(1, 8)), "ens1"])


@settings(deadline=None)
@given(
    st.lists(st.lists(NAMES, max_size=4).map(tuple), min_size=1, max_size=8),
    st.sets(st.integers(min_value=0, max_value=7)),
    st.sets(st.integers(min_value=0, max_value=7)),
    st.booleans(),
)
def test_no_circle_ever(masters: list[tuple[str, ...]], absent: set[int], last: set[int], sequential: bool) -> None:
    chosen = [
        Node(position=node.position, ifname=node.ifname, masters=node.masters, last=node.position in last)
        for node in nodes(*masters)
        if node.position not in absent
    ]
    waits = order(chosen, sequential=sequential)
    assert waits.keys() == {node.position for node in chosen}
    assert _can_finish(waits)
    assert waits.get(0, ()) == ()
