"""What the doors answer: JSON, and an `error` in one line wherever something went wrong."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import asyncpg
import orjson
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from postroom.errors import DatabaseUnavailable, InvalidEmail, PostroomError

Json = Mapping[str, Any]


class Refused(Exception):
    """
    A request that gets an error as its answer.

    Args:
        status: The HTTP status.
        error: One line; it names what was wrong and holds no secret.
        headers: Further headers of the answer.
    """

    def __init__(self, status: int, error: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(error)
        self.status = status
        self.error = error
        self.headers = headers


def json_answer(content: Json, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """An answer in JSON."""
    return Response(orjson.dumps(content), status, headers, "application/json")


def error_answer(status: int, error: str, headers: Mapping[str, str] | None = None) -> Response:
    """An answer that says what was wrong."""
    return json_answer({"error": error}, status, headers)


async def response_to(error: Exception, request: Request) -> Response:
    """
    What answers an error of one of the kinds in HANDLERS; any other is raised again.

    Starlette does this for the routes.
    """
    handler = next((HANDLERS[kind] for kind in type(error).__mro__ if kind in HANDLERS), None)
    if handler is None:
        raise error
    return await handler(request, error)


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return error_answer(error.status, error.error, error.headers)


async def _http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return error_answer(error.status_code, error.detail.lower(), error.headers)


async def _invalid(_: Request, error: Exception) -> Response:
    return error_answer(400, str(error))


async def _away(request: Request, error: Exception) -> Response:
    request.state.facts["error"] = str(error)  # it names hosts: for the log only
    return error_answer(500, "the database does not answer: nothing is known to be done; try again")


async def _ours(request: Request, error: Exception) -> Response:
    request.state.facts["error"] = str(error)
    return error_answer(500, str(error))


async def _database(request: Request, error: Exception) -> Response:
    # Such as a trigger or a constraint of the application's own. The first line holds no value of a row.
    text = f"the database refused it: {str(error).partition(chr(10))[0]}"
    request.state.facts["error"] = text
    return error_answer(500, text)


async def _gone(_: Request, error: Exception) -> Response:  # noqa: ARG001
    return error_answer(400, "the request was cut off")


HANDLERS: dict[type[Exception], Callable[[Request, Exception], Awaitable[Response]]] = {
    Refused: _refused,
    HTTPException: _http,
    InvalidEmail: _invalid,
    DatabaseUnavailable: _away,
    PostroomError: _ours,
    asyncpg.PostgresError: _database,
    ClientDisconnect: _gone,
}
"""By kind of error; what is not here is our own mistake."""
