"""What every request passes before the routes see it: plain ASGI, each guard a class around the next.

Outermost first: `Recorder` (log, metrics, last resort for errors), `SecurityHeaders`, `HostGuard`, `OriginGuard`,
`KeyGuard`, `BodyGuard`.
"""

import asyncio
import hmac
import ipaddress
import logging
import time
import uuid
from collections.abc import Collection
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nanochat.serving.errors import ApiError
from nanochat.serving.logs import log
from nanochat.serving.metrics import Metrics

BODY_SECONDS = 30.0  # within which a request's body must have come
OPEN_PATHS = ("/", "/health", "/favicon.ico")  # need no key: the page must load before anybody can type one in

SECURITY_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


class Recorder:
    """Gives each request an id, counts and logs it, and answers 500 in OpenAI's shape where anything else failed.

    What a route puts into `scope["log"]` is logged with the request.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, as ASGI wants it."""
        if scope["type"] != "http":
            return
        begun = time.perf_counter()
        id = uuid.uuid4().hex
        status, complete = 0, False
        scope["log"] = {}

        async def sending(message: Message) -> None:
            nonlocal status, complete
            complete = message["type"] == "http.response.body" and not message.get("more_body")
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = id
            await send(message)

        error: Exception | None = None
        try:
            await self.app(scope, receive, sending)
        except Exception as failure:  # whatever it is, the client gets no traceback and the server goes on
            error = failure
            if not status:
                await unexpected().response()(scope, receive, sending)
            elif not complete:  # break the connection off, so that the client doesn't take this for the end
                raise
        finally:
            seconds = time.perf_counter() - begun
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.observe_request(route, status, seconds)
            log(
                "request",
                logging.ERROR if status >= 500 else logging.INFO,
                error,
                id=id,
                method=scope["method"],
                path=scope["path"],
                status=status,
                seconds=round(seconds, 4),
                client=(scope.get("client") or ("",))[0],
                **scope["log"],
            )


class SecurityHeaders:
    """Says in every response what browsers may do with it: next to nothing; and to ask again before they reuse it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, as ASGI wants it."""

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(SECURITY_HEADERS)
                headers.setdefault("cache-control", "no-cache")
            await send(message)

        await self.app(scope, receive, sending)


class HostGuard:
    """Refuses requests that were addressed to a name which isn't ours: a browser led here by somebody else's DNS.

    An IP address can't be led astray, so any will do; `localhost` and the `allowed` names too.
    """

    def __init__(self, app: ASGIApp, allowed: Collection[str]) -> None:
        self.app = app
        self.allowed = {"localhost", *(name.lower() for name in allowed)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, as ASGI wants it."""
        hosts = Headers(scope=scope).getlist("host")
        if len(hosts) == 1 and self._is_ours(hosts[0]):
            await self.app(scope, receive, send)
            return
        error = ApiError(
            421,
            f"this server does not answer to the host {', '.join(hosts)[:200]!r}: use its IP address, or start it with "
            "--allow-host",
            code="wrong_host",
        )
        await error.response()(scope, receive, send)

    def _is_ours(self, host: str) -> bool:
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host  # [::1]:8000, [::1], 127.0.0.1:8000
        if name.lower() in self.allowed:
            return True
        try:
            ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
        except ValueError:
            return False
        return True


class OriginGuard:
    """Strict CORS: web pages of other origins are refused, but for those that were allowed by name."""

    def __init__(self, app: ASGIApp, allowed: Collection[str]) -> None:
        self.app = app
        self.allowed = {origin.rstrip("/").lower() for origin in allowed}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, as ASGI wants it."""
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        if origin is None or origin.lower().partition("://")[2] == headers.get("host", "").lower():
            await self.app(scope, receive, send)
            return
        if origin.lower() not in self.allowed:
            error = ApiError(403, f"web pages of {origin[:200]!r} may not use this server", code="wrong_origin")
            await error.response()(scope, receive, send)
            return
        ours = {"access-control-allow-origin": origin, "vary": "origin"}

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                # Allowed by name means: may read the answer.
                MutableHeaders(scope=message).update({**ours, "cross-origin-resource-policy": "cross-origin"})
            await send(message)

        if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            ours |= {
                "access-control-allow-methods": "GET, POST",
                "access-control-allow-headers": "authorization, content-type",
                "access-control-max-age": "600",
            }
            await Response(status_code=204)(scope, receive, sending)
            return
        await self.app(scope, receive, sending)


class KeyGuard:
    """Lets in who has the key, where there is one: `Authorization: Bearer KEY`."""

    def __init__(self, app: ASGIApp, key: str | None) -> None:
        self.app = app
        self.expected = f"Bearer {key}".encode() if key else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, as ASGI wants it."""
        path = scope["path"]
        given = Headers(scope=scope).get("authorization", "").encode("latin-1")
        needed = self.expected is not None and path not in OPEN_PATHS and not path.startswith("/page/")
        if not needed or hmac.compare_digest(given, self.expected or b""):
            await self.app(scope, receive, send)
            return
        error = ApiError(
            401, "the API key is missing or wrong: send `Authorization: Bearer KEY`", code="invalid_api_key"
        )
        error.headers["www-authenticate"] = "Bearer"
        await error.response()(scope, receive, send)


class BodyGuard:
    """Reads a request's body before anything else happens: not beyond a size, and not for ever."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app = app
        self.limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, as ASGI wants it."""
        try:
            body = await self._read(receive)
        except ApiError as error:
            error.headers["connection"] = "close"
            await error.response()(scope, receive, send)
            return
        if body is None:
            return
        first: Message | None = {"type": "http.request", "body": body, "more_body": False}

        async def receiving() -> Message:
            nonlocal first
            message, first = first, None
            return message or await receive()

        await self.app(scope, receiving, send)

    async def _read(self, receive: Receive) -> bytes | None:
        """Return the body, or None where the client left before its end."""
        body = bytearray()
        length = 0
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while True:
                    message: Any = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    length += len(message.get("body", b""))
                    # Too much is read on, and dropped: many clients read no answer before they have sent it all.
                    if length <= self.limit:
                        body += message.get("body", b"")
                    if not message.get("more_body"):
                        break
        except TimeoutError:
            raise ApiError(
                408, f"the request's body did not come within {BODY_SECONDS:g} s", code="body_timeout"
            ) from None
        if length > self.limit:
            raise ApiError(
                413, f"the body has {length} bytes, but at most {self.limit} are taken", code="body_too_large"
            )
        return bytes(body)


def unexpected() -> ApiError:
    """Return what a client is told of a bug."""
    return ApiError(500, "something went wrong in the server; its log has the details", code="internal_error")
