"""What a container is limited to, as far as hugepages and devices go. Pure.

It is for information, so nothing here refuses a pod: what is not as Kubernetes writes it counts as absent.
"""

from typing import Any, Final

import msgspec

_LOCKING: Final = ("IPC_LOCK", "CAP_IPC_LOCK", "ALL")


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """A container's limits by resource, as written; `locks` when it may lock as much memory as it likes."""

    container: str
    amounts: dict[str, str] = {}
    locks: bool = False


def limits_of(container: str, limits: Any, security: Any) -> Limits | None:
    """From `resources.limits` and `securityContext`; None without hugepages and devices, as nearly all containers."""
    amounts = limits if isinstance(limits, dict) else {}
    if not any("/" in name or name.startswith("hugepages-") for name in amounts):
        return None
    context = security if isinstance(security, dict) else {}
    capabilities = context.get("capabilities")
    added = capabilities.get("add") if isinstance(capabilities, dict) else None
    return Limits(
        container=container,
        amounts={name: str(amount) for name, amount in amounts.items() if isinstance(amount, str | int | float)},
        locks=context.get("privileged") is True
        or (isinstance(added, list) and any(each in _LOCKING for each in added)),
    )
