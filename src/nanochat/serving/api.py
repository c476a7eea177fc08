"""The routes, and the ASGI application around them."""

import asyncio
import json
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from nanochat.inference import AsyncEngine, Delta, join_deltas
from nanochat.serving import wire
from nanochat.serving.answers import Answer, ChatAnswer, TextAnswer
from nanochat.serving.errors import ApiError, validation_error
from nanochat.serving.guards import BodyGuard, HostGuard, KeyGuard, OriginGuard, Recorder, SecurityHeaders, unexpected
from nanochat.serving.schema import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    Sampling,
    TokenizeRequest,
    conversation,
)
from nanochat.serving.service import Generation, Service, Settings
from nanochat.serving.streaming import EventStream, collect

COMPLETION_TOKENS = 16  # OpenAI's default of max_tokens in /v1/completions; a chat's answer may fill the context
PAGE = Path(str(files("nanochat.serving"))) / "page"


def build_app(running: AsyncEngine, settings: Settings) -> tuple[ASGIApp, Service]:
    """Return the application that serves a running engine, and the service behind its routes."""
    service = Service(running, settings)
    api = FastAPI(title="NanoChat", version=version("nanochat"), docs_url=None, redoc_url=None)
    api.include_router(_routes(service))
    api.add_exception_handler(ApiError, _api_error)
    api.add_exception_handler(HTTPException, _http_error)
    api.add_exception_handler(RequestValidationError, _bad_request)
    api.add_exception_handler(Exception, _bug)
    if PAGE.is_dir():
        api.mount("/page", StaticFiles(directory=PAGE), name="page")
    _document(api)
    app: ASGIApp = BodyGuard(api, settings.max_body)
    app = KeyGuard(app, settings.api_key)
    app = OriginGuard(app, settings.allowed_origins)
    app = HostGuard(app, settings.allowed_hosts)
    return Recorder(SecurityHeaders(app), service.metrics), service


def _routes(service: Service) -> APIRouter:
    router = APIRouter(responses={status: {"model": wire.Error} for status in (400, 401, 403, 408, 413, 421, 500)})
    generating: Any = {status: {"model": wire.Error} for status in (404, 429, 503)}
    not_found: Any = {404: {"model": wire.Error}}
    model = wire.Model(
        id=service.settings.model,
        object="model",
        created=service.started,
        owned_by="nanochat",
        max_model_len=service.engine.context_length,
    )

    def check_model(name: str | None) -> None:
        if name not in (None, model["id"]):
            raise ApiError(
                404,
                f"there is no model {name!r:.200} here: this server has {model['id']!r}",
                param="model",
                code="model_not_found",
            )

    @router.post("/v1/chat/completions", responses=_streamed(wire.ChatCompletion, wire.ChatCompletionChunk, generating))
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        """Answer a conversation."""
        check_model(body.model)
        generation = await service.start([body.conversation()], body.params, body.prefix_token_ids or (), "messages")
        return await _respond(service, body, request, generation, ChatAnswer)

    @router.post("/v1/completions", responses=_streamed(wire.Completion, wire.Completion, generating))
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Continue texts."""
        check_model(body.model)
        generation = await service.start(
            body.prompts(), lambda context: body.params(COMPLETION_TOKENS), body.prefix_token_ids or (), "prompt"
        )
        return await _respond(service, body, request, generation, TextAnswer)

    @router.get("/v1/models", response_model=wire.ModelList)
    async def models() -> Response:
        """List the one model that is served."""
        return JSONResponse(wire.ModelList(object="list", data=[model]))

    @router.get("/v1/models/{id:path}", response_model=wire.Model, responses=not_found)
    async def one_model(id: str) -> Response:
        """Describe a model."""
        check_model(id)
        return JSONResponse(model)

    @router.post("/tokenize", response_model=wire.Tokenized, responses=not_found)
    async def tokenize(body: TokenizeRequest) -> Response:
        """Return the ids of a text, or of a conversation up to the assistant's turn."""
        check_model(body.model)
        if body.messages is not None:
            ids = await service.encode(conversation(body.messages), "messages")
        else:
            ids = await asyncio.to_thread(_encode_text, service, body.prompt or "", body.add_special_tokens)
        strings = [service.texts.text(id) for id in ids]
        limit = service.engine.context_length
        return JSONResponse(wire.Tokenized(tokens=ids, token_strs=strings, count=len(ids), max_model_len=limit))

    @router.post("/detokenize", response_model=wire.Detokenized, responses=not_found)
    async def detokenize(body: DetokenizeRequest) -> Response:
        """Return the text of ids; control tokens by their names."""
        check_model(body.model)
        size = len(service.engine.tokenizer)
        for place, id in enumerate(body.tokens):
            if id >= size:
                raise ApiError(400, f"there is no token {id}: ids go to {size - 1}", param=f"tokens[{place}]")
        data = b"".join(service.texts.bytes(id) or service.texts.text(id).encode() for id in body.tokens)
        return JSONResponse(wire.Detokenized(prompt=data.decode("utf-8", "replace")))

    @router.get("/health", response_model=wire.Health, responses={503: {"model": wire.Error}})
    async def health() -> Response:
        """Say whether new requests are welcome."""
        if service.draining:
            raise ApiError(503, "the server is about to stop", code="shutting_down")
        return JSONResponse(wire.Health(status="ok"))

    @router.get("/metrics", responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}})
    async def metrics() -> Response:
        """Return the figures that Prometheus collects."""
        return Response(service.metrics.text(service.engine.stats()), media_type="text/plain; version=0.0.4")

    @router.get("/", include_in_schema=False)
    async def page() -> Response:
        """Return the chat page."""
        return FileResponse(PAGE / "index.html", headers={"cache-control": "no-cache"})

    return router


