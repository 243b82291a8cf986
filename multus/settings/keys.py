"""Reading JSON configuration as Go's encoding/json does, from one table of keys.

Upstream's files were written for Go: field names match in any case, a later duplicate wins, null leaves the default,
a wrong type is an error. What Go ignores in silence, unknown keys, we report with the nearest key that exists.
"""

import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Final

import msgspec

from multus.cni.document import MAX_MEMBERS, fold
from multus.errors import Fault, MultusError

Read = Callable[[bytes, str], Any]
"""(JSON value, where it stands for messages) -> Python value; raises SettingsError."""

_FIRST_BYTES: Final = {
    ord('"'): "a string",
    ord("{"): "an object",
    ord("["): "a list",
    ord("t"): "a boolean",
    ord("f"): "a boolean",
    ord("n"): "null",
}
_SHOWN_VALUE = 40
_MAX_SECONDS = 86_400.0


class SettingsError(MultusError):
    """A configuration that cannot be used as it stands."""

    fault: ClassVar[Fault] = Fault.OPERATOR


class Key(msgspec.Struct, frozen=True):
    """One key: its name in JSON, the field it fills, how its value is read, whether it may change while running."""

    name: str
    field: str
    read: Read
    live: bool = True


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What one JSON object held: `values` by field, `raw` JSON by the key's right name, and names nobody knows."""

    values: dict[str, Any]
    raw: dict[str, bytes]
    unknown: tuple[str, ...]


def table(*keys: Key) -> Mapping[str, Key]:
    """Keys by folded name, as `read_object` wants them."""
    return {fold(key.name): key for key in keys}


def members(data: bytes, where: str) -> dict[str, bytes]:
    """The members of a JSON object, values untouched."""
    try:
        data.decode()  # msgspec does not look into strings that nobody asks for
        found = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    except msgspec.ValidationError:
        raise wrong_type(where, "an object", data) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SettingsError(f"{where} is not valid JSON: {error}") from None
    if len(found) > MAX_MEMBERS:
        raise SettingsError(f"{where} is an object with {len(found)} members, {MAX_MEMBERS} at most")
    return {name: bytes(value) for name, value in found.items()}


def read_object(data: bytes, keys: Mapping[str, Key], where: str, *, prefix: str = "") -> Found:
    """Read a JSON object by a table of keys.

    :param where: the file or conf, for messages; :param prefix: of the key's own name, e.g. "logOptions."
    :raises SettingsError: not JSON, not an object, or a key of the wrong type.
    """
    values: dict[str, Any] = {}
    raw: dict[str, bytes] = {}
    unknown: list[str] = []
    for name, value in members(data, where).items():
        key = keys.get(fold(name))
        if key is None:
            unknown.append(name)
        elif value != b"null":
            values[key.field] = key.read(value, f"{prefix}{key.name} in {where}")
            raw[key.name] = value
    return Found(values=values, raw=raw, unknown=tuple(unknown))


