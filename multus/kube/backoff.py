"""Growing pauses between attempts, spread by chance so that many nodes do not come back at the same moment. Pure."""

import random
from collections.abc import Callable


class Backoff:
    """Pauses in seconds: doubling from `first` to at most `longest`, each between half and all of its step."""

    def __init__(self, first: float, longest: float, *, chance: Callable[[], float] = random.random) -> None:
        self._first = first
        self._longest = longest
        self._chance = chance
        self._step = first

    def next(self) -> float:
        """The pause before the next attempt."""
        pause = self._step * (0.5 + 0.5 * self._chance())
        self._step = min(self._step * 2, self._longest)
        return pause

    def reset(self) -> None:
        """Something worked: start small again."""
        self._step = self._first
