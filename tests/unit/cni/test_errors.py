"""CNI errors: what a runtime is shown."""

import json
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multus.cni.errors import CNIError, Code, to_cni
from multus.errors import Fault, MultusError

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=10)  # surrogates as well


def test_codes_are_the_specification_s() -> None:
    assert {code.name: int(code) for code in Code} == {
        "INCOMPATIBLE_VERSION": 1,
        "UNSUPPORTED_FIELD": 2,
        "UNKNOWN_CONTAINER": 3,
        "INVALID_ENVIRONMENT": 4,
        "IO_FAILURE": 5,
        "DECODING_FAILURE": 6,
        "INVALID_NETWORK_CONFIG": 7,
        "TRY_AGAIN_LATER": 11,
        "NOT_AVAILABLE": 50,
        "LIMITED_CONNECTIVITY": 51,
        "INTERNAL": 999,
    }


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (CNIError(7, "m"), {"cniVersion": "1.0.0", "code": 7, "msg": "m"}),
        (CNIError(Code.INTERNAL, "m", "d"), {"cniVersion": "1.0.0", "code": 999, "msg": "m", "details": "d"}),
        (CNIError(11, "m", hint="h"), {"cniVersion": "1.0.0", "code": 11, "msg": "m", "details": "h"}),
        (CNIError(117, "m", "d", hint="h"), {"cniVersion": "1.0.0", "code": 117, "msg": "m", "details": "d; h"}),
    ],
)
def test_document(error: CNIError, expected: dict[str, object]) -> None:
    assert json.loads(error.encode("1.0.0")) == expected


@pytest.mark.parametrize(("code", "shown"), [(0, 0), (2**32 - 1, 2**32 - 1), (2**32, 999), (-1, 999), (10**30, 999)])
def test_a_plugin_s_code_is_one_that_go_can_read(code: int, shown: int) -> None:
    assert json.loads(CNIError(code, "m").encode("1.0.0"))["code"] == shown


@given(ANY_TEXT, ANY_TEXT, ANY_TEXT, ANY_TEXT, st.integers())
def test_whatever_it_says_it_can_be_said(message: str, details: str, hint: str, version: str, code: int) -> None:
    decoded = json.loads(CNIError(code, message, details, hint=hint).encode(version))
    assert set(decoded) - {"details"} == {"cniVersion", "code", "msg"}


def test_a_path_that_is_not_utf8_can_be_said() -> None:
    error = CNIError(Code.IO_FAILURE, "cannot read /x/\udcff", "\udcfe", hint="\udcfd")
    assert json.loads(error.encode("\udcfc")) == {
        "cniVersion": "\\udcfc",
        "code": 5,
        "msg": "cannot read /x/\\udcff",
        "details": "\\udcfe; \\udcfd",
    }


class _FaultyError(MultusError):
    def __init__(self, fault: Fault, retry: bool) -> None:
        super().__init__("what", hint="do that")
        self.fault = fault  # type: ignore[misc]
        self.retry = retry  # type: ignore[misc]


@pytest.mark.parametrize(
    ("fault", "retry", "code"),
    [
        (Fault.OPERATOR, False, 7),
        (Fault.PEER, False, 4),
        (Fault.KERNEL, False, 999),
        (Fault.US, False, 999),
        (Fault.OPERATOR, True, 11),
        (Fault.PEER, True, 11),
        (Fault.KERNEL, True, 11),
        (Fault.US, True, 11),
    ],
)
def test_our_errors_become_codes(fault: Fault, retry: bool, code: int) -> None:
    told = to_cni(_FaultyError(fault, retry))
    assert (told.code, told.message, told.hint, told.details) == (code, "what", "do that", "")


def test_a_cni_error_stays_what_it_is() -> None:
    class OwnError(CNIError):
        retry: ClassVar[bool] = True

    error = OwnError(Code.LIMITED_CONNECTIVITY, "m", "d")
    assert to_cni(error) is error


def test_a_defect_of_ours_is_999() -> None:
    told = to_cni(ZeroDivisionError("division by zero"))
    assert (told.code, told.message) == (999, "ZeroDivisionError: division by zero")
