"""Fixtures for every lane."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def anyio_backend() -> str:
    """The daemon runs on asyncio: pyroute2, grpclib and aiohttp tie it there."""
    return "asyncio"


class Noop:
    """One installed plugin that records its calls: see tests/noop/noop.py for what it can be told to do."""

    def __init__(self, program: Path) -> None:
        self.program = program
        self.name = program.name
        self.directory = str(program.parent)
        self.records = program.with_name(f"{program.name}.calls")

    def told(self, **steering: Any) -> None:
        """Tell it anew what to do; nothing of what it was told before holds any more."""
        temporary = self.program.with_name(f".{self.name}.json")
        temporary.write_text(json.dumps(steering))
        temporary.replace(self.program.with_name(f"{self.name}.json"))

    def release(self) -> None:
        """Let the calls that hold go on."""
        self.records.mkdir(exist_ok=True)
        (self.records / "release").touch()

    def calls(self, command: str = "") -> list[dict[str, Any]]:
        """Records of its calls (of one command), in the order in which they began."""
        found = [json.loads(path.read_text()) for path in sorted(self.records.glob("[0-9]*.json"))]
        return [call for call in found if command in ("", call["command"])]


class Noops:
    """A directory of programmable plugins."""

    def __init__(self, directory: Path) -> None:
        self.path = directory
        self.directory = str(directory)

    def install(self, name: str, **steering: Any) -> Noop:
        """A plugin of that name, with what it is told at first."""
        text = (Path(__file__).parent / "noop" / "noop.py").read_text()
        program = self.path / name
        program.write_text(f"#!{sys.executable} -IS\n{text}")
        program.chmod(0o755)
        made = Noop(program)
        made.told(**steering)
        return made


@pytest.fixture
def noops(tmp_path: Path) -> Iterator[Noops]:
    """Where programmable plugins are installed; those that still run at the end are killed."""
    directory = tmp_path / "noop-bin"
    directory.mkdir()
    yield Noops(directory)
    for path in directory.glob("*.calls/[0-9]*.json"):
        record = json.loads(path.read_text())
        for pid in (record["pid"], record.get("child", 0)):
            if pid and (record["ended"] is None or pid != record["pid"]) and _runs(pid, directory):
                os.kill(pid, signal.SIGKILL)


def _runs(pid: int, directory: Path) -> bool:
    """Whether the process is still one of the plugins, and not another with its number."""
    try:
        return os.fsencode(directory) in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
