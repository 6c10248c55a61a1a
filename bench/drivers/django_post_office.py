"""
django-post-office as a contender, as its manual says: `send_queued_mail --processes N`.

Settings (JSON, first argument): database_url, port (of the sink), processes, threads, batch, mode:
`migrate` makes its tables, `drain` sends what is queued when the word comes, `wait` calls the same
function again and again until its standard input ends (it has no worker that waits; cron starts it
each minute).
"""

from __future__ import annotations

import json
import logging
import os
import select
import sys
import tempfile
from pathlib import Path
from typing import Any

import django
import psycopg
from django.conf import settings as django_settings
from django.core.management import call_command


def configure(settings: dict[str, Any]) -> None:
    """Set Django up with nothing but what the mails need."""
    address = psycopg.conninfo.conninfo_to_dict(settings["database_url"])
    django_settings.configure(
        INSTALLED_APPS=["django.contrib.contenttypes", "post_office"],
        DATABASES={
            "default": {
                "ENGINE": "django.db.backends.postgresql",
                "NAME": address["dbname"],
                "USER": address["user"],
                "PASSWORD": address["password"],
                "HOST": address["host"],
                "PORT": address["port"],
                "CONN_MAX_AGE": None,
            }
        },
        TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates"}],
        USE_TZ=True,
        EMAIL_HOST="127.0.0.1",
        EMAIL_PORT=settings["port"],
        DEFAULT_AUTO_FIELD="django.db.models.AutoField",
        POST_OFFICE={
            "BACKENDS": {"default": "django.core.mail.backends.smtp.EmailBackend"},
            "BATCH_SIZE": settings["batch"],
            "THREADS_PER_PROCESS": settings["threads"],
            "LOG_LEVEL": 1,
        },
    )
    django.setup()


def main(settings: dict[str, Any]) -> None:
    """Get ready, wait for the word, work, and say that it is done."""
    configure(settings)
    from django.db import connection
    from post_office import mail

    if settings["mode"] == "migrate":
        call_command("migrate", verbosity=0)
        print("ready", flush=True)
        return
    logging.getLogger("post_office").setLevel(logging.WARNING)
    connection.ensure_connection()
    print("ready", flush=True)
    sys.stdin.readline()
    if settings["mode"] == "drain":
        before_s = _cpu_s()
        with tempfile.TemporaryDirectory() as folder:
            mail.send_queued_mail_until_done(str(Path(folder) / "lock"), settings["processes"])
        print(json.dumps({"cpu_s": _cpu_s() - before_s}), flush=True)
        return
    print("{}", flush=True)
    while not select.select([sys.stdin], [], [], 0.005)[0]:
        mail.send_queued(settings["processes"])


def _cpu_s() -> float:
    return sum(os.times()[:4])  # with the processes that it has started and that have ended


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
