"""What a call reads: the plans of all statements that ran inside it, by auto_explain."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, LiteralString

import psycopg

_AUTO_EXPLAIN: LiteralString = """
    LOAD 'auto_explain';
    SET auto_explain.log_min_duration = 0;
    SET auto_explain.log_nested_statements = on;
    SET auto_explain.log_analyze = on;
    SET auto_explain.log_buffers = on;
    SET auto_explain.log_timing = off;
    SET auto_explain.log_format = json;
    SET auto_explain.log_level = notice;
"""


@dataclass
class Reading:
    """One call: its answer, and what was read for it."""

    rows: list[tuple[Any, ...]] = field(default_factory=list)
    plans: list[dict[str, Any]] = field(default_factory=list)

    @property
    def pages(self) -> int:
        """Pages of 8 kB that the call looked at, in memory or not. The outermost statement ends last."""
        outermost = self.plans[-1]["Plan"]
        return int(outermost["Shared Hit Blocks"] + outermost["Shared Read Blocks"])

    def rows_of(self, table: str) -> int:
        """Rows of a table that were fetched, whether or not a filter let them through."""
        return round(sum(_rows(node) for node in self._scans(table)))

    def scanned_whole(self, table: str) -> list[str]:
        """The statements that went over a table, or over an index of it, from one end to the other."""
        return [
            f"{node['Node Type']} in: {plan['Query Text'].strip()}"
            for plan in self.plans
            for node in _nodes(plan["Plan"])
            if node.get("Relation Name") == table and node["Node Type"] == "Seq Scan"
        ]

    def _scans(self, table: str) -> Iterator[dict[str, Any]]:
        for plan in self.plans:
            for node in _nodes(plan["Plan"]):
                if node.get("Relation Name") == table and node["Node Type"].endswith("Scan"):
                    yield node


class Reader:
    """A connection whose every statement is explained while it runs."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self.connection = connection
        self._plans: list[dict[str, Any]] = []
        connection.execute(_AUTO_EXPLAIN)
        connection.commit()
        connection.add_notice_handler(self._note)

    def read(self, statement: LiteralString, arguments: Sequence[object] = ()) -> Reading:
        """Run one statement and say what it read."""
        self._plans.clear()
        # By the simple protocol: else the outermost statement ends, and is explained, with the next one.
        rows = psycopg.ClientCursor(self.connection).execute(statement, arguments).fetchall()
        return Reading(rows, list(self._plans))

    @contextmanager
    def undone(self) -> Iterator[None]:
        """What the block changes is rolled back."""
        try:
            yield
        finally:
            self.connection.rollback()

    def _note(self, notice: psycopg.errors.Diagnostic) -> None:
        text = notice.message_primary or ""
        _, found, plan = text.partition("plan:\n")
        if found:
            self._plans.append(json.loads(plan))


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from _nodes(child)


def _rows(node: dict[str, Any]) -> float:
    a_loop = (
        node["Actual Rows"]
        + node.get("Rows Removed by Filter", 0)
        + node.get("Rows Removed by Index Recheck", 0)
    )
    return float(a_loop * node["Actual Loops"])
