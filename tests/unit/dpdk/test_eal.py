"""EAL arguments and the map of ports."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpdk.eal import (
    Port,
    Wanted,
    choose_iova,
    eal_arguments,
    format_cpus,
    parse_cpus,
    port_numbers,
)
from dpdk.errors import DpdkError


def port(pci: str, network: str = "vfw/inside", **rest: object) -> Port:
    return Port(network=network, interface="net1", pci=pci, **rest)  # type: ignore[arg-type]


INSIDE, OUTSIDE = port("0000:03:02.0", "vfw/inside"), port("0000:02:02.0", "vfw/outside")


def test_the_whole_line() -> None:
    wanted = Wanted(cpus=(5, 2, 3), ports=(INSIDE, OUTSIDE), memory_mb={1: 1024}, file_prefix="fw-0", iova="va")
    assert eal_arguments(wanted) == (
        *("-l", "2-3,5", "-a", "0000:03:02.0", "-a", "0000:02:02.0", "--socket-mem", "0,1024"),
        *("--file-prefix", "fw-0", "--huge-unlink", "--iova-mode", "va"),
    )


def test_the_least_there_is() -> None:
    assert eal_arguments(Wanted()) == ("--no-pci", "--in-memory")


def test_cpus_beyond_what_dpdk_counts_get_numbers_of_their_own() -> None:
    assert eal_arguments(Wanted(cpus=(4, 130)))[:2] == ("--lcores", "0@4,1@130")
    with pytest.raises(DpdkError, match="more than DPDK's 128"):
        eal_arguments(Wanted(cpus=range(10, 150)))


@pytest.mark.parametrize(
    "wanted",
    [Wanted(file_prefix="../x"), Wanted(file_prefix="a b"), Wanted(memory_mb={0: -1}), Wanted(memory_mb={-1: 64})],
)
def test_what_would_be_misunderstood_is_refused(wanted: Wanted) -> None:
    with pytest.raises(DpdkError):
        eal_arguments(wanted)


@given(st.sets(st.integers(min_value=0, max_value=8191), max_size=300))
def test_cpu_lists_there_and_back(cpus: set[int]) -> None:
    assert parse_cpus(format_cpus(cpus)) == tuple(sorted(cpus))


@given(st.text(alphabet="0123456789-, x\n", max_size=20))
def test_no_text_but_a_list_of_cpus_is_one(text: str) -> None:
    with contextlib.suppress(DpdkError):
        assert list(parse_cpus(text)) == sorted(set(parse_cpus(text)))


@pytest.mark.parametrize("text", ["1-", "-1", "3-1", "a", "0-9999999", "0-8192", "²"])
def test_bad_cpu_lists(text: str) -> None:
    with pytest.raises(DpdkError):
        parse_cpus(text)


def test_ports_are_numbered_by_address() -> None:
    assert port_numbers((INSIDE, OUTSIDE)) == (1, 0)


@pytest.mark.parametrize(
    ("drivers", "noiommu", "mode"),
    [
        ((), False, ""),
        (("vfio-pci",), False, "va"),
        (("vfio-pci",), True, "pa"),
        (("uio_pci_generic", "vfio-pci"), False, "pa"),
        (("mlx5_core",), False, "va"),
    ],
)
def test_which_addresses(drivers: tuple[str, ...], noiommu: bool, mode: str) -> None:
    assert choose_iova([port("0000:03:02.0", driver=each) for each in drivers], noiommu=noiommu) == mode
