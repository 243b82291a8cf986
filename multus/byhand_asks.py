"""What `multusctl vf` asks of the pools, and what it is answered; on the daemon's socket this is JSON."""

from typing import ClassVar, Final, Literal

import msgspec

from multus.errors import Fault, MultusError

Operation = Literal["show", "allocate", "release", "create"]

BY_HAND: Final = "by hand: "
"""Before the owner of what was allocated here: what the daemon gave a pod is the daemon's to take back."""


class ByHandError(MultusError):
    """What was asked for devices is refused."""

    fault: ClassVar[Fault] = Fault.OPERATOR


class Ask(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What is asked: `count` devices of `pool` for `owner`; that `device` (an address or interface) be given back; or
    that it have `count` VFs.

    `dry`: only say what would be done.
    """

    pool: str = ""
    count: int = 1
    owner: str = "operator"
    device: str = ""
    dry: bool = False


class Given(msgspec.Struct, frozen=True, kw_only=True):
    """What is answered: devices of `resource` and their owner."""

    devices: tuple[str, ...]
    owner: str
    resource: str = ""


class Placed(msgspec.Struct, frozen=True, kw_only=True):
    """A device in a pool. `reason` says why it is not healthy, `owner` who was given it here."""

    resource: str
    reason: str = ""
    owner: str = ""


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """How a PF's VFs were made: what there is to say of it, and the VFs that there are now, a line each.

    Not `changed`: `lines` say what would be done.
    """

    changed: bool = False
    lines: tuple[str, ...] = ()
    vfs: tuple[str, ...] = ()
