"""`python -m tests.vm.lane [pytest arguments]`: the tests of tests/vm/guest on a machine with real SR-IOV hardware.

It boots a virtual machine with five igb cards and runs pytest in it on a copy of this tree. A machine that falls silent
is started once more, since the emulator does that now and then; a test that failed is never tried again.
"""

import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.vm import image, machine
from tests.vm.apt import Apt, CannotRunError, release

LIMIT: Final = 600.0
"""Seconds for one run of the machine: twice what it takes on two cores that do nothing else."""
TREE: Final = ("multus", "devices", "dpdk", "benchmarks", "tests", "pyproject.toml")
GUEST: Final = Path(__file__).parent / "guest"
OUTCOMES: Final = ("passed", "failed", "skipped")


def main(arguments: Sequence[str]) -> int:
    """Exit code 0 when nothing failed; a machine that cannot run the lane says why, and that counts as skipped."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="multus-vm-") as scratch:
        try:
            if installed := Apt(Path(scratch, "apt")).install_missing():
                print(f"installed: {' '.join(installed)}")
            made = image.ensure()
        except CannotRunError as error:
            print(f"VM lane: skipped: {error}")
            return _close(Counter(skipped=_written()), begin)
        ending, counts = _attempt(made, Path(scratch, "first"), arguments)
        if ending.code is None and ending.hung and not counts["failed"]:
            print(f"VM lane: {ending.why}; it is started once more")
            ending, counts = _attempt(made, Path(scratch, "second"), arguments)
    if ending.code != 0 and not counts["failed"]:
        print(f"VM lane: {ending.why}; pytest's exit code: {ending.code}")
        counts["failed"] = 1
    return _close(counts, begin)


def _attempt(made: image.Image, scratch: Path, arguments: Sequence[str]) -> tuple[machine.Ending, Counter[str]]:
    """One run of the machine, and what its tests came to."""
    out = scratch / "out"
    out.mkdir(parents=True)
    tree = scratch / "tree.tar"
    _pack(tree, scratch / "tree", arguments)
    ending = machine.run(made, tree, out, limit=LIMIT, say=lambda line: print(f"  {line}", flush=True))
    report = out / "junit.xml"
    counts = _covered(report) if report.exists() else _spoken(ending.console)
    if ending.code != 0 and (out / "dmesg").exists():
        print(
            "the end of the kernel's log:", *(out / "dmesg").read_text(errors="replace").splitlines()[-20:], sep="\n  "
        )
    return ending, counts


def _pack(target: Path, stage: Path, arguments: Sequence[str]) -> None:
    """The tree as the machine's second disk; compiled here if its Python is the same: there it takes longer."""
    ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
    for name in TREE:
        source = image.ROOT / name
        if source.is_dir():
            shutil.copytree(source, stage / name, ignore=ignore)
        else:
            stage.mkdir(exist_ok=True)
            shutil.copy(source, stage / name)
    if image.python_of(release()) == f"{sys.version_info.major}.{sys.version_info.minor}":
        packages = [str(stage / name) for name in ("multus", "devices", "dpdk")]
        invalidation = ("--invalidation-mode", "unchecked-hash")
        subprocess.run([sys.executable, "-m", "compileall", "-q", *invalidation, *packages], check=False)
    shutil.copy(Path(sys.executable).parent / "multus", stage / ".shim")
    (stage / ".arguments").write_text("\n".join(arguments or ["tests/vm/guest"]))
    with tarfile.open(target, "w") as tar:
        tar.add(stage, ".")
    # A disk is whole sectors.
    with target.open("ab") as file:
        file.truncate((target.stat().st_size + 4095) // 4096 * 4096)


def _covered(report: Path) -> Counter[str]:
    """What came out, by file, printed; the totals."""
    areas: dict[str, Counter[str]] = {}
    for case in ET.parse(report).iter("testcase"):
        kinds = {child.tag for child in case}
        outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        area = (case.get("classname") or case.get("name") or "").rpartition(".")[2].removeprefix("test_")
        areas.setdefault(area, Counter())[outcome] += 1
    for area, counts in areas.items():
        print(f"VM lane: {area}: {', '.join(f'{counts[each]} {each}' for each in OUTCOMES if counts[each])}")
    return sum(areas.values(), Counter())


def _spoken(console: str) -> Counter[str]:
    """What came out by the lines on the console, when pytest did not get to its report."""
    words = re.findall(r"^\S+::\S+ (PASSED|FAILED|ERROR|SKIPPED)\b", console, re.MULTILINE)
    return Counter("failed" if word == "ERROR" else word.lower() for word in words)


def _written() -> int:
    """How many tests there are that did not run."""
    return sum(
        len(re.findall(r"^(?:async )?def test_", path.read_text(), re.MULTILINE)) for path in GUEST.glob("test_*.py")
    )


def _close(counts: Counter[str], begin: float) -> int:
    print(f"VM lane, {time.monotonic() - begin:.0f} s: {', '.join(f'{counts[each]} {each}' for each in OUTCOMES)}")
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
