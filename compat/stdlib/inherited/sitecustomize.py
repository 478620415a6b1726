"""What the processes started by a test inherit: the patch, as soon as they import `socket`, and the tally.

Found through PYTHONPATH by every Python that a test starts (multiprocessing's spawn and forkserver, subprocess). It
costs nothing to those which never import `socket`.
"""

from __future__ import annotations

import os
import sys

if os.environ.get("COMPAT_STDLIB_TALLY") and "COMPAT_STDLIB_CHILD" not in os.environ:

    class _PatchAfterSocket:
        """A finder that lets `socket` be imported as ever, then patches it."""

        def find_spec(self, name, path=None, target=None):  # type: ignore[no-untyped-def]
            if name != "socket":
                return None
            sys.meta_path.remove(self)
            import importlib.util

            spec = importlib.util.find_spec(name)
            assert spec is not None
            assert spec.loader is not None
            load = spec.loader.exec_module

            def exec_module(module):  # type: ignore[no-untyped-def]
                load(module)
                _patch()

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
            return spec

    def _patch() -> None:
        import atexit

        from compat.stdlib import over_utp, tally

        over_utp.patch()
        path = os.environ["COMPAT_STDLIB_TALLY"]
        atexit.register(tally.report, path)
        tally.report_at_exit_of_forks(path)

    sys.meta_path.insert(0, _PatchAfterSocket())
