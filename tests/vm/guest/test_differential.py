"""The `sriov` delegate beside sriov-cni: the same configurations, on the same VF, and what the kernel has then.

What sriov-cni does was written down in this machine, where it is run anew when it came along (see tests/vm/peers.py).
"""

from pathlib import Path
from typing import Any

import pytest

from devices.linux.vf_kernel import LinuxKernel
from multus.delegates.plugin import Runner
from multus.delegates.sriov import Sriov
from multus.delegates.sriov_record import UpstreamFiles
from tests.vm.guest.beside import Outcome, Upstream
from tests.vm.guest.hardware import Hardware, Records
from tests.vm.guest.scenes import Scene, Stage
from tests.vm.guest.sriov_rows import ROWS

pytestmark = pytest.mark.anyio

RUNNER = Runner(timeout=lambda: 60.0)
SRIOV_CNI = Upstream("sriov", "sriov")


@pytest.fixture(scope="module")
def stage(links_up: None) -> Stage:
    return Stage(Hardware())


@SRIOV_CNI.for_ours(ROWS)
async def test_ours_does_what_upstream_does(row: Scene, stage: Stage) -> None:
    records = Records()
    ours = Sriov(RUNNER, records, LinuxKernel(), boot_id="boot", upstream=UpstreamFiles(Path("/nowhere")))
    outcome = await stage.play(row, ours)
    assert without_device(outcome) == row.expected(SRIOV_CNI.scenes[row.name])
    assert records.kept == {}


@SRIOV_CNI.for_upstream(ROWS)
async def test_upstream_still_does_what_was_written_down(row: Scene, stage: Stage) -> None:
    SRIOV_CNI.judge(row, await stage.play(row, RUNNER))


def without_device(outcome: Outcome) -> Outcome:
    """Without the VF's address in the result, which each of ours has from 1.0.0 on, and none of upstream's."""
    result: Any = outcome["result"]
    if result is not None and result["cniVersion"] in ("1.0.0", "1.1.0"):
        assert [each.pop("pciID") for each in result["interfaces"]] == ["VF"]
    return outcome
