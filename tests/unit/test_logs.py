"""One record is one line (or an indented traceback), whatever hostile content is in it, and none is lost for it."""

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from multus import logs

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


def test_stderr_is_used_when_nothing_else_can_be(log: Path) -> None:
    assert "cannot write the log" in logs.configure(file=str(log / "no" / "directory"), to_stderr=False)[0]
    handlers = [each for each in logging.getLogger().handlers if isinstance(each, logging.StreamHandler)]
    assert [each.stream for each in handlers] == [sys.stderr]
    assert "logLevel 'loud'" in logs.configure(level="loud")[0]
