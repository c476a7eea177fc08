"""Errors as OpenAI's clients expect them: a status and `{"error": {"message", "type", "param", "code"}}`."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.responses import JSONResponse

TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """A request that gets no answer, and why.

    Args:
        status: Of the response.
        message: For people; says what was wrong, and what to do.
        param: The parameter it is about, like `messages[0].content`.
        code: For programs, like `context_length_exceeded`.
        retry_after: Seconds after which it's worth to try again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
        self.headers = {"retry-after": str(retry_after)} if retry_after is not None else {}

    def response(self) -> JSONResponse:
        """Return it as an ASGI response."""
        return EscapedJSONResponse(self.body, self.status, self.headers)


class EscapedJSONResponse(JSONResponse):
    """JSON in ASCII: an error that quotes the client's text must not fail where that text is no Unicode."""

    def render(self, content: Any) -> bytes:
        """Return the bytes of the body."""
        return json.dumps(content).encode("ascii")


def validation_error(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """Return the first of pydantic's complaints about a request's body as an `ApiError` that names the parameter."""
    error = errors[0]
    # "~" marks the branches of a union (schema.py), "[key]" is pydantic's mark; the client knows nothing of both.
    steps = *error["loc"][1:], *_blamed(error)
    path = [step for step in steps if not str(step).startswith("~") and step != "[key]"]
    name = re.sub(r"\.(\[)", r"\1", ".".join(f"[{step}]" if isinstance(step, int) else str(step) for step in path))
    if error["type"] == "extra_forbidden":
        return ApiError(
            400,
            f"the parameter {name[:200]} is not known or not supported here: leave it out",
            param=name[:200],
            code="unsupported_parameter",
        )
    if error["type"] == "json_invalid" or not name:
        return ApiError(400, f"the body must be a JSON object, sent as application/json: {error['msg']}")
    return ApiError(400, f"{name[:200]}: {error['msg']}", param=name[:200], code="invalid_value")


def _blamed(error: Mapping[str, Any]) -> list[str]:
    """The field that a complaint about a whole object names."""
    return [error["ctx"]["param"]] if error["type"] == "refused" else []
