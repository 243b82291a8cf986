"""Which of a pod's networks waits for which: never a circle, and never more than is needed."""

from collections.abc import Mapping, Sequence

import msgspec


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """A network: its interface, and the interfaces that its configuration builds on (which may be the host's).

    `last`: it works on what all before it have made, and makes no interface of its own.
    """

    position: int
    ifname: str
    masters: tuple[str, ...] = ()
    last: bool = False


def order(nodes: Sequence[Node], *, sequential: bool = False) -> dict[int, tuple[int, ...]]:
    """By position, the positions that must be attached before.

    All wait for 0, the default network, and a `last` one for all before it. Who builds on another's interface waits for
    that, unless that would close a circle: names may be the host's, and two networks may by chance name each other's.
    Then the later one waits, as it would if all were attached in order. `sequential` is just that.
    """
    positions = {node.position for node in nodes}
    waits = {position: positions & ({0} - {position}) for position in positions}
    for node in nodes:
        if sequential or node.last:
            waits[node.position] = {position for position in positions if position < node.position}
    if not sequential:
        references = _references(nodes)
        for backward in (True, False):
            for position, master in references:
                if (master < position) is backward and not _reaches(waits, master, position):
                    waits[position].add(master)
    return {position: tuple(sorted(waits[position])) for position in sorted(positions)}


def _references(nodes: Sequence[Node]) -> list[tuple[int, int]]:
    """Who names whose interface; one of the default network's would close a circle, as all wait for it."""
    makers = {node.ifname: node.position for node in nodes if not node.last}
    return [(node.position, makers[name]) for node in nodes for name in node.masters if name in makers]


def _reaches(waits: Mapping[int, set[int]], start: int, goal: int) -> bool:
    """Whether `start` is `goal`, or already waits for it, directly or not."""
    seen: set[int] = set()
    todo = [start]
    while todo:
        position = todo.pop()
        if position == goal:
            return True
        if position not in seen:
            seen.add(position)
            todo.extend(waits[position])
    return False
