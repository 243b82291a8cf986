"""`python -m tests.vm.lane [pytest arguments]`: the tests of tests/vm/guest on a machine with real SR-IOV hardware.

It boots a virtual machine with five igb cards and runs pytest in it on a copy of this tree; two, each with half of the
tests, when the arguments name no file. The emulator falls silent now and then: then the machine is started again for
the tests that have no outcome yet. A test that failed is never tried again; one that could not be run counts as
skipped, and it is said why.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Final

from tests.vm import image, machine, peers
from tests.vm.apt import Apt, CannotRunError, release

LIMIT: Final = 900.0
"""Seconds for all that a machine does, started again or not; what has not run by then counts as skipped."""
STARTS: Final = 3
NOTHING_LEFT: Final = 5
"""What pytest ends with when it has no test to run: the machine fell silent after the last."""
PATIENCE: Final = 240
"""Seconds for one test: the machine is 10 to 20 times slower than this one."""
TREE: Final = ("multus", "devices", "dpdk", "benchmarks", "tests", "deploy/examples", "pyproject.toml")
GUEST: Final = Path(__file__).parent / "guest"
SECONDS: Final = {
    "binding": 40,
    "by_hand": 55,
    "differential": 75,
    "dpdk": 45,
    "drills": 95,
    "following": 45,
    "kubelet": 45,
    "native_links": 40,
    "node": 60,
    "on_demand": 75,
    "policies": 115,
    "pools_differential": 25,
    "sriov_delegate": 35,
    "vfw": 75,
}
"""What a file of tests takes, roughly; others take 15. By this the files are shared out."""
BENCHMARKS: Final = ("speed",)
"""Files that run only when they are named."""
OUTCOMES: Final = ("passed", "failed", "skipped")
_RESULT = re.compile(r"^\s*(tests/\S+?::.*?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b", re.MULTILINE)
_TOTALS = re.compile(r"^(\d+) passed, (\d+) failed, (\d+) skipped$")
_BEGUN = re.compile(r"^\s*(tests/\S+?::.*?)(?: (?:PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b.*)?$", re.MULTILINE)

Run = Callable[[Sequence[str], float], machine.Ending]
"""One run of the machine, without the tests named, for so many seconds at most."""


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
            return _close(Counter(skipped=_written(arguments)), begin)
        if not any(each.startswith("tests/") for each in arguments):
            return _close(side_by_side([[*share, *arguments] for share in shares()]), begin)
        runs = 0

        def run(without: Sequence[str], limit: float) -> machine.Ending:
            nonlocal runs
            runs += 1
            return _boot(made, Path(scratch, str(runs)), arguments, without, limit)

        counts = carry_out(run, written=_written(arguments))
    return _close(counts, begin)


def shares() -> tuple[list[str], list[str]]:
    """All files of tests, in two halves that take as long."""
    halves: tuple[list[str], list[str]] = ([], [])
    takes = [0, 0]
    names = {path: path.stem.removeprefix("test_") for path in sorted(GUEST.glob("test_*.py"))}
    seconds = {path: SECONDS.get(name, 15) for path, name in names.items() if name not in BENCHMARKS}
    for path in sorted(seconds, key=lambda each: -seconds[each]):
        shorter = takes.index(min(takes))
        halves[shorter].append(str(path.relative_to(image.ROOT)))
        takes[shorter] += seconds[path]
    return halves


def side_by_side(
    shared: Sequence[Sequence[str]], program: Sequence[str] = (sys.executable, "-m", "tests.vm.lane")
) -> Counter[str]:
    """A lane for each share, all at once; what came out of them together."""
    heard: list[list[str]] = [[] for _ in shared]

    def relay(number: int, output: IO[str]) -> None:
        with output:
            for line in output:
                heard[number].append(line)
                print(f"{number + 1}| {line}", end="", flush=True)

    lanes, threads = [], []
    try:
        for number, share in enumerate(shared):
            command, pipe, same = [*program, *share], subprocess.PIPE, subprocess.STDOUT
            lane = subprocess.Popen(command, cwd=image.ROOT, stdout=pipe, stderr=same, text=True)
            lanes.append(lane)
            threads.append(threading.Thread(target=relay, args=(number, lane.stdout), daemon=True))
            threads[-1].start()
        for lane in lanes:
            lane.wait()
    finally:
        for lane in lanes:
            lane.terminate()  # it takes its machine along
            lane.wait()
        for thread in threads:
            thread.join()
    counts: Counter[str] = Counter()
    for lane, lines in zip(lanes, heard, strict=True):
        totals = _TOTALS.match(lines[-1]) if lines else None
        counts += Counter(dict(zip(OUTCOMES, map(int, totals.groups()), strict=True))) if totals else Counter(failed=1)
        if lane.returncode and not counts["failed"]:
            counts["failed"] = 1
    return counts


def carry_out(run: Run, *, written: int, limit: float = LIMIT, starts: int = STARTS) -> Counter[str]:
    """Run the machine until every test of those `written` has an outcome, or it is no use; what came out."""
    deadline = time.monotonic() + limit
    outcomes: dict[str, str] = {}
    hung: Counter[str] = Counter()
    for start in range(1, starts + 1):
        ending = run(list(outcomes), deadline - time.monotonic())
        outcomes |= told(ending.console)
        if ending.code is not None or "failed" in outcomes.values() or not ending.cut:
            break
        stuck = next(reversed(_BEGUN.findall(ending.console)), "").strip()
        print(f"VM lane: {ending.why}, in {stuck or 'no test'}")
        if stuck and stuck not in outcomes:
            hung[stuck] += 1
            if hung[stuck] > 1:
                print(f"VM lane: {stuck} is left out")
                outcomes[stuck] = "skipped"
        if start == starts or time.monotonic() > deadline - 60:
            break
        print("VM lane: the machine is started again for the tests that have no outcome yet")
    counts = _covered(outcomes)
    if ending.code is None and ending.cut:
        missing = max(written - len(outcomes), 0)
        print(f"VM lane: {missing} tests or more did not run: {ending.why}")
        counts["skipped"] += missing
    elif ending.code not in (0, NOTHING_LEFT if outcomes else 0) and not counts["failed"]:
        print(f"VM lane: {ending.why}; pytest's exit code: {ending.code}")
        counts["failed"] = 1
    return counts


def _boot(
    made: image.Image, scratch: Path, arguments: Sequence[str], without: Sequence[str], limit: float
) -> machine.Ending:
    """One run of the machine."""
    out = scratch / "out"
    out.mkdir(parents=True)
    tree = scratch / "tree.tar"
    _pack(tree, scratch / "tree", arguments, without)
    begin = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - begin:5.0f} s  {line}", flush=True)

    # DPDK wants a processor for itself; without it, two that share one of ours only wait for each other.
    processors = 2 if any("test_vfw" in each for each in arguments) else 1
    ending = machine.run(made, tree, out, processors=processors, limit=limit, say=say)
    if ending.code != 0 and (out / "dmesg").exists():
        print(
            "the end of the kernel's log:", *(out / "dmesg").read_text(errors="replace").splitlines()[-20:], sep="\n  "
        )
    return ending


def told(console: str) -> dict[str, str]:
    """The outcome of each test by what pytest said; one that failed stays failed, whatever its teardown said."""
    found: dict[str, str] = {}
    for test, word in _RESULT.findall(console):
        outcome = {"ERROR": "failed", "XFAIL": "skipped", "XPASS": "passed"}.get(word, word.lower())
        if found.get(test) != "failed":
            found[test] = outcome
    return found


def _pack(target: Path, stage: Path, arguments: Sequence[str], without: Sequence[str]) -> None:
    """The tree as the machine's second disk; compiled here if its Python is the same: there it takes longer."""
    compiled = image.python_of(release()) == f"{sys.version_info.major}.{sys.version_info.minor}"
    ignore = shutil.ignore_patterns("*.md", "*.png") if compiled else shutil.ignore_patterns("__pycache__")
    for name in TREE:
        source = image.ROOT / name
        if source.is_dir():
            shutil.copytree(source, stage / name, ignore=ignore)
        else:
            stage.mkdir(exist_ok=True)
            shutil.copy(source, stage / name)
    shutil.copy(Path(sys.executable).parent / "multus", stage / ".shim")
    peers.carry(stage)
    (stage / ".arguments").write_text("\n".join((f"--timeout={PATIENCE}", "--durations=12", *arguments)))
    (stage / ".without").write_text("\n".join(without))
    if compiled:
        _compile(stage)
    with tarfile.open(target, "w") as tar:
        tar.add(stage, ".")
    # A disk is whole sectors.
    with target.open("ab") as file:
        file.truncate((target.stat().st_size + 4095) // 4096 * 4096)


def _compile(stage: Path) -> None:
    """What is not compiled here already; the tests as pytest wants them, which in the machine takes half a minute."""
    packages = [stage / name for name in ("multus", "devices", "dpdk", "benchmarks", "tests/vm")]
    modules = [*packages, *(stage / "tests").glob("*.py")]
    subprocess.run([sys.executable, "-m", "compileall", "-q", *modules], check=False)
    collect = ["pytest", "--collect-only", "-q", "-p", "no:hypothesispytest", "tests/vm/guest"]
    env = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run([sys.executable, "-m", *collect], cwd=stage, env=env, stdout=subprocess.DEVNULL, check=False)


def _covered(outcomes: Mapping[str, str]) -> Counter[str]:
    """What came out, by file, printed; the totals."""
    areas: dict[str, Counter[str]] = {}
    for test, outcome in outcomes.items():
        area = Path(test.partition("::")[0]).stem.removeprefix("test_")
        areas.setdefault(area, Counter())[outcome] += 1
    for area, counts in areas.items():
        print(f"VM lane: {area}: {', '.join(f'{counts[each]} {each}' for each in OUTCOMES if counts[each])}")
    return sum(areas.values(), Counter())


def _written(arguments: Sequence[str]) -> int:
    """How many tests are in the files among the arguments, or in all: those with several rows count once."""
    named = [image.ROOT / each.partition("::")[0] for each in arguments if ".py" in each]
    texts = [path.read_text() for path in named or GUEST.glob("test_*.py")]
    return sum(len(re.findall(r"^(?:async )?def test_", text, re.MULTILINE)) for text in texts)


def _close(counts: Counter[str], begin: float) -> int:
    print(f"VM lane: {time.monotonic() - begin:.0f} s")
    print(", ".join(f"{counts[each]} {each}" for each in OUTCOMES))
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
