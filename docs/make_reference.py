"""
Make docs/reference and the list of decisions from the code: `python docs/make_reference.py`, or `make docs`.

A test holds the pages against what this would write, so that they are never behind.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import typer
import yaml
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from postroom.cli.main import app
from postroom.setting_names import POLICY, PROCESS
from postroom.settings import Settings
from postroom.settings_sources import key, variable

DOCS = Path(__file__).parent
SCHEMA = DOCS.parent / "src/postroom/sql/schema"
OPENAPI = DOCS / "reference/openapi.yaml"

_FUNCTION = re.compile(
    r"^CREATE OR REPLACE FUNCTION public\.(?P<name>\w+)\((?P<arguments>[^)]*)\)\s+"
    r"RETURNS (?P<returns>.+?)\s+LANGUAGE",
    re.MULTILINE | re.DOTALL,
)
_COMMENT = re.compile(
    r"COMMENT ON FUNCTION public\.(\w+)\([^)]*\)\s+IS 'postroom: ((?:[^']|'')+)'", re.DOTALL
)
_DEFAULT = re.compile(r"^\s+\('([a-z._-]+)',\s+'([^']*)'\)[,;]$", re.MULTILINE)


def pages() -> dict[Path, str]:
    """Every page of the reference that is made from the code, by its path."""
    made = {
        "cli.md": _cli(),
        "settings.md": _settings(),
        "sql.md": _sql(),
        "http.md": _http(yaml.safe_load(OPENAPI.read_text())),
    }
    paths = {DOCS / "reference" / name: lines for name, lines in made.items()}
    paths[DOCS / "decisions/index.md"] = _decisions()
    return {path: "\n".join(lines) + "\n" for path, lines in paths.items()}


# The command line


def _cli() -> Iterator[str]:
    yield "# Command line"
    yield ""
    yield "Exit codes: 0 done, 1 the work failed, 2 wrong usage. An error is one line on stderr that says"
    yield "what to do."
    root = typer.main.get_command(app)
    yield from _commands(root, "postroom")


def _commands(command: Any, name: str) -> Iterator[str]:
    context = click.Context(command, info_name=name)
    if hasattr(command, "commands"):
        if name != "postroom":
            yield from ["", f"## {name}", "", _sentence(command.help)]
        for sub in command.list_commands(context):
            yield from _commands(command.commands[sub], f"{name} {sub}")
        return
    usage = " ".join(command.collect_usage_pieces(context))
    yield from [
        "",
        f"{'###' if name.count(' ') > 1 else '##'} {name}",
        "",
        "```",
        f"{name} {usage}".strip(),
        "```",
        "",
    ]
    yield _sentence(command.help)
    options = [
        record for option in command.get_params(context) if (record := option.get_help_record(context))
    ]
    if rows := [(names, said) for names, said in options if "--help" not in names]:
        yield from ["", "| option | |", "|---|---|"]
        yield from (f"| `{names.replace('|', chr(92) + '|')}` | {_cell(said)} |" for names, said in rows)


def _sentence(text: str | None) -> str:
    return re.sub(r"[ \n]*\n[ \n]*(?=\S)", " ", (text or "").strip())


# Settings


def _settings() -> Iterator[str]:
    yield "# Settings"
    yield ""
    yield "## Of a process"
    yield ""
    yield "From the environment, or from postroom.toml (POSTROOM_CONFIG, else ./postroom.toml);"
    yield "the environment wins."
    yield "Spans are written 500ms, 3s, 5m, 2h, 30d."
    yield ""
    yield "| variable | in postroom.toml | default | |"
    yield "|---|---|---|---|"
    for name, field, table in _fields():
        path = f"{table}.{name}" if table else name
        if path in {"webhooks", "alerts"}:
            yield f"| | `[{path}]` | | {PROCESS[path]} |"
        elif path == "resend_api_key":
            yield f"| `RESEND_API_KEY` | | | {PROCESS[path]} |"
        else:
            inside = f"[{table}] {key(name)}" if table else key(name)
            yield f"| `{variable(name, table)}` | `{inside}` | {_default(name, field)} | {PROCESS[path]} |"
    yield ""
    yield "## Of the queue"
    yield ""
    yield "These belong to all workers together, so they are in the database: `postroom settings list`,"
    yield "`get KEY`, `set KEY VALUE`, or the dashboard. A change is in force within 5 s, without a restart."
    yield ""
    yield "| key | default | |"
    yield "|---|---|---|"
    defaults = dict(_DEFAULT.findall((SCHEMA / "10_settings.sql").read_text()))
    yield from (f"| `{name}` | `{defaults[name]}` | {meaning} |" for name, meaning in POLICY.items())
    further = ("domain.DOMAIN", "sender.ADDRESS", "type.TYPE", "transport.NAME")
    for name in further:
        yield f"| `email.limit.{name}` | `off` | A further limit, such as `500/1h`. |"


def _fields() -> Iterator[tuple[str, FieldInfo, str | None]]:
    for name, field in Settings.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from ((inner, its, name) for inner, its in kind.model_fields.items())
        else:
            yield name, field, None


def _default(name: str, field: FieldInfo) -> str:
    value = field.default
    if value is None or isinstance(value, SecretStr):
        return ""
    return f"`{value:g}s`" if name.endswith("_s") else f"`{value}`"


# SQL


def _sql() -> Iterator[str]:
    text = "".join(path.read_text() for path in sorted(SCHEMA.glob("*.sql")))
    said = {name: comment.replace("''", "'") for name, comment in _COMMENT.findall(text)}
    yield "# SQL functions"
    yield ""
    yield "In schema `public`. `service_role` and the owner may call them; a role that was named to"
    yield "`migrate --app-role` may call `enqueue_email` and insert. What lies in schema `postroom` is"
    yield "ours, and changes without notice."
    for found in _FUNCTION.finditer(text):
        name, arguments = found["name"], _sentence(found["arguments"])
        returns = re.sub(r"\s+", " ", found["returns"]).replace("( ", "(").replace(" )", ")")
        shown = f"{name}({_split(arguments)}) → {returns}"
        yield from ["", f"## {name}", "", "```sql", shown, "```"]
        yield from ["", f"{said[name][0].upper()}{said[name][1:]}."]


def _split(arguments: str) -> str:
    if len(arguments) < 80:
        return arguments
    return "\n    " + ",\n    ".join(part.strip() for part in arguments.split(",")) + "\n"


# Decisions


def _decisions() -> Iterator[str]:
    yield "# Decisions"
    yield ""
    yield "What was weighed, what was measured, and what it costs; in the order in which it was decided."
    yield ""
    for path in sorted(DOCS.glob("decisions/0*.md")):
        title = path.read_text().partition("\n")[0].removeprefix("# ")
        yield f"- [{title}]({path.name})"


# HTTP


def _http(document: Mapping[str, Any]) -> Iterator[str]:
    yield "# HTTP"
    yield ""
    yield "[openapi.yaml](openapi.yaml) says the same for programs."
    yield ""
    yield _sentence(document["info"]["description"])
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield from ["", f"## {method.upper()} {path}", "", _sentence(operation["summary"]) + "."]
            if description := operation.get("description"):
                yield from ["", _sentence(description)]
            yield from _body(document, operation)
            yield from ["", "| status | answer |", "|---|---|"]
            for status, answer in operation["responses"].items():
                found = _resolved(document, answer)
                yield f"| {status} | {_cell(found['description'])}{_example(found)} |"


def _body(document: Mapping[str, Any], operation: Mapping[str, Any]) -> Iterator[str]:
    content = operation.get("requestBody", {}).get("content", {})
    schema = _resolved(document, content.get("application/json", {}).get("schema", {}))
    if "properties" not in schema:
        return
    yield from ["", "| field | type | |", "|---|---|---|"]
    for name, field in schema["properties"].items():
        must = " (required)" if name in schema.get("required", ()) else ""
        yield f"| `{name}`{must} | {field['type']} | {_cell(field['description'])} |"


def _example(answer: Mapping[str, Any]) -> str:
    for content in answer.get("content", {}).values():
        if "example" in content:
            return f" `{json.dumps(content['example'])}`"
    return ""


def _resolved(document: Mapping[str, Any], node: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Any = node
    while "$ref" in found:
        target: Any = document
        for part in found["$ref"].removeprefix("#/").split("/"):
            target = target[part]
        found = target
    return found  # type: ignore[no-any-return]


def _cell(text: str) -> str:
    return _sentence(text).replace("|", "\\|")


if __name__ == "__main__":
    behind = [path for path, text in pages().items() if not path.exists() or path.read_text() != text]
    if "--check" in sys.argv:
        sys.exit(f"make docs: {', '.join(path.name for path in behind)} is behind the code" if behind else 0)
    for path in behind:
        path.write_text(pages()[path])
        print(f"wrote {path.relative_to(DOCS.parent)}")
