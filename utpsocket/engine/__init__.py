"""The engine: what carries the connections of this process. current.py has the functions by which it is reached.

They are names of this package as well, by which current.py and all that it needs is loaded: `import utpsocket` loads
none of it (docs/design.md §15). Any thread may call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from utpsocket.engine.interpreter import ending as ending  # it registers what is called at the end

if TYPE_CHECKING:
    from utpsocket.engine.current import engine as engine
    from utpsocket.engine.current import flush as flush
    from utpsocket.engine.current import running_engine as running_engine
    from utpsocket.engine.current import serving_pid as serving_pid
    from utpsocket.engine.current import shutdown as shutdown
else:
    _OF_CURRENT: Final = ("engine", "flush", "running_engine", "serving_pid", "shutdown")

    def __getattr__(name):
        if name not in _OF_CURRENT:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from utpsocket.engine import current

        return getattr(current, name)
