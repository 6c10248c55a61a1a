"""What an upgrade has made of a project: equal for equal projects, however it came about."""

from __future__ import annotations

from collections import Counter

from tests.upgrade.conftest import QUEUES, Project


def end_state(project: Project) -> dict[str, object]:
    """What an upgrade has made, without names and times that differ from project to project."""
    return {
        "emails": counted(project, "SELECT email_type, status, last_error, dead_reason FROM email_queue"),
        "webhooks": counted(
            project, "SELECT metadata, status, last_error, dead_reason FROM webhook_retry_queue"
        ),
        "touched": counted(project, "SELECT queue, was, became FROM touched"),
        "beside": counted(
            project,
            "SELECT queue FROM postroom.old_leases UNION ALL SELECT verdict FROM postroom.refused_rows",
        ),
        "replaced": counted(project, "SELECT kind, name FROM postroom.replaced_objects"),
        "versions": counted(project, "SELECT version FROM postroom.migrations"),
        "functions": counted(
            project,
            "SELECT proc.oid::regprocedure::text, md5(prosrc) FROM pg_proc AS proc "
            "WHERE pronamespace IN ('public'::regnamespace, to_regnamespace('postroom'))",
        ),
        "indexes": counted(
            project,
            "SELECT relname::text, indisvalid FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid "
            "WHERE relnamespace = 'public'::regnamespace",
        ),
        "columns": [project.columns(table) for table in QUEUES],
    }


def counted(project: Project, query: str) -> Counter[str]:
    """How often each row comes; roles have a name of the project's own."""
    mark = project.owner.removeprefix("owner_")
    return Counter(str(tuple(row.values())).replace(mark, "") for row in project.execute(query, "postgres"))
