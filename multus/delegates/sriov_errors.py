"""Why a VF is not given, or is not as it was given."""

from typing import ClassVar

from multus.errors import Fault, MultusError


class AllocatedError(MultusError):
    """The VF is another pod's; it may be free in a moment, when that is taken down."""

    fault: ClassVar[Fault] = Fault.OPERATOR
    retry: ClassVar[bool] = True


class DriftError(MultusError):
    """CHECK found a VF that is not as it was configured."""

    fault: ClassVar[Fault] = Fault.KERNEL


def allocated(bdf: str, holder: str) -> AllocatedError:
    """`holder` has it."""
    return AllocatedError(
        f"pci address {bdf} is already allocated", hint=f"to {holder}; it is free when that pod's DEL is done"
    )


def not_back(bdf: str) -> AllocatedError:
    """Its pod is gone, but the kernel keeps its interface somewhere."""
    return AllocatedError(
        f"VF {bdf}: its interface has not come back from the pod that had it",
        hint="`lsns -t net` shows which processes keep that namespace",
    )
