"""CNI errors: the numbered codes of the specification and the JSON they travel in.

Source: CNI specification 1.1, "Error". 11 asks the runtime to try again later; 50 and 51 belong to STATUS.
"""

from enum import IntEnum
from typing import ClassVar

import msgspec

from multus.errors import Fault, MultusError


class Code(IntEnum):
    """Error codes that the CNI specification fixes, and 999, which libcni uses for everything else."""

    INCOMPATIBLE_VERSION = 1
    UNSUPPORTED_FIELD = 2
    UNKNOWN_CONTAINER = 3
    INVALID_ENVIRONMENT = 4
    IO_FAILURE = 5
    DECODING_FAILURE = 6
    INVALID_NETWORK_CONFIG = 7
    TRY_AGAIN_LATER = 11
    NOT_AVAILABLE = 50
    LIMITED_CONNECTIVITY = 51
    INTERNAL = 999


_MAX_CODE = 2**32 - 1  # Go's uint where it is smallest


class CNIError(MultusError):
    """An error with the code, message and details that a CNI runtime is shown. A code out of range becomes 999."""

    fault: ClassVar[Fault] = Fault.PEER

    def __init__(self, code: int, message: str, details: str = "", *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = int(code) if 0 <= code <= _MAX_CODE else int(Code.INTERNAL)
        self.details = details

    def encode(self, cni_version: str) -> bytes:
        """The error as the CNI specification's JSON object, for stdout."""
        return msgspec.json.encode({"cniVersion": _sayable(cni_version), **self.body()})

    def body(self) -> dict[str, object]:
        """Code, message and details as the specification names them; the hint is part of the details."""
        body: dict[str, object] = {"code": self.code, "msg": _sayable(self.message)}
        details = "; ".join(part for part in (self.details, self.hint) if part)
        if details:
            body["details"] = _sayable(details)
        return body


def _sayable(text: str) -> str:
    """Without the surrogates by which Python spells a path that is not UTF-8: JSON cannot say those."""
    return text.encode(errors="backslashreplace").decode()


def to_cni(error: Exception) -> CNIError:
    """What a runtime is told of any error: the edge's one translation.

    A CNIError keeps its code; an operator's fault is 7, a peer's 4, something that a retry may mend 11, the rest 999.
    """
    if isinstance(error, CNIError):
        return error
    if isinstance(error, MultusError):
        if error.retry:
            code = Code.TRY_AGAIN_LATER
        elif error.fault is Fault.OPERATOR:
            code = Code.INVALID_NETWORK_CONFIG
        elif error.fault is Fault.PEER:
            code = Code.INVALID_ENVIRONMENT
        else:
            code = Code.INTERNAL
        return CNIError(code, error.message, hint=error.hint)
    return CNIError(Code.INTERNAL, f"{type(error).__name__}: {error}")
