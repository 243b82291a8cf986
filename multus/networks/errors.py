"""What is wrong with the networks that a pod asks for."""

from typing import ClassVar

from multus.errors import Fault, MultusError


class NetworkError(MultusError):
    """A pod's annotation or a NetworkAttachmentDefinition asks for what cannot be given; whoever wrote it must act."""

    fault: ClassVar[Fault] = Fault.OPERATOR
