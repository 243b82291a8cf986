"""Following a collection: list, watch, bookmarks, resume, and a new list when the server forgot our version.

Pure: the driver says which request comes next, takes the bytes that came back, and says what they change. Whoever holds
the connection sends, reads and waits. Source: Kubernetes API concepts, "Efficient detection of changes".

The rules:
- every line moves the version that the next watch resumes from, bookmarks and unreadable objects included;
- only 410 and other refusals of our version (by status or by an ERROR event), and what fails three times from one
  version, cost a new list: after a restored backup a server may know nothing of it, and say so in its own way;
- a list replaces what was known in one step, after its last page.
"""

import logging
from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar

import msgspec

from multus.kube.requests import Collection, Request, list_page, watch

logger = logging.getLogger(__name__)

MAX_LINE = 8 << 20  # bytes of one watch line: etcd refuses objects above 1.5 MiB, JSON may escape every byte of one
_GARBAGE_LIMIT = 3
_GONE = 410
_EXPIRED = ("Expired", "Gone")  # reasons of a 410 whose code was lost on the way
_NOT_ABOUT_US = (401, 403, 408, 429, 502, 503)  # these say nothing about the version or the continue token

Key = tuple[str, str]
"""Namespace and name."""


class Item(Protocol):
    """What can be followed."""

    @property
    def namespace(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def uid(self) -> str: ...


T = TypeVar("T", bound=Item)


class Replace(msgspec.Struct, Generic[T], frozen=True):
    """All objects there are."""

    items: dict[Key, T]


class Put(msgspec.Struct, Generic[T], frozen=True):
    """One object, new or changed."""

    item: T


class Drop(msgspec.Struct, frozen=True):
    """One object is gone, or cannot be read any more; `uid` "" whichever it was."""

    key: Key
    uid: str = ""


class Lost(msgspec.Struct, frozen=True):
    """This watch is of no more use: close it, pause, and ask for the next request."""

    why: str


Change = Replace[T] | Put[T] | Drop | Lost


class _Metadata(msgspec.Struct, rename="camel"):
    namespace: str = ""
    name: str = ""
    uid: str = ""
    resource_version: str = ""


class _Named(msgspec.Struct):
    metadata: _Metadata = msgspec.field(default_factory=_Metadata)


class _PageMetadata(msgspec.Struct):
    resource_version: str = msgspec.field(name="resourceVersion", default="")
    more: str = msgspec.field(name="continue", default="")


class _Page(msgspec.Struct):
    metadata: _PageMetadata
    items: list[msgspec.Raw] | None = None  # Go writes null for an empty list


class _Event(msgspec.Struct):
    type: str
    object: msgspec.Raw


class _Status(msgspec.Struct):
    code: int = 0
    message: str = ""
    reason: str = ""


class Driver(Generic[T]):
    """Follows one collection. `decode` reads one object and raises ValueError (msgspec's errors are) for a bad one."""

    def __init__(self, what: Collection, decode: Callable[[bytes], T], *, page_size: int = 500) -> None:
        self.what = what
        self._decode = decode
        self._page_size = page_size
        self._version = ""
        self._more = ""
        self._fresh = False
        self._garbage = 0
        self._listed: dict[Key, T] = {}
        self._lines = Lines(MAX_LINE)

    @property
    def version(self) -> str:
        """Where the next watch resumes; "" when a list has to come first."""
        return self._version

    def next_request(self, *, seconds: int) -> Request:
        """What to ask now; `seconds` is how long a watch shall last."""
        self._lines = Lines(MAX_LINE)
        if self._version:
            return watch(self.what, version=self._version, seconds=seconds)
        return list_page(self.what, limit=self._page_size, more=self._more, fresh=self._fresh)

    def page(self, data: bytes) -> Change[T] | None:
        """Take one page of a list; the change comes with the last page."""
        try:
            page = _load(data, _Page)
            if not page.metadata.resource_version:
                raise ValueError("a list without metadata.resourceVersion")
        except ValueError as error:
            self._relist()
            return Lost(f"unreadable list of {self.what.resource}: {error}")
        for raw in page.items or ():
            item = self._read(bytes(raw))
            if item is not None:
                self._listed[item.namespace, item.name] = item
        self._more = page.metadata.more
        if self._more:
            return None
        listed, self._listed = self._listed, {}
        self._version = page.metadata.resource_version
        self._garbage = 0
        self._fresh = False
        return Replace(listed)

    def feed(self, chunk: bytes) -> Iterator[Change[T]]:
        """Take bytes of a watch, in whatever pieces they came. Stop reading after a Lost."""
        try:
            for line in self._lines.feed(chunk):
                change = self.line(line)
                if change is not None:
                    yield change
                if isinstance(change, Lost):
                    return
        except LineTooLongError as error:
            yield self._spoiled(str(error))

    def line(self, line: bytes) -> Change[T] | None:
        """Take one line of a watch."""
        try:
            event = _load(line, _Event)
            if event.type == "ERROR":
                return self._error(_load(event.object, _Status))
            metadata = _load(event.object, _Named).metadata
            if not metadata.resource_version:
                raise ValueError("an object without metadata.resourceVersion")
        except ValueError as error:
            return self._spoiled(f"{error}: {line[:80]!r}")
        self._version = metadata.resource_version
        self._garbage = 0
        return self._change(event, metadata)

    def refused(self, status: int) -> None:
        """The last request was answered with this HTTP status, not 200."""
        if status in _NOT_ABOUT_US:
            return
        if 400 <= status < 500:
            # 410; a continue token may get 400 after an upgrade; 404: the kind itself went away, and its versions.
            self._relist()
        else:
            self._failed()

    def _change(self, event: _Event, metadata: _Metadata) -> Change[T] | None:
        if event.type in ("ADDED", "MODIFIED"):
            item = self._read(bytes(event.object))
            return Drop((metadata.namespace, metadata.name)) if item is None else Put(item)
        if event.type == "DELETED":
            return Drop((metadata.namespace, metadata.name), metadata.uid)
        if event.type != "BOOKMARK":
            logger.debug("watch of %s: event of unknown type %.40r", self.what.resource, event.type)
        return None

    def _read(self, raw: bytes) -> T | None:
        try:
            return self._decode(raw)
        except ValueError as error:
            # One bad object must not hide the others; whoever asks for it is told by a live read.
            logger.warning("%s: an object cannot be read and is left out: %s", self.what.resource, error)
            return None

    def _error(self, status: _Status) -> Lost:
        if status.code == _GONE or status.reason in _EXPIRED:
            self._relist()
        elif status.code not in _NOT_ABOUT_US:
            self._failed()
        return Lost(f"the server ended the watch of {self.what.resource}: {status.code} {status.message[:200]}")

    def _spoiled(self, why: str) -> Lost:
        self._failed()
        return Lost(f"garbage in the watch of {self.what.resource}: {why[:300]}")

    def _failed(self) -> None:
        self._garbage += 1
        if self._garbage >= _GARBAGE_LIMIT:
            self._relist()

    def _relist(self) -> None:
        self._version = self._more = ""
        self._listed = {}
        self._garbage = 0
        self._fresh = True


_W = TypeVar("_W")


def _load(data: bytes | msgspec.Raw, kind: type[_W]) -> _W:
    try:
        return msgspec.json.decode(data, type=kind)
    except RecursionError:
        raise ValueError("nested too deeply") from None


class LineTooLongError(ValueError):
    """A line grew past its bound."""


class Lines:
    """Cuts a stream of bytes into lines of at most `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._rest = bytearray()

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """The lines that `chunk` completes, without their ends; empty ones are left out.

        :raises LineTooLongError: when what is held grows past the limit.
        """
        *complete, rest = chunk.split(b"\n")
        for piece in complete:
            line = bytes(self._rest) + piece if self._rest else piece
            self._rest.clear()
            if len(line) > self._limit:
                raise LineTooLongError(f"a line of more than {self._limit} bytes")
            if line.strip():
                yield line
        self._rest += rest
        if len(self._rest) > self._limit:
            self._rest.clear()
            raise LineTooLongError(f"a line of more than {self._limit} bytes")
