"""The server: where it listens, what it does not wait for, and how it ends."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from postroom import Room
from postroom.errors import ConfigError
from postroom.http import app, server
from tests.http.conftest import KEY, MAIL, SEND, Served, settings_of
from tests.support.postgres import free_port


@asynccontextmanager
async def _listening(application: Starlette, host: str, port: int = 0) -> AsyncIterator[str]:
    stop, address = asyncio.Event(), asyncio.get_running_loop().create_future()
    task = asyncio.create_task(server.serve(application, host, port, ready=address.set_result, stop=stop))
    yield await address
    stop.set()
    await asyncio.wait_for(task, 30)


def _parts(url: str) -> tuple[str, int]:
    host, _, port = url.removeprefix("http://").rpartition(":")
    return host, int(port)


async def _raw(url: str, request: bytes) -> bytes:
    """What a server answers to these bytes, until it closes."""
    reader, writer = await asyncio.open_connection(*_parts(url))
    writer.write(request)
    answer = await asyncio.wait_for(reader.read(), 20)
    writer.close()
    return answer


async def test_ready_names_the_address(database_url: str, tmp_path: Path) -> None:
    """The port that was asked for, or the one that was free; and it answers there."""
    port = free_port()
    async with (
        Room(**settings_of(database_url, tmp_path)) as room,
        _listening(app(room), "127.0.0.1", port) as url,
        httpx.AsyncClient(trust_env=False) as client,
    ):
        assert url == f"http://127.0.0.1:{port}"
        assert (await client.get(f"{url}/healthz")).status_code == 200


async def test_it_listens_on_all_addresses_of_a_name(database_url: str, tmp_path: Path) -> None:
    """`localhost` is two addresses where the machine has IPv6; ::1 is written in brackets."""
    async with Room(**settings_of(database_url, tmp_path)) as room:
        async with _listening(app(room), "localhost") as url, httpx.AsyncClient(trust_env=False) as client:
            _, port = _parts(url)
            assert (await client.get(f"http://127.0.0.1:{port}/healthz")).status_code == 200
        if socket.has_ipv6 and Path("/proc/net/if_inet6").exists():
            async with _listening(app(room), "::1") as url:
                assert url.startswith("http://[::1]:")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_port_that_is_taken_is_one_clear_line(database_url: str, tmp_path: Path, host: str) -> None:
    """And nothing of the room was opened for it."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        room = Room(**settings_of(database_url, tmp_path))
        with pytest.raises(ConfigError, match=rf"cannot listen on {host}:{port}: something else"):
            await server.serve(app(room), host, port, ready=lambda _: None, stop=asyncio.Event())
        assert not room.is_open


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid"])
async def test_an_address_that_is_not_ours_is_one_clear_line(
    database_url: str, tmp_path: Path, host: str
) -> None:
    """It says which setting to change."""
    room = Room(**settings_of(database_url, tmp_path))
    with pytest.raises(ConfigError, match="set POSTROOM_HOST"):
        await server.serve(app(room), host, 0, ready=lambda _: None, stop=asyncio.Event())


async def test_a_wrong_setting_ends_the_start(tmp_path: Path) -> None:
    """What fails in the application's start is raised as it is, not a traceback in a log."""
    room = Room(database_url="postgresql://127.0.0.1:notaport/x", service_key=KEY)
    with pytest.raises(ConfigError):
        await server.serve(app(room), "127.0.0.1", 0, ready=lambda _: None, stop=asyncio.Event())


@pytest.mark.parametrize(
    "beginning",
    [
        b"",
        b"POST /functions/v1/send-email HT",
        b"POST /functions/v1/send-email HTTP/1.1\r\nHost: x\r\n",
        b"POST /functions/v1/send-email HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "
        + KEY.encode()
        + b"\r\nContent-Length: 50\r\n\r\n{",
    ],
    ids=["nothing", "half a line", "half a head", "half a body"],
)
async def test_a_request_that_is_too_slow_is_cut_off(
    served: Served, monkeypatch: pytest.MonkeyPatch, beginning: bytes
) -> None:
    """A client that sends a beginning and then nothing does not keep its connection."""
    monkeypatch.setattr(server, "REQUEST_S", 0.3)
    assert await _raw(served.url, beginning) == b""
    assert await served.rows() == []


