"""The tree keeps to docs/design.md §1 and docs/style.md: what may import what, how large a file is, what things are
called.

Every rule is a function from parsed files to complaints, so that each also has a test that it does complain.
"""

from __future__ import annotations

import ast
import io
import re
import socket
import subprocess
import sys
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import utpsocket
import utpsocket.green
import utpsocket.loops
import utpsocket.monkey
import utpsocket.options
import utpsocket.stats
from tests import public_names
from utpsocket.engine.interpreter import originals
from utpsocket.sockets import functions

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "utpsocket"

# What cannot touch the world: no socket, clock, thread, file or randomness is within reach of these.
PURE_MODULES = frozenset(
    {
        "__future__",
        "array",
        "bisect",
        "heapq",
        "collections",
        "dataclasses",
        "enum",
        "errno",  # numbers and their names
        "itertools",
        "math",
        "operator",
        "struct",
        "typing",
    }
)
# Third-party names that one module may import, each the extra of its name.
EXTRAS = {"green/cooperative.py": {"gevent"}, "_compile.py": {"hatchling"}}
# In C, and below everything: what of it is pure, protocol/ may use.
NATIVE = f"{PACKAGE}._native"
# Type checkers bring these along; at run time nothing imports them.
FOR_TYPE_CHECKERS = {"_typeshed", "typing_extensions"}

LARGEST_FILE_LINES = 700  # of code: what explains it, or is blank, is free
NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}
LARGE_CLASS_SLOTS = 8
FORBIDDEN_FILES = frozenset({"utils.py", "util.py", "common.py", "constants.py", "helpers.py", "misc.py"})
FORBIDDEN_PREFIXES = ("get_", "do_", "process_")
FORBIDDEN_SUFFIXES = ("Manager", "Helper")
PURE_ROOMS = ("protocol", "engine")  # the rooms whose names are all ours

# What a program may replace functions of while sockets are in use: taken as copies, from
# engine/interpreter/originals.py.
REPLACEABLE = frozenset({*originals.COPIED, "builtins", "threading", "subprocess", "tempfile", "shutil", "queue"})
# These patch the stdlib, import what is there by then, or are programs of their own: they need the modules themselves.
NEED_THE_MODULES = ("protocol", "cli", "monkey", "green", "startup")
NEED_THE_MODULES_FILES = frozenset(
    {
        "__init__.py",
        "_compile.py",
        "_pure.py",
        "sockets/before_chroot.py",
        "sockets/functions.py",
        "integrations/uvloop/libuv.py",
        "engine/interpreter/originals.py",
        "engine/interpreter/native.py",
    }
)

# What programs run by themselves, or only the engine's thread does: no signal's handler runs there.
WITHOUT_HANDLERS = ("cli",)
WITHOUT_HANDLERS_FILES = (
    frozenset(  # uvloop's are asyncio's callbacks, libc.py and native.py have it as they are imported
        {
            "engine/channels/race.py",
            "engine/channels/receive_buffer.py",
            "engine/channels/tcp.py",
            "engine/channels/utp.py",
            "engine/helper/server.py",
            "engine/interpreter/libc.py",
            "engine/interpreter/native.py",
            "engine/kernel/socket_filter.py",
            "engine/kernel/syscalls.py",
            "engine/ports/listener.py",
            "engine/ports/tcp_listener.py",
            "engine/ports/unread_syns.py",
            "integrations/uvloop/libuv.py",
        }
    )
)

# From the ground up: what a file may import is in its own layer or in one that is named before. The longest prefix
# counts.
LAYERS = (
    ("_compile.py", "_pure.py"),
    ("protocol/",),
    ("engine/interpreter/",),
    ("engine/environment.py", "engine/faults.py", "engine/reactor.py", "engine/timers.py", "engine/turns.py"),
    ("engine/kernel/",),
    ("engine/user_fds/",),
    ("engine/channels/",),
    ("engine/ports/",),
    ("engine/",),
    ("engine/helper/",),
    ("engine/__init__.py", "engine/current.py"),
    ("sockets/", "options.py", "stats.py"),
    ("integrations/", "loops.py", "startup/__init__.py"),
    ("monkey/", "green/"),
    ("startup/",),
    ("__init__.py",),
    ("cli/", "__main__.py"),
)


