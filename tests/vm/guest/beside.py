"""Ours beside upstream: outcomes that were written down of it, rows that say where ours differs, and why."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

PROGRAMS: Final = "/tree/.peers"
"""Where upstream's programs are in the machine, if they came along."""
RECORDING: Final = Path(PROGRAMS, "record").exists()
"""Whether it is upstream's turn, for what it does to be written down."""
NOTHING: Final = object()
"""Ours for what ours does not have at all."""

Outcome = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Differs:
    """Where ours is not as upstream's on purpose: what ours gives, and why."""

    ours: Any
    why: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """Something that both are asked. `differs` is by key of the outcome."""

    name: str
    differs: Mapping[str, Differs] = field(default_factory=dict)

    def expected(self, theirs: Outcome) -> Outcome:
        """What ours has to come to; an assertion when it is said to differ where it does not."""
        same = [key for key, each in self.differs.items() if theirs.get(key, NOTHING) == each.ours]
        assert not same, f"{self.name}: {same} are no differences"
        merged = {**theirs, **{key: each.ours for key, each in self.differs.items()}}
        return {key: value for key, value in merged.items() if value is not NOTHING}


class Upstream:
    """What a program of upstream's did here, in a file beside this one; `live` when it came along."""

    def __init__(self, kind: str, program: str) -> None:
        written = json.loads(Path(__file__).with_name(f"{kind}_upstream.json").read_text())
        self.scenes: Mapping[str, Outcome] = written["scenes"]
        self.live = os.access(f"{PROGRAMS}/{program}", os.X_OK)
        self._kind = kind
        self._absent = f"no {program} came along; ours is beside what was written down of {written['version']}"

    def for_ours(self, rows: Sequence[Row]) -> pytest.MarkDecorator:
        """Makes a test of ours one for each row."""
        return _each(rows, only=not RECORDING, otherwise="it is upstream's turn")

    def for_upstream(self, rows: Sequence[Row]) -> pytest.MarkDecorator:
        """Makes a test of upstream's program one for each row."""
        return _each(rows, only=self.live, otherwise=self._absent)

    def judge(self, row: Row, outcome: Outcome) -> None:
        """See that it still does what was written down, or have it written down (see tests/vm/peers.py)."""
        if RECORDING:
            with Path("/dev/console").open("w") as console:
                console.write(f"\nvm: recorded {json.dumps([self._kind, row.name, outcome])}\n")
        else:
            assert outcome == self.scenes[row.name]


def _each(rows: Sequence[Row], *, only: bool, otherwise: str) -> pytest.MarkDecorator:
    if only:
        return pytest.mark.parametrize("row", [pytest.param(row, id=row.name.replace(" ", "-")) for row in rows])
    return pytest.mark.parametrize("row", [pytest.param(None, id="none", marks=pytest.mark.skip(reason=otherwise))])
