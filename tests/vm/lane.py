"""`python -m tests.vm.lane [pytest arguments]`: the tests of tests/vm/guest on a machine with real SR-IOV hardware.

It boots a virtual machine with five igb cards and runs pytest in it on a copy of this tree; three, each with a third
of the tests, when the arguments name no file. The emulator falls silent now and then: then the machine is started again
for the tests that have no outcome yet. A test that failed is never tried again; one that could not be run counts as
skipped, and it is said why.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
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
MACHINES: Final = 3
"""At a time, on two processors: a third of what a test takes is waiting, for cards above all."""
NOTHING_LEFT: Final = 5
"""What pytest ends with when it has no test to run: the machine fell silent after the last."""
PATIENCE: Final = 240
"""Seconds for one test: the machine is 10 to 20 times slower than this one."""
TREE: Final = ("multus", "devices", "dpdk", "benchmarks", "tests", "deploy/examples", "pyproject.toml")
NOT_IN_THE_TREE: Final = ("*.md", "*.png", "__pycache__", "unit", "cluster")
GUEST: Final = Path(__file__).parent / "guest"
SECONDS: Final = {
    "attributes": 12,
    "binding": 20,
    "differential": 45,
    "discovery": 20,
    "dpdk": 20,
    "drills": 50,
    "following": 30,
    "hotplug": 5,
    "native_links": 20,
    "node": 20,
    "on_demand": 30,
    "policies": 50,
    "sriov_delegate": 25,
    "vfio": 7,
    "vfw": 35,
    "wire": 20,
}
"""What a file of tests takes, roughly; others take 15. By this the files are shared out."""
TOGETHER: Final = ("following", "kubelet", "pools_differential", "vfw")
"""Files that stay in one share: what they import is the same, and takes seconds; and they look at the clock."""
BENCHMARKS: Final = ("speed",)
"""Files that run only when they are named."""
OUTCOMES: Final = ("passed", "failed", "skipped")
_DISK: Final = "--disk="
"""Before the path of the second disk: machines side by side have the same."""
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
        given = [each.removeprefix(_DISK) for each in arguments if each.startswith(_DISK)]
        arguments = [each for each in arguments if not each.startswith(_DISK)]
        tree = Path(given[0]) if given else _pack(Path(scratch, "tree.img"), Path(scratch, "tree"))
        if not any(each.startswith("tests/") for each in arguments):
            return _close(side_by_side([[f"{_DISK}{tree}", *share, *arguments] for share in shares()]), begin)
        runs = 0

        def run(without: Sequence[str], limit: float) -> machine.Ending:
            nonlocal runs
            runs += 1
            return _boot(made, tree, Path(scratch, str(runs), "out"), arguments, without, limit)

        counts = carry_out(run, written=_written(arguments))
    return _close(counts, begin)


def shares(count: int = MACHINES) -> list[list[str]]:
    """All files of tests, in parts that take as long."""
    made: list[list[str]] = [[] for _ in range(count)]
    takes = [0] * count
    names = {path.stem.removeprefix("test_") for path in GUEST.glob("test_*.py")} - {*BENCHMARKS, *TOGETHER}
    parts = [TOGETHER, *((name,) for name in sorted(names, key=lambda each: -SECONDS.get(each, 15)))]
    for part in parts:
        shorter = takes.index(min(takes))
        made[shorter].extend(str((GUEST / f"test_{name}.py").relative_to(image.ROOT)) for name in part)
        takes[shorter] += sum(SECONDS.get(name, 15) for name in part)
    return made


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
    made: image.Image, tree: Path, out: Path, arguments: Sequence[str], without: Sequence[str], limit: float
) -> machine.Ending:
    """One run of the machine."""
    out.mkdir(parents=True)
    (out / "arguments").write_text("\n".join((f"--timeout={PATIENCE}", "--durations=12", *in_guest(arguments))))
    (out / "without").write_text("\n".join(without))
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


def in_guest(arguments: Sequence[str]) -> list[str]:
    """The same for pytest as it is quickest: whole files by `--only`, since it looks through a folder for each file."""
    files = [each for each in arguments if each.startswith("tests/")]
    names = [match[1] for each in files if (match := re.fullmatch(r"tests/vm/guest/test_(\w+)\.py", each))]
    if not names or len(names) < len(files):
        return list(arguments)
    others = [each for each in arguments if each not in files]
    return [*others, f"--only={','.join(names)}", str(GUEST.relative_to(image.ROOT))]


def told(console: str) -> dict[str, str]:
    """The outcome of each test by what pytest said; one that failed stays failed, whatever its teardown said."""
    found: dict[str, str] = {}
    for test, word in _RESULT.findall(console):
        outcome = {"ERROR": "failed", "XFAIL": "skipped", "XPASS": "passed"}.get(word, word.lower())
        if found.get(test) != "failed":
            found[test] = outcome
    return found


def _pack(target: Path, stage: Path) -> Path:
    """The tree as the machine's second disk; compiled here if its Python is the same: there it takes longer."""
    ignore = shutil.ignore_patterns(*NOT_IN_THE_TREE)
    for name in TREE:
        source = image.ROOT / name
        if source.is_dir():
            shutil.copytree(source, stage / name, ignore=ignore)
        else:
            shutil.copy2(source, stage / name)
    shutil.copy(Path(sys.executable).parent / "multus", stage / ".shim")
    peers.carry(stage)
    if image.python_of(release()) == f"{sys.version_info.major}.{sys.version_info.minor}":
        _compile(stage)
    return image.make_disk(stage, target)


def _compile(stage: Path) -> None:
    """All of it; the tests as pytest wants them, which in the machine takes half a minute."""
    packages = [stage / name for name in ("multus", "devices", "dpdk", "benchmarks", "tests")]
    subprocess.run([sys.executable, "-m", "compileall", "-q", "-j", "2", *packages], check=False)
    collect = ["tests.vm.guest.run", "--collect-only", "-q", "tests/vm/guest"]
    env = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    env["PYTHONPATH"] = str(stage)
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
