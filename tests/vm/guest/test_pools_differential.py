"""Our pools beside those of upstream's device plugin: one config.json, the same cards, what a kubelet gets to see.

What upstream does was written down in this machine, where it is run anew when it came along (see tests/vm/peers.py).
"""

from pathlib import Path

import pytest

from tests.vm.guest.beside import Upstream
from tests.vm.guest.hardware import Hardware
from tests.vm.guest.pool_rows import POOL_ROWS
from tests.vm.guest.pool_scenes import PoolRow, PoolStage, ours, upstream

pytestmark = pytest.mark.anyio

SRIOVDP = Upstream("pools", "sriovdp")


@pytest.fixture(scope="module")
def stage(links_up: None) -> PoolStage:
    hardware = Hardware()
    hardware.restore()
    return PoolStage(hardware)


@SRIOVDP.for_ours(POOL_ROWS)
async def test_ours_offers_what_upstream_does(row: PoolRow, stage: PoolStage, tmp_path: Path) -> None:
    outcome = await stage.play(row, ours, tmp_path)
    assert outcome == row.expected(SRIOVDP.scenes[row.name])


@SRIOVDP.for_upstream(POOL_ROWS)
async def test_upstream_still_offers_what_was_written_down(row: PoolRow, stage: PoolStage, tmp_path: Path) -> None:
    SRIOVDP.judge(row, await stage.play(row, upstream, tmp_path))
