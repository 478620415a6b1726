"""Makes the compiled build: most of protocol/ and engine/ by mypyc, _native.c by a C compiler. Not a part of wheels.

hatchling calls CompileHook for each wheel that is made (pyproject.toml). It compiles where it can: without a C compiler
or Python's headers, or where compiling fails, the wheel is the pure one. With UTPSOCKET_COMPILE=1 in the environment
such a failure is an error, with UTPSOCKET_COMPILE=0 the wheel is always pure. An editable installation is, too.

    python3 -m utpsocket._compile        compile in place, for `python3 -m tests --compiled`, which runs it on a copy

What is compiled are the modules that work per packet or per iteration. Interpreted stay those that use ctypes, those of
which only types are used (reactor.py, channel.py), the public types (report.py), and what runs once.

Sources: PEP 517; https://mypyc.readthedocs.io; https://hatch.pypa.io/latest/plugins/build-hook/reference/.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any, Final

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT: Final = Path(__file__).resolve().parent.parent
REQUIRED: Final = ["mypy[mypyc]~=2.4", "setuptools>=68"]
"""What compiling needs beside a C compiler. mypy is held to one minor release: it is also used beneath its command line
(_without_type_blocks).
"""
INTERPRETED: Final = (
    "engine/channels/channel.py",
    "protocol/known_path.py",
    "protocol/layout.py",
    "protocol/report.py",
)
COMPILED: Final = (
    "protocol/*.py",
    "protocol/congestion/*.py",
    "engine/channels/*.py",
    "engine/ports/*.py",
    "engine/interpreter/garbage_collector.py",
    "engine/kernel/arena.py",
    "engine/kernel/epoll_sleep.py",
    "engine/kernel/native_calls.py",
    "engine/kernel/udp.py",
    "engine/command_queue.py",
    "engine/inline_io.py",
    "engine/loop.py",
    "engine/steps.py",
    "engine/timers.py",
    "engine/turns.py",
)
"""What mypyc compiles, below utpsocket/, but for INTERPRETED."""
LIBRARY: Final = "utpsocket"
"""mypyc puts all code into one extension module of this name and `__mypyc`, beside the package: the modules take their
__file__ from it.
"""
WORK: Final = "UTPSOCKET_COMPILE_WORK"
"""A folder for what lies between source and result, which is used again where the source has not changed."""
YES: Final = ("1", "yes", "true", "on")
NO: Final = ("0", "no", "false", "off")
C_FLAGS: Final = [
    "-O2",
    "-g0",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-unused-parameter",
    "-Wno-missing-field-initializers",
]


def modules() -> list[str]:
    """The files that mypyc compiles, relative to ROOT."""
    package = ROOT / "utpsocket"
    found = {path for pattern in COMPILED for path in package.glob(pattern)}
    found -= {package / name for name in INTERPRETED}
    return sorted(path.relative_to(ROOT).as_posix() for path in found if path.name != "__init__.py")


def mypyc_extensions(work: Path) -> list[Any]:
    """The extension modules of modules(), as C source in the folder `work`."""
    from mypy.fscache import FileSystemCache
    from mypyc import build
    from mypyc.codegen import emitmodule
    from mypyc.errors import Errors
    from mypyc.options import CompilerOptions

    paths = ["--config-file=", "--follow-imports=silent", *modules()]
    options = CompilerOptions(target_dir=str(work), group_name=LIBRARY, multi_file=True)
    cache = FileSystemCache()
    sources, all_sources, mypy_options = build.get_mypy_config(paths, None, options, cache)
    groups = build.construct_groups(sources, False, True, LIBRARY)
    result = emitmodule.parse_and_typecheck(all_sources, mypy_options, options, groups, cache)
    if result.errors:
        raise RuntimeError("\n".join(result.errors))
    for source in sources:
        _without_type_blocks(result.graph[source.module].tree)
    errors = Errors(mypy_options)
    compiled, code, _ = emitmodule.compile_modules_to_c(result, options, errors, groups)
    for message in errors.new_messages():
        print(message, file=sys.stderr)
    if errors.num_errors:
        raise RuntimeError("mypyc cannot compile this")
    needed = sorted(emitmodule.collect_source_dependencies(compiled), key=lambda each: each.path)
    dependencies = [(each.path, each.include_dirs, each.internal) for each in needed]
    extensions: list[Any] = build.mypycify(
        paths,
        opt_level=_optimization(),
        debug_level="1",
        target_dir=str(work),
        group_name=LIBRARY,
        multi_file=True,
        skip_cgen_input=(code, dependencies),
    )
    return extensions


def _without_type_blocks(tree: Any) -> None:
    """Have mypyc pass over `if TYPE_CHECKING:`, which never runs. Classes there are what it refuses (mypyc 2.4: "Nested
    class definitions not supported"), though mypy needs them.
    """
    for statement in tree.defs:
        conditions = getattr(statement, "expr", None)
        if isinstance(conditions, list) and getattr(conditions[0], "fullname", "") == "typing.TYPE_CHECKING":
            statement.body[0].is_unreachable = True


def _optimization() -> str:
    """gcc's -O: 2; a test build may ask for less."""
    return os.environ.get("UTPSOCKET_COMPILE_OPT", "2")


def _keep_objects(compiler: Any, work: Path) -> None:
    """Have a C compiler of setuptools, which compiles every file each time, pass over those whose object file is newer
    than their source and than every header that mypyc has written.
    """
    compiles = compiler._compile
    headers = [header.stat().st_mtime for header in work.rglob("*.h")]

    def compile_if_needed(object_name: str, source: str, *rest: Any) -> None:
        made = Path(object_name)
        newest = max([*headers, Path(source).stat().st_mtime])
        if not made.exists() or made.stat().st_mtime <= newest:
            compiles(object_name, source, *rest)

    compiler._compile = compile_if_needed


def compile_into(target: Path, work: Path) -> list[Path]:
    """Compile everything. Returns the files, which lie in `target` as they lie in site-packages."""
    before = os.getcwd()
    os.chdir(ROOT)
    try:
        # setuptools first: it brings distutils, which Python has not any more from 3.12 on.
        from setuptools import Distribution, Extension

        extensions = mypyc_extensions(work)
        extensions.append(Extension("utpsocket._native", ["utpsocket/_native.c"], extra_compile_args=C_FLAGS))
        command: Any = Distribution({"name": "utpsocket", "ext_modules": extensions}).get_command_obj("build_ext")
        # Optimized differently, it is another object file.
        command.build_lib, command.build_temp = str(target), str(work / f"objects-{_optimization()}")
        command.parallel = os.cpu_count() or 1
        command.ensure_finalized()
        builds = command.build_extensions

        def build_extensions() -> None:
            _keep_objects(command.compiler, work)
            builds()

        command.build_extensions = build_extensions
        command.run()
    finally:
        os.chdir(before)
    return sorted(target.rglob(f"*{sysconfig.get_config_var('EXT_SUFFIX')}"))


def _wanted() -> bool | None:
    """What UTPSOCKET_COMPILE says; None: to compile where it can be done."""
    value = os.environ.get("UTPSOCKET_COMPILE", "").strip().lower()
    if value not in ("", "auto", *YES, *NO):
        raise ValueError(f"UTPSOCKET_COMPILE={value!r}: 1 compiles, 0 does not, auto (or unset) compiles where it can")
    return True if value in YES else False if value in NO else None


def _may_compile() -> bool:
    """Whether it is wanted, this is CPython with a GIL, and, unless it is demanded, there is what C code needs."""
    wanted = _wanted()
    if wanted is False or platform.python_implementation() != "CPython" or sysconfig.get_config_var("Py_GIL_DISABLED"):
        return False
    return wanted is True or _has_compiler()


def _has_compiler() -> bool:
    words = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()
    return shutil.which(words[0]) is not None and Path(sysconfig.get_path("include"), "Python.h").exists()


class CompileHook(BuildHookInterface[Any]):
    """hatchling's side: what is needed, and what goes into the wheel."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        """What the build frontend installs first."""
        return REQUIRED if _may_compile() else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the compiled modules to a wheel."""
        if version == "editable" or not _may_compile():
            return
        self._folder = tempfile.TemporaryDirectory()
        target = Path(self._folder.name, "target")
        try:
            made = compile_into(target, Path(os.environ.get(WORK) or Path(self._folder.name, "work")))
        except (Exception, SystemExit) as error:  # mypyc ends the process where it cannot go on
            if _wanted() is True:
                raise
            self.app.display_warning(f"not compiled, so the wheel has the pure build: {error}")
            return
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        for path in made:
            build_data["force_include"][str(path)] = path.relative_to(target).as_posix()

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """The wheel is written."""
        folder = getattr(self, "_folder", None)
        if folder is not None:
            folder.cleanup()


if __name__ == "__main__":
    for path in compile_into(ROOT, ROOT / "build"):
        print(path.relative_to(ROOT))
