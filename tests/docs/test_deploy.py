"""What is in the repository to put postroom to work with."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_unit_is_one_for_systemd(tmp_path: Path) -> None:
    """As systemd itself reads it, with programs in the place of those that are not here."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs Debian's package systemd")
    unit = re.sub(
        r"/opt/postroom/bin/postroom\b.*", "/bin/true", (ROOT / "deploy/postroom.service").read_text()
    )
    (tmp_path / "postroom.service").write_text(unit)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / "postroom.service")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_image_is_made_of_what_the_repository_has() -> None:
    """Each file that the Dockerfile copies is there and not left out."""
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    left_out = (ROOT / ".dockerignore").read_text().split()
    names = [name for line in copied for name in line.split()]
    assert names
    for name in names:
        assert (ROOT / name).exists(), name
        assert name not in left_out
