"""The base of all errors."""

from typing import ClassVar

import pytest

from devices.errors import DeviceError
from devices.errors import Fault as DeviceFault
from multus.errors import Fault, MultusError, NodeError, from_devices


class OperatorError(MultusError):
    fault: ClassVar[Fault] = Fault.OPERATOR


def test_message_and_hint() -> None:
    error = OperatorError("it is wrong", hint="mend it")
    assert (error.message, error.hint, str(error)) == ("it is wrong", "mend it", "it is wrong (mend it)")
    assert error.args == ("it is wrong",)
    assert str(MultusError("it is wrong")) == "it is wrong"


def test_an_error_that_says_nothing_else_is_our_fault_and_final() -> None:
    assert (MultusError("x").fault, MultusError("x").retry) == (Fault.US, False)
    assert (OperatorError("x").fault, OperatorError("x").retry) == (Fault.OPERATOR, False)


@pytest.mark.parametrize("fault", DeviceFault)
@pytest.mark.parametrize("retry", [True, False])
def test_errors_of_devices_keep_all_they_say(fault: DeviceFault, retry: bool) -> None:
    class OneError(DeviceError):
        pass

    OneError.fault, OneError.retry = fault, retry
    with pytest.raises(NodeError) as caught, from_devices():
        raise OneError("what", hint="how")
    assert isinstance(caught.value, MultusError)
    assert (caught.value.message, caught.value.hint) == ("what", "how")
    assert (caught.value.fault, caught.value.retry) == (Fault(fault.value), retry)
    assert isinstance(caught.value.__cause__, OneError)
    assert (NodeError.fault, NodeError.retry) == (Fault.US, False)  # of the error, not of its class


def test_other_errors_pass() -> None:
    with pytest.raises(ZeroDivisionError), from_devices():
        raise ZeroDivisionError
    with from_devices():
        pass
