"""Other projects' programs that go along into the machine, to be compared with ours there.

    MULTUS_PEERS_BIN=FOLDER python -m tests.vm.peers [pytest arguments]      write down what they do

MULTUS_PEERS_BIN names a folder with `sriov` of sriov-cni and `sriovdp` of the SR-IOV network device plugin: the Go
module proxy serves no version of either, so they are not built here. Without them ours is beside what was written down.
"""

import contextlib
import io
import json
import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, TextIO

PROGRAMS: Final = {"sriov": "sriov", "pools": "sriovdp"}
"""By what is written down of them: tests/vm/guest/KIND_upstream.json."""
GUEST: Final = Path(__file__).parent / "guest"
RECORDING: Final = "MULTUS_PEERS_RECORDING"
TESTS: Final = ("tests/vm/guest/test_differential.py", "tests/vm/guest/test_pools_differential.py")
_LINE = re.compile(r"vm: recorded (.*)")


def carry(tree: Path) -> None:
    """Put the programs that were given into the machine's tree."""
    given = os.environ.get("MULTUS_PEERS_BIN")
    if not given:
        return
    target = tree / ".peers"
    target.mkdir()
    for name in PROGRAMS.values():
        if os.access(Path(given) / name, os.X_OK):
            shutil.copy(Path(given) / name, target)
        else:
            print(f"VM lane: MULTUS_PEERS_BIN={given} has no {name}")
    if os.environ.get(RECORDING):
        (target / "record").touch()


def main(arguments: Sequence[str]) -> int:
    """Write down what each program does, or only of those chosen; exit code 0 when nothing failed."""
    from tests.vm import lane

    os.environ[RECORDING] = "1"
    heard = _Tee(sys.stdout)
    with contextlib.redirect_stdout(heard):
        code = lane.main(arguments or TESTS)
    told: dict[str, dict[str, Any]] = {}
    for found in _LINE.finditer(heard.getvalue()):
        kind, name, outcome = json.loads(found[1])
        told.setdefault(kind, {})[name] = outcome
    for kind, scenes in told.items():
        path = GUEST / f"{kind}_upstream.json"
        before = json.loads(path.read_text())
        kept = before["scenes"] if arguments else {}
        path.write_text(json.dumps({**before, "scenes": {**kept, **scenes}}, indent=1) + "\n")
        print(f"{path}: {len(scenes)} scenes of {before['version']}")
    return code


class _Tee(io.StringIO):
    """Keeps what is printed, and prints it."""

    def __init__(self, also: TextIO) -> None:
        super().__init__()
        self._also = also

    def write(self, text: str) -> int:
        """To both."""
        self._also.write(text)
        return super().write(text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
