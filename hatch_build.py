"""Build hook: compiles the shim, `multus/shim/multus.c`, and ships it as the script `multus`.

The shim is one static C program without Python and without shared libraries, so the wheel depends on the machine but
on no Python version and no libc: its tag is `py3-none-linux_x86_64` and the like.

Environment, for cross compilation and for distributions:

- `CC`: the compiler, may hold arguments; default `cc`, else `gcc`.
- `CFLAGS`, `LDFLAGS`: added after ours.
- `MULTUS_WHEEL_PLATFORM`: the wheel's platform tag, when `CC` compiles for another machine, as in
  `CC=aarch64-linux-gnu-gcc MULTUS_WHEEL_PLATFORM=linux_aarch64 python -m hatchling build -t wheel`.
"""

import os
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = Path("multus/shim/multus.c")
FLAGS = ("-std=gnu17", "-Os", "-static", "-s", "-Wall", "-Wextra", "-fstack-protector-strong", "-D_FORTIFY_SOURCE=2")
# https://refspecs.linuxfoundation.org/elf/gabi4+/ch4.eheader.html: e_machine and what platform tags call it
MACHINES = {62: "x86_64", 183: "aarch64"}


def compile_shim(root: Path, target: Path, *, version: str) -> None:
    """Compile the shim of the source tree `root` into the file `target`; RuntimeError says what is missing."""
    compiler = shlex.split(os.environ.get("CC", "")) or [shutil.which("cc") or "gcc"]
    command = [
        *compiler,
        *FLAGS,
        f'-DMULTUS_VERSION="{version}"',
        *shlex.split(os.environ.get("CFLAGS", "")),
        str(root / SOURCE),
        "-o",
        str(target),
        *shlex.split(os.environ.get("LDFLAGS", "")),
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    except OSError as error:
        msg = f"no C compiler {compiler[0]!r} for {SOURCE} ({error.strerror}): install gcc and libc6-dev, or set CC"
        raise RuntimeError(msg) from None
    if done.returncode != 0:
        msg = f"{shlex.join(command)} failed (is the static C library, libc6-dev, installed?):\n{done.stderr}"
        raise RuntimeError(msg)


def elf_machine(program: Path) -> str:
    """The machine that a little-endian ELF program runs on, as platform tags name it."""
    with program.open("rb") as file:
        header = file.read(20)
    if header[:4] != b"\x7fELF" or header[5:6] != b"\x01":
        msg = f"{program} is not a little-endian ELF program: does CC compile for Linux?"
        raise RuntimeError(msg)
    number = int.from_bytes(header[18:20], "little")
    return MACHINES.get(number, f"unknown (e_machine {number})")


def platform_tag(program: Path) -> str:
    """The wheel's platform tag, checked against the program that it will carry."""
    tag = os.environ.get("MULTUS_WHEEL_PLATFORM") or sysconfig.get_platform().replace("-", "_").replace(".", "_")
    machine = elf_machine(program)
    if not tag.endswith(f"_{machine}"):
        msg = f"the shim was compiled for {machine}, the wheel's platform is {tag}: set MULTUS_WHEEL_PLATFORM and CC"
        raise RuntimeError(msg)
    return tag


class ShimHook(BuildHookInterface[Any]):
    """Puts the compiled shim into wheels, editable ones included; hatchling finds the class by its base."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Before the wheel is written; `version` is the kind of wheel, "standard" or "editable"."""
        self.scratch = tempfile.TemporaryDirectory(prefix="multus-shim-")
        program = Path(self.scratch.name, "multus")
        compile_shim(Path(self.root), program, version=self.metadata.version)
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform_tag(program)}"
        build_data["shared_scripts"][str(program)] = "multus"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """After the wheel is written."""
        self.scratch.cleanup()
