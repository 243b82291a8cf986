"""Fixtures of the virtual machine."""

import gc
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.vm.guest.hardware import Card, Emulator, Hardware, Heard, Records, Space, run, until

if TYPE_CHECKING:
    from tests.vm.guest.attached import Pair


TABLES: Final = ("test_differential", "test_native_links", "test_pools_differential")
"""Files whose tests are rows beside another program."""
SPARED: Final = pytest.StashKey[int]()
WITHOUT: Final = Path("/out/without")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`python -m tests.vm.lane tests/vm/guest/test_drills.py --rounds 50` takes its time."""
    parser.addoption("--rounds", type=int, default=2, help="how often each of 14 VFs is attached and detached")
    parser.addoption("--every", type=int, default=3, help="of rows that look for no difference, which to run: 1 is all")
    parser.addoption("--only", help="names of files without test_ and .py, with commas between them")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """One pass through this folder instead of one for each file that is named."""
    only: str | None = config.getoption("--only")
    name = collection_path.stem.removeprefix("test_")
    return True if only and name != collection_path.stem and name not in only.split(",") else None


def pytest_collection_finish() -> None:
    """What stands now stays, so that the collector need not walk through it (it is off until here: see run.py)."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def links_up() -> None:
    """The cards' interfaces are up from the first test on; init.sh has begun with the cards."""
    until(Path("/run/cards").exists, "the cards", seconds=60)
    run("udevadm settle --timeout=30")
    Hardware().restore()


@pytest.fixture
def hardware(links_up: None) -> Hardware:
    """The cards without VFs. Whoever comes next puts them back."""
    made = Hardware()
    made.restore()
    return made


@pytest.fixture
def kept(links_up: None) -> Hardware:
    """The cards, with VFs of the test before if it left them as they were: see `Card.have`."""
    made = Hardware()
    made.restore(keep=True)
    return made


@pytest.fixture(scope="module")
def pair(links_up: None) -> "Pair":
    """Two VFs that the tests of a file have one after the other."""
    from tests.vm.guest.attached import Pair

    return Pair()


@pytest.fixture
def card(pair: "Pair") -> Card:
    """A card with two VFs, as they were at first."""
    return pair.clean()


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
def qemu(links_up: None) -> Iterator[Emulator]:
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


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Those that have an outcome already, from before the machine fell silent, are not run again.

    Of the long tables beside other programs only a sample is, and whatever is to differ.
    """
    known = set(WITHOUT.read_text().splitlines()) if WITHOUT.exists() else set()
    rows: Counter[str] = Counter()
    kept: list[pytest.Item] = []
    spared = 0
    for item in items:
        table = item.nodeid.partition("[")[0]
        if Path(item.nodeid.partition("::")[0]).stem in TABLES and not _differs(item):
            rows[table] += 1
            if rows[table] % config.getoption("every") != 1 % config.getoption("every"):
                spared += 1
                continue
        if item.nodeid not in known:
            kept.append(item)
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    config.stash[SPARED] = spared
    items[:] = kept


def pytest_report_collectionfinish(config: pytest.Config) -> str:
    """How much of the tables is left out."""
    return f"{config.stash[SPARED]} rows of tables are left out; --every 1 runs them" if config.stash[SPARED] else ""


def _differs(item: pytest.Item) -> bool:
    """Whether a row says that ours and the other program differ."""
    row = item.callspec.params.get("row") if isinstance(item, pytest.Function) and hasattr(item, "callspec") else None
    return bool(getattr(row, "differs", False))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A failure is told at once: the machine may fall silent before pytest comes to tell of it."""
    if report.failed:
        print("", *report.longreprtext.splitlines()[-80:], sep="\n", flush=True)
