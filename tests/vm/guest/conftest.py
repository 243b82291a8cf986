"""Fixtures of the virtual machine."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.vm.guest.hardware import Emulator, Hardware, Heard, Records, Space, until


@pytest.fixture(scope="session")
def links_up() -> None:
    """The cards' interfaces are up from the first test on; each test leaves them so."""
    Hardware().restore()


@pytest.fixture
def hardware(links_up: None) -> Iterator[Hardware]:
    """The cards, with carriers and no VFs; put back at the end."""
    made = Hardware()
    until(lambda: all(card.carrier for card in made.cards), "carriers")
    yield made
    made.restore()


@pytest.fixture
def space() -> Iterator[Callable[[], Space]]:
    """Makes network namespaces; removed at the end, and what is hardware in them comes back."""
    made: list[Space] = []

    def make() -> Space:
        made.append(Space())
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def heard() -> Heard:
    """Listens from here on."""
    return Heard()


@pytest.fixture(scope="session")
def qemu() -> Iterator[Emulator]:
    """QEMU's own control: `qemu("set_link", name="pf1", up=False)`."""
    with Path("/dev/virtio-ports/qmp").open("r+b", buffering=0) as port:

        def answer() -> dict[str, Any]:
            text = b""
            while not text.endswith(b"\n"):
                text += port.read(1) or b""
            return dict(json.loads(text))

        def call(execute: str, **arguments: Any) -> Any:
            port.write(json.dumps({"execute": execute, "arguments": arguments}).encode() + b"\n")
            while True:  # events come in between
                said = answer()
                assert "error" not in said, said
                if "return" in said:
                    return said["return"]

        assert "QMP" in answer()
        call("qmp_capabilities")
        yield call


@pytest.fixture
def records() -> Records:
    """An empty store."""
    return Records()
