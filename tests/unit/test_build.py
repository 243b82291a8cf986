"""The build hook: the shim is compiled for the machine that the wheel says, and the wheel carries everything."""

import json
import os
import re
import stat
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


def elf(machine: int, *, data: int = 1) -> bytes:
    return b"\x7fELF\x02" + bytes([data, 1]) + bytes(9) + b"\2\0" + machine.to_bytes(2, "little")


@pytest.fixture
def program(tmp_path: Path) -> Path:
    return tmp_path / "program"


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MULTUS_WHEEL_PLATFORM", "CFLAGS", "LDFLAGS"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(("number", "name"), [(62, "x86_64"), (183, "aarch64"), (243, "unknown (e_machine 243)")])
def test_the_machine_of_a_program(build_hook: ModuleType, program: Path, number: int, name: str) -> None:
    program.write_bytes(elf(number))
    assert build_hook.elf_machine(program) == name


@pytest.mark.parametrize("data", [b"", b"#!/bin/sh\n", b"\x7fELF", elf(62, data=2), b"\xcf\xfa\xed\xfe" + bytes(20)])
def test_what_is_no_program_of_ours(build_hook: ModuleType, program: Path, data: bytes) -> None:
    program.write_bytes(data)
    with pytest.raises(RuntimeError, match="not a little-endian ELF program"):
        build_hook.elf_machine(program)


def test_the_platform_is_the_interpreters(
    build_hook: ModuleType, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for platform, machine in (("linux-x86_64", 62), ("linux-aarch64", 183)):
        monkeypatch.setattr(build_hook.sysconfig, "get_platform", lambda platform=platform: platform)
        program.write_bytes(elf(machine))
        assert build_hook.platform_tag(program) == platform.replace("-", "_")


def test_a_cross_build_names_its_platform(
    build_hook: ModuleType, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_hook.sysconfig, "get_platform", lambda: "linux-x86_64")
    program.write_bytes(elf(183))
    with pytest.raises(RuntimeError, match="compiled for aarch64, the wheel's platform is linux_x86_64"):
        build_hook.platform_tag(program)
    monkeypatch.setenv("MULTUS_WHEEL_PLATFORM", "linux_aarch64")
    assert build_hook.platform_tag(program) == "linux_aarch64"
    program.write_bytes(elf(62))
    with pytest.raises(RuntimeError, match="compiled for x86_64"):
        build_hook.platform_tag(program)


def test_a_missing_compiler_is_said(build_hook: ModuleType, program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program.touch()
    for compiler in ("no-such-compiler --target=x", str(program)):
        monkeypatch.setenv("CC", compiler)
        with pytest.raises(RuntimeError, match="install gcc and libc6-dev, or set CC"):
            build_hook.compile_shim(ROOT, program, version="1")


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A compiler that writes down its arguments and fails when the source does not exist."""
    path = tmp_path / "my cc"
    path.write_text(
        f'#!{sys.executable} -IS\nimport json, sys\njson.dump(sys.argv[1:], open({str(path)!r} + ".json", "w"))\n'
        'source = next(item for item in sys.argv if item.endswith(".c"))\n'
        'open(source), open(sys.argv[sys.argv.index("-o") + 1], "w")\n'
    )
    path.chmod(0o755)
    monkeypatch.setenv("CC", f"'{path}' --sysroot=/x")
    return path


def test_flags_come_in_the_order_that_lets_a_distribution_have_the_last_word(
    build_hook: ModuleType, program: Path, compiler: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CFLAGS", "-O3 -DX='a b'")
    monkeypatch.setenv("LDFLAGS", "-Wl,-z,now")
    build_hook.compile_shim(ROOT, program, version="1.2.3")
    arguments = json.loads(compiler.with_name("my cc.json").read_text())
    assert arguments[0] == "--sysroot=/x"
    assert "-static" in arguments
    assert '-DMULTUS_VERSION="1.2.3"' in arguments
    assert arguments.index("-Os") < arguments.index("-O3")
    assert "-DX=a b" in arguments
    assert arguments[-3:] == ["-o", str(program), "-Wl,-z,now"]


def test_what_the_compiler_says_is_passed_on(build_hook: ModuleType, program: Path, compiler: Path) -> None:
    with pytest.raises(RuntimeError, match="libc6-dev, installed") as caught:
        build_hook.compile_shim(program.parent, program, version="1")
    assert "FileNotFoundError" in str(caught.value)
    assert compiler.name in str(caught.value)


def test_the_wheel_carries_the_packages_and_the_shim(tmp_path: Path) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if "no C compiler" in done.stderr:
        pytest.skip("no C compiler")
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.iterdir()
    assert re.fullmatch(rf"multus-{re.escape(version)}-py3-none-linux_(x86_64|aarch64)\.whl", wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        script = archive.getinfo(f"multus-{version}.data/scripts/multus")
        metadata = {
            name: archive.read(f"multus-{version}.dist-info/{name}").decode() for name in ("WHEEL", "entry_points.txt")
        }
        shim = tmp_path / "multus"
        shim.write_bytes(archive.read(script))
    assert {"multus/__init__.py", "devices/__init__.py", "dpdk/__init__.py"} <= set(names)
    assert {name.split("/")[0] for name in names} == {
        "multus",
        "devices",
        "dpdk",
        f"multus-{version}.dist-info",
        f"multus-{version}.data",
    }, "and nothing else"
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    assert "Root-Is-Purelib: false" in metadata["WHEEL"]
    assert re.search(r"^multusd = multus\.daemon:main$", metadata["entry_points.txt"], re.MULTILINE)
    assert re.search(r"^multusctl = multus\.cli:main$", metadata["entry_points.txt"], re.MULTILINE)
    assert (script.external_attr >> 16) & stat.S_IXUSR
    shim.chmod(0o755)
    said = subprocess.run([shim, "--version"], capture_output=True, text=True, env={"PATH": os.environ["PATH"]})
    assert said.stdout == f"multus {version}\n"
