"""A library's environment and the tests of its source distribution, set up once in the cache folder.

A source distribution without the tests that open sockets has Debian's source package in its place: it is the project's
whole tree.

See compat.peers.provision. The libraries are installed at the versions of `pins/`; where this Python has not those, at
what fits the suite's requirements.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from compat.peers.provision import Unavailable, built, run_quietly
from compat.suites.libraries import Library

PINS: Final = Path(__file__).with_name("pins")
DEBIAN_KEYS: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
DEBIAN_RELEASE: Final = "trixie"


# Tests that start an interpreter with a PYTHONPATH of its own still have it patched: its environment's site does it.
INHERITED: Final = (
    "import os, sys;"
    " found = os.environ.get('COMPAT_STDLIB_PATH', '').split(os.pathsep);"
    " sys.path[:0] = [path for path in found[:1] if path and path not in sys.path];"
    " sys.path += [path for path in found[1:] if path not in sys.path]\n"
)


@dataclass(frozen=True)
class Provided:
    """A library that can be tested."""

    python: str
    files: Path
    """what the suite works in"""


def provide(library: Library) -> Provided:
    """Set it up, or find it as it was set up before. Raises Unavailable."""
    constraints = PINS / f"{library.name}.txt"
    kind = (library.name, library.version, library.requirements, library.files, library.debian)
    pins = [repr(kind).encode(), sys.version.encode(), sys.executable.encode()]
    if constraints.exists():
        pins.append(constraints.read_bytes())

    def build(folder: Path) -> None:
        run_quietly([sys.executable, "-m", "venv", str(folder / "venv")], "python -m venv", cwd=folder)
        python = str(folder / "venv" / "bin" / "python")
        pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        release = f"{library.name}=={library.version}"
        install = [*pip, "install", "--prefer-binary", release, *library.requirements]
        pinned = {**os.environ, "PIP_CONSTRAINT": str(constraints)}
        try:
            if not constraints.exists():
                raise Unavailable
            run_quietly(install, f"pip install {library.name}", environment=pinned)
        except Unavailable:
            run_quietly(install, f"pip install {library.name}")
        if library.debian:
            _download_from_debian(library.debian, folder)
        else:
            download = [*pip, "download", "--no-deps", "--no-binary", library.name, "-d", str(folder), release]
            run_quietly(download, f"pip download {release}")
        _unpack(next(folder.glob("*.tar.gz")), folder / "files", library.files)

    folder = built(f"suite-{library.name}-{library.version}", pins, build)
    (site_packages,) = folder.glob("venv/lib/python*/site-packages")
    (site_packages / "compat_suites.pth").write_text(INHERITED, encoding="utf-8")
    return Provided(str(folder / "venv" / "bin" / "python"), folder / "files")


def _download_from_debian(package: str, folder: Path) -> None:
    """The original archive of a source package, through lists of its own: the machine's stay as they are."""
    if shutil.which("apt-get") is None or not DEBIAN_KEYS.exists():
        raise Unavailable(f"{package}: apt-get source needs Debian")
    archive = _debian_archive()
    state = folder / "apt"
    for kind in ("lists", "cache/archives"):
        (state / kind / "partial").mkdir(parents=True)
    sources = state / "sources.list"
    sources.write_text(f"deb-src [signed-by={DEBIAN_KEYS}] {archive} {DEBIAN_RELEASE} main\n", encoding="utf-8")
    places = {
        "Dir::Etc::SourceList": sources,
        "Dir::Etc::SourceParts": "-",
        "Dir::State::Lists": state / "lists",
        "Dir::Cache": state / "cache",
        "APT::Sandbox::User": "root",  # whoever else it would be may not write here
    }
    apt = ["apt-get", *(word for name, value in places.items() for word in ("-o", f"{name}={value}"))]
    run_quietly([*apt, "update"], "apt-get update")
    run_quietly([*apt, "source", "--download-only", "--tar-only", package], f"apt-get source {package}", cwd=folder)
    shutil.rmtree(state)


def _debian_archive() -> str:
    """Where this machine gets Debian's packages from."""
    ask = ["apt-get", "indextargets", "--format", "$(LABEL) $(REPO_URI)", "Created-By: Packages"]
    for is_updated in (False, True):
        found = subprocess.run(ask, capture_output=True, text=True, check=False).stdout.split("\n")
        archives = [line.partition(" ")[2] for line in found if line.startswith("Debian ")]
        if archives:
            return archives[0]
        if not is_updated and os.geteuid() == 0:  # labels are in the lists
            run_quietly(["apt-get", "update", "-qq"], "apt-get update")
    raise Unavailable("apt-get source: this machine's apt has no Debian archive")


def _unpack(archive: Path, target: Path, names: tuple[str, ...]) -> None:
    """These files and folders of the archive's one folder."""
    draft = archive.with_name("unpacked")
    with tarfile.open(archive) as opened:
        opened.extractall(draft, filter="data")
    (root,) = draft.iterdir()
    target.mkdir()
    for name in names:
        (root / name).rename(target / name)
    shutil.rmtree(draft)
