"""Who can be measured, and how a process that plays one side is started."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, Final

from compat.peers import provision
from compat.peers.children import REPOSITORY, Child, Children

AIOQUIC_VERSION: Final = "1.7.2"
HERE: Final = Path(__file__).resolve().parent
UTPSOCKET: Final = "utpsocket"
IN_A_PROCESS: Final = "utpsocket-process"  # the engine in a process of its own
PURE: Final = "utpsocket-pure"  # where a compiled build is measured: the pure one of the same files
EARLIER: Final = "utpsocket-earlier"  # of the tree that --against names
MODULES: Final = {**dict.fromkeys((UTPSOCKET, IN_A_PROCESS, PURE, EARLIER), "utpsocket"), "tcp": "socket"}
SUBJECTS: Final = (UTPSOCKET, IN_A_PROCESS, PURE, EARLIER, "tcp", "aioquic", "libtorrent", "utp-native")

# The side's own code is always this tree's; only the package that it measures comes from elsewhere.
_FROM_TREE: Final = """
import runpy, sys
tree, side = sys.argv.pop(1), sys.argv.pop(1)
sys.path.insert(0, tree)
import utpsocket
sys.path.remove(tree)
runpy.run_module(side, run_name="__main__", alter_sys=True)
"""
_trees: dict[str, Path] = {}


def measure_against(path: Path) -> None:
    """Have EARLIER be the utpsocket of that tree."""
    _trees[EARLIER] = path.resolve()


def tree(subject: str) -> Path:
    """The folder that has the subject's package."""
    return _trees.get(subject, REPOSITORY)


def variables(subject: str) -> dict[str, str]:
    """The environment of a process that measures one of MODULES."""
    found = {"UTPSOCKET_ENGINE": "process" if subject == IN_A_PROCESS else "thread"}
    if subject == PURE:
        found["UTPSOCKET_PURE"] = "1"
    return found


def prepare(subject: str) -> None:
    """Set it up, so that no measurement waits for it. Raises provision.Unavailable."""
    if subject == "aioquic":
        provision.environment_with("aioquic", AIOQUIC_VERSION)
    elif subject == "libtorrent":
        provision.libtorrent()
    elif subject == "utp-native":
        provision.utp_native()
    elif subject == EARLIER and EARLIER not in _trees:
        raise provision.Unavailable("--against does not say where it is")


def start(
    children: Children, subject: str, role: str, settings: dict[str, Any], environment: dict[str, str] | None = None
) -> Child:
    """Start `subject` as "listen" or "connect"."""
    # The measurement is over when a side is ordered to end: what it might still report is not waited for.
    given = {"UTPSOCKET_EXIT_FLUSH": "0", **(environment or {})}
    if subject in MODULES:
        side = f"compat.bench.{settings.get('side', 'stream_side')}"
        command = [sys.executable, "-m", side]
        if subject in _trees:
            command = [sys.executable, "-c", _FROM_TREE, str(_trees[subject]), side]
        settings = {**settings, "module": MODULES[subject]}
        given |= variables(subject)
    elif subject in ("aioquic", "libtorrent"):
        if subject == "aioquic":
            command = [str(provision.environment_with("aioquic", AIOQUIC_VERSION)), str(HERE / "quic_side.py")]
        else:
            command = [str(provision.libtorrent()), str(HERE / "libtorrent_side.py")]
        given["PYTHONPATH"] = os.pathsep.join([str(HERE), str(HERE.parent / "peers")])
    else:
        command = [provision.node(), str(HERE / "utp_native_side.cjs")]
        given["NODE_PATH"] = str(provision.utp_native())
    return children.start(f"{subject} {role}", [*command, role, json.dumps(settings)], environment=given)
