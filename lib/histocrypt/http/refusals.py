"""What a server says where it does not do as asked: a status, one sentence, and when to try again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from histocrypt.errors import InputError

MOST_SAID = 600
"""Characters of a refusal, which may quote what the client sent."""


class Refused(Exception):
    """An answer other than the one asked for: HTTP status and one sentence.

    Parameters
    ----------
    status
        Of HTTP.
    sentence
        For people.
    retry_after
        Seconds after which to ask again, where that helps.
    said
        What programs need of it, beside the sentence.
    """

    def __init__(
        self, status: int, sentence: str, *, retry_after: int | None = None, said: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(sentence)
        self.status, self.retry_after, self.said = status, retry_after, dict(said or {})


async def refusal(_request: Request, error: Exception) -> Response:
    """Say in one sentence why there is another answer than the one asked for."""
    status, sentence, headers, said = 500, "The server failed; its log says how.", {}, {}
    if isinstance(error, Refused):
        status, sentence, said = error.status, str(error), error.said
        headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    elif isinstance(error, InputError):
        status, sentence = 422, str(error)
    elif isinstance(error, RequestValidationError):
        first = error.errors()[0]
        status, sentence = 422, f"{first['loc'][-1]}: {first['msg']}."
    elif isinstance(error, HTTPException):
        status, sentence = error.status_code, f"{error.detail}."
    return JSONResponse({"error": sentence[:MOST_SAID], **said}, status, headers)


HANDLERS = dict.fromkeys((Refused, InputError, RequestValidationError, HTTPException, Exception), refusal)
"""For every kind of error of an application."""
