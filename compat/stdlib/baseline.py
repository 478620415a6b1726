"""A module over TCP: measured once per interpreter and machine, then kept in the user's cache.

The key holds whatever changes the result: the interpreter's version, the kernel, and the code that measures.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Final

from compat.stdlib import child, modules, private_network
from compat.stdlib.supervisor import ModuleRun, Outcome

MEASURING_CODE: Final = tuple(str(module.__file__) for module in (child, private_network))
WHAT_IS_MEASURED: Final = repr((modules.EXCLUDED, modules.RESOURCES_IN_PRIVATE_NETWORK, modules.NETWORK_MEANS_LOOPBACK))


def cache_folder(version: str) -> Path:
    """Where this interpreter's baselines live."""
    digest = hashlib.sha256(f"{version}\n{platform.platform()}\n{WHAT_IS_MEASURED}\n".encode())
    for path in MEASURING_CODE:
        digest.update(Path(path).read_bytes())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "utpsocket-compat" / f"stdlib-{version.split()[0]}-{digest.hexdigest()[:12]}"


def load(folder: Path, module: str) -> ModuleRun | None:
    """The module's kept baseline, or None."""
    try:
        kept = json.loads((folder / f"{module}.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    kept["tests"] = {identity: Outcome(**record) for identity, record in kept["tests"].items()}
    return ModuleRun(**kept)


def keep(folder: Path, run: ModuleRun) -> None:
    """Write the module's baseline, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f"{run.module}.{os.getpid()}.draft"
    draft.write_text(json.dumps(asdict(run)), encoding="utf-8")
    draft.replace(folder / f"{run.module}.json")
