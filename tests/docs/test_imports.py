"""Imports point one way, as ARCHITECTURE.md says: also those within functions, and those for types alone."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "src/postroom"

FLOORS = (
    {"errors", "log", "settings"},
    {"database"},
    {"queue", "schedule"},
    {"email", "webhooks"},
    {"telemetry"},
    {"room", "jobs", "alerts"},
    {"dashboard"},
    {"http", "supabase"},
    {"cli", "testing"},
    {"django"},
)
"""From the ground up. Modules that are in none of them serve several floors."""

STRANGERS = {"email", "webhooks"}
"""They stand beside each other, and do not know each other."""

FLOOR = {part: number for number, floor in enumerate(FLOORS) for part in floor}


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in PACKAGE.rglob("*.py")}


def imports_of(module: str) -> set[str]:
    """The package's modules that this one names; of a package's face, the modules that it hands on."""
    found = set[str]()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.ImportFrom) and node.module in MODULES:
            names = {f"{node.module}.{name.name}" for name in node.names}
            found |= {name if name in MODULES else node.module for name in names}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names if name.name in MODULES}
    return found - {module}


IMPORTS = {module: imports_of(module) for module in MODULES}


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Whoever reads one need not have read it already."""
    faces = {module for module, path in MODULES.items() if path.name == "__init__.py"}
    graph = {module: imports - faces for module, imports in IMPORTS.items() if module not in faces}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


def test_no_part_imports_one_that_stands_above_it() -> None:
    """So queue and schedule know neither e-mail nor webhooks; and those do not know each other."""
    arrows = {(_part(module), _part(one)) for module, imports in IMPORTS.items() for one in imports}
    up = {(part, other) for part, other in arrows if FLOOR.get(other, 0) > FLOOR.get(part, len(FLOORS))}
    assert up == set()
    assert not {(part, other) for part, other in arrows if part != other and {part, other} <= STRANGERS}


def _part(module: str) -> str:
    return module.partition(".")[2].partition(".")[0]