# How many lines of a file have Any: each for what really is anything, with the reason beside it or evident. Others need
# the type that they have.
ANY_LINES = {
    "__init__.py": 1,
    "_compile.py": 9,  # mypyc, setuptools and hatchling have no types, or such ones
    "cli/engines.py": 1,
    "cli/perf_server.py": 1,
    "engine/helper/client.py": 4,
    "engine/helper/known_ports.py": 1,
    "engine/helper/messages.py": 3,
    "engine/helper/server.py": 2,
    "engine/interpreter/arguments.py": 3,
    "engine/interpreter/garbage_collector.py": 1,
    "engine/interpreter/native.py": 3,
    "engine/loop.py": 2,
    "engine/user_fds/forked_copies.py": 5,
    "green/__init__.py": 1,
    "green/cooperative.py": 1,
    "green/hooks.py": 3,
    "green/inner_sockets.py": 1,
    "integrations/import_hook.py": 1,
    "integrations/tls.py": 1,
    "integrations/uvloop/libuv.py": 6,
    "integrations/uvloop/transports.py": 3,
    "monkey/__init__.py": 1,
    "monkey/host_names.py": 1,
    "monkey/in_place.py": 1,
    "monkey/single_module.py": 1,
    "sockets/before_chroot.py": 1,
    "sockets/host_lists.py": 1,
    "sockets/rules.py": 1,
    "sockets/shim.py": 7,
}

# What makes functions of libraries: engine/interpreter/libc.py alone declares those.
CTYPES_LIBRARIES = frozenset({"CDLL", "PyDLL", "CFUNCTYPE", "PYFUNCTYPE", "pythonapi"})


@dataclass(frozen=True)
class Source:
    """A parsed file; `path` is relative to the package, with slashes."""

    path: str
    text: str

    @property
    def room(self) -> str:
        return self.path.split("/")[0] if "/" in self.path else ""

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.path)

    @property
    def package(self) -> str:
        """The dotted package that a relative import in this file starts from."""
        return ".".join([PACKAGE, *self.path.split("/")[:-1]])


@dataclass(frozen=True)
class Import:
    """One imported module; for `from m import n` also `m.n`, which may be a module too."""

    line: int
    name: str
    at_module_level: bool
    is_for_types: bool

    @property
    def top(self) -> str:
        return self.name.split(".")[0]


def sources() -> list[Source]:
    package = ROOT / PACKAGE
    return [
        Source(path.relative_to(package).as_posix(), path.read_text(encoding="utf-8"))
        for path in sorted(package.rglob("*.py"))
    ]


