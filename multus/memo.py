"""Answers about objects that come again, as a network's configuration does with each of its pods."""

from collections.abc import Callable
from typing import Final, Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")

_ROOM: Final = 256


class ByIdentity(Generic[K, V]):
    """A function whose answers are kept by the very object they are about, which must not change: for any thread.

    An answer that was not kept is asked for again; a failure is never kept.

    >>> @ByIdentity
    ... def masters(conf: NetworkConf) -> tuple[str, ...]: ...
    """

    def __init__(self, function: Callable[[K], V]) -> None:
        self._function = function
        self._kept: dict[int, tuple[K, V]] = {}  # which keeps the object too, so that its id is nobody else's

    def __call__(self, asked: K) -> V:
        """The function's answer."""
        kept = self._kept.get(id(asked))
        if kept is not None:
            return kept[1]
        answer = self._function(asked)
        if len(self._kept) >= _ROOM:
            self._kept.clear()
        self._kept[id(asked)] = (asked, answer)
        return answer
