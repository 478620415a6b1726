"""`python3 -m tests.docs [FOLDER]`: make a site of utpsocket/docs, .cache/docs/site unless said otherwise.

Only the standard library is needed to start: the first run makes a virtual environment below `.cache/docs/` and
installs pyproject.toml's dependency group `docs` into it, for which it needs the package index. Whatever Sphinx warns
of is an error: a reference that leads nowhere, a page without a link to it, a docstring that cannot be read.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "docs"


def environment() -> Path:
    """The environment for this interpreter and pyproject.toml, made if need be."""
    wanted = hashlib.sha256(sys.version.encode() + (ROOT / "pyproject.toml").read_bytes()).hexdigest()[:12]
    made = CACHE / wanted
    if not made.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        print(f"making the environment {made.relative_to(ROOT)} ...", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            # Moved at last, in one step: two may be at it. Its scripts would not survive that, but nobody calls one.
            fresh = Path(folder) / "environment"
            python = str(fresh / "bin" / "python")
            quietly = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            subprocess.run([sys.executable, "-m", "venv", str(fresh)], check=True)
            subprocess.run([*quietly, "pip>=25.1"], check=True)  # the first that knows dependency groups
            subprocess.run([*quietly, "--group", "docs"], cwd=ROOT, check=True)
            try:
                fresh.rename(made)
            except OSError:
                if not made.exists():
                    raise
    return made


def main(arguments: list[str]) -> int:
    if arguments and arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0
    site = Path(arguments[0]).resolve() if arguments else CACHE / "site"
    try:
        python = environment() / "bin" / "python"
    except subprocess.CalledProcessError as error:
        print(f"python3 -m tests.docs: {error}", file=sys.stderr)
        return 2
    sources = ROOT / "utpsocket" / "docs"
    command = [
        str(python),
        "-m",
        "sphinx",
        "--builder",
        "html",
        "--fail-on-warning",
        "--keep-going",
        "--fresh-env",
        "-q",
    ]
    paths = ["--conf-dir", str(Path(__file__).resolve().parent), "--doctree-dir", str(CACHE / "doctrees")]
    built = subprocess.run([*command, *paths, str(sources), str(site)], env=dict(os.environ), check=False)
    if built.returncode == 0:
        print(f"{site}/index.html")
    return 1 if built.returncode else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