async def test_an_attempt_is_no_slow_request(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock ends with the request's last byte: what takes long then is ours."""
    monkeypatch.setattr(server, "REQUEST_S", 0.3)

    async def take_long(_: object) -> str:
        await asyncio.sleep(0.8)
        return "250 ok"

    served.recorder.behave = take_long
    assert (await served.send()).status_code == 200
    assert (await served.send()).status_code == 200  # on the same connection


async def test_a_head_that_never_ends_is_refused(served: Served) -> None:
    """More than 64 KiB of headers, or of path: the connection is closed."""
    flood = b"".join(b"X-%d: %b\r\n" % (n, b"x" * 1000) for n in range(80))
    long_path = b"x" * (server.HEAD_BYTES_MAX + 1)
    for request in (
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + flood,
        b"GET /" + long_path + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    ):
        answer = await _raw(served.url, request)
        assert answer.startswith(b"HTTP/1.1 400 ")
    assert (await served.client.get("/healthz")).status_code == 200


async def test_empty_lines_keep_no_connection(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answered request, an empty line and silence: it is cut off, or 800 of them would close the door."""
    monkeypatch.setattr(server, "REQUEST_S", 0.3)
    reader, writer = await asyncio.open_connection(*_parts(served.url))
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
    writer.write(b"\r\n")
    await asyncio.wait_for(reader.read(), 20)
    writer.close()


async def test_an_empty_line_after_a_request_withholds_no_answer(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As old clients write one behind a body: the attempt may take longer than a request may."""
    monkeypatch.setattr(server, "REQUEST_S", 0.3)
    going_on = asyncio.Event()

    async def take_long(_: object) -> str:
        going_on.set()
        await asyncio.sleep(0.8)
        return "250 ok"

    served.recorder.behave = take_long
    body = json.dumps(MAIL).encode()
    head = f"POST {SEND} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    reader, writer = await asyncio.open_connection(*_parts(served.url))
    writer.write(head.encode() + body)
    await going_on.wait()
    writer.write(b"\r\n")
    assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)).startswith(b"HTTP/1.1 200 ")
    writer.close()


async def test_an_answer_is_one_piece(served: Served) -> None:
    """Head and body in one packet; a head that no body follows goes out as well."""
    reader, writer = await asyncio.open_connection(*_parts(served.url))
    for method in (b"GET", b"HEAD"):
        writer.write(method + b" /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = await asyncio.wait_for(reader.read(65536), 20)
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 ")
        assert bool(body) == (method == b"GET")
    writer.close()


async def test_what_is_no_http_is_refused(served: Served) -> None:
    """A TLS greeting, or anything else."""
    assert (await _raw(served.url, b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n")).startswith(b"HTTP/1.1 400 ")


async def test_idle_connections_do_not_hold_up_the_end(database_url: str, tmp_path: Path) -> None:
    """A client that keeps its connection open and silent: the server ends at once."""
    async with Room(**settings_of(database_url, tmp_path)) as room:
        async with _listening(app(room), "127.0.0.1") as url:
            client = httpx.AsyncClient(base_url=url, trust_env=False)
            await client.get("/healthz")
            _, idle = await asyncio.open_connection(*_parts(url))
        await client.aclose()
        idle.close()


async def test_the_doors_can_be_mounted_in_another_application(database_url: str, tmp_path: Path) -> None:
    """Below a path of its own, where no lifespan is run: CORS, keys and direct e-mails work."""
    room = Room(**settings_of(database_url, tmp_path))
    doors = app(room)
    transport = httpx.ASGITransport(Starlette(routes=[Mount("/post", doors)]))
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        key = {"authorization": f"Bearer {KEY}"}
        answer = await client.post(f"/post{SEND}", json=MAIL, headers=key)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "*"
        assert (await client.options(f"/post{SEND}")).status_code == 200
        assert (await client.post(f"/post{SEND}", json=MAIL)).status_code == 401
    await doors.state.doors.close()
    await room.close()
