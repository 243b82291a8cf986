"""What a watch has told so far, for reading without asking and for waiting without polling."""

from collections.abc import Callable, Mapping
from typing import Generic

import anyio

from multus.kube.watching import Drop, Key, Put, Replace, T


class Cache(Generic[T]):
    """Objects by namespace and name. `synced` is set once a whole list, or the news that there is none, came in."""

    def __init__(self, gone: Callable[[T], None] = lambda _: None) -> None:
        self.synced = anyio.Event()
        self._gone = gone
        self._items: dict[Key, T] = {}
        self._waiting: dict[Key, list[anyio.Event]] = {}

    def __len__(self) -> int:
        return len(self._items)

    def get(self, namespace: str, name: str) -> T | None:
        """The object as last heard of."""
        return self._items.get((namespace, name))

    async def wait(self, namespace: str, name: str, fits: Callable[[T], bool]) -> T:
        """The object as soon as one is there that fits. The caller bounds the wait."""
        key = namespace, name
        while True:
            item = self._items.get(key)
            if item is not None and fits(item):
                return item
            news = anyio.Event()
            waiting = self._waiting.setdefault(key, [])
            waiting.append(news)
            try:
                await news.wait()
            finally:
                waiting.remove(news)
                if not waiting and self._waiting.get(key) is waiting:
                    del self._waiting[key]

    def apply(self, change: Replace[T] | Put[T] | Drop) -> None:
        """Take one change from the watch."""
        if isinstance(change, Replace):
            self._replace(change.items)
        elif isinstance(change, Put):
            item = change.item
            old = self._items.get((item.namespace, item.name))
            if old is not None and old.uid != item.uid:
                self._gone(old)
            self._items[item.namespace, item.name] = item
            self._tell((item.namespace, item.name))
        else:
            held = self._items.get(change.key)
            # The news that an object was deleted may come after a new one of its name.
            if held is not None and change.uid in ("", held.uid):
                self._gone(self._items.pop(change.key))

    def _replace(self, items: Mapping[Key, T]) -> None:
        kept = {item.uid for item in items.values()}
        for old in self._items.values():
            if old.uid not in kept:
                self._gone(old)
        self._items = dict(items)
        for key in list(self._waiting):
            self._tell(key)
        self.synced.set()

    def _tell(self, key: Key) -> None:
        for news in self._waiting.get(key, ()):
            news.set()
