"""Drills: the daemon ends itself, as by kill -9, at a named step, so that a test can see what the next one makes of it.

MULTUS_DRILL=STEP (or STEP@N for its N-th occurrence) in the environment arms one; without it steps cost nothing.
"""

import os
import signal
from collections.abc import Callable, Mapping
from typing import Final

ADD_STEPS: Final = (
    *("add:planned", "add:begun", "add:start:{}", "add:done:{}"),
    *("add:routed", "add:recorded", "add:status", "add:answer"),
)
DEL_STEPS: Final = ("del:begun", "del:start:{}", "del:done:{}", "del:forgotten")
"""Every step there is; {} is an attachment's position."""


def from_environment(env: Mapping[str, str]) -> Callable[[str], None]:
    """What to call at each step."""
    wanted, _, count = env.get("MULTUS_DRILL", "").partition("@")
    if not wanted:
        return lambda _: None
    left = int(count or 1)

    def step(name: str) -> None:
        nonlocal left
        if name == wanted:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return step
