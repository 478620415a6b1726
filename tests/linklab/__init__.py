"""One emulated bottleneck between two network namespaces, and flows that share it: utpsocket, kernel TCP, libutp and
libtorrent, each in processes of its own: `python3 -m tests.linklab --help`.

emulator.c is the link. link.py says what it is like, lab.py makes it and runs flows over it, flows.py says what the
flows are, sides/ has their programs, measured.py what was seen. cases.py has the cases with goals, in __main__.py is
the command.

Time is real, so the figures are of the machine too: the link and the programs run at real-time priority, how late
packets were is measured, and a run in which too many were is called doubtful.
"""
