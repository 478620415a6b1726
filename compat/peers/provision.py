"""Peers set up once, in a cache folder of their own, and again when a pinned version changes.

The folder is `$UTPSOCKET_COMPAT_CACHE`, else `utpsocket-compat` in the user's cache folder. What is set up carries a
digest of its pins in its name and is marked when complete: a half-built peer is never used, and two runs at once wait
for each other.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

UTP_NATIVE_VERSION: Final = "2.5.3"
LIBTORRENT_VERSION: Final = "2.1.1"
PINS: Final = Path(__file__).resolve().parent / "utp_native"
INSTALL_SECONDS: Final = 300
AGAIN_SECONDS: Final = 5.0


class Unavailable(Exception):
    """A peer cannot be set up here; the text says why and what would help."""


class InstallFailed(Unavailable):
    """It should have been possible: something else is wrong here, and must be seen."""


def cache_folder() -> Path:
    named = os.environ.get("UTPSOCKET_COMPAT_CACHE")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "utpsocket-compat"


def utp_native() -> Path:
    """The node_modules folder that holds utp-native, set up with npm when it is not there yet."""
    node()
    pins = [(PINS / name).read_bytes() for name in ("package.json", "package-lock.json")]

    def build(folder: Path) -> None:
        npm = shutil.which("npm")
        if npm is None:
            _apt_install(["npm"], "npm")
            npm = shutil.which("npm") or "npm"
        for name in ("package.json", "package-lock.json"):
            shutil.copy(PINS / name, folder / name)
        # The package ships its compiled binary; its install script would only try to compile one.
        run_quietly([npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"], "npm ci", cwd=folder)

    return built(f"utp-native-{UTP_NATIVE_VERSION}", pins, build) / "node_modules"


def libtorrent() -> Path:
    """A Python interpreter that can `import libtorrent`, in a virtual environment of its own."""
    return environment_with("libtorrent", LIBTORRENT_VERSION)


def environment_with(name: str, version: str) -> Path:
    """A Python interpreter that can import this package of PyPI, in a virtual environment of its own."""
    pins = [version.encode(), sys.version.encode(), sys.executable.encode()]
    requirement = f"{name}=={version}"

    def build(folder: Path) -> None:
        run_quietly([sys.executable, "-m", "venv", str(folder)], "python -m venv", cwd=folder)
        python = str(folder / "bin" / "python")
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary", ":all:"]
        run_quietly([*pip, requirement], f"pip install {requirement}", cwd=folder)
        run_quietly([python, "-c", f"import {name}"], f"import {name}", cwd=folder)

    return built(f"{name}-{version}", pins, build) / "bin" / "python"


def node() -> str:
    found = shutil.which("node")
    if found is None:
        _apt_install(["nodejs", "npm"], "node")
        found = shutil.which("node") or "node"
    return found


def tshark() -> str:
    found = shutil.which("tshark")
    if found is None:
        _apt_install(["tshark"], "tshark")
        found = shutil.which("tshark") or "tshark"
    return found


def built(name: str, pins: list[bytes], build: Callable[[Path], None]) -> Path:
    """The folder of what `build` made for these pins, now or in an earlier run."""
    digest = hashlib.sha256(b"\0".join(pins)).hexdigest()[:12]
    folder = cache_folder() / f"{name}-{digest}"
    marker = folder / ".complete"
    if marker.exists():
        return folder
    with locked(name):
        if marker.exists():
            return folder
        print(f"setting up {name} in {folder}", file=sys.stderr, flush=True)
        try:
            _build(folder, build)
        except InstallFailed as failure:  # an index of packages does not always answer
            print(f"{failure}; once more", file=sys.stderr, flush=True)
            time.sleep(AGAIN_SECONDS)
            _build(folder, build)
        marker.touch()
    return folder


def _build(folder: Path, build: Callable[[Path], None]) -> None:
    # A virtual environment holds its own path, so it is built where it stays; the marker makes it usable.
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        build(folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    cache_folder().mkdir(parents=True, exist_ok=True)
    with (cache_folder() / f"{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _apt_install(packages: list[str], wanted: str) -> None:
    """Install Debian packages, where this is Debian and we are root; else say what the user can do."""
    advice = f"{wanted} is not installed (on Debian: apt-get install {' '.join(packages)})"
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        raise Unavailable(advice)
    with locked("apt"):
        if shutil.which(wanted):
            return
        print(f"installing {' '.join(packages)} with apt-get", file=sys.stderr, flush=True)
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages]
        try:
            run_quietly(install, "apt-get install", environment=environment)
        except InstallFailed:  # an old or empty package list
            run_quietly(["apt-get", "update", "-qq"], "apt-get update", environment=environment)
            run_quietly(install, "apt-get install", environment=environment)
    if shutil.which(wanted) is None:
        raise InstallFailed(advice)


def run_quietly(
    command: list[str], what: str, *, cwd: Path | None = None, environment: dict[str, str] | None = None
) -> None:
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=INSTALL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise InstallFailed(f"{what}: not done after {INSTALL_SECONDS} s") from None
    except OSError as error:
        raise InstallFailed(f"{what}: {error}") from None
    if done.returncode:
        lines = done.stdout.decode(errors="replace").strip().splitlines()
        raise InstallFailed(f"{what} failed: {lines[-1] if lines else done.returncode}")