def imports(source: Source) -> Iterator[Import]:
    """Every import, in functions and under TYPE_CHECKING too: a type that is needed is a dependency as well."""
    tree = source.tree
    function_nodes = {
        id(inner)
        for outer in ast.walk(tree)
        if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for inner in ast.walk(outer)
    }
    type_nodes = {
        id(inner)
        for outer in ast.walk(tree)
        if isinstance(outer, ast.If) and ast.unparse(outer.test) == "TYPE_CHECKING"
        for statement in outer.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        level = id(node) not in function_nodes
        for_types = id(node) in type_nodes
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(node.lineno, alias.name, level, for_types)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                package = source.package.split(".")
                module = ".".join([*package[: len(package) - node.level + 1], *filter(None, [module])])
            for alias in node.names:
                yield Import(node.lineno, f"{module}.{alias.name}", level, for_types)


def impure_protocol(source: Source) -> Iterator[str]:
    if source.room != "protocol":
        return
    for imported in imports(source):
        ours = imported.name.startswith(f"{PACKAGE}.protocol") or imported.name == NATIVE
        pure = imported.top in PURE_MODULES or imported.name.startswith("collections.")
        if not ours and not pure:
            yield f"{source.path}:{imported.line}: protocol/ imports {imported.name}"


def engine_looking_up(source: Source) -> Iterator[str]:
    if source.room != "engine":
        return
    for imported in imports(source):
        below = imported.name.startswith((f"{PACKAGE}.protocol", f"{PACKAGE}.engine", NATIVE))
        if imported.top == PACKAGE and not below:
            yield f"{source.path}:{imported.line}: engine/ imports {imported.name}, which is what users touch"


def layer(path: str) -> int:
    """How far from the ground a file is."""
    matching = [
        (len(prefix), place)
        for place, prefixes in enumerate(LAYERS)
        for prefix in prefixes
        if path == prefix or (prefix.endswith("/") and path.startswith(prefix))
    ]
    return max(matching)[1]


def file_of(name: str) -> str | None:
    """The file of this package that an imported name is, or is in; None for NATIVE."""
    if name == NATIVE:
        return None
    parts = name.split(".")[1:]
    for count in range(len(parts), -1, -1):
        for path in ("/".join([*parts[:count], "__init__.py"]), "/".join(parts[:count]) + ".py"):
            if (ROOT / PACKAGE / path).is_file():
                return path
    return None


def looks_up(source: Source) -> Iterator[str]:
    for imported in imports(source):
        path = file_of(imported.name) if imported.top == PACKAGE else None
        if path is not None and layer(path) > layer(source.path):
            yield f"{source.path}:{imported.line}: imports {path}, which is above it"


def third_party(source: Source) -> Iterator[str]:
    allowed = sys.stdlib_module_names | {PACKAGE} | EXTRAS.get(source.path, set())
    for imported in imports(source):
        if imported.is_for_types and imported.top in FOR_TYPE_CHECKERS:
            continue
        if imported.at_module_level and imported.top not in allowed:
            yield f"{source.path}:{imported.line}: the library imports {imported.top}"


def another_library(source: Source) -> Iterator[str]:
    if source.path not in ("engine/interpreter/libc.py", "_pure.py"):  # which is imported before it
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Attribute) and node.attr in CTYPES_LIBRARIES:
                yield f"{source.path}:{node.lineno}: {node.attr}: functions of libraries are declared in libc.py"


def vague_file_name(source: Source) -> Iterator[str]:
    name = source.path.rsplit("/", 1)[-1]
    if name in FORBIDDEN_FILES:
        yield f"{source.path}: {name} names no idea; a constant lives beside its one user"


def code_lines(source: Source) -> int:
    """How many lines there are without comments, docstrings and blank ones."""
    words = [
        line
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    ]
    code = [
        line
        for token in tokenize.generate_tokens(io.StringIO(source.text).readline)
        if token.type not in NO_CODE
        for line in range(token.start[0], token.end[0] + 1)
    ]
    return len(set(code) - set(words))


def too_long(source: Source) -> Iterator[str]:
    lines = code_lines(source)
    if lines > LARGEST_FILE_LINES:
        yield f"{source.path}: {lines} lines of code; an idea in it is missing a module"


def no_introduction(source: Source) -> Iterator[str]:
    if not source.text.strip():
        if not source.path.endswith("__init__.py"):
            yield f"{source.path}: empty"
        return
    if not ast.get_docstring(source.tree):
        yield f"{source.path}: no module docstring"
    if not any(imported.name == "__future__.annotations" for imported in imports(source)):
        yield f"{source.path}: no `from __future__ import annotations`"


def vague_names(source: Source) -> Iterator[str]:
    if source.room not in PURE_ROOMS:
        return
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if node.name.lstrip("_").startswith(FORBIDDEN_PREFIXES):
                yield f"{source.path}:{node.lineno}: {node.name}() says nothing with its first word"
        elif isinstance(node, ast.ClassDef):
            if node.name.endswith(FORBIDDEN_SUFFIXES) or re.match(r"_*Utp[A-Z]", node.name):
                yield f"{source.path}:{node.lineno}: class {node.name} is not named by what it is"


