"""One record is one line (or an indented traceback), whatever hostile content is in it, and none is lost for it."""

import gzip
import json
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from multus import logs
from multus.settings import LogOptions

HOSTILE = "net1\n2026-01-01T00:00:00.000Z error multus: forged\r\x1b[2Jcleared\x85next\u2028line\x00\u202eend"


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    """A file that the root logger writes to; as before at the end."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    for handler in before:
        root.removeHandler(handler)
    yield tmp_path / "log"
    for handler in root.handlers[:]:
        root.removeHandler(handler)
        handler.close()
    for handler in before:
        root.addHandler(handler)
    root.setLevel(level)


def test_text_cannot_be_forged_nor_steer_a_terminal(log: Path) -> None:
    logs.configure(file=str(log), to_stderr=False)
    logging.getLogger("multus.x").warning("network %s: gr\u00fc\u00dfe", HOSTILE)
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        logging.getLogger("multus.x").exception("a defect")
    lines = log.read_text().splitlines()
    assert all(line.isprintable() for line in lines)
    forged = r"net1\n2026-01-01T00:00:00.000Z error multus: forged\r\x1b[2Jcleared\x85next\u2028line\x00\u202eend"
    assert lines[0].endswith(f" warning multus.x: network {forged}: gr\u00fc\u00dfe")
    assert [line.split()[1] for line in lines if not line.startswith(" ")] == ["warning", "error"]
    assert len(lines) > 3


@pytest.mark.parametrize("form", ["text", "json"])
def test_what_is_no_utf_8_is_written_all_the_same(log: Path, form: str, capfd: pytest.CaptureFixture[str]) -> None:
    logs.configure(file=str(log), to_stderr=False, form=form)  # type: ignore[arg-type]
    logging.getLogger("multus.x").error("file %s", b"\xff.del".decode(errors="surrogateescape"))
    line = log.read_text()
    assert "udcff.del" in (json.loads(line)["message"] if form == "json" else line)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize(("backups", "kept"), [(2, 2), (0, 4)])
def test_a_full_file_is_set_aside_and_no_line_is_lost(log: Path, backups: int, kept: int, compress: bool) -> None:
    """A count of 0 keeps every one, as upstream's does."""
    options = LogOptions(max_size=1, max_backups=backups, compress=compress)
    logs.configure(file=str(log), to_stderr=False, options=options)
    for number in range(45):  # of 100 kB: four files of ten, and what is left
        logging.getLogger("multus.x").warning("%05d%s", number, "x" * 100_000)
    logging.getLogger().handlers[0].close()
    suffix = ".gz" if compress else ""
    names = [f"log.{number}{suffix}" for number in range(kept, 0, -1)]
    assert sorted(path.name for path in log.parent.iterdir()) == sorted([*names, "log"])
    read = gzip.decompress if compress else bytes
    text = b"".join(read((log.parent / name).read_bytes()) for name in names) + log.read_bytes()
    assert [int(number) for number in re.findall(rb": (\d{5})x", text)] == list(range(45 - len(text) // 100_000, 45))
    assert len(text) // 100_000 == kept * 10 + 5


def test_stderr_is_used_when_nothing_else_can_be(log: Path) -> None:
    assert "cannot write the log" in logs.configure(file=str(log / "no" / "directory"), to_stderr=False)[0]
    handlers = [each for each in logging.getLogger().handlers if isinstance(each, logging.StreamHandler)]
    assert [each.stream for each in handlers] == [sys.stderr]
    assert "logLevel 'loud'" in logs.configure(level="loud")[0]
