"""The programs at both ends of the link. They run by their paths, with nothing of tests/ importable.

A program is started with a role, "sink" or "source", and settings as JSON: `host` and `port` to listen at or to dial,
`streams`, `start` and `end` in seconds since the start of the experiment, `folder` for files. It prints JSON lines:

    {"ready": true}         it listens, or could dial at once
    {"t": …, "bytes": […]}  a sink, every 50 ms: seconds of CLOCK_MONOTONIC, bytes received by each connection, and
                            "cpu_seconds" used
    {"t": …, …}             a source, every 100 ms: its figures, with "stream", the connection that they are of

When all are ready, a line comes on standard input: {"origin": …}, the start in seconds of CLOCK_MONOTONIC. A sink does
not need it. Programs are killed at the end of the experiment.
"""
