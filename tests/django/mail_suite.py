"""
Django's own tests of mail backends, run against ours.

A program: it is given the folder with Django's tests and one for the mail, and prints what became of each
test as JSON. Django is under the BSD licence; its tests come from its source distribution, not from here.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import unittest
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import django
from django.db import connection


def main(tests: str, folder: str) -> None:
    """Run them."""
    django.setup()
    sys.path.insert(0, tests)
    from django.test.utils import override_settings, setup_test_environment

    setup_test_environment()
    with override_settings(EMAIL_BACKEND="postroom.django.EmailBackend"):
        suite = unittest.defaultTestLoader.loadTestsFromTestCase(_case(Path(folder)))
        result = unittest.TextTestRunner(stream=sys.stderr, resultclass=_Result).run(suite)
    assert isinstance(result, _Result)
    print(json.dumps(result.said))


class _Result(unittest.TextTestResult):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.said: dict[str, str] = {}

    def stopTest(self, test: unittest.TestCase) -> None:  # noqa: N802
        name = test.id().rpartition(".")[2]
        ended = (*self.failures, *self.errors)  # those of a subtest have more behind their name
        broken = [told for case, told in ended if case.id().rpartition(".")[2].split(" ")[0] == name]
        self.said[name] = broken[0].strip().splitlines()[-1] if broken else "ok"
        super().stopTest(test)


def _case(folder: Path) -> type[unittest.TestCase]:
    from django.test import SimpleTestCase

    if django.VERSION >= (6, 1):
        from mail.test_backends import (  # type: ignore[import-not-found]
            LocmemBackendTests,
            SharedEmailBackendTests,
        )
    else:
        from mail.tests import (  # type: ignore[import-not-found]
            BaseEmailBackendTests as SharedEmailBackendTests,
        )
        from mail.tests import LocmemBackendTests

    from postroom.django import EmailBackend
    from tests.django.conftest import arrived, drain

    class PostroomBackendTests(SharedEmailBackendTests, SimpleTestCase):
        email_backend = "postroom.django.EmailBackend"
        backend_class = EmailBackend  # as Django 6.1 has it
        databases = "__all__"
        test_validate_multiline_headers = LocmemBackendTests.test_validate_multiline_headers

        def setUp(self) -> None:
            self.flush_mailbox()

        def flush_mailbox(self) -> None:
            with connection.cursor() as cursor:
                cursor.execute("TRUNCATE public.email_queue")
                cursor.execute("SELECT postroom.set_setting('email.limit.recipient', 'off')")
            shutil.rmtree(folder, ignore_errors=True)

        def get_mailbox_content(self) -> list[EmailMessage]:
            """What a worker has sent; before Django 6 without the line break that a text ends in."""
            from postroom.django.conf import alias, database_url

            asyncio.run(drain(database_url(alias()), folder))
            mails = arrived(folder)
            if django.VERSION >= (6,):
                return mails
            for part in (part for mail in mails for part in mail.walk() if not part.is_multipart()):
                part.set_payload(str(part.get_payload()).removesuffix("\n"))
            return mails

    return PostroomBackendTests


if __name__ == "__main__":
    main(*sys.argv[1:])