def undescribed_slots(source: Source) -> Iterator[str]:
    """The large classes of the core: what each slot is stands in the class's docstring."""
    if source.room != "protocol":
        return
    for node in source.tree.body:
        if not isinstance(node, ast.ClassDef):
            continue
        words = set(re.findall(r"\w+", ast.get_docstring(node) or ""))
        for statement in node.body:
            if isinstance(statement, ast.Assign) and _names(statement.targets[0], "__slots__"):
                slots = ast.literal_eval(statement.value)
                if len(slots) >= LARGE_CLASS_SLOTS:
                    for slot in sorted({*slots} - words):
                        yield f"{source.path}:{node.lineno}: {node.name} does not say what {slot} is"


def undescribed_fields(source: Source) -> Iterator[str]:
    """The large classes of channels, ports and the loop: each field that __init__ sets has a comment beside or above
    it, or stands in the docstring of the class.
    """
    if not source.path.startswith(("engine/channels/", "engine/ports/", "engine/loop.py")):
        return
    lines = source.text.split("\n")
    for node in source.tree.body:
        if not isinstance(node, ast.ClassDef):
            continue
        fields: dict[str, ast.stmt] = {}
        for method in node.body:
            if isinstance(method, ast.FunctionDef) and method.name == "__init__":
                for statement in method.body:
                    for name in _fields(statement):
                        fields.setdefault(name, statement)
        if len(fields) < LARGE_CLASS_SLOTS:
            continue
        words = set(re.findall(r"\w+", ast.get_docstring(node) or ""))
        for name, statement in fields.items():
            where = lines[statement.lineno - 1 : statement.end_lineno]
            is_below = lines[statement.lineno - 2].strip().startswith("#")
            if name not in words and not is_below and not any("#" in line for line in where):
                yield f"{source.path}:{statement.lineno}: {node.name} does not say what {name} is"


def _fields(statement: ast.stmt) -> Iterator[str]:
    """The names of self's attributes that this statement sets."""
    if isinstance(statement, ast.Assign):
        targets = statement.targets
    elif isinstance(statement, ast.AnnAssign):
        targets = [statement.target]
    else:
        return
    for target in targets:
        for each in target.elts if isinstance(target, ast.Tuple) else [target]:
            if isinstance(each, ast.Attribute) and isinstance(each.value, ast.Name) and each.value.id == "self":
                yield each.attr


def replaceable_names(source: Source) -> Iterator[str]:
    if source.room in NEED_THE_MODULES or source.path in NEED_THE_MODULES_FILES:
        return
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name in REPLACEABLE:
                    yield f"{source.path}:{node.lineno}: looks names up in {alias.name} when they are used"
        elif isinstance(node, ast.ImportFrom) and node.module in {*originals.COPIED} - {"ctypes"}:
            yield f"{source.path}:{node.lineno}: takes names of {node.module} when the first socket is made"
        elif isinstance(node, ast.Name) and node.id in ("open", "print", "input"):
            yield f"{source.path}:{node.lineno}: {node.id}() may be the program's by then"


def swallowed_handlers(source: Source) -> Iterator[str]:
    """An `except OSError` that takes what a signal's handler raises, TimeoutError say, for a system call's error."""
    if source.room in WITHOUT_HANDLERS or source.path in WITHOUT_HANDLERS_FILES:
        return
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ExceptHandler) and node.type is not None and _names(node.type, "OSError"):
            inside = [each for statement in node.body for each in ast.walk(statement)]
            passes = any(
                isinstance(each, ast.Raise) or _names(each, "reraise_handler_error", "refuse") for each in inside
            )
            if not passes:
                yield f"{source.path}:{node.lineno}: does not let pass what a signal's handler raises: signal_errors.py"
        elif isinstance(node, ast.Call) and _names(node.func, "suppress"):
            if any(_names(argument, "OSError") for argument in node.args):
                yield f"{source.path}:{node.lineno}: suppresses what a signal's handler raises: signal_errors.py"


