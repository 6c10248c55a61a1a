"""The second half: a provider's events, through the door and to three handlers; a kill in the middle."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import orjson
from aiohttp import web

from postroom.testing import new_secret, signed
from tour.house import LOG, House, end, postroom, print_table, say, start, until_all_has_ended

SECRET, _ = new_secret("stripe")
STOCK_SECRET, _ = new_secret("standard-webhooks")
CHECKOUTS = 24

SOURCE = """
[webhooks.stripe]
secrets = ["{secret}"]

[[webhooks.stripe.handlers]]
name = "orders"
events = ["checkout.*"]
sql = "public.on_checkout"

[[webhooks.stripe.handlers]]
name = "stock"
events = ["checkout.*"]
url = "http://127.0.0.1:{port}/stock"
secret = "{stock_secret}"
"""

# No unique keys: what happened twice is there twice.
TABLES = """
CREATE TABLE orders (order_id text);
CREATE TABLE shipments (order_id text);
CREATE FUNCTION on_checkout(payload jsonb, event_id text) RETURNS void LANGUAGE sql AS
$$ INSERT INTO public.orders VALUES (payload->'data'->'object'->>'id') $$;
"""


@dataclass
class Story:
    """
    Events of one kind, and what the reader should learn from them.

    Attributes:
        answers: What the door said, by status.
        effects: How often each handler has done its work, for each of the events that are `orders`.
    """

    title: str
    lesson: str
    orders: list[str]
    answers: Counter[str]
    status: str = "processed"
    effects: int = 1


@dataclass
class Webhooks:
    """This half of the tour: the house, the door's address, the stories so far, and the stock's server."""

    house: House
    address: str
    stock: Counter[str]
    stories: list[Story] = field(default_factory=list)


async def show_webhooks(house: House) -> list[str]:
    """Events posted, a worker killed, what became of each; the titles of those that are not as promised."""
    say("5. `postroom serve`, and a `worker --app shop:room` with handlers in SQL, Python and by URL")
    await house.database.execute(TABLES)
    await postroom("settings", "set", "webhook.backoff", "1s,2s")
    async with stock_server() as (port, stock):
        write_program(port)
        serve, address = await start(house, "serve")
        worker, _ = await start(house, "worker", "--app", "shop:room")
        tour = Webhooks(house, address, stock)
        await post_what_is_refused(tour)
        await post_what_nobody_wants(tour)
        await post_one_twice(tour)
        await post_what_fails_at_first(tour)
        await post_checkouts(tour)
        await kill_in_the_middle(tour, worker)

        say("6. Another worker takes over")
        worker, _ = await start(house, "worker", "--app", "shop:room")
        await until_all_has_ended(tour.house)
        await end(worker)
        await end(serve)
        say("7. What became of each event")
        return await report(tour)


def write_program(port: int) -> None:
    """What a user has: a postroom.toml, and a program with handlers."""
    source = SOURCE.format(secret=SECRET, port=port, stock_secret=STOCK_SECRET)
    Path("postroom.toml").write_text(source)
    shutil.copy(Path(__file__).with_name("shop.py"), "shop.py")


@asynccontextmanager
async def stock_server() -> AsyncIterator[tuple[int, Counter[str]]]:
    """A handler by URL: its port, and how often it got each order."""
    got: Counter[str] = Counter()

    async def take(request: web.Request) -> web.Response:
        got[(await request.json())["data"]["object"]["id"]] += 1
        return web.Response()

    app = web.Application()
    app.router.add_post("/stock", take)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield runner.addresses[0][1], got
    finally:
        await runner.cleanup()


# What the provider sends


async def post_what_is_refused(tour: Webhooks) -> None:
    answers = await post(tour, ["forged"], secret="whsec_of_a_stranger")
    lesson = "nothing is stored, and the log says why"
    tell(tour, Story("one with another secret", lesson, ["forged"], answers, "no row", effects=0))
    refused = [line for line in LOG.read_text().splitlines() if "webhook.refused" in line]
    print(f"     {orjson.loads(refused[-1])['found']}")


async def post_what_nobody_wants(tour: Webhooks) -> None:
    answers = await post(tour, ["unwanted"], kind="customer.created")
    lesson = "kept and marked; `postroom webhooks replay` once there is a handler"
    tell(tour, Story("one that nobody wants", lesson, ["unwanted"], answers, effects=0))


async def post_one_twice(tour: Webhooks) -> None:
    answers = await post(tour, ["twice"]) + await post(tour, ["twice"])
    tell(tour, Story("the same one twice", "known by its id for 30 days", ["twice"], answers))


async def post_what_fails_at_first(tour: Webhooks) -> None:
    answers = await post(tour, ["flaky"], kind="checkout.flaky")
    lesson = "what the handler wrote is undone; a retry runs only the handlers that are not done"
    tell(tour, Story("a handler that raises at first", lesson, ["flaky"], answers))


async def post_checkouts(tour: Webhooks) -> None:
    orders = [f"order{number}" for number in range(1, CHECKOUTS + 1)]
    lesson = "a handler's writes and its mark are one transaction: exactly once, whoever dies"
    tell(tour, Story(f"{CHECKOUTS} checkouts, kill -9", lesson, orders, await post(tour, orders)))


async def post(
    tour: Webhooks, orders: Sequence[str], *, kind: str = "checkout.session.completed", secret: str = SECRET
) -> Counter[str]:
    """Events as Stripe sends them, all at once; what they were answered."""
    async with aiohttp.ClientSession() as session:

        async def post_one(order: str) -> str:
            event = {"id": f"evt_{order}", "type": kind, "data": {"object": {"id": order}}}
            request = signed("stripe", event, secret)
            url = f"{tour.address}/webhooks/stripe"
            async with session.post(url, data=request.body, headers=request.headers) as answer:
                said: Any = await answer.json()
            return f"{answer.status} duplicate" if said.get("duplicate") else str(answer.status)

        return Counter(await asyncio.gather(*map(post_one, orders)))


# The worker dies


async def kill_in_the_middle(tour: Webhooks, worker: asyncio.subprocess.Process) -> None:
    """kill -9 while handlers have transactions open."""
    while await shipped(tour) < 8:
        await asyncio.sleep(0.01)
    os.kill(worker.pid, signal.SIGKILL)
    await worker.wait()
    done = await shipped(tour)
    print(f"   killed: {done} orders were shipped, the handlers of some others were in the middle")


async def shipped(tour: Webhooks) -> int:
    count: int = await tour.house.database.fetchval("SELECT count(*) FROM shipments")
    return count


# What became of them


async def report(tour: Webhooks) -> list[str]:
    """Print the table."""
    table, wrong = [("EVENT", "ANSWERED", "BECAME", "ATTEMPTS", "SQL", "PYTHON", "RECEIPTS", "URL", "")], []
    for story in tour.stories:
        rows = await tour.house.database.fetch(
            "SELECT status, attempts FROM webhook_retry_queue WHERE webhook_event_id = ANY ($1)",
            [f"evt_{order}" for order in story.orders],
        )
        statuses = Counter(row["status"] for row in rows) or Counter({"no row": len(story.orders)})
        attempts = sorted({row["attempts"] for row in rows}) or [0]
        exactly = [await rows_of(tour, "orders", story), await rows_of(tour, "shipments", story)]
        exactly.append(
            sum(len(set(tour.house.receiver.letters[f"{order}@example.com"])) for order in story.orders)
        )
        by_url = sum(tour.stock[order] for order in story.orders)
        table.append(
            (
                story.title,
                ", ".join(story.answers),
                ", ".join(statuses),
                " to ".join(str(one) for one in dict.fromkeys((attempts[0], attempts[-1]))),
                *map(str, exactly),
                str(by_url),
                story.lesson,
            )
        )
        expected = story.effects * len(story.orders)
        if statuses.keys() != {story.status} or exactly != [expected] * 3 or by_url < expected:
            wrong.append(story.title)
    print_table(table)
    print("   (a URL handler gets an event at least once, with the same webhook-id each time)")
    return wrong


async def rows_of(tour: Webhooks, table: str, story: Story) -> int:
    count: int = await tour.house.database.fetchval(
        f"SELECT count(*) FROM {table} WHERE order_id = ANY ($1)",
        story.orders,
    )
    return count


def tell(tour: Webhooks, story: Story) -> None:
    tour.stories.append(story)
    said = ", ".join(
        f"{answer} ({count})" if count > 1 else answer for answer, count in story.answers.items()
    )
    print(f"   {story.title}: {said}", flush=True)
