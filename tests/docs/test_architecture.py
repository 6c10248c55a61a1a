"""ARCHITECTURE.md leads to what is there: each part of the package is in it, its names are in the code."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src/postroom"
PAGE = (ROOT / "ARCHITECTURE.md").read_text()
CODE_MAP = PAGE.split("## Code map")[1].split("```")[1]


def test_each_part_of_the_package_is_on_the_map() -> None:
    """Every folder, and every module beside them."""
    folders = {f"{one.parent.name}/" for one in PACKAGE.glob("*/*") if one.suffix in {".py", ".sql", ".html"}}
    modules = {one.name for one in PACKAGE.glob("*.py") if not one.name.startswith("__")}
    assert {name for name in folders | modules if name not in CODE_MAP} == set()


def test_each_file_that_it_names_is_there() -> None:
    """By its path in the repository, or within the package or docs/."""
    named = set(re.findall(r"[\w/]+\.(?:py|sql|md)\b", PAGE)) - {"manage.py"}  # that one is Django's
    places = (ROOT, *PACKAGE.rglob("**/"), ROOT / "docs")
    assert {name for name in named if not any((place / name).exists() for place in places)} == set()


def test_each_sql_function_that_it_names_is_there() -> None:
    """By its name in schema postroom."""
    schema = "".join(path.read_text() for path in (PACKAGE / "sql/schema").glob("*.sql"))
    named = set(re.findall(r"`postroom\.([a-z_]+)`", PAGE))
    known = set(re.findall(r"(?:FUNCTION|PROCEDURE|TABLE|VIEW) postroom\.(\w+)", schema))
    assert named <= known, named - known
