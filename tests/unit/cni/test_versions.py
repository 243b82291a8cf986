"""Versions of the specification."""

import pytest

from multus.cni.errors import CNIError, Code
from multus.cni.versions import SUPPORTED, at_least, known


def test_all_released_versions_in_order() -> None:
    assert SUPPORTED == ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
    for position, version in enumerate(SUPPORTED):
        assert [at_least(version, other) for other in SUPPORTED] == [position >= other for other in range(7)]


@pytest.mark.parametrize(
    ("version", "minimum", "expected"),
    [
        ("", "0.1.0", True),  # libcni takes no version for the oldest
        ("", "0.2.0", False),
        ("0.10.0", "0.4.0", True),  # numbers, not text
        ("2.0.0", "1.1.0", True),
        ("1", "1.0.0", True),
        ("1.1", "1.1.0", True),
        ("1.0", "1.1.0", False),
        ("v1.1.0", "0.1.0", False),
        ("1.1.0.0", "0.1.0", False),
        ("1.1.x", "0.1.0", False),
        ("1..0", "0.1.0", False),
        ("-1.0.0", "0.1.0", False),
        (" 1.1.0", "0.1.0", False),
        ("١.١.٠", "0.1.0", False),  # noqa: RUF001 (digits that int() would take)
        ("9" * 5000, "0.1.0", False),  # int() refuses so many digits
    ],
)
def test_at_least(version: str, minimum: str, expected: bool) -> None:
    assert at_least(version, minimum) is expected


@pytest.mark.parametrize("version", SUPPORTED)
def test_known(version: str) -> None:
    assert known(version, "x") == version


def test_no_version_is_the_oldest() -> None:
    assert known("", "x") == "0.1.0"


@pytest.mark.parametrize("version", ["1.2.0", "0.9.0", "1.0", "x", "1.1.0\n", "9" * 5000])
def test_unknown(version: str) -> None:
    with pytest.raises(CNIError) as caught:
        known(version, "the conf is")
    assert caught.value.code == Code.INCOMPATIBLE_VERSION
    assert caught.value.message.startswith("the conf is in CNI version '")
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 100
    assert caught.value.hint == "versions known here: 0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0"
