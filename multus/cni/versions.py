"""Versions of the CNI specification: which there are, and which is newer.

Source: CNI specification, "Released versions".
"""

from multus.cni.errors import CNIError, Code

SUPPORTED: tuple[str, ...] = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
_OLDEST = SUPPORTED[0]


def known(version: str, what: str) -> str:
    """The version, 0.1.0 for "" as in libcni. Raises CNIError INCOMPATIBLE_VERSION; `what` begins its message."""
    if version and version not in SUPPORTED:
        hint = f"versions known here: {', '.join(SUPPORTED)}"
        raise CNIError(Code.INCOMPATIBLE_VERSION, f"{what} in CNI version {version!r:.40}", hint=hint)
    return version or _OLDEST


def at_least(version: str, minimum: str) -> bool:
    """Whether `version` is `minimum` or newer. "" is 0.1.0, as in libcni; what is no version is older than any."""
    return _numbers(version or _OLDEST) >= _numbers(minimum)


def _numbers(version: str) -> tuple[int, ...]:
    return _NUMBERS[version] if version in _NUMBERS else _parsed(version)


def _parsed(version: str) -> tuple[int, ...]:
    parts = version.split(".")
    if len(parts) > 3 or not all(part.isascii() and part.isdigit() and len(part) < 5 for part in parts):
        return ()
    return (*(int(part) for part in parts), 0, 0)[:3]


_NUMBERS = {version: _parsed(version) for version in SUPPORTED}
