"""examples/fastapi and examples/django, as a reader starts them: an order, a checkout, one receipt."""

from __future__ import annotations

import mailbox
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from postroom.testing import signed
from tests.django.project import parameters
from tests.support.postgres import free_port
from tests.support.waiting import until_now

EXAMPLES = Path(__file__).parents[2] / "examples"
SECRET = "whsec_of_the_tests"


@contextmanager
def running(folder: Path, environment: Mapping[str, str], *commands: list[str]) -> Iterator[None]:
    """Programs that stay, while the block runs; each must end well."""
    logs = [folder / f"{number}.log" for number in range(len(commands))]
    started = []
    try:
        for command, log in zip(commands, logs, strict=True):
            with log.open("wb") as file:
                started.append(
                    subprocess.Popen([sys.executable, *command], cwd=folder, env=environment, stderr=file)
                )
        yield
        for program, log in zip(started, logs, strict=True):
            program.terminate()
            assert program.wait(60) in (0, -15), log.read_text()[-3000:]
    finally:
        for program in started:
            program.kill()
            program.wait(60)


def environment_of(database_url: str, folder: Path) -> dict[str, str]:
    given = parameters(database_url)
    return {
        **os.environ,
        "PGHOST": given["HOST"],
        "PGPORT": given["PORT"],
        "PGUSER": given["USER"],
        "PGPASSWORD": given["PASSWORD"],
        "PGDATABASE": given["NAME"],
        "STRIPE_WEBHOOK_SECRET": SECRET,
        "POSTROOM_FROM": "Shop <shop@example.com>",
        "POSTROOM_LOG": "json",
        "POSTROOM_TRANSPORT": f"maildir:{folder / 'mail'}",
    }


def buy(shop: httpx.Client, folder: Path) -> None:
    """What a customer and Stripe do, and what must have come of it."""
    until_now(lambda: _answers(shop))
    order = shop.post("/orders", json={"email": "ada@example.com", "item": "a lamp"}).json()["id"]
    assert shop.get(f"/orders/{order}").json() == {"item": "a lamp", "paid": False}
    paid = {
        "id": "evt_1",
        "type": "checkout.session.completed",
        "data": {"object": {"id": "cs_1", "client_reference_id": str(order), "amount_total": 4900}},
    }
    answers = []
    for _ in range(3):  # Stripe tells it again where an answer was late
        request = signed("stripe", paid, SECRET)
        told = shop.post("/postroom/webhooks/stripe", content=request.body, headers=request.headers)
        answers.append((told.status_code, told.json().get("duplicate", False)))
    assert answers == [(200, False), (200, True), (200, True)]
    forged = signed("stripe", paid, "whsec_of_somebody_else")
    assert (
        shop.post("/postroom/webhooks/stripe", content=forged.body, headers=forged.headers).status_code == 400
    )
    until_now(lambda: shop.get(f"/orders/{order}").json()["paid"] is True)
    box = mailbox.Maildir(folder / "mail", create=True)
    until_now(lambda: len(box) == 2)
    assert sorted(str(mail["subject"]) for mail in box) == ["Your order of a lamp", "Your receipt: a lamp"]


def _answers(shop: httpx.Client) -> bool:
    try:
        return shop.get("/postroom/readyz").status_code == 200
    except httpx.TransportError:
        return False


def test_the_shop_in_fastapi(empty_database_url: str, tmp_path: Path) -> None:
    """A session of SQLAlchemy's holds order and mail; the handler order and receipt."""
    shutil.copy(EXAMPLES / "fastapi" / "shop.py", tmp_path)
    environment = {
        **environment_of(empty_database_url, tmp_path),
        "POSTROOM_DATABASE_URL": empty_database_url,
    }
    subprocess.run([sys.executable, "-m", "postroom", "migrate"], env=environment, cwd=tmp_path, check=True)
    port = str(free_port())
    with (
        running(
            tmp_path,
            environment,
            ["-m", "uvicorn", "shop:app", "--port", port],
            ["-m", "postroom", "worker", "--app", "shop:room"],
        ),
        httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as shop,
    ):
        buy(shop, tmp_path)
        assert shop.post("/orders", json={"email": "nobody", "item": "x"}).status_code == 422


def test_the_shop_in_django(empty_database_url: str, tmp_path: Path) -> None:
    """transaction.atomic() holds order and mail; the handler, by the ORM, order and receipt."""
    folder = tmp_path / "shop"
    shutil.copytree(EXAMPLES / "django", folder)
    environment = environment_of(empty_database_url, folder)
    for command in (["makemigrations", "--check"], ["migrate"], ["check", "--database", "default"]):
        done = subprocess.run(
            [sys.executable, "manage.py", *command],
            env=environment, cwd=folder, check=False, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
    port = str(free_port())
    with (
        running(
            folder,
            environment,
            ["-m", "uvicorn", "shop.asgi:application", "--port", port],
            ["manage.py", "postroom", "worker"],
        ),
        httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as shop,
    ):
        buy(shop, folder)


@pytest.mark.parametrize("framework", ["fastapi", "django"])
def test_an_example_needs_what_it_says(framework: str) -> None:
    """Its first lines say how it is installed and started."""
    first = EXAMPLES / framework / ("shop.py" if framework == "fastapi" else "shop/__init__.py")
    assert "pip install" in first.read_text()
    assert "worker" in first.read_text()
