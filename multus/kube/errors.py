"""Errors of the cluster edge, and the sentences that several modules share."""

from typing import ClassVar

from multus.errors import Fault, MultusError


class ClusterError(MultusError):
    """The cluster did not answer, refused, or answered with something other than what was asked for."""

    fault: ClassVar[Fault] = Fault.PEER
    retry: ClassVar[bool] = True


class NotFoundError(ClusterError):
    """The cluster answered, and it holds no such object."""

    fault: ClassVar[Fault] = Fault.OPERATOR
    retry: ClassVar[bool] = False


class InvalidNameError(ClusterError):
    """A name that no object can have, so nothing was asked; such a name must never become part of a path."""

    fault: ClassVar[Fault] = Fault.OPERATOR
    retry: ClassVar[bool] = False


class BusyError(ClusterError):
    """The cluster asked for patience; `after` is how many seconds of it, 0 when it did not say."""

    def __init__(self, message: str, *, hint: str = "", after: float = 0.0) -> None:
        super().__init__(message, hint=hint)
        self.after = after


class RefusedError(ClusterError):
    """The cluster understood and refused: asking again will not help until somebody changes something."""

    fault: ClassVar[Fault] = Fault.OPERATOR
    retry: ClassVar[bool] = False


def missing_nad(namespace: str, name: str, *, hint: str = "") -> NotFoundError:
    """The error for a NetworkAttachmentDefinition that is not there, in the words that people search for."""
    return NotFoundError(
        f"cannot find a network-attachment-definition ({name}) in namespace ({namespace}): "
        f'network-attachment-definitions.k8s.cni.cncf.io "{name}" not found',
        hint=hint or f"create it in namespace {namespace}, or correct the pod's networks annotation",
    )


def uid_mismatch(namespace: str, name: str, *, expected: str, got: str) -> ClusterError:
    """The error for a pod of the right name that is another pod: it was deleted and made anew."""
    return ClusterError(
        f'expected pod UID "{expected}" but got "{got}" from Kube API',
        hint=f"{namespace}/{name} was replaced by a new pod; the runtime removes the old sandbox by itself",
    )
