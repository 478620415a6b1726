"""Things nobody here wrote, run over uTP: the interpreter's own tests, other peoples' programs, other peers.

`python3 -m compat COMMAND` (see __main__.py). Each command is a package beside this file with `main(argv) -> int`.
Nothing in here is part of the library, and nothing in the library imports it.
"""
