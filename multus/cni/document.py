"""JSON objects whose values travel untouched.

A CNI document passes through us on its way from an operator to a plugin. Its values are kept as the bytes that were
written, so that a number such as 1e400 or a key that we do not know arrives as it was sent. Only what is asked for is
decoded.

Keys are looked up in any case, as by Go's encoding/json, for which the reference implementation's files are written.
Of several spellings in one object, which Go lets overwrite one another, the exact one counts here, else the last.
`null` counts as absent, as it leaves a Go field untouched.
"""

from collections.abc import Callable, Mapping
from typing import ClassVar, TypeVar

import msgspec

from multus.errors import Fault, MultusError

Document = dict[str, msgspec.Raw]
"""Members of a JSON object, in the order given; a repeated key keeps its first place and its last value."""

T = TypeVar("T")

NULL = b"null"
QUOTED = 200
MAX_MEMBERS = 1024  # lookups walk over all members; no real document comes near

_object: msgspec.json.Decoder[Document] = msgspec.json.Decoder(Document)


class DocumentError(MultusError):
    """Not the JSON that was expected. Its text says why; the module that asked adds what the document was."""

    fault: ClassVar[Fault] = Fault.OPERATOR


def decode(data: bytes) -> Document:
    """The members of a JSON object. Raises DocumentError, whatever the bytes are."""
    try:
        data.decode()  # msgspec skips over strings that nobody asks for, so it would let broken UTF-8 through
    except UnicodeDecodeError as error:
        raise DocumentError(f"not UTF-8 (byte {error.start})") from None
    if not data.strip():
        raise DocumentError("empty")
    members = _guarded(_object.decode, data)
    if len(members) > MAX_MEMBERS:
        raise DocumentError(f"an object with {len(members)} members, {MAX_MEMBERS} at most")
    return {key: item.copy() for key, item in members.items()}


def value(data: bytes | msgspec.Raw, kind: type[T]) -> T:
    """A JSON value of exactly this type. Raises DocumentError."""
    decoder = msgspec.json.Decoder(kind)
    return _guarded(decoder.decode, data)


def encode(document: Mapping[str, object]) -> bytes:
    """The object as JSON, in this order; Raw members byte for byte. Raises DocumentError for what JSON cannot say."""
    try:
        return msgspec.json.encode(document)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise DocumentError(f"cannot be written as JSON: {error}") from None


def raw(item: object) -> msgspec.Raw:
    """The value as a member for a Document. Raises DocumentError for what JSON cannot say."""
    if isinstance(item, msgspec.Raw):
        return item
    try:
        return msgspec.Raw(msgspec.json.encode(item))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise DocumentError(f"cannot be written as JSON: {error}") from None


def spelled(document: Mapping[str, object], key: str) -> str | None:
    """How this document writes `key`: exactly, else the last spelling that differs in case, else None."""
    if key in document:
        return key
    folded, size = fold(key), len(key)  # a spelling that differs in case is as long
    return next((other for other in reversed(list(document)) if len(other) == size and fold(other) == folded), None)


def member(document: Document, key: str) -> msgspec.Raw | None:
    """The value of `key`, None when it is absent or null."""
    found = spelled(document, key)
    if found is None:
        return None
    item = document[found]
    return None if bytes(item) == NULL else item


def with_member(document: Document, key: str, item: object) -> Document:
    """The document with `key` set, in its old place or at the end.

    Other spellings are taken out: a Go plugin would let whichever comes last win over ours.
    """
    folded, fresh, out = fold(key), raw(item), Document()
    for other, old in document.items():
        if other == key:
            out[other] = fresh
        elif fold(other) != folded:
            out[other] = old
    out.setdefault(key, fresh)
    return out


def without_member(document: Document, key: str) -> Document:
    """The document without `key`, in whatever case it is written."""
    folded = fold(key)
    return {other: item for other, item in document.items() if fold(other) != folded}


def fold(key: str) -> str:
    """A key as Go compares it. Go's folding knows the long s and the Kelvin sign too; lower() covers the second."""
    return key.lower() if key.isascii() else key.lower().replace("\u017f", "s")


def quote(data: bytes) -> str:
    """The beginning of hostile bytes, fit for a message: printable ASCII and escapes only."""
    text = ascii(data[:QUOTED].decode(errors="backslashreplace"))
    return text if len(data) <= QUOTED else f"{text} and {len(data) - QUOTED} bytes more"


def _guarded(decode: Callable[[bytes | msgspec.Raw], T], data: bytes | msgspec.Raw) -> T:
    try:
        return decode(data)
    except msgspec.ValidationError as error:
        raise DocumentError(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DocumentError(f"not JSON: {error}") from None
    except RecursionError:
        raise DocumentError("nested too deeply") from None
