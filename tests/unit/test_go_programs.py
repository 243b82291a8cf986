"""The builder of other projects' Go programs, with a `go` that only notes what it is asked."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from tests.go_programs import GoPrograms, NoProgramsError

GO_MOD = """module example.test/grid

go 1.25.3

require example.test/a v1.0.0

replace (
	example.test/a => ./staging/src/example.test/a
	example.test/b => ./staging/src/example.test/b
	example.test/c => example.test/d v1.2.3
)
"""
GO = """#!/bin/sh
echo "$@" >> {note}
test "$1" != "$FAILS" || {{ echo "no such thing" >&2; exit 1; }}
case $1 in
mod) echo '{told}';;
build) echo $CGO_ENABLED > cgo
  while test "$1" != -o; do shift; done; for each in $3 $4; do install -m 755 /dev/null "$2${{each##*/}}"; done;;
esac
"""


def programs(*packages: str) -> GoPrograms:
    return GoPrograms(
        project="Grid",
        module="example.test/grid",
        version="v1.34.4",
        packages=packages or ("cmd/one", "tools/two"),
        shelf="multus-grid",
        given_by="MULTUS_GRID_BIN",
        variables={"example.test/grid/version.Text": "v1.34.4"},
    )


@pytest.fixture
def note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What `go` was asked, line by line; the cache is this test's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("MULTUS_GRID_BIN", raising=False)
    (tmp_path / "their.mod").write_text(GO_MOD)
    told = json.dumps({"GoMod": str(tmp_path / "their.mod")})
    (tmp_path / "path").mkdir()
    go = tmp_path / "path" / "go"
    go.write_text(GO.format(note=tmp_path / "note", told=told))
    go.chmod(0o755)
    monkeypatch.setenv("PATH", f"{go.parent}:{os.environ['PATH']}")
    return tmp_path / "note"


def test_what_is_missing_is_built_at_its_version_and_kept(note: Path, tmp_path: Path) -> None:
    both = programs()
    home = tmp_path / "cache/multus-grid/v1.34.4"
    assert (both.missing(), both.directory()) == (["one", "two"], home / "bin")
    assert both.build() > 0
    assert both.missing() == []
    assert os.access(home / "bin/two", os.X_OK)
    download, build = note.read_text().splitlines()
    assert download == "mod download -json example.test/grid@v1.34.4"
    assert build == (
        "build -p 2 -trimpath -ldflags -s -w -X example.test/grid/version.Text=v1.34.4"
        f" -o {home}/staged/ example.test/grid/cmd/one example.test/grid/tools/two"
    )
    assert (home / "module/go.mod").read_text().splitlines() == [
        "module programs.test",
        "go 1.25.3",
        "require example.test/grid v1.34.4",
        "replace example.test/a => example.test/a v0.34.4",
        "replace example.test/b => example.test/b v0.34.4",
    ]
    note.unlink()
    assert both.build() == 0.0
    (home / "bin/one").unlink()
    both.build()
    assert note.read_text().endswith(f"-o {home}/staged/ example.test/grid/cmd/one\n")


def test_a_module_of_one_program_with_folders_of_ours_and_a_c_compiler(note: Path, tmp_path: Path) -> None:
    gridd = replace(programs(""), named={"grid": "gridd"}, replaced={"x.test/cloud": Path("/stand/in")}, cgo=True)
    assert gridd.missing() == ["gridd"]
    gridd.build()
    home = tmp_path / "cache/multus-grid/v1.34.4"
    assert gridd.programs() == [home / "bin/gridd"]
    assert gridd.missing() == []
    assert note.read_text().endswith(f"-o {home}/staged/ example.test/grid\n")
    assert "replace x.test/cloud => /stand/in" in (home / "module/go.mod").read_text()
    assert (home / "module/cgo").read_text() == "1\n"


def test_a_folder_that_is_given_is_used_and_never_built_in(
    note: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MULTUS_GRID_BIN", str(tmp_path))
    assert programs("cmd/one").directory() == tmp_path
    with pytest.raises(NoProgramsError, match=r"^MULTUS_GRID_BIN=.* lacks one, two$"):
        programs().build()
    assert not note.exists()


def test_it_says_why_it_cannot(
    note: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAILS", "build")
    with pytest.raises(
        NoProgramsError, match=r"^go build failed, so Grid v1\.34\.4 cannot be built here:\nno such thing$"
    ):
        programs().build()
    monkeypatch.setenv("FAILS", "mod")
    with pytest.raises(SystemExit, match="go mod failed"):
        programs().main()
    monkeypatch.delenv("FAILS")
    (tmp_path / "their.mod").write_text("module example.test/grid\n")
    with pytest.raises(NoProgramsError, match="a shape that is not known"):
        programs().build()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoProgramsError, match=r"Go is not installed, and MULTUS_GRID_BIN names no folder with Grid's"):
        programs().build()


def test_the_command_says_where_they_are(note: Path, capsys: pytest.CaptureFixture[str]) -> None:
    programs().main()
    programs().main()
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("Grid v1.34.4 is in ")
    assert first.endswith("built in 0 s")
    assert second == f"Grid v1.34.4 is in {programs().directory()}"