def nearest(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """The known name most like `name`, or ""."""
    folded = {key.casefold(): key for key in known}
    found = difflib.get_close_matches(name.casefold()[:80], folded, n=1, cutoff=cutoff)
    return folded[found[0]] if found else ""


def wrong_type(where: str, expected: str, value: bytes, *, hint: str = "") -> SettingsError:
    """The error for a value of the wrong type, naming the key, what was expected and what stands there."""
    stripped = value.lstrip()
    kind = _FIRST_BYTES.get(stripped[0], "a number") if stripped else "nothing"
    shown = stripped[:_SHOWN_VALUE].decode("utf-8", "replace") + ("…" if len(stripped) > _SHOWN_VALUE else "")
    return SettingsError(f"{where}: expected {expected}, got {kind}: {shown}", hint=hint)


def _typed(value: bytes, kind: Any, where: str, expected: str, *, hint: str = "") -> Any:
    try:
        return msgspec.json.decode(value, type=kind, strict=True)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise wrong_type(where, expected, value, hint=hint) from None


def text(value: bytes, where: str) -> str:
    """A string."""
    return str(_typed(value, str, where, "a string"))


def boolean(value: bytes, where: str) -> bool:
    """true or false; "true" in quotes is an error, as in Go."""
    hint = "write it without quotes" if value.startswith(b'"') else ""
    return bool(_typed(value, bool, where, "true or false", hint=hint))


def integer(value: bytes, where: str) -> int:
    """A whole number in 64 bits."""
    hint = "write it without quotes" if value.startswith(b'"') else ""
    if not value.lstrip(b"-").isdigit():
        raise wrong_type(where, "a whole number", value, hint=hint)
    number: int = _typed(value, int, where, "a whole number", hint=hint)
    if not -(1 << 63) <= number < 1 << 63:
        raise wrong_type(where, "a whole number in 64 bits", value)
    return number


def natural(value: bytes, where: str) -> int:
    """A whole number, 0 or more."""
    number = integer(value, where)
    if number < 0:
        raise wrong_type(where, "a whole number, 0 or more", value)
    return number


def positive(value: bytes, where: str) -> int:
    """A whole number, 1 or more."""
    number = integer(value, where)
    if number < 1:
        raise wrong_type(where, "a whole number, 1 or more", value)
    return number


def port(value: bytes, where: str) -> int:
    """A TCP port; 0 switches off."""
    number = integer(value, where)
    if not 0 <= number <= 65_535:
        raise wrong_type(where, "a port, 0 to 65535", value)
    return number


def seconds(value: bytes, where: str) -> float:
    """A time in seconds, above 0."""
    number = float(_typed(value, float, where, "a number of seconds", hint="such as 60 or 2.5, without a unit"))
    if not (math.isfinite(number) and 0 < number <= _MAX_SECONDS):
        raise wrong_type(where, f"seconds above 0 and up to {_MAX_SECONDS:.0f}", value)
    return number


def texts(value: bytes, where: str) -> tuple[str, ...]:
    """A list of strings."""
    return tuple(_typed(value, list[str], where, "a list of strings"))


def strings(value: bytes, where: str) -> dict[str, str]:
    """An object of strings."""
    hint = 'write values in quotes: {"key": "true"}'
    return dict(_typed(value, dict[str, str], where, "an object of strings", hint=hint))


def csv(value: bytes, where: str) -> tuple[str, ...]:
    """One string of comma-separated names, each trimmed."""
    hint = 'one string, names separated by commas: "a,b"'
    return tuple(part.strip() for part in str(_typed(value, str, where, "a string", hint=hint)).split(","))


def flags(value: bytes, where: str) -> dict[str, bool]:
    """An object of booleans, where null is false."""
    found: dict[str, bool | None] = _typed(value, dict[str, bool | None], where, "an object of true and false")
    return {name: bool(on) for name, on in found.items()}


def objects(value: bytes, where: str) -> tuple[bytes, ...]:
    """A list of objects, each kept as the bytes it came in."""
    found: list[msgspec.Raw] = _typed(value, list[msgspec.Raw], where, "a list of objects")
    for index, item in enumerate(found):
        if not bytes(item).startswith(b"{"):
            raise wrong_type(f"item {index} of {where}", "an object", bytes(item))
    return tuple(bytes(item) for item in found)


def raw_object(value: bytes, where: str) -> bytes:
    """An object, kept as the bytes it came in."""
    if not value.startswith(b"{"):
        raise wrong_type(where, "an object", value)
    return value


def one_of(*choices: str) -> Read:
    """A string out of a few."""

    def read(value: bytes, where: str) -> str:
        choice = text(value, where)
        if choice not in choices:
            raise wrong_type(where, " or ".join(f'"{each}"' for each in choices), value)
        return choice

    return read


def nested(kind: Callable[..., Any], keys: Mapping[str, Key]) -> Read:
    """An object with a table of its own, given to `kind` as keyword arguments; unknown keys in it are ignored."""

    def read(value: bytes, where: str) -> Any:
        name, _, place = where.partition(" in ")
        return kind(**read_object(raw_object(value, where), keys, place, prefix=f"{name}.").values)

    return read
