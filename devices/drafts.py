"""Sorted lists by name that are changed here and there: what does not change is shared with those before. Pure."""

from bisect import bisect_left, insort
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

K = TypeVar("K")
T = TypeVar("T")


class Drafts(Generic[K, T]):
    """Lists in the making; `before` is not changed, and each of its tuples is sorted by `order`, which is unique."""

    def __init__(self, before: Mapping[K, tuple[T, ...]], order: Callable[[T], str]) -> None:
        self._before = before
        self._order = order
        self._lists: dict[K, list[T]] = {}

    def add(self, name: K, item: T) -> None:
        """Put it into the list of that name, which need not be there yet."""
        insort(self._list(name), item, key=self._order)

    def remove(self, name: K, key: str) -> None:
        """Take what has that key out of the list of that name, if it is in there."""
        found = self._list(name)
        at = bisect_left(found, key, key=self._order)
        if at < len(found) and self._order(found[at]) == key:
            del found[at]

    def done(self) -> dict[K, tuple[T, ...]]:
        """All lists, also those that have become empty."""
        return {**self._before, **{name: tuple(found) for name, found in self._lists.items()}}

    def _list(self, name: K) -> list[T]:
        if name not in self._lists:
            self._lists[name] = list(self._before.get(name, ()))
        return self._lists[name]
