"""The environment with the programs in it: one virtual environment, made once and added to when scenarios ask for more.

It lies in the cache folder of compat.peers.provision and carries a digest of pins.txt in its name: other versions,
other environment. What is asked for is installed in one go, at other versions where this Python has not the pinned
ones; when that fails too, package by package, so that one which cannot be had costs its own scenarios and no others.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Final

from compat.peers.provision import Unavailable, built, locked, run_quietly

PINS: Final = Path(__file__).with_name("pins.txt")


class Environment:
    """Where the programs are installed."""

    def __init__(self, folder: Path) -> None:
        self.python = str(folder / "bin" / "python")
        self._record = folder / "installed.json"
        self.missing: dict[str, str] = {}
        """packages that cannot be had, each with the reason"""

    def install(self, packages: set[str]) -> None:
        """See that these are there, or in `missing`."""
        with locked("programs-install"):
            wanted = sorted(packages - self._installed())
            if not wanted:
                return
            print(f"installing {' '.join(wanted)} beside {self.python}", file=sys.stderr, flush=True)
            if not self._install_together(wanted):
                for package in wanted:
                    try:
                        self._pip([package], pinned=False)
                    except Unavailable as error:
                        self.missing[package] = str(error)
            installed = self._installed() | set(wanted) - set(self.missing)
            self._record.write_text(json.dumps(sorted(installed)), encoding="utf-8")

    def _install_together(self, packages: list[str]) -> bool:
        """At the pinned versions or, where this Python has not all of those, at any."""
        for pinned in (True, False):
            try:
                self._pip(packages, pinned=pinned)
            except Unavailable:
                continue
            return True
        return False

    def versions(self) -> dict[str, str]:
        """Of all that is installed, by the name pip knows it by in lower case."""
        folders = next(Path(self.python).parents[1].glob("lib/python*/site-packages"))
        found = {}
        for info in folders.glob("*.dist-info"):
            name, _, version = info.name.removesuffix(".dist-info").rpartition("-")
            found[normal(name)] = version
        return found

    def _installed(self) -> set[str]:
        return set(json.loads(self._record.read_text(encoding="utf-8"))) if self._record.exists() else set()

    def _pip(self, packages: list[str], *, pinned: bool) -> None:
        pip = [self.python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--prefer-binary"]
        environment = {**os.environ, **({"PIP_CONSTRAINT": str(PINS)} if pinned else {})}
        run_quietly([*pip, *packages], f"pip install {' '.join(packages)}", environment=environment)


def environment() -> Environment:
    """The environment for this interpreter and these pins, empty if it is new."""
    pins = [PINS.read_bytes(), sys.version.encode(), sys.executable.encode()]

    def build(folder: Path) -> None:
        run_quietly([sys.executable, "-m", "venv", str(folder)], "python -m venv", cwd=folder)

    return Environment(built(f"programs-{sys.version_info.major}.{sys.version_info.minor}", pins, build))


def normal(name: str) -> str:
    """A package's name as everybody would have to write it."""
    return name.partition("[")[0].replace("_", "-").replace(".", "-").lower()
