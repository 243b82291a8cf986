"""Logging of the programs: to stderr, to a rotated file, or both; as text or as one JSON object a line."""

import gzip
import logging
import logging.handlers
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Final, Literal

import msgspec

from multus.settings import LogOptions

# Upstream's names beside ours; it knows no warnings, and its "verbose" is what others call info.
LEVELS: Final = {
    "panic": logging.CRITICAL,
    "error": logging.ERROR,
    "warning": logging.WARNING,
    "verbose": logging.INFO,
    "info": logging.INFO,
    "debug": logging.DEBUG,
}

# What a 0 means upstream.
_SIZE: Final = 100
_ALL: Final = 1000


def configure(
    *,
    level: str = "",
    file: str = "",
    to_stderr: bool = True,
    options: LogOptions = LogOptions(),  # noqa: B008 (frozen)
    form: Literal["text", "json"] = "text",
) -> list[str]:
    """Set up the root logger, in place of whatever was set up before; what cannot be had is said, not raised.

    Without `level` it is "info". Without a file, stderr is used whatever `to_stderr` says: a daemon that says nothing
    anywhere cannot be helped.
    """
    complaints = []
    handlers: list[logging.Handler] = []
    if file:
        try:
            handlers.append(_file(file, options))
        except OSError as error:
            complaints.append(f"cannot write the log to {file}: {error.strerror or error}; it goes to stderr")
    if to_stderr or not handlers:
        handlers.append(logging.StreamHandler(sys.stderr))
    if level and level.lower() not in LEVELS:
        complaints.append(f"logLevel {level!r} is not one of {', '.join(LEVELS)}: info is used")
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    formatter = JSONFormatter() if form == "json" else TextFormatter()
    for handler in handlers:
        handler.setFormatter(formatter)
        root.addHandler(handler)
    root.setLevel(LEVELS.get(level.lower(), logging.INFO))
    for chatty in ("asyncio", "kubernetes_asyncio", "pyroute2", "hpack", "h2", "grpclib"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    return complaints


class TextFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.123Z warning multus.server: ...`, UTC."""

    def format(self, record: logging.LogRecord) -> str:
        """One record; hostile content can neither forge another one nor steer a terminal."""
        line = f"{_stamp(record)} {record.levelname.lower()} {record.name}: {_harmless(record.getMessage())}"
        if not record.exc_info:
            return line
        # Indented, for the message in a traceback may be hostile as well, and have several lines.
        told = self.formatException(record.exc_info).split("\n")
        return "\n    ".join((line, *map(_harmless, told)))


class JSONFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and the traceback of a defect."""

    def format(self, record: logging.LogRecord) -> str:
        """One record."""
        body = {
            "time": _stamp(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _writable(record.getMessage()),
        }
        if record.exc_info:
            body["exception"] = _writable(self.formatException(record.exc_info))
        return msgspec.json.encode(body).decode()


def _harmless(text: str) -> str:
    """What does not print is written as an escape sequence of Python's: control characters, other line ends, halves."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def _writable(text: str) -> str:
    """Without halves of surrogate pairs, as names of files may have that are no UTF-8."""
    return text.encode(errors="backslashreplace").decode()


def _stamp(record: logging.LogRecord) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z"


def _file(path: str, options: LogOptions) -> logging.Handler:
    size = (options.max_size or _SIZE) * 1024 * 1024
    handler = _Rotating(path, maxBytes=size, backupCount=options.max_backups or _ALL, encoding="utf-8")
    handler.max_age = options.max_age * 86_400
    if options.compress:
        handler.namer = lambda name: f"{name}.gz"
        handler.rotator = handler.compress
    return handler


class _Rotating(logging.handlers.RotatingFileHandler):
    """Rotates by size; what is older than `max_age` seconds goes when it does (0: nothing goes for its age)."""

    max_age = 0
    _packing: threading.Thread | None = None

    def compress(self, source: str, target: str) -> None:
        """Set the file aside at once; it is packed in a thread, for whoever logs serves pods meanwhile."""
        aside = f"{target}.plain"
        Path(source).replace(aside)
        self._packing = threading.Thread(target=_pack, args=(aside, target), name="log compression")
        self._packing.start()

    def settle(self) -> None:
        """Wait for what is being packed."""
        if self._packing is not None:
            self._packing.join()

    def close(self) -> None:
        """Once all is on disk."""
        self.settle()
        super().close()

    def doRollover(self) -> None:  # noqa: N802 (the library's name)
        self.settle()  # the names are about to move on
        super().doRollover()
        if self.max_age <= 0:
            return
        here = Path(self.baseFilename)
        for old in here.parent.glob(f"{here.name}.*"):
            if time.time() - old.stat().st_mtime > self.max_age:
                old.unlink(missing_ok=True)


def _pack(source: str, target: str) -> None:
    try:
        with Path(source).open("rb") as plain, gzip.open(target, "wb", compresslevel=6) as packed:
            shutil.copyfileobj(plain, packed)
        Path(source).unlink()
    except OSError as error:  # the log itself may be what is full
        print(f"cannot compress {source}: {error.strerror or error}", file=sys.stderr)
