"""The form that a file in scenarios/ fills in, and the table of them all.

A scenario is two functions, which run in two processes that share a working folder of their own. The functions import
the program themselves: this table is also read where no program is installed.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

Ready = Callable[[int], None]
"""What a server calls, once, with its port: from then on clients may come."""

DEFAULT_LIMIT_S: Final = 120.0  # only what hangs takes so long, on however busy a machine


@dataclass(frozen=True)
class Scenario:
    """One program and what it is put through."""

    name: str
    packages: tuple[str, ...]
    """what pip must install; the first one's version is reported, and with none the program is Python itself"""

    server: Callable[[Ready], None]
    """serves until its process is ended, or for as long as the client needs"""

    client: Callable[[int], None]
    """does its part against the server's port, and asserts on what it got"""

    connections: int = 1
    """how many connections must have been accepted over uTP, in both processes together"""

    quick: bool = False
    """part of what continuous integration runs"""

    patched: bool = True
    """False: the functions put their process over uTP themselves, since how they do it is the point"""

    limit_s: float = DEFAULT_LIMIT_S
    module: str = ""
    """where it is defined; filled in when the table is made"""


def every_scenario() -> dict[str, Scenario]:
    """The table: by name, in the order of the files' names."""
    from compat.programs import scenarios

    table: dict[str, Scenario] = {}
    for found in pkgutil.iter_modules(scenarios.__path__):
        for scenario in scenarios_of(f"{scenarios.__name__}.{found.name}"):
            if scenario.name in table:
                raise ValueError(f"two scenarios are called {scenario.name}")
            table[scenario.name] = scenario
    return table


def scenarios_of(module: str) -> list[Scenario]:
    """Those of one module."""
    return [replace(scenario, module=module) for scenario in importlib.import_module(module).SCENARIOS]