def unexplained_any(source: Source) -> Iterator[str]:
    lines = {node.lineno for node in ast.walk(source.tree) if isinstance(node, ast.Name) and node.id == "Any"}
    if len(lines) > ANY_LINES.get(source.path, 0):
        yield f"{source.path}: Any on lines {sorted(lines)}, where {ANY_LINES.get(source.path, 0)} are explained"


def _names(tree: ast.AST, *names: str) -> bool:
    """Whether one of these names is used in it."""
    return any(
        (isinstance(node, ast.Name) and node.id in names) or (isinstance(node, ast.Attribute) and node.attr in names)
        for node in ast.walk(tree)
    )


RULES: list[Callable[[Source], Iterator[str]]] = [
    impure_protocol,
    engine_looking_up,
    looks_up,
    third_party,
    vague_file_name,
    too_long,
    no_introduction,
    vague_names,
    undescribed_slots,
    undescribed_fields,
    replaceable_names,
    swallowed_handlers,
    unexplained_any,
    another_library,
]

SLOTS = tuple("abcdefgh")
FIELDS = "".join(
    (
        "class A:\n    '''a is it'''\n    def __init__(self):\n        self.a = 0\n",
        "        self.b = 0  # is described\n        # c is, too\n        self.c = 0\n",
        *(f"        self.{each} = 0\n" for each in SLOTS[3:]),
    )
)
INTRODUCED = '"""A module."""\n\nfrom __future__ import annotations\n\n'

