"""
What PostgREST runs for supabase-js, as SQL: no registry has PostgREST itself.

After src/PostgREST/Query (PreQuery, QueryBuilder, SqlFragment, Statements) of its repository: settings of the
transaction first, by `authenticator`, then one statement whose input is the body as JSON.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import jwt
from aiohttp import web

from tests.supabase.projects import SupabaseProject
from tests.support.web import listening

SCHEMAS = '"public", "extensions"'
STATUS = {"42501": 403, "23505": 409, "23502": 400, "42883": 404, "P0001": 400}
REMAINS = """
    'null'::text AS total_result_set, pg_catalog.count(_postgrest_t) AS page_total, {body} AS body,
    nullif(current_setting('response.headers', true), '') AS response_headers,
    nullif(current_setting('response.status', true), '') AS response_status
"""
TYPES = """
    SELECT attname::text, format_type(atttypid, atttypmod) AS type, pg_get_expr(adbin, adrelid) AS "default"
    FROM pg_attribute
    LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
    WHERE attrelid = ('public.' || quote_ident($1))::regclass AND attnum > 0 AND NOT attisdropped
"""
ROUTINES = """
    SELECT
        proc.proretset,
        ARRAY(
            SELECT ARRAY[names.name, format_type(proc.proargtypes[names.place - 1], NULL)]
            FROM unnest(proc.proargnames) WITH ORDINALITY AS names (name, place)
            WHERE names.place <= proc.pronargs
        ) AS arguments
    FROM pg_proc AS proc
    WHERE proc.pronamespace = 'public'::regnamespace AND proc.proname = $1
"""


@asynccontextmanager
async def rest_api(project: SupabaseProject) -> AsyncIterator[str]:
    """A project's address, as supabase-js has it; tokens are believed, as if the gateway had checked them."""
    url = project.server.url_of(project.database, "authenticator")
    async with asyncpg.create_pool(url, min_size=1) as pool, listening(_routes(_Api(pool))) as port:
        yield f"http://127.0.0.1:{port}"


def _routes(api: _Api) -> web.Application:
    application = web.Application()
    application.router.add_post("/rest/v1/rpc/{name}", api.call)
    application.router.add_post("/rest/v1/{name}", api.insert)
    application.router.add_get("/rest/v1/{name}", api.select)
    application.router.add_patch("/rest/v1/{name}", api.update)
    return application