async def _respond(
    service: Service, body: Sampling, request: Request, generation: Generation, form: type[Answer]
) -> Response:
    """Answer in the form of one endpoint, streamed or whole."""
    answer = form(
        service.settings.model,
        service.texts,
        logprobs=body.top_count() is not None,
        tokens=bool(body.return_tokens),
        include_usage=body.include_usage,
    )

    keep: list[Delta] = []

    def record() -> None:
        request.scope["log"] |= {"answer": answer.id, **generation.usage(), **generation.speed()}
        if service.settings.log_content:
            choices = sorted({delta.index for delta in keep})
            answers = [join_deltas(delta for delta in keep if delta.index == index) for index in choices]
            request.scope["log"] |= {"request": body.model_dump(exclude_unset=True), "answers": answers}

    if body.stream:
        kept = keep if service.settings.log_content else None
        return EventStream(generation, answer, lambda: len(service.under_way), kept, record)
    try:
        await collect(generation, request.receive, keep)
    finally:
        record()
    return Response(
        json.dumps(answer.whole(keep, generation.usage(), generation.speed()), ensure_ascii=False),
        media_type="application/json",
        headers={"cache-control": "no-store"},
    )


def _encode_text(service: Service, text: str, with_bos: bool) -> list[int]:
    tokenizer = service.engine.tokenizer
    return [tokenizer.bos_token_id] * with_bos + tokenizer.encode_ordinary_batch([text])[0]


def _streamed(whole: Any, chunk: Any, others: Any) -> Any:
    """Document an endpoint that answers with `whole`, or with events that hold `chunk`."""
    data = {"type": "string", "description": f"a {chunk.__name__} as JSON; [DONE] in the last event"}
    events = {"schema": {"type": "object", "properties": {"data": data}, "required": ["data"]}}
    return {200: {"model": whole, "content": {"text/event-stream": events}}, **others}


def _document(api: FastAPI) -> None:
    """Take out of the OpenAPI document what FastAPI adds by itself: validation errors are 400 here."""
    document = api.openapi()
    for path in document["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _bug(request: Request, error: Exception) -> Response:
    return unexpected().response()  # Starlette raises the error again, for the log


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = ApiError(error.status_code, f"{request.method} {request.url.path[:200]}: {error.detail}").response()
    response.headers.update(error.headers or {})
    return response


async def _bad_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return validation_error(error.errors()).response()
