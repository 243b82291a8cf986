"""Addresses of one interface among many."""

from collections.abc import Callable
from typing import Any

import pytest

from devices.linux import link_changes, netns


@pytest.mark.parametrize(
    ("version", "wanted"),
    [(0, {"10.1.0.1/24", "10.1.0.2/24", "fd00::1/64"}), (4, {"10.1.0.1/24", "10.1.0.2/24"}), (6, {"fd00::1/64"})],
)
def test_of_one_interface_and_one_version(make_namespace: Callable[[], Any], version: int, wanted: set[str]) -> None:
    space = make_namespace()
    space.veth("one", "10.1.0.1/24", "10.1.0.2/24", "fd00::1/64")
    space.veth("two", "10.2.0.1/24", "fd00:2::1/64")
    with netns.open_socket(space.path) as connection:
        found = link_changes.find(connection, "one")
        assert found is not None
        listed = {
            each for each in link_changes.addresses(connection, found.index, version) if not each.startswith("fe80")
        }
    assert listed == wanted
