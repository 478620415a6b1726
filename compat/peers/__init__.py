"""Other uTP implementations, for real: libutp (npm utp-native), libtorrent, and tshark's reading of our packets.

`python3 -m compat peers [NAME…] [--json] [--quick] [--size 10M]`. Peers set themselves up in a cache folder
(provision.py). command.py runs the cases of libutp.py, swarm.py and dissect.py; relay.py is the bad road between two
sides; stream.py, bittorrent.py and utp_native/ are the sides.
"""

from __future__ import annotations


def main(argv: list[str]) -> int:
    """Run the command. Imported late: its children import this package too, and start faster without it."""
    from compat.peers import command

    return command.main(argv)
