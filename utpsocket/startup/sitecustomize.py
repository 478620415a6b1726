"""Run by every Python at its start: patches `socket` when it is imported, if UTPSOCKET_PATCH asks for it.

Where the package is installed, utpsocket.pth beside it runs this; elsewhere it is found on a PYTHONPATH that has this
folder. It removes its own folder from sys.path and runs the sitecustomize that it hides, so that the program finds both
as without it. The package is loaded when `socket` is imported and not before, so that other interpreters are hardly
slowed down; and by its place on disk, since it need not be on the program's sys.path. Importing importlib.util would
take longer than all of this: its functions are taken from where they are made.
"""

from __future__ import annotations

import os
import sys
from importlib._bootstrap import module_from_spec
from importlib._bootstrap_external import spec_from_file_location
from importlib.machinery import PathFinder

TYPE_CHECKING = False  # type checkers know the name
if TYPE_CHECKING:
    from types import ModuleType

_FOLDER = os.path.dirname(os.path.abspath(__file__))
_PACKAGE = os.path.dirname(_FOLDER)


def _is_wanted() -> bool:
    """The value of UTPSOCKET_PATCH, read as by utpsocket.engine.environment, which is not loaded yet."""
    text = os.environ.get("UTPSOCKET_PATCH", "").strip()
    is_wanted = text.lower() in ("1", "yes", "true", "on")
    if not is_wanted and text.lower() not in ("", "0", "no", "false", "off") and sys.stderr is not None:
        meant = "1 or 0 (or yes, no, true, false, on, off)"
        print(f"utpsocket: UTPSOCKET_PATCH is {text!r}, not {meant}: nothing is patched", file=sys.stderr)
    return is_wanted


def _load(name: str, path: str, package_folder: str | None = None) -> ModuleType:
    folders = None if package_folder is None else [package_folder]
    spec = spec_from_file_location(name, path, submodule_search_locations=folders)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _patch() -> None:
    if "utpsocket" not in sys.modules:
        place = os.path.join(_PACKAGE, "__init__.py")
        _load("utpsocket", place, _PACKAGE)
    from utpsocket import monkey

    monkey.patch_from_environment()
    from utpsocket.engine import environment

    if environment.value("UTPSOCKET_STATS", False):
        from utpsocket.startup import exit_table

        exit_table.register()


def _run_hidden_sitecustomize() -> None:
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != _FOLDER]
    spec = PathFinder.find_spec("sitecustomize")
    if spec is not None and spec.loader is not None:
        module = module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


if _is_wanted():
    if "socket" in sys.modules:
        _patch()
    else:
        _after_import = _load("utpsocket_import_hook", os.path.join(_PACKAGE, "integrations", "import_hook.py"))
        del sys.modules["utpsocket_import_hook"]
        _after_import.AfterImport({"socket": _patch}).install()
if __name__ == "sitecustomize":
    _run_hidden_sitecustomize()
