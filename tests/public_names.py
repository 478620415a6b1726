"""Which names are public, and what their docstrings must say: docs/style.md §4.

A docstring is prose, then sections. Each begins a line with its name; what follows it is indented:

    Parameters:
        timeout_seconds: seconds; None waits without an end.
    Returns: what the caller gets. Left out where the annotation says None.
    Raises: what the caller may have to catch, or "nothing".
    Next: what to call next, where there is such a thing.
    Source: where the meaning comes from: BEP 29, an RFC, a manual page, Python's documentation, a document of ours.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "utpsocket"

# The file, and the public names that it defines; ALL are those in its __all__. Of a class its public methods too.
ALL = ("__all__",)
PUBLIC: dict[str, tuple[str, ...]] = {
    "engine/channels/channel.py": ("Channel",),
    "engine/ports/endpoint.py": ("Endpoint",),
    "engine/reactor.py": ("Reactor",),
    "green/cooperative.py": ("socket",),
    "green/hooks.py": ("hook_eventlet", "hook_gevent", "unhook_eventlet", "unhook_gevent"),
    "loops.py": ALL,
    "monkey/__init__.py": ALL,
    "monkey/single_module.py": ("Wrapped",),
    "options.py": ALL,
    "protocol/connection.py": ("Connection",),
    "protocol/report.py": ("ConnectionStats",),
    "sockets/functions.py": ("incoming",),
    "sockets/shim.py": ("socket",),
    "stats.py": ALL,
}
# Classes that stand for the standard library's: each method says what is different over uTP.
STANDS_FOR_STDLIB = {("sockets/shim.py", "socket"), ("green/cooperative.py", "socket")}

SECTIONS = ("Parameters", "Returns", "Raises", "Next", "Source")
# A number has one of these words beside it.
UNITS = re.compile(
    r"\b(seconds|µs|ms|bytes|packets|datagrams|connections|descriptor|number|constants?|errno|SHUT_\w+)\b"
    r"|as for \w+\(\)"
)

Function = ast.FunctionDef | ast.AsyncFunctionDef


def sections(docstring: str) -> dict[str, str]:
    """The sections of a docstring by name, in their order, and its prose as ""."""
    found = {"": ""}
    name = ""
    for line in docstring.splitlines():
        begins = re.match(rf"({'|'.join(SECTIONS)}):(?: |$)", line)
        if begins:
            name = begins[1]
            line = line[begins.end() :]
        elif name and line and not line.startswith("    "):
            name = ""
        found[name] = found.get(name, "") + line + "\n"
    return found


def documented_parameters(section: str) -> dict[str, str]:
    """`    name, other: text` by name."""
    found: dict[str, str] = {}
    for names, text in re.findall(r"^ {4}(\w[\w, ]*): (.*(?:\n {8}.*)*)", section, re.MULTILINE):
        found |= dict.fromkeys(re.split(r", *", names), text)
    return found


def parameters(function: Function) -> dict[str, ast.expr | None]:
    """The names that a caller must know, with their annotations; *args and **kwargs as ""."""
    given = function.args
    names = [*given.posonlyargs, *given.args, *given.kwonlyargs]
    found = {each.arg: each.annotation for each in names if each.arg not in ("self", "cls") and each.arg[0] != "_"}
    variable = [each for each in (given.vararg, given.kwarg) if each is not None and each.arg[0] != "_"]
    return found | ({"": None} if variable else {})


def decorators(function: Function) -> set[str]:
    return {ast.unparse(each).rpartition(".")[2] for each in function.decorator_list}


def missing_in_function(function: Function, *, over_utp: bool) -> Iterator[str]:
    """What its docstring lacks."""
    docstring = ast.get_docstring(function)
    if not docstring:
        yield "no docstring"
        return
    found = sections(docstring)
    order = [name for name in found if name]
    if order != [name for name in SECTIONS if name in found]:
        yield f"its sections are in the order {', '.join(order)}"
    is_property = "property" in decorators(function)
    documented = documented_parameters(found.get("Parameters", ""))
    wanted = parameters(function)
    for name, annotation in wanted.items():
        if name and name not in documented:
            yield f"no parameter {name}"
        elif name and annotation is not None and re.match(r"(int|float)\b", ast.unparse(annotation)):
            if not UNITS.search(documented[name]):
                yield f"parameter {name} has no unit"
    if "" in wanted and not documented:
        yield "no parameters"
    if "" not in wanted:
        for name in documented.keys() - wanted.keys():
            yield f"there is no parameter {name}"
    returns_nothing = function.returns is not None and ast.unparse(function.returns) == "None"
    if not returns_nothing and "Returns" not in found:
        yield "no section Returns"
    if not is_property and "Raises" not in found:
        yield "no section Raises"
    if "Source" not in found:
        yield "no section Source"
    if over_utp and "Over uTP: " not in found[""]:
        yield "no paragraph Over uTP"


def missing_in_class(cls: ast.ClassDef) -> Iterator[str]:
    """What the class's own docstring, and those of its fields, lack."""
    docstring = ast.get_docstring(cls)
    if not docstring:
        yield "no docstring"
        return
    if "Source" not in sections(docstring):
        yield "no section Source"
    is_enum = any(ast.unparse(base).endswith("Enum") for base in cls.bases)
    for field in undescribed(cls.body, {"__slots__", "__module__"} if not is_enum else set(), only_public=True):
        if not is_enum:  # whose values are sentences
            yield f"nothing stands below {field}"


def undescribed(body: list[ast.stmt], without: set[str], *, only_public: bool) -> Iterator[str]:
    """The assigned names below which no docstring stands."""
    for statement, following in zip(body, [*body[1:], ast.Pass()], strict=True):
        target: ast.expr | None = statement.target if isinstance(statement, ast.AnnAssign) else None
        if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
            target = statement.targets[0]
        if not isinstance(target, ast.Name) or target.id in without or (only_public and target.id.startswith("_")):
            continue
        is_text = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
        if not is_text:
            yield target.id


def public_names(path: str, tree: ast.Module) -> tuple[str, ...]:
    names = PUBLIC[path]
    if names != ALL:
        return names
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__all__":
            return tuple(ast.literal_eval(statement.value))
    raise AssertionError(f"{path} has no __all__")


def missing(path: str, text: str, names: tuple[str, ...] | None = None) -> Iterator[str]:
    """What the docstrings of a file's public names lack."""
    tree = ast.parse(text, path)
    names = public_names(path, tree) if names is None else names
    without = set(undescribed(tree.body, set(), only_public=False))
    for node in tree.body:
        if isinstance(node, Function) and node.name in names:
            yield from (f"{path}: {node.name}(): {why}" for why in missing_in_function(node, over_utp=False))
        elif isinstance(node, ast.ClassDef) and node.name in names:
            yield from (f"{path}: {node.name}: {why}" for why in missing_in_class(node))
            over_utp = (path, node.name) in STANDS_FOR_STDLIB
            for method in node.body:
                if isinstance(method, Function) and not method.name.startswith("_"):
                    for why in missing_in_function(method, over_utp=over_utp):
                        yield f"{path}: {node.name}.{method.name}(): {why}"
    for name in without.intersection(names):
        yield f"{path}: {name}: nothing stands below it"


def all_missing() -> list[str]:
    return [why for path in PUBLIC for why in missing(path, (PACKAGE / path).read_text("utf-8"))]