# A file that each rule must complain about, and how often: a rule that never fires proves nothing.
OFFENDERS = [
    (
        impure_protocol,
        "protocol/x.py",
        "import time\nimport random\nfrom . import packet\nfrom collections import abc\n",
        2,
    ),
    (impure_protocol, "protocol/x.py", "def f():\n    import socket\n", 1),
    (impure_protocol, "protocol/congestion/x.py", "from ..packet import y\nfrom ...engine import loop\n", 1),
    (impure_protocol, "protocol/x.py", "from .. import shim\nfrom utpsocket import stats\n", 2),
    (engine_looking_up, "engine/x.py", "from ..shim import socket\nfrom . import udp\nimport socket\n", 1),
    (engine_looking_up, "engine/x.py", "from utpsocket import stats\nfrom utpsocket.protocol import Run\n", 1),
    (looks_up, "engine/kernel/x.py", "from utpsocket.engine.ports import endpoint\nimport utpsocket.protocol\n", 1),
    (looks_up, "engine/ports/x.py", "from utpsocket.engine.loop import Loop\nfrom . import endpoint\n", 1),
    (looks_up, "sockets/x.py", "from utpsocket.integrations.tls import x\nfrom utpsocket.engine import y\n", 1),
    (third_party, "cli/x.py", "import rich\nfrom tqdm import tqdm\nimport utpsocket\n", 2),
    (third_party, "green/cooperative.py", "import gevent\nimport greenlet\n", 1),
    (third_party, "shim.py", "def f():\n    import gevent\n", 0),
    (third_party, "shim.py", "if TYPE_CHECKING:\n    import _typeshed\nelse:\n    import typing_extensions\n", 1),
    (third_party, "shim.py", "if TYPE_CHECKING:\n    import gevent\n", 1),
    (vague_file_name, "engine/utils.py", "", 1),
    (too_long, "shim.py", "x = 1\n" * (LARGEST_FILE_LINES + 1), 1),
    (too_long, "shim.py", '"""Why."""\n\n# because\n' * LARGEST_FILE_LINES, 0),
    (no_introduction, "shim.py", "x = 1\n", 2),
    (no_introduction, "shim.py", "", 1),
    (no_introduction, "cli/__init__.py", "", 0),
    (no_introduction, "shim.py", INTRODUCED, 0),
    (
        vague_names,
        "engine/x.py",
        "class A:\n    def get_b(self): ...\n    def _do_c(self): ...\n    def target(self): ...\n",
        2,
    ),
    (vague_names, "protocol/x.py", "class PortManager: ...\nclass UtpPort: ...\nclass Port: ...\n", 2),
    (vague_names, "shim.py", "def get_inheritable(): ...\n", 0),
    (undescribed_slots, "protocol/x.py", f"class A:\n    '''b what it is'''\n    __slots__ = {SLOTS}\n", 7),
    (undescribed_slots, "protocol/x.py", f"class A:\n    __slots__ = {SLOTS[1:]}\n", 0),
    (undescribed_slots, "engine/x.py", f"class A:\n    __slots__ = {SLOTS}\n", 0),
    (undescribed_fields, "engine/ports/x.py", FIELDS, 5),
    (undescribed_fields, "engine/kernel/x.py", FIELDS, 0),
    (replaceable_names, "engine/x.py", "import os\nimport socket as stdlib\nf = open('x')\n", 3),
    (replaceable_names, "shim.py", "def f():\n    import threading\n", 1),
    (
        replaceable_names,
        "shim.py",
        "from utpsocket.engine.interpreter.originals import os\nfrom fcntl import fcntl\n",
        1,
    ),
    (replaceable_names, "green/x.py", "import os\n", 0),
    (swallowed_handlers, "shim.py", "try:\n    f()\nexcept (OSError, ValueError):\n    pass\n", 1),
    (swallowed_handlers, "shim.py", "with contextlib.suppress(OSError):\n    f()\n", 1),
    (swallowed_handlers, "shim.py", "try:\n    f()\nexcept OSError as error:\n    reraise_handler_error(error)\n", 0),
    (another_library, "green/x.py", "a = ctypes.PyDLL(None)\nb = ctypes.CDLL(None).recv\n", 2),
    (another_library, "engine/interpreter/libc.py", "a = ctypes.PyDLL(None)\n", 0),
    (swallowed_handlers, "cli/x.py", "try:\n    f()\nexcept OSError:\n    pass\n", 0),
    (unexplained_any, "sockets/x.py", "from typing import Any\ndef f(a: Any) -> None: ...\n", 1),
    (unexplained_any, "sockets/x.py", "from typing import Any\n# Any thread may call.\n", 0),
    (unexplained_any, "cli/perf_server.py", "Json = dict[str, Any]\n", 0),
    (unexplained_any, "cli/perf_server.py", "Json = dict[str, Any]\nline: Any = 0\n", 1),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_tree_keeps_to(rule: Callable[[Source], Iterator[str]]) -> None:
    files = sources()
    assert files
    assert [complaint for source in files for complaint in rule(source)] == []


@pytest.mark.parametrize(("rule", "path", "text", "complaints"), OFFENDERS)
def test_the_rule_sees(rule: Callable[[Source], Iterator[str]], path: str, text: str, complaints: int) -> None:
    assert len(list(rule(Source(path, text)))) == complaints


def test_every_rule_has_an_offender() -> None:
    assert {rule for rule, _, _, complaints in OFFENDERS if complaints} == set(RULES)


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Files that import each other, by whatever way round; Tarjan's algorithm."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    path: list[str] = []
    found: list[list[str]] = []

    def visit(file: str) -> None:
        order[file] = lowest[file] = len(order)
        path.append(file)
        for other in sorted(graph.get(file, ())):
            if other not in order:
                visit(other)
                lowest[file] = min(lowest[file], lowest[other])
            elif other in path:
                lowest[file] = min(lowest[file], order[other])
        if lowest[file] == order[file]:
            circle = path[path.index(file) :]
            del path[path.index(file) :]
            if len(circle) > 1:
                found.append(sorted(circle))

    for file in sorted(graph):
        if file not in order:
            visit(file)
    return found


def test_no_two_files_import_each_other() -> None:
    """Types count: who must know the other to be understood depends on it."""
    graph = {
        source.path: {
            path
            for imported in imports(source)
            if imported.top == PACKAGE and (path := file_of(imported.name)) is not None and path != source.path
        }
        for source in sources()
    }
    assert len(graph) > 100
    assert circles(graph) == []


def test_circles_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set()}) == [["a", "b", "c"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_tests_examples_and_compat_are_short_enough_to_read() -> None:
    files = [
        Source(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))
        for folder in ("tests", "examples", "compat")
        for path in sorted((ROOT / folder).rglob("*.py"))
    ]
    assert files
    assert [complaint for source in files for complaint in too_long(source)] == []


def test_the_core_can_be_imported_without_the_world() -> None:
    """What the imports say, seen at run time: the core alone pulls in nothing that can open a socket or a thread."""
    program = (
        "import sys, types\n"
        f"package = types.ModuleType('{PACKAGE}'); package.__path__ = ['{PACKAGE}']\n"
        f"sys.modules['{PACKAGE}'] = package\n"
        "before = set(sys.modules)\n"
        f"import {PACKAGE}.protocol\n"
        "print(*sorted({'socket', '_socket', 'select', 'ssl', 'random', 'threading'} & (set(sys.modules) - before)))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=150, check=False
    )
    assert (ran.returncode, ran.stdout.split(), ran.stderr) == (0, [], "")


def test_every_public_name_has_a_docstring_with_its_parts() -> None:
    """docs/style.md §4 says which."""
    assert public_names.all_missing() == []


def test_every_name_that_can_be_reached_is_known_as_public() -> None:
    known = {
        name
        for path, names in public_names.PUBLIC.items()
        for name in public_names.public_names(path, ast.parse((ROOT / PACKAGE / path).read_text(encoding="utf-8")))
    }
    modules = (utpsocket, utpsocket.monkey, utpsocket.green, utpsocket.options, utpsocket.stats, utpsocket.loops)
    reached = {name for module in modules for name in module.__all__ if not hasattr(socket, name)} | {"socket"}
    assert reached - known == set()


def test_the_functions_with_our_class_in_them_say_what_is_different() -> None:
    for name in functions.REPLACEMENTS:
        assert "    Over uTP: " in getattr(utpsocket, name).__doc__, name


DOCUMENTED = '''
def send(self, data, timeout_seconds: float = 1.0, *more) -> int:
    """Send bytes.

    Over uTP: likewise.

    Parameters:
        data: bytes.
        timeout_seconds: seconds to wait; none
            at all is 0.
    Returns: how many.
    Raises: OSError.
    Source: send(2).
    """
'''


@pytest.mark.parametrize(
    ("old", "new", "complaints"),
    [
        ("", "", []),
        ("Returns: how many.", "", ["no section Returns"]),
        ("Raises: OSError.", "", ["no section Raises"]),
        ("Source: send(2).", "", ["no section Source"]),
        ("        data: bytes.\n", "", ["no parameter data"]),
        ("data: bytes.", "data: bytes.\n        other: what is not there.", []),
        ("seconds to wait; none\n            at all is 0.", "how long", ["parameter timeout_seconds has no unit"]),
        ("Over uTP: likewise.", "", ["no paragraph Over uTP"]),
        ("Raises: OSError.", "Source: send(2).\n    Raises: OSError.", ["its sections are in the order"]),
        ("*more) -> int", ") -> None", []),
        ("*more) -> int", ") -> int", []),
        ("*more) -> int", "flags: int = 0) -> int", ["no parameter flags"]),
        (", data, timeout_seconds: float = 1.0, *more", "", ["there is no parameter"] * 2),
        ('"""', "'", ["no docstring"]),
    ],
)
def test_a_docstring_that_lacks_a_part_is_seen(old: str, new: str, complaints: list[str]) -> None:
    text = DOCUMENTED.replace(old, new) if old != '"""' else "def send(self) -> None: ...\n"
    function = ast.parse(text).body[0]
    assert isinstance(function, ast.FunctionDef)
    found = list(public_names.missing_in_function(function, over_utp=True))
    assert len(found) == len(complaints)
    assert all(one.startswith(begins) for one, begins in zip(found, complaints, strict=True))


def test_a_class_and_a_constant_without_a_sentence_are_seen() -> None:
    text = (
        '"""A module."""\nLEVEL = 1\nNAME = 2\n"""What it is."""\n'
        'class Stats:\n    """Figures.\n\n    Source: tcp(7).\n    """\n\n    count: int\n'
        '    size_bytes: int\n    """Its size, bytes."""\n    def reset(self): ...\n'
    )
    assert list(public_names.missing("options.py", text, ("LEVEL", "NAME", "Stats"))) == [
        "options.py: Stats: nothing stands below count",
        "options.py: Stats.reset(): no docstring",
        "options.py: LEVEL: nothing stands below it",
    ]


# ── what the compiler of the compiled build gets wrong ──

EVALUATED_TWICE_UNNOTICED = {"len", "max", "min"}


def called_in_slices(text: str) -> list[str]:
    """mypyc 2.4 evaluates the bounds of a slice twice, unless the object is a list, a tuple, a str or bytes."""
    slices = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Slice)]
    bounds = [bound for found in slices for bound in (found.lower, found.upper) if bound is not None]
    calls = [node for bound in bounds for node in ast.walk(bound) if isinstance(node, (ast.Call, ast.NamedExpr))]
    return [
        ast.unparse(call)
        for call in calls
        if not (
            isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in EVALUATED_TWICE_UNNOTICED
        )
    ]


