"""
A shop in FastAPI: an order, Stripe's checkout, one receipt.

    pip install postroom fastapi uvicorn 'sqlalchemy[asyncio]'
    postroom migrate
    uvicorn shop:app                 # the shop, and postroom's doors at /postroom
    postroom worker --app shop:room  # sends the mails and runs the handler

Settings are postroom's: POSTROOM_DATABASE_URL (unset: an embedded PostgreSQL), STRIPE_WEBHOOK_SECRET,
POSTROOM_TRANSPORT, POSTROOM_FROM, and POSTROOM_PUBLIC_URL, such as https://shop.example.com/postroom.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any
from uuid import UUID, uuid4

from fastapi import Depends, FastAPI, HTTPException
from pydantic import BaseModel, EmailStr
from sqlalchemy import DateTime
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

import postroom.http
from postroom import Event, Room


class Base(DeclarativeBase):
    """The shop's tables."""


class Order(Base):
    """What somebody has ordered, and whether it is paid."""

    __tablename__ = "orders"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    email: Mapped[str]
    item: Mapped[str]
    paid_at: Mapped[Any] = mapped_column(DateTime(timezone=True), nullable=True)


class NewOrder(BaseModel):
    """What a customer sends."""

    email: EmailStr
    item: str


room = Room()
house = postroom.http.app(room)
sessions: async_sessionmaker[AsyncSession] = async_sessionmaker(expire_on_commit=False)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Open postroom and the shop's own database, which are one."""
    async with house.router.lifespan_context(house):
        url = await room.database_url()
        engine = create_async_engine(url.replace("postgresql://", "postgresql+asyncpg://"))
        sessions.configure(bind=engine)
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        yield
        await engine.dispose()


async def a_session() -> AsyncIterator[AsyncSession]:
    """A session for one request; what it writes is committed where the request asks for it."""
    async with sessions() as session:
        yield session


app = FastAPI(title="Shop", lifespan=lifespan)
app.mount("/postroom", house)
Session = Annotated[AsyncSession, Depends(a_session)]


@app.post("/orders", status_code=201)
async def order(new: NewOrder, session: Session) -> dict[str, str]:
    """Write an order down and mail that it has come: both, or neither."""
    placed = Order(email=new.email, item=new.item)
    session.add(placed)
    await session.flush()
    await room.send(
        to=placed.email,
        subject=f"Your order of {placed.item}",
        html="<p>We have it. It ships when it is paid.</p>",
        connection=session,
    )
    await session.commit()
    # Where the customer pays: stripe.checkout.Session.create(client_reference_id=str(placed.id), …).url
    return {"id": str(placed.id)}


@app.get("/orders/{order_id}")
async def look(order_id: UUID, session: Session) -> dict[str, Any]:
    """What became of an order."""
    found = await session.get(Order, order_id)
    if found is None:
        raise HTTPException(404, "there is no such order")
    return {"item": found.item, "paid": found.paid_at is not None}


@room.on("stripe", "checkout.session.completed", name="fulfil")
async def fulfil(event: Event, db: Any) -> None:
    """The order is paid and the receipt is queued, exactly once, however often Stripe tells it."""
    checkout = event.payload["data"]["object"]
    paid = await db.fetchrow(
        "UPDATE orders SET paid_at = now() WHERE id = $1 RETURNING email, item",
        UUID(checkout["client_reference_id"]),
    )
    await room.send(
        to=paid["email"],
        subject=f"Your receipt: {paid['item']}",
        html=f"<p>You have paid {checkout['amount_total'] / 100:.2f}. Thank you!</p>",
        email_type="receipt",
        connection=db,
    )
