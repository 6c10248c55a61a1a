"""
Traps in schema public: functions and operators that fit a call better than those of pg_catalog do.

Unqualified names are looked up in pg_catalog first, but one in another schema of the path whose types
fit better is taken all the same (CVE-2018-1058). Who may create in public could so run its code as whoever
calls. There is a trap for each name that postroom's SQL uses; one that is sprung says so in public.sprung.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

import postroom

_SOURCES = [*Path(postroom.__file__).parent.rglob("*.py"), *Path(postroom.__file__).parent.rglob("*.sql")]
_NAMES = sorted({name for path in _SOURCES for name in re.findall(r"\b([a-z_0-9]+)\(", path.read_text())})

_KINDS = ("uuid", "name", "varchar", "timestamptz", "int4", "jsonb", "regclass", "oid", "text")
_ONE = {"anyelement", "anynonarray", "anycompatible", "anycompatiblenonarray", "any"}
_MANY = {"anyarray", "anycompatiblearray"}


def set_traps(connection: psycopg.Connection[Any]) -> None:
    """Set them all, as the connection's role."""
    connection.execute("CREATE TABLE public.sprung (who text, what text)")
    connection.execute("GRANT ALL ON public.sprung TO PUBLIC")
    traps: list[sql.Composed] = []
    for name, kind, arguments in connection.execute(_FUNCTIONS, {"names": _NAMES}).fetchall():
        traps += [_function(name, kind, fitting) for fitting in _better(arguments)]
    for name, left, right in connection.execute(_OPERATORS).fetchall():
        traps += [_operator(name, fitting) for fitting in _better([left, right])]
    traps += [_operator(name, pair) for name, *pair in product(("=", "||"), _KINDS, _KINDS)]
    set_config = "SELECT set_config('hostile.traps', to_jsonb(%(traps)s::text[])::text, false)"
    connection.execute(
        set_config, {"traps": list(dict.fromkeys(trap.as_string(connection) for trap in traps))}
    )
    connection.execute(_SET)
    set_here = connection.execute("SELECT FROM pg_proc WHERE pronamespace = 'public'::regnamespace")
    assert set_here.rowcount > 500, set_here.rowcount


def sprung(connection: psycopg.Connection[Any]) -> list[tuple[str, str]]:
    """Who has run what of it."""
    return connection.execute("SELECT DISTINCT who, what FROM public.sprung ORDER BY 1, 2").fetchall()


_FUNCTIONS = """
    SELECT proc.proname, proc.prokind, ARRAY(
        SELECT type.typname::text
        FROM unnest(proc.proargtypes) WITH ORDINALITY AS argument (oid, place)
        JOIN pg_type AS type ON type.oid = argument.oid
        ORDER BY argument.place
    )
    FROM pg_proc AS proc
    WHERE proc.pronamespace = 'pg_catalog'::regnamespace
        AND proc.proname = ANY (%(names)s)
        AND proc.prokind IN ('f', 'a')
        AND proc.pronargs BETWEEN 1 AND 3
"""
_OPERATORS = """
    SELECT operator.oprname, a.typname::text, b.typname::text
    FROM pg_operator AS operator
    JOIN pg_type AS a ON a.oid = operator.oprleft
    JOIN pg_type AS b ON b.oid = operator.oprright
    WHERE operator.oprnamespace = 'pg_catalog'::regnamespace
        AND operator.oprname = ANY ('{||,=,<>,<,>,<=,>=,~,!~,~~,-,+,->>,->}')
        AND (a.typname::text ~ '^any|^text$' OR b.typname::text ~ '^any|^text$')
"""


def _better(arguments: list[str]) -> list[tuple[str, ...]]:
    """Types for these arguments that are nearer to what may be given."""
    found: list[tuple[str, ...]] = []
    for kind in _KINDS:
        fitting = []
        for argument in arguments:
            if argument in _ONE:
                fitting.append(kind)
            elif argument in _MANY:
                fitting.append(f"{kind}[]")
            elif argument == "record":
                fitting.append("public.email_queue")
            else:
                fitting.append(argument)
        found.append(tuple(fitting))
        for place, argument in enumerate(arguments):
            if argument == "text":
                found.append(tuple(kind if here == place else one for here, one in enumerate(fitting)))
        found.append(
            tuple(
                kind if argument == "text" else one for argument, one in zip(arguments, fitting, strict=True)
            )
        )
    # format(text, VARIADIC "any") with three values, as errors are written.
    if arguments[-1:] == ["any"]:
        found += [
            ("text", "name", "name", "name"),
            ("text", "name", "text"),
            ("text", "name", "name", "text"),
        ]
    return [one for one in dict.fromkeys(found) if list(one) != arguments]


# What cannot be made (no such type, twice) is passed over.
_SET = """
    DO $$
    DECLARE
        v_trap text;
    BEGIN
        FOR v_trap IN SELECT jsonb_array_elements_text(current_setting('hostile.traps')::jsonb) LOOP
            BEGIN
                EXECUTE v_trap;
            EXCEPTION WHEN OTHERS THEN
                NULL;
            END;
        END LOOP;
    END;
    $$
"""


def _body(what: str) -> sql.Composed:
    return sql.SQL("{}").format(
        sql.Literal(f"BEGIN INSERT INTO public.sprung VALUES (current_user, {what!r}); RETURN NULL; END")
    )


def _function(name: str, kind: str, arguments: tuple[str, ...]) -> sql.Composed:
    types = sql.SQL(", ").join(map(sql.SQL, arguments))
    what = f"{name}({', '.join(arguments)})".replace("'", "")
    answer = sql.SQL("bool" if name.startswith("has_") or name == "isfinite" else "text")
    if kind == "a":
        step = sql.Identifier(f"_step_{abs(hash(what))}")
        return sql.SQL(
            "CREATE FUNCTION public.{step}(text, {types}) RETURNS text LANGUAGE plpgsql AS {body};"
            "CREATE AGGREGATE public.{name}({types}) (SFUNC = public.{step}, STYPE = text)"
        ).format(step=step, types=types, body=_body(what), name=sql.Identifier(name))
    return sql.SQL("CREATE FUNCTION public.{}({}) RETURNS {} LANGUAGE plpgsql AS {}").format(
        sql.Identifier(name), types, answer, _body(what)
    )


def _operator(name: str, arguments: Sequence[str]) -> sql.Composed:
    left, right = map(sql.SQL, arguments)
    what = f"{arguments[0]} {name} {arguments[1]}".replace("'", "")
    function = sql.Identifier(f"_op_{abs(hash(what))}")
    answer = sql.SQL("text" if name in ("||", "-", "+", "->", "->>") else "bool")
    return sql.SQL(
        "CREATE FUNCTION public.{function}({left}, {right}) RETURNS {answer} LANGUAGE plpgsql AS {body};"
        "CREATE OPERATOR public.{name} (LEFTARG = {left}, RIGHTARG = {right}, FUNCTION = public.{function})"
    ).format(function=function, left=left, right=right, answer=answer, body=_body(what), name=sql.SQL(name))