@pytest.mark.parametrize("folder", ["protocol", "engine/channels", "engine/ports", "engine/kernel", "engine"])
def test_no_bound_of_a_slice_is_a_call_that_matters(folder: str) -> None:
    for path in sorted((ROOT / PACKAGE / folder).glob("**/*.py" if folder == "protocol" else "*.py")):
        if path.name != "mmsg.py":  # ctypes: interpreted
            assert not called_in_slices(path.read_text(encoding="utf-8")), path


def test_a_call_in_a_slice_is_seen() -> None:
    assert called_in_slices("left = data[sock.send(data) :]") == ["sock.send(data)"]
    assert called_in_slices("left = data[: len(data) - (n := 1)]") == ["(n := 1)"]
    assert called_in_slices("left = data[: min(count, len(data))]") == []


# ── files of text ──


def read_without_an_encoding(text: str) -> list[str]:
    """The calls that open a text file in the locale's encoding, which is ASCII under LC_ALL=C."""
    return [
        ast.unparse(node)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and _wants_an_encoding(node) and not _names_an_encoding(node)
    ]


def _wants_an_encoding(call: ast.Call) -> bool:
    if isinstance(call.func, ast.Attribute):
        return call.func.attr in ("read_text", "write_text")
    if not (isinstance(call.func, ast.Name) and call.func.id == "open"):
        return False
    modes = [*call.args[1:2], *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
    return not any(isinstance(mode, ast.Constant) and "b" in str(mode.value) for mode in modes)


def _names_an_encoding(call: ast.Call) -> bool:
    by_position = {"read_text": 1, "write_text": 2, "open": 4}[getattr(call.func, "attr", "open")]
    return len(call.args) >= by_position or any(keyword.arg in ("encoding", None) for keyword in call.keywords)


@pytest.mark.parametrize("folder", [PACKAGE, "tests", "compat", "examples"])
def test_every_text_file_is_opened_with_its_encoding(folder: str) -> None:
    for path in sorted((ROOT / folder).rglob("*.py")):
        assert not read_without_an_encoding(path.read_text(encoding="utf-8")), path


def test_a_text_file_without_an_encoding_is_seen() -> None:
    assert read_without_an_encoding("path.read_text()\nopen(name)\nopen(name, 'w')") == [
        "path.read_text()",
        "open(name)",
        "open(name, 'w')",
    ]
    assert not read_without_an_encoding("open(name, 'rb')\nopen(0, mode='wb')\nPath(n).write_text(t, encoding='utf-8')")
