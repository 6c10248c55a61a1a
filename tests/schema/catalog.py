"""What a database consists of, as text that can be compared."""

from __future__ import annotations

import difflib
from typing import LiteralString

import psycopg

SCHEMAS = ["public", "postroom"]

# One query a kind of object; each gives its name and all that is to be known of it, a line a fact.
_QUERIES: dict[str, LiteralString] = {
    "schema": """
        SELECT nspname, concat_ws(E'\n', 'owner ' || nspowner::regrole, 'grants ' || pg_temp.grants(nspacl))
        FROM pg_namespace
        WHERE nspname = ANY (%(schemas)s)
    """,
    "relation": """
        SELECT
            class.oid::regclass,
            concat_ws(
                E'\n',
                'kind ' || relkind::text, 'persistence ' || relpersistence::text,
                'owner ' || relowner::regrole,
                'options ' || pg_temp.sorted(reloptions),
                'toast options ' || pg_temp.sorted(
                    (SELECT toast.reloptions FROM pg_class AS toast WHERE toast.oid = class.reltoastrelid)
                ),
                'row security ' || relrowsecurity || ' ' || relforcerowsecurity,
                'grants ' || pg_temp.grants(relacl),
                CASE WHEN relkind IN ('v', 'm') THEN pg_get_viewdef(class.oid) END
            )
        FROM pg_class AS class
        WHERE relnamespace = ANY (%(schemas)s::regnamespace[]) AND relkind NOT IN ('i', 'I')
    """,
    "column": """
        SELECT
            format('%%s.%%I', attrelid::regclass, attname),
            concat_ws(
                E'\n',
                'place ' || row_number() OVER (PARTITION BY attrelid ORDER BY attnum),
                format_type(atttypid, atttypmod),
                CASE WHEN attnotnull THEN 'not null' END,
                'default ' || pg_get_expr(adbin, adrelid),
                'identity ' || NULLIF(attidentity::text, ''), 'generated ' || NULLIF(attgenerated::text, ''),
                'storage ' || attstorage::text, 'compression ' || NULLIF(attcompression::text, ''),
                'collation ' || NULLIF(attcollation, 0)::regcollation,
                'statistics ' || NULLIF(attstattarget, -1),
                -- pg_attver is a counter that the embedded PostgreSQL's build keeps with every column.
                'options ' || pg_temp.sorted(
                    ARRAY(SELECT item FROM unnest(attoptions) AS item WHERE item NOT LIKE 'pg_attver=%%')
                ),
                'grants ' || pg_temp.grants(attacl)
            )
        FROM pg_attribute
        JOIN pg_class AS class ON class.oid = attrelid
        LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
        WHERE relnamespace = ANY (%(schemas)s::regnamespace[])
            AND relkind NOT IN ('i', 'I') AND attnum > 0 AND NOT attisdropped
    """,
    "type": """
        SELECT
            type.oid::regtype,
            concat_ws(
                E'\n',
                'kind ' || typtype::text, 'owner ' || typowner::regrole, 'grants ' || pg_temp.grants(typacl)
            )
        FROM pg_type AS type
        WHERE typnamespace = ANY (%(schemas)s::regnamespace[]) AND typelem = 0
    """,
    "constraint": """
        SELECT
            format('%%s on %%s', conname, conrelid::regclass),
            pg_get_constraintdef(oid) || CASE WHEN convalidated THEN '' ELSE ' (not validated)' END
        FROM pg_constraint
        WHERE connamespace = ANY (%(schemas)s::regnamespace[])
    """,
    "index": """
        SELECT
            indexrelid::regclass,
            pg_get_indexdef(indexrelid) || CASE WHEN indisvalid AND indisready THEN '' ELSE ' (invalid)' END
        FROM pg_index
        JOIN pg_class AS class ON class.oid = indexrelid
        WHERE relnamespace = ANY (%(schemas)s::regnamespace[])
    """,
    "statistics": """
        SELECT stxname, pg_get_statisticsobjdef(oid)
        FROM pg_statistic_ext
        WHERE stxnamespace = ANY (%(schemas)s::regnamespace[])
    """,
    "trigger": """
        SELECT
            format('%%s on %%s', tgname, tgrelid::regclass),
            pg_get_triggerdef(trigger.oid) || ' ' || tgenabled::text
        FROM pg_trigger AS trigger
        JOIN pg_class AS class ON class.oid = tgrelid
        WHERE relnamespace = ANY (%(schemas)s::regnamespace[]) AND NOT tgisinternal
    """,
    "function": """
        SELECT
            oid::regprocedure,
            concat_ws(
                E'\n',
                'owner ' || proowner::regrole, 'grants ' || pg_temp.grants(proacl), pg_get_functiondef(oid)
            )
        FROM pg_proc
        WHERE pronamespace = ANY (%(schemas)s::regnamespace[]) AND prokind <> 'a'
    """,
    "policy": """
        SELECT
            format('%%s on %%I.%%I', policyname, schemaname, tablename),
            concat_ws(
                E'\n',
                permissive, 'for ' || cmd, 'to ' || pg_temp.sorted(roles::text[]),
                'using ' || qual, 'with check ' || with_check
            )
        FROM pg_policies
        WHERE schemaname = ANY (%(schemas)s)
    """,
    "comment": """
        SELECT pg_describe_object(classoid, objoid, objsubid), description
        FROM pg_description
        CROSS JOIN LATERAL pg_identify_object(classoid, objoid, objsubid) AS object
        WHERE object.schema = ANY (%(schemas)s)
    """,
    "default privileges": """
        SELECT
            format('%%s in %%s for %%s', defaclobjtype, defaclnamespace::regnamespace, defaclrole::regrole),
            pg_temp.grants(defaclacl)
        FROM pg_default_acl
    """,
}

_HELPERS = """
    CREATE FUNCTION pg_temp.sorted(text[]) RETURNS text LANGUAGE sql AS
    $$ SELECT string_agg(item, ', ' ORDER BY item) FROM unnest($1) AS item $$;
    CREATE FUNCTION pg_temp.grants(aclitem[]) RETURNS text LANGUAGE sql AS
    $$ SELECT pg_temp.sorted($1::text[]) $$;
"""


def catalog_of(connection: psycopg.Connection) -> dict[str, str]:
    """
    Every object of our two schemas, `kind name` → its definition.

    In the transaction that is open; what it sets and makes ends with that.
    """
    connection.execute(_HELPERS)
    # So that every name is written with its schema.
    connection.execute("SET LOCAL search_path = ''")
    return {
        f"{kind} {name}": definition or ""
        for kind, query in _QUERIES.items()
        for name, definition in connection.execute(query, {"schemas": SCHEMAS})
    }


def differences(one: dict[str, str], other: dict[str, str], *, names: tuple[str, str]) -> list[str]:
    """What two databases do not have in common; each entry names the object and the difference."""
    found = []
    for key in sorted(one.keys() | other.keys()):
        if key not in other:
            found.append(f"{key}: only in {names[0]}")
        elif key not in one:
            found.append(f"{key}: only in {names[1]}")
        elif one[key] != other[key]:
            lines = difflib.unified_diff(
                one[key].splitlines(), other[key].splitlines(), *names, n=0, lineterm=""
            )
            found.append("\n    ".join([f"{key}:", *(line for line in lines if not line.startswith("@@"))]))
    return found
