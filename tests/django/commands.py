"""`manage.py` of the tests' project, as a program."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def manage(
    database_url: str, folder: Path, *arguments: str, command: str = "django", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    return subprocess.run(
        [sys.executable, "-m", command, *arguments],
        env={
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "tests.django.settings",
            "SHOP_DATABASE_URL": database_url,
            "PYTHONPATH": str(ROOT),
            **environment,
        },
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
