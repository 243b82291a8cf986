"""The kernel lane: root, real plugins, real namespaces. Where one is missing, its tests say so and are skipped."""

import os
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from devices.linux import netns
from multus.cli.box import Box, BoxError, plugin_dir


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = ""
    if os.geteuid() != 0:
        reason = "not root: network namespaces cannot be made"
    else:
        try:
            plugin_dir()
        except BoxError as error:
            reason = str(error)
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.kernel)
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def make_box(tmp_path: Path) -> Iterator[Callable[..., Box]]:
    """A node in a box, with multusd not started yet; closed at the end, whatever happened."""
    boxes: list[Box] = []

    def make(**options: Any) -> Box:
        box = Box(tmp_path / f"node{len(boxes)}", **options)
        box.__enter__()
        boxes.append(box)
        return box

    yield make
    for box in boxes:
        box.close()


@pytest.fixture
def box(make_box: Callable[..., Box]) -> Box:
    """A node in a box with multusd running."""
    made = make_box()
    made.start()
    return made


class Namespace:
    """A named network namespace; `ip` runs in it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = netns.create(name)

    def ip(self, *words: str) -> str:
        """Run `ip` with these words inside; what it printed."""
        command = ["ip", "-n", self.name, *" ".join(words).split()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout

    def veth(self, name: str, *addresses: str) -> None:
        """An interface that is up and carries, with addresses; its other end is `<name>p`."""
        self.ip(f"link add {name} type veth peer name {name}p")
        self.ip(f"link set {name}p up")
        self.ip(f"link set {name} up")
        for address in addresses:
            self.ip(f"addr add {address} dev {name}" + (" nodad" if ":" in address else ""))


@pytest.fixture
def make_namespace() -> Iterator[Callable[[], Namespace]]:
    """Makes named network namespaces with lo up; all removed at the end, whatever happened."""
    made: list[Namespace] = []

    def make() -> Namespace:
        space = Namespace(f"multus-test-{uuid.uuid4().hex[:12]}")
        made.append(space)
        space.ip("link set lo up")
        return space

    yield make
    for space in made:
        netns.delete(space.name)


@pytest.fixture
def pod(make_namespace: Callable[[], Namespace]) -> Namespace:
    """A pod with eth0 (10.0.0.2/24, fd00:a::2/64) and net1 (10.1.0.2/24, fd00:b::2/64), and no default route."""
    space = make_namespace()
    space.veth("eth0", "10.0.0.2/24", "fd00:a::2/64")
    space.veth("net1", "10.1.0.2/24", "fd00:b::2/64")
    return space
