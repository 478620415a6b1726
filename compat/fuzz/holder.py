"""A program that was started with the sockets' fds, and knows nothing of them but the numbers:

python3 -m compat.fuzz.holder NETWORK CONTROL-FD NAME=FD=TIMEOUT…
"""

from __future__ import annotations

import socket as stdlib
import sys
from typing import Any

from compat.fuzz.prelude import SLOTS, serve, values


def main(argv: list[str]) -> None:
    """Make a socket object of each fd, then do what is told over the control socket."""
    network, control_fd, *held = argv
    module: Any = stdlib
    if network == "utp":
        import utpsocket

        module = utpsocket
    scope: dict[str, Any] = dict.fromkeys(SLOTS) | values(module)
    control = stdlib.socket(fileno=int(control_fd))
    for each in held:
        name, fd, timeout = each.split("=")
        scope[name] = module.socket(fileno=int(fd))
        scope[name].settimeout(None if timeout == "None" else float(timeout))
    serve(control, scope)


if __name__ == "__main__":
    main(sys.argv[1:])
