"""Django's own tests of mail backends, run against ours; what does not apply has its reason here."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import django
import pytest

from tests.django.commands import ROOT, manage

SDIST = Path(sys.prefix) / f"django-sdist-{django.__version__}"

# Django 6.1 says of the backends alone what they must do; before it the mail functions are tested by them.
DOES_NOT_APPLY = (
    {"test_fail_silently_arg_accepted": "ours takes fail_silently, as its SMTP backend does"}
    if django.VERSION >= (6, 1)
    else {
        "test_idn_send": "cc is a mail of its own here: there is more than the one message that it looks for",
        "test_lazy_addresses": "its addresses have no domain, and a row must have one that can be sent to",
        "test_message_cc_header": "cc is a mail of its own, without a Cc header that would name the others",
        "test_recipient_without_domain": "a row must have an address that can be sent to",
    }
)
if django.VERSION < (6,):
    DOES_NOT_APPLY |= {
        "test_send_long_lines": "a text of Cyrillic is shorter in base64, which is what it gets here",
        "test_send_unicode": "it wants encoded words in quoted-printable; ours are in base64",
        "test_send_verbose_name": "it wants encoded words in quoted-printable; ours are in base64",
    }


@pytest.fixture(scope="module")
def djangos_tests() -> Path:
    """The tests of the Django that is installed, from its source distribution; kept beside the packages."""
    folder = SDIST / f"django-{django.__version__}" / "tests"
    if folder.is_dir():
        return folder
    SDIST.mkdir(exist_ok=True)
    pinned = rf"^django=={re.escape(django.__version__)} .*?(?=^\S)"
    wanted = re.search(pinned, (ROOT / "requirements.lock").read_text(), re.MULTILINE | re.DOTALL)
    (SDIST / "requirements.txt").write_text(wanted[0] if wanted else f"django=={django.__version__}")
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary=:all:"]
    pip += ["--require-hashes"] if wanted else []  # another Django than the lock's was put there by hand
    done = subprocess.run(
        [*pip, "--dest", str(SDIST), "--requirement", str(SDIST / "requirements.txt")],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"needs the package index, for Django's tests: {done.stderr.strip()[-200:]}")
    with tarfile.open(next(SDIST.glob("*.tar.gz"))) as archive:
        archive.extractall(SDIST, filter="data")
    return folder


def test_djangos_tests_of_backends_pass(djangos_tests: Path, database_url: str, tmp_path: Path) -> None:
    """All but those of the list, whose reasons stand beside them; and those do fail, or the list is wrong."""
    done = manage(
        database_url, tmp_path, str(djangos_tests), str(tmp_path / "mail"), command="tests.django.mail_suite"
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    failed = {name: told for name, told in said.items() if told != "ok"}
    assert failed.keys() == DOES_NOT_APPLY.keys(), (failed, done.stderr[-6000:])
    assert len(said) - len(failed) >= 11, said
