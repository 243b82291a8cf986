"""Other projects' Go programs that tests and benchmarks run: found, or built once from the Go module proxy and kept.

`go install theirs/cmd/program@version` refuses a module whose go.mod has replacements, as Kubernetes' has for its own
./staging folders. A module of ours around it names the published modules instead; all else is as their go.mod says.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

_STAGING = re.compile(r"^\s*(\S+) => \./staging/", re.MULTILINE)
_GO_VERSION = re.compile(r"^go (\S+)$", re.MULTILINE)


class NoProgramsError(Exception):
    """The programs are not there and cannot be made here; the message says what was tried."""


@dataclass(frozen=True, kw_only=True)
class GoPrograms:
    """Programs of one module at one version. A program's name is the last part of its package, or as `named`.

    `packages` are below the module, "" is the module itself; `variables` are Go variables that the linker sets, by
    their full names; `replaced` are modules for which folders of ours stand in; `cgo` is whether it needs a C compiler.
    """

    project: str
    module: str
    version: str
    packages: tuple[str, ...]
    shelf: str
    """The folder below the user's cache that has them."""
    given_by: str
    """The environment variable that names a folder with programs built elsewhere."""
    variables: Mapping[str, str] = field(default_factory=dict)
    named: Mapping[str, str] = field(default_factory=dict)
    replaced: Mapping[str, Path] = field(default_factory=dict)
    cgo: bool = False

    def cache(self) -> Path:
        """Where what was built is kept, outside the tree."""
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / self.shelf

    def directory(self) -> Path:
        """The folder with the programs: the one given, else the cache's for this version."""
        given = os.environ.get(self.given_by)
        return Path(given) if given else self._here() / "bin"

    def programs(self) -> list[Path]:
        """Where each of them is, or would be."""
        return [self.directory() / self._name(package) for package in self.packages]

    def missing(self) -> list[str]:
        """The programs that are not there yet."""
        return [path.name for path in self.programs() if not os.access(path, os.X_OK)]

    def build(self) -> float:
        """Build what is missing; seconds that it took.

        :raises NoProgramsError: without Go, without a module proxy that serves it, or when the build fails.
        """
        wanted = self.missing()
        if not wanted:
            return 0.0
        if os.environ.get(self.given_by):
            raise NoProgramsError(f"{self.given_by}={self.directory()} lacks {', '.join(wanted)}")
        if shutil.which("go") is None:
            whose = self.project + ("'" if self.project.endswith("s") else "'s")
            raise NoProgramsError(f"Go is not installed, and {self.given_by} names no folder with {whose} programs")
        begin = time.monotonic()
        staged = self._here() / "staged"
        for path in (staged, self._wrapper()):
            path.mkdir(parents=True, exist_ok=True)
        (self._wrapper() / "go.mod").write_text(self._require())
        flags = ["-s", "-w", *(f"-X {name}={value}" for name, value in self.variables.items())]
        packages = [each for each in self.packages if self._name(each) in wanted]
        self._go(
            "build", "-p", "2", "-trimpath", "-ldflags", " ".join(flags), "-o", f"{staged}/", *map(self._path, packages)
        )
        self.directory().mkdir(parents=True, exist_ok=True)
        for each in packages:
            (staged / self._path(each).rpartition("/")[2]).replace(self.directory() / self._name(each))
        return time.monotonic() - begin

    def main(self) -> None:
        """Build what is missing and say so, or why not; the command of a table."""
        try:
            took = self.build()
        except NoProgramsError as error:
            sys.exit(str(error))
        title = self.project[0].upper() + self.project[1:]
        print(f"{title} {self.version} is in {self.directory()}" + (f"; built in {took:.0f} s" if took else ""))

    def _path(self, package: str) -> str:
        return f"{self.module}/{package}".rstrip("/")

    def _name(self, package: str) -> str:
        theirs = self._path(package).rpartition("/")[2]
        return self.named.get(theirs, theirs)

    def _here(self) -> Path:
        return self.cache() / self.version

    def _wrapper(self) -> Path:
        return self._here() / "module"

    def _require(self) -> str:
        """Our go.mod: their module, and each of its staging modules as published for v1.34.4, which is v0.34.4."""
        (self._wrapper() / "go.mod").write_text("module programs.test\n\ngo 1.24\n")
        told = json.loads(self._go("mod", "download", "-json", f"{self.module}@{self.version}"))
        theirs = Path(told["GoMod"]).read_text(encoding="utf-8")
        version = _GO_VERSION.search(theirs)
        if version is None:
            raise NoProgramsError(f"{self.module} {self.version} has a go.mod of a shape that is not known here")
        published = "v0." + self.version.partition(".")[2]
        replaces = [f"replace {name} => {name} {published}" for name in _STAGING.findall(theirs)]
        replaces += [f"replace {name} => {folder}" for name, folder in self.replaced.items()]
        lines = ["module programs.test", f"go {version[1]}", f"require {self.module} {self.version}", *replaces]
        return "\n".join([*lines, ""])

    def _go(self, *arguments: str) -> str:
        """Run go in the module of ours, behind whatever else the machine does."""
        cgo = "1" if self.cgo else "0"
        env = {**os.environ, "CGO_ENABLED": cgo, "GOFLAGS": "-mod=mod", "GOTOOLCHAIN": "local", "GOWORK": "off"}
        command = ["nice", "-n", "10", "go", *arguments]
        done = subprocess.run(command, cwd=self._wrapper(), env=env, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            end = "\n".join((done.stderr.strip() or done.stdout.strip()).splitlines()[-8:])
            what = f"{self.project} {self.version}"
            raise NoProgramsError(f"go {arguments[0]} failed, so {what} cannot be built here:\n{end}")
        return done.stdout
