"""The reference is what the code says: commands, settings, SQL functions, HTTP."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from openapi_spec_validator import validate
from starlette.routing import Route

from postroom.http.app import app
from postroom.room import Room
from postroom.setting_names import POLICY, PROCESS
from postroom.settings import Settings, SmtpTimeouts

ROOT = Path(__file__).parents[2]
OPENAPI: dict[str, Any] = yaml.safe_load((ROOT / "docs/reference/openapi.yaml").read_text())
FORWARDED = {"/functions/v1/stripe-webhook": "/webhooks/{source}"}


def test_its_pages_are_not_behind_the_code() -> None:
    """`make docs` would write them as they are."""
    program = [sys.executable, "docs/make_reference.py", "--check"]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_each_setting_of_a_process_has_a_meaning() -> None:
    """And each meaning has its setting."""
    fields = {name for name in Settings.model_fields if name != "smtp"}
    assert set(PROCESS) == fields | {f"smtp.{name}" for name in SmtpTimeouts.model_fields}


def test_each_setting_of_the_queue_has_a_meaning(database_url: str) -> None:
    """And each meaning has its setting."""
    with psycopg.connect(database_url) as connection:
        keys = [row[0] for row in connection.execute("SELECT key FROM postroom.default_settings()")]
    assert set(POLICY) == set(keys)


def test_each_function_for_callers_is_there(database_url: str) -> None:
    """Those of schema public that we own, triggers' aside."""
    with psycopg.connect(database_url) as connection:
        names = connection.execute(
            """
            SELECT proname FROM pg_proc
            WHERE pronamespace = 'public'::regnamespace AND prorettype <> 'trigger'::regtype
            """
        ).fetchall()
    page = (ROOT / "docs/reference/sql.md").read_text()
    assert set(re.findall(r"^## (\w+)$", page, re.MULTILINE)) == {name for (name,) in names}


def test_the_description_of_http_is_openapi() -> None:
    """As the specification has it."""
    validate(OPENAPI)


def test_each_route_is_described() -> None:
    """Those for programs; the dashboard and / are for people, and /webhooks is taken before the routes."""
    routes = [route for route in app(Room()).routes if isinstance(route, Route)]
    paths = {route.path for route in routes if route.path != "/" and "dashboard" not in route.path}
    ours = {FORWARDED.get(path, path) for path in paths}
    assert ours | {"/webhooks/{source}"} == set(OPENAPI["paths"])


@pytest.mark.parametrize("path", OPENAPI["paths"])
def test_each_answer_that_a_page_shows_fits_its_schema(path: str) -> None:
    """The examples of the description, held against it."""
    from jsonschema import Draft202012Validator

    for operation in OPENAPI["paths"][path].values():
        for answer in operation["responses"].values():
            for content in answer.get("content", {}).values():
                if "example" in content:
                    schema = {**content["schema"], "components": OPENAPI["components"]}
                    Draft202012Validator(schema).validate(content["example"])
