"""What operators write, read value by value: where each stands, of which kind it must be, and what was likely meant.

Pure. Keys match in any case, as by Go's encoding/json, for which the files of upstream are written.
"""

import difflib
from collections.abc import Collection, Iterable, Mapping
from typing import ClassVar, Final

import msgspec

from devices.errors import DeviceError, Fault

_QUOTED: Final = 80
_SHOWN: Final = 8


class ConfigError(DeviceError):
    """A configuration that is not taken. `problems` has each thing that is wrong with it, one a line."""

    fault: ClassVar[Fault] = Fault.OPERATOR

    def __init__(self, message: str, *, hint: str = "", problems: Iterable[str] = ()) -> None:
        super().__init__(message, hint=hint)
        self.problems = tuple(problems) or (str(self),)


def refuse(where: str, problems: Collection[str]) -> None:
    """Say all that is wrong at once.

    :raises ConfigError: when there is anything.
    """
    if not problems:
        return
    shown = list(problems)[:_SHOWN]
    more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    raise ConfigError(f"{where}: {'; '.join(shown)}{more}", problems=problems)


def decode_json(data: bytes, where: str) -> object:
    """The document in plain Python types.

    :raises ConfigError: whatever the bytes are.
    """
    try:
        data.decode()
        return msgspec.json.decode(data)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where}: not UTF-8 (byte {error.start})") from None
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ConfigError(f"{where}: not JSON: {error}") from None


def nearest(word: str, known: Iterable[str], *, sure: bool = False) -> str:
    """The one of `known` that was likely meant, "" when none is near."""
    folded: dict[str, str] = {}
    for each in known:
        folded.setdefault(each.casefold(), each)
    found = difflib.get_close_matches(word[:_QUOTED].casefold(), folded, n=1, cutoff=0.8 if sure else 0.6)
    return folded[found[0]] if found else ""


def meant(word: str, known: Collection[str]) -> str:
    """Words to put after a complaint: the nearest right answer, else all that there are."""
    if near := nearest(word, known):
        return f'did you mean "{near}"?'
    return f"one of {', '.join(known)}" if known else ""


def quoted(value: object) -> str:
    """A value as it can stand in a message: short, on one line, harmless to a terminal."""
    if isinstance(value, str):
        text = ascii(value[:_QUOTED])
        return f'"{text[1:-1]}"{"..." if len(value) > _QUOTED else ""}'
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, int | float):
        try:
            return str(value)[:_QUOTED]
        except ValueError:  # Python refuses to write out integers of more than 4300 digits
            return "a huge number"
    return "a list" if isinstance(value, list | tuple) else "an object" if isinstance(value, dict) else "a value"


class Table:
    """An object of a document. `said` takes warnings of unknown keys; without it they are refused.

    Reading a value of the wrong kind raises ConfigError with its place. `null` counts as absent.
    """

    def __init__(self, value: object, where: str, *, keys: Collection[str], said: list[str] | None = None) -> None:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}: {quoted(value)} where an object must stand")
        self.where = where
        by_fold = {key.casefold(): key for key in keys}
        self._members: dict[str, object] = {}
        exact: set[str] = set()
        problems = []
        for key, item in value.items():
            known = by_fold.get(key.casefold()) if isinstance(key, str) else None
            if known is None:
                problems.append(_unknown(key, keys))
            elif item is not None and (key == known or known not in exact):  # of several spellings the exact one counts
                self._members[known] = item
                if key == known:
                    exact.add(known)
        if said is not None:
            said += [f"{where}: {problem}; ignored" for problem in problems]
        else:
            refuse(where, problems)

    def __contains__(self, key: str) -> bool:
        return key in self._members

    def get(self, key: str) -> object:
        """The value as it stands, None when absent."""
        return self._members.get(key)

    def place(self, key: str) -> str:
        """Where a value stands."""
        return f"{self.where}.{key}" if self.where else key

    def text(self, key: str, default: str = "") -> str:
        """A string."""
        value = self._members.get(key, default)
        if not isinstance(value, str):
            raise ConfigError(f"{self.place(key)}: {quoted(value)} where a string must stand", hint=_as_text(value))
        return value

    def choice(self, key: str, known: Collection[str], default: str) -> str:
        """One of `known`, exactly as spelled there."""
        value = self.text(key) or default
        if value not in known:
            raise ConfigError(f"{self.place(key)}: {quoted(value)} is unknown: {meant(value, known)}")
        return value

    def flag(self, key: str, *, default: bool = False) -> bool:
        """true or false."""
        value = self._members.get(key, default)
        if not isinstance(value, bool):
            raise ConfigError(f"{self.place(key)}: {quoted(value)} where true or false must stand")
        return value

    def number(self, key: str, low: int, high: int) -> int | None:
        """A whole number within bounds, None when absent."""
        value = self._members.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigError(f"{self.place(key)}: {quoted(value)} where a whole number must stand")
        if not low <= value <= high:
            raise ConfigError(f"{self.place(key)}: {quoted(value)} is not within {low} to {high}")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings, each once, in their order."""
        value = self._members.get(key, [])
        if not isinstance(value, list | tuple):
            hint = f"write [{quoted(value)}]" if isinstance(value, str) else ""
            raise ConfigError(f"{self.place(key)}: {quoted(value)} where a list of strings must stand", hint=hint)
        for index, item in enumerate(value):
            if not isinstance(item, str):
                place = f"{self.place(key)}[{index}]"
                raise ConfigError(f"{place}: {quoted(item)} where a string must stand", hint=_as_text(item))
        return tuple(dict.fromkeys(value))


def _unknown(key: object, keys: Collection[str]) -> str:
    if not isinstance(key, str):
        return f"a key {quoted(key)} that is no string"
    near = nearest(key, keys)
    return f"unknown key {quoted(key)}" + (f', did you mean "{near}"?' if near else "")


def _as_text(value: object) -> str:
    return f'write it in quotes: "{quoted(value)}"' if isinstance(value, int | float) else ""