class _Api:
    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def call(self, request: web.Request) -> web.Response:
        name, given = request.match_info["name"], await request.json()
        async with self._pool.acquire() as connection:
            fitting = [
                routine
                for routine in await connection.fetch(ROUTINES, name)
                if given.keys() <= {argument for argument, _ in routine["arguments"]}
            ]
        if len(fitting) != 1:
            return web.json_response({"code": "PGRST202", "message": f"{len(fitting)} fit"}, status=404)
        (routine,) = fitting
        types = {argument: type_ for argument, type_ in routine["arguments"] if argument in given}
        arguments = ", ".join(f'"{argument}" := pgrst_body."{argument}"' for argument in types)
        is_scalar = not routine["proretset"]
        called = f'"public"."{name}"({arguments})'
        source = (
            f"SELECT pgrst_call.pgrst_scalar {_body(types) if types else ''} "
            f"{', LATERAL' if types else 'FROM'} (SELECT {called} pgrst_scalar) pgrst_call"
            if is_scalar
            else f"SELECT pgrst_call.* {_body(types) if types else ''} "
            f"{', LATERAL' if types else 'FROM'} {called} pgrst_call"
        )
        shown = "_postgrest_t.pgrst_scalar" if is_scalar else "_postgrest_t"
        body = f"coalesce(json_agg({shown}){'->0' if is_scalar else ''}, '{'null' if is_scalar else '[]'}')"
        return await self._answer(request, source, body, given if types else None)

    async def insert(self, request: web.Request) -> web.Response:
        name, given = request.match_info["name"], await request.json()
        rows = given if isinstance(given, list) else [given]
        named = request.query.get("columns")
        columns = [one.strip('"') for one in named.split(",")] if named else sorted(rows[0])
        has_defaults = "missing=default" in request.headers.get("prefer", "")
        known = await self._columns(name)
        source = (
            f'INSERT INTO "public"."{name}"({_listed(columns)}) '
            f"SELECT {', '.join(_of_body(one) for one in columns)} "
            + _body(
                {one: known[one]["type"] for one in columns},
                many=isinstance(given, list),
                defaults={one: known[one]["default"] for one in columns} if has_defaults else None,
            )
            + self._returning(request, name)
        )
        return await self._answer(request, source, _rows(), given, status=201)

    async def update(self, request: web.Request) -> web.Response:
        name, given = request.match_info["name"], await request.json()
        known = await self._columns(name)
        source = (
            f'UPDATE "public"."{name}" SET '
            + ", ".join(f"{_listed([one])} = {_of_body(one)} " for one in given)
            + _body({one: known[one]["type"] for one in given}, selected=False)
            + self._where(request, name)
            + self._returning(request, name)
        )
        return await self._answer(request, source, _rows(), given)

    async def select(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        select = ", ".join(_of(name, one) for one in request.query.get("select", "*").split(","))
        source = f'SELECT {select} FROM "public"."{name}" {self._where(request, name)}'
        return await self._answer(request, source, _rows(), None)

    async def _columns(self, table: str) -> dict[str, asyncpg.Record]:
        async with self._pool.acquire() as connection:
            return {row["attname"]: row for row in await connection.fetch(TYPES, table)}

    def _where(self, request: web.Request, table: str) -> str:
        filters = []
        for column, asked in request.query.items():
            if column not in ("select", "columns"):
                operator, _, value = asked.partition(".")
                quoted = value.replace("'", "''")
                filters.append(f"{_of(table, column)} {({'eq': '=', 'neq': '<>'})[operator]} '{quoted}'")
        return f" WHERE {' AND '.join(filters)} " if filters else ""

    def _returning(self, request: web.Request, table: str) -> str:
        if "return=representation" not in request.headers.get("prefer", ""):
            return " RETURNING 1"
        return (
            f" RETURNING {', '.join(_of(table, one) for one in request.query.get('select', '*').split(','))}"
        )

    async def _answer(
        self, request: web.Request, source: str, body: str, given: Any, status: int = 200
    ) -> web.Response:
        has_body = request.method in ("GET", "HEAD") or "/rpc/" in request.path
        has_body |= "return=representation" in request.headers.get("prefer", "")
        claims = _claims(request)
        shown = REMAINS.format(body=body if has_body else "''")
        statement = (
            f"WITH pgrst_source AS ({source}) SELECT {shown} FROM (SELECT * FROM pgrst_source) _postgrest_t"
        )
        settings = {
            "search_path": SCHEMAS,
            "role": claims["role"],
            "request.jwt.claims": json.dumps(claims),
            "request.method": request.method,
            "request.path": request.path.removeprefix("/rest/v1"),
            "request.headers": json.dumps({name.lower(): text for name, text in request.headers.items()}),
            "request.cookies": "{}",
        }
        try:
            async with (
                self._pool.acquire() as connection,
                connection.transaction(readonly=request.method == "GET"),
            ):
                await connection.execute(
                    "SELECT "
                    + ", ".join(
                        f"set_config('{name}', {_literal(value)}, true)" for name, value in settings.items()
                    )
                )
                row = await connection.fetchrow(
                    statement, *([json.dumps(given)] if given is not None else [])
                )
        except asyncpg.PostgresError as error:
            answer = {
                "code": error.sqlstate,
                "message": error.args[0],
                "hint": getattr(error, "hint", None),
                "details": getattr(error, "detail", None),
            }
            return web.json_response(answer, status=STATUS.get(error.sqlstate, 400))
        assert row is not None
        return web.Response(text=row["body"], status=status, content_type="application/json")


def _claims(request: web.Request) -> dict[str, Any]:
    token = request.headers.get("authorization", "").removeprefix("Bearer ")
    # The gateway puts a token of the role's in the place of a secret or publishable key.
    for key, role in (("sb_secret_", "service_role"), ("sb_publishable_", "anon")):
        if token.startswith(key):
            return {"role": role}
    claims: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    return claims


def _body(
    types: dict[str, str],
    *,
    many: bool = False,
    selected: bool = True,
    defaults: dict[str, str | None] | None = None,
) -> str:
    """FROM: the body, as a record of those columns."""
    payload = f"FROM (SELECT $1::{'json' if defaults is None else 'jsonb'} AS json_data) pgrst_payload, "
    value, kind = "pgrst_payload.json_data", "json"
    if defaults is not None:
        kind, value = "jsonb", "pgrst_json_defs.val"
        built = ", ".join(f"'{name}', {default}" for name, default in defaults.items() if default is not None)
        payload += (
            f"LATERAL (SELECT jsonb_agg(jsonb_build_object({built}) || elem) AS val "
            "from jsonb_array_elements(pgrst_payload.json_data) elem) pgrst_json_defs, "
            if many
            else f"LATERAL (SELECT jsonb_build_object({built}) || pgrst_payload.json_data AS val) "
            "pgrst_json_defs, "
        )
    typed = ", ".join(f'"{name}" {type_}' for name, type_ in types.items())
    return (
        f"{payload}LATERAL (SELECT {_listed(list(types))} FROM "
        f"{kind}_to_record{'set' if many else ''}({value}) AS _({typed}) ) pgrst_body "
    )


def _rows() -> str:
    return "coalesce(json_agg(_postgrest_t), '[]')"


def _listed(columns: list[str]) -> str:
    return ", ".join(f'"{one}"' for one in columns)


def _of(table: str, column: str) -> str:
    return f'"public"."{table}".' + ("*" if column == "*" else f'"{column}"')


def _of_body(column: str) -> str:
    return f'"pgrst_body"."{column}"'


def _literal(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
