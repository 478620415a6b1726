"""A library's environment and the tests of its source distribution, set up once in the cache folder.

See compat.peers.provision. The libraries are installed at the versions of `pins/`; where this Python has not those, at
what fits the suite's requirements.
"""

from __future__ import annotations

import os
import shutil
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from compat.peers.provision import Unavailable, built, run_quietly
from compat.suites.libraries import Library

PINS: Final = Path(__file__).with_name("pins")


@dataclass(frozen=True)
class Provided:
    """A library that can be tested."""

    python: str
    files: Path
    """what the suite works in"""


def provide(library: Library) -> Provided:
    """Set it up, or find it as it was set up before. Raises Unavailable."""
    constraints = PINS / f"{library.name}.txt"
    pins = [repr(library).encode(), sys.version.encode(), sys.executable.encode()]
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
        download = [*pip, "download", "--no-deps", "--no-binary", library.name, "-d", str(folder), release]
        run_quietly(download, f"pip download {release}")
        _unpack(next(folder.glob("*.tar.gz")), folder / "files", library.files)

    folder = built(f"suite-{library.name}-{library.version}", pins, build)
    return Provided(str(folder / "venv" / "bin" / "python"), folder / "files")


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
