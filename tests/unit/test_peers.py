"""Other projects' programs for the virtual machine: those that were given go along, the others are named."""

from pathlib import Path

import pytest

from tests.vm import peers


def test_what_was_given_goes_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(peers.RECORDING, raising=False)
    monkeypatch.setenv("MULTUS_PEERS_BIN", str(tmp_path / "given"))
    program = tmp_path / "given" / "sriov"
    program.parent.mkdir()
    program.write_text("a program")
    program.chmod(0o755)
    (tmp_path / "given" / "sriovdp").write_text("no program")
    (tmp_path / "tree").mkdir()
    peers.carry(tmp_path / "tree")
    assert [path.name for path in (tmp_path / "tree/.peers").iterdir()] == ["sriov"]
    assert (tmp_path / "tree/.peers/sriov").stat().st_mode & 0o111
    assert capsys.readouterr().out == f"VM lane: MULTUS_PEERS_BIN={tmp_path}/given has no sriovdp\n"


def test_nothing_given_is_nothing_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MULTUS_PEERS_BIN", raising=False)
    peers.carry(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_was_written_down_is_kept_beside_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of some scenes only; a run of all leaves no scene that nobody plays any more."""
    from tests.vm import lane

    (tmp_path / "sriov_upstream.json").write_text('{"version": "v9", "scenes": {"old": {"add": "done"}}}')
    monkeypatch.setattr(peers, "GUEST", tmp_path)
    monkeypatch.setenv(peers.RECORDING, "")

    def spoken(arguments: object) -> int:
        print('  tests::a PASSED\n  vm: recorded ["sriov", "new", {"add": "refused"}]\n  vm: end 0')
        return 0

    monkeypatch.setattr(lane, "main", spoken)
    assert peers.main(["-k", "new"]) == 0
    kept = (tmp_path / "sriov_upstream.json").read_text()
    assert '"old"' in kept
    assert '"new"' in kept
    assert '"v9"' in kept
    assert peers.main([]) == 0
    assert '"old"' not in (tmp_path / "sriov_upstream.json").read_text()
