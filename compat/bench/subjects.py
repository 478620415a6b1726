"""Who can be measured, and how a process that plays one side is started."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, Final

from compat.peers import provision
from compat.peers.children import Child, Children

AIOQUIC_VERSION: Final = "1.7.2"
HERE: Final = Path(__file__).resolve().parent
IN_A_PROCESS: Final = "utpsocket-process"  # the engine in a process of its own
MODULES: Final = {"utpsocket": "utpsocket", IN_A_PROCESS: "utpsocket", "tcp": "socket"}
SUBJECTS: Final = ("utpsocket", IN_A_PROCESS, "tcp", "aioquic", "libtorrent", "utp-native")


def prepare(subject: str) -> None:
    """Set it up, so that no measurement waits for it. Raises provision.Unavailable."""
    if subject == "aioquic":
        provision.environment_with("aioquic", AIOQUIC_VERSION)
    elif subject == "libtorrent":
        provision.libtorrent()
    elif subject == "utp-native":
        provision.utp_native()


def start(
    children: Children, subject: str, role: str, settings: dict[str, Any], environment: dict[str, str] | None = None
) -> Child:
    """Start `subject` as "listen" or "connect"."""
    # The measurement is over when a side is ordered to end: what it might still report is not waited for.
    variables = {"UTPSOCKET_EXIT_FLUSH": "0", **(environment or {})}
    if subject in MODULES:
        command = [sys.executable, "-m", f"compat.bench.{settings.get('side', 'stream_side')}"]
        settings = {**settings, "module": MODULES[subject]}
        variables["UTPSOCKET_ENGINE"] = "process" if subject == IN_A_PROCESS else "thread"
    elif subject in ("aioquic", "libtorrent"):
        if subject == "aioquic":
            command = [str(provision.environment_with("aioquic", AIOQUIC_VERSION)), str(HERE / "quic_side.py")]
        else:
            command = [str(provision.libtorrent()), str(HERE / "libtorrent_side.py")]
        variables["PYTHONPATH"] = os.pathsep.join([str(HERE), str(HERE.parent / "peers")])
    else:
        command = [provision.node(), str(HERE / "utp_native_side.cjs")]
        variables["NODE_PATH"] = str(provision.utp_native())
    return children.start(f"{subject} {role}", [*command, role, json.dumps(settings)], environment=variables)
