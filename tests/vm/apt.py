"""What the lane needs from the system's package manager, on Debian 12 and 13.

QEMU's SR-IOV network card came with 8.0. Debian 12 has that in its backports suite only; where the system does not list
that suite, it is added for these calls alone, from the mirror that the system itself uses.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

RELEASES: Final = {"bookworm": "bookworm-backports", "trixie": ""}
"""Release -> the suite from which QEMU and the kernel come; "" for the release itself."""

HOST: Final = {
    "qemu-system-x86_64": "qemu-system-x86",
    "mmdebstrap": "mmdebstrap",
    "busybox": "busybox-static",
    "cpio": "cpio",
    "mkfs.ext4": "e2fsprogs",
    "modprobe": "kmod",
    "setpriv": "util-linux",
    "zstd": "zstd",
}
"""Program -> package."""

SOURCES: Final = Path("/etc/apt")


class CannotRunError(Exception):
    """This machine cannot run the lane; the text says why."""


def release() -> str:
    """The Debian release of this machine.

    :raises CannotRunError: it is none that the lane knows.
    """
    text = Path("/etc/os-release").read_text() if Path("/etc/os-release").exists() else ""
    found = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    name = found.get("VERSION_CODENAME", "").strip('"')
    if found.get("ID", "").strip('"') != "debian" or name not in RELEASES:
        raise CannotRunError(
            f"the VM is made from Debian 12 or 13, and this is {found.get('PRETTY_NAME', 'something else')}"
        )
    return name


def entries(directory: Path = SOURCES) -> Iterator[tuple[str, str, str]]:
    """(address, suite, signing key) of everything that the system's sources list, in both formats of theirs."""
    parts = directory / "sources.list.d"
    for path in [directory / "sources.list", *sorted(parts.glob("*.list"))]:
        for line in path.read_text().splitlines() if path.exists() else ():
            if match := re.match(r"\s*deb\s+(?:\[([^]]*)\]\s*)?(\S+)\s+(\S+)", line):
                key = re.search(r"signed-by=(\S+)", match[1] or "")
                yield match[2], match[3], key[1] if key else ""
    for path in sorted(parts.glob("*.sources")):
        for stanza in re.split(r"\n\s*\n", path.read_text()):
            lines = [line for line in stanza.splitlines() if not line.startswith("#")]
            keys = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            if keys.get("enabled", "yes") == "yes" and "deb" in keys.get("types", "").split():
                for address in keys.get("uris", "").split():
                    for suite in keys.get("suites", "").split():
                        yield address, suite, keys.get("signed-by", "")


def mirror(name: str, directory: Path = SOURCES) -> tuple[str, str]:
    """(address, signing key) from which the system gets its release.

    :raises CannotRunError: the sources do not tell.
    """
    for address, suite, key in entries(directory):
        if suite == name:
            return address, key
    raise CannotRunError(f"the apt sources do not list {name}")


class Apt:
    """apt with the suite that has a new QEMU among its sources."""

    def __init__(self, scratch: Path) -> None:
        self.release = release()
        self.mirror, self.key = mirror(self.release)
        self.backports = RELEASES[self.release]
        self._scratch = scratch
        self._options: list[str] = []
        if self.backports and self.backports not in {suite for _, suite, _ in entries()}:
            self._add_suite()

    def _add_suite(self) -> None:
        """A directory of sources that is the system's and one file more; the system's own stays as it is."""
        parts = self._scratch / "sources.list.d"
        shutil.rmtree(parts, ignore_errors=True)
        if (SOURCES / "sources.list.d").exists():
            shutil.copytree(SOURCES / "sources.list.d", parts)
        parts.mkdir(parents=True, exist_ok=True)
        signed = f" [signed-by={self.key}]" if self.key else ""
        (parts / "multus-vm.list").write_text(f"deb{signed} {self.mirror} {self.backports} main\n")
        self._options = ["-o", f"Dir::Etc::sourceparts={parts}"]

    def run(self, *words: str, cwd: Path | None = None) -> str:
        """Run a program of apt's; its output.

        :raises CannotRunError: it failed.
        """
        command = [words[0], *self._options, *words[1:]]
        env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=env)
        if done.returncode != 0:
            raise CannotRunError(f"{' '.join(words)}: {(done.stderr or done.stdout).strip()[-400:]}")
        return done.stdout

    def _suite(self) -> list[str]:
        return ["-t", self.backports] if self.backports else []

    def install_missing(self) -> list[str]:
        """Install the packages whose programs are not on this machine; their names.

        :raises CannotRunError: not root, or apt failed.
        """
        missing = sorted({package for program, package in HOST.items() if not _which(program)})
        if not missing and qemu_version() >= 8:
            return []
        if os.geteuid() != 0:
            raise CannotRunError(f"not root, and packages are missing: {' '.join(missing) or 'QEMU 8 or newer'}")
        self.run("apt-get", "-qq", "update")
        plain = [each for each in missing if each != "qemu-system-x86"]
        if plain:
            self.run("apt-get", "-qq", "-y", "--no-install-recommends", "install", *plain)
        if qemu_version() < 8:
            self.run("apt-get", "-qq", "-y", "--no-install-recommends", *self._suite(), "install", "qemu-system-x86")
            missing = [*plain, "qemu-system-x86"]
        if qemu_version() < 8:
            raise CannotRunError(f"QEMU {qemu_version()} is installed; the SR-IOV network card needs 8 or newer")
        return missing

    def download(self, package: str, directory: Path) -> Path:
        """One package file, of the newest suite for what that suite has."""
        with_lists = ["apt-get", "-qq", *self._suite(), "download", package]
        before = set(directory.glob("*.deb"))
        try:
            self.run(*with_lists, cwd=directory)
        except CannotRunError:
            self.run("apt-get", "-qq", "update")
            self.run(*with_lists, cwd=directory)
        return (set(directory.glob("*.deb")) - before).pop()

    def kernel(self) -> str:
        """Name of the package that the kernel's meta package stands for."""
        for refresh in (False, True):
            if refresh:
                self.run("apt-get", "-qq", "update")
            suite = f"/{self.backports}" if self.backports else ""
            try:
                text = self.run("apt-cache", "--no-all-versions", "show", f"linux-image-amd64{suite}")
            except CannotRunError:
                continue
            if match := re.search(r"^Depends:.*?\b(linux-image-[\w.+-]+)", text, re.MULTILINE):
                return match[1]
        raise CannotRunError("apt knows no linux-image-amd64")


def _which(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def qemu_version() -> int:
    """Its major version; 0 when it is not installed."""
    if _which("qemu-system-x86_64") is None:
        return 0
    done = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, text=True, check=False)
    match = re.search(r"version (\d+)\.", done.stdout)
    return int(match[1]) if match else 0
