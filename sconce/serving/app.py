"""The HTTP API: OpenAI's completions and chat completions over one model, and a page to play with it."""

import asyncio
import hmac
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from importlib import resources
from typing import TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from sconce.errors import SconceError
from sconce.generation.model import Piece, Prompt, TextModel
from sconce.serving.requests import NAMES, NEUTRAL, ChatRequest, CompletionRequest, Options
from sconce.serving.responses import Answer, ChatAnswer, Usage, error
from sconce.serving.scheduler import BusyError, EndedError, Job, Scheduler

A = TypeVar("A")
R = TypeVar("R")
T = TypeVar("T", bound=Options)

SERVED = "POST /v1/completions, POST /v1/chat/completions, GET /v1/models and GET /health"
ENCODERS = 2  # texts made to tokens at once; each thread keeps memory of the longest it had

# The page runs its own script and talks to this server, and nothing else.
PAGE_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'"


LOCAL_HOSTS = ("127.0.0.1", "localhost", "[::1]")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """Limits. `rows` prompts are decoded at once and `queue` more wait; a body has at most `max_request_bytes`.

    `hosts` are the names under which the server answers: without the check, a web page whose name resolves to this
    machine could use it. `api_key` None lets everyone in.
    """

    name: str
    rows: int = 16
    queue: int = 64
    max_request_bytes: int = 2**20
    api_key: str | None = None
    hosts: tuple[str, ...] = LOCAL_HOSTS


class _RefusalError(Exception):
    """An answer that is an error."""

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        *,
        code: str | None = None,
        param: str | None = None,
    ) -> None:
        super().__init__(message)
        headers = {"Retry-After": "1"} if status == 429 else None
        self.response = JSONResponse(error(message, kind, code, param), status, headers)


class _Inbox:
    """Pieces from the scheduler's thread, to be awaited in the event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Piece | SconceError] = asyncio.Queue()

    def deliver(self, item: Piece | SconceError) -> None:
        """Called by the scheduler; a loop that has closed has nobody left who waits."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._queue.put_nowait, item)

    async def pieces(self, choices: int) -> AsyncGenerator[Piece, None]:
        """All pieces of so many choices. Raises SconceError when the model cannot go on."""
        while choices:
            item = await self._queue.get()
            if isinstance(item, SconceError):
                raise item
            choices -= item.finish is not None
            yield item


class Api:
    """The routes over one scheduler."""

    def __init__(self, model: TextModel, options: ServerOptions) -> None:
        self.model = model
        self.options = options
        self.scheduler = Scheduler(model, rows=options.rows, queue=options.queue)
        self._encoders = ThreadPoolExecutor(ENCODERS, "encoder")

    def app(self) -> Starlette:
        """The application; its lifespan runs the scheduler's thread."""
        routes = [
            Route("/", self.page),
            Route("/health", self.health),
            Route("/v1/models", self._guarded(self.models)),
            Route("/v1/models/{name:path}", self._guarded(self.one_model)),
            Route("/v1/completions", self._guarded(self.completions), methods=["POST"]),
            Route("/v1/chat/completions", self._guarded(self.chat), methods=["POST"]),
        ]
        hosts = Middleware(TrustedHostMiddleware, allowed_hosts=list(self.options.hosts), www_redirect=False)

        @asynccontextmanager
        async def lifespan(_: Starlette) -> AsyncGenerator[None, None]:
            with self._encoders, self.scheduler:
                yield

        faults = {HTTPException: self.not_served}
        return Starlette(routes=routes, middleware=[hosts], exception_handlers=faults, lifespan=lifespan)

    async def not_served(self, request: Request, fault: Exception) -> Response:
        """A path or a method that there is not, in the API's terms, which its clients show to people."""
        assert isinstance(fault, HTTPException)
        message = f"{request.method} {request.url.path}: {fault.detail}; this server has {SERVED}"
        return JSONResponse(error(message), fault.status_code, fault.headers)

    async def page(self, _: Request) -> Response:
        """The playground."""
        html = resources.files("sconce.serving").joinpath("page.html").read_text(encoding="utf-8")
        return HTMLResponse(html, headers={"Content-Security-Policy": PAGE_POLICY})

    async def health(self, _: Request) -> Response:
        """That the server is up, and how busy; status 503 when nothing is decoded any more."""
        ended = self.scheduler.ended
        said = {"status": "ended" if ended else "ok", "requests": self.scheduler.open}
        return JSONResponse(said, 503 if ended else 200)

    async def models(self, _: Request) -> Response:
        """The one model."""
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def one_model(self, request: Request) -> Response:
        """The model by its name."""
        self._check_name(request.path_params["name"])
        return JSONResponse(self._model())

    async def completions(self, request: Request) -> Response:
        """Continue text."""
        asked = await self._read(request, CompletionRequest)
        self._check_count(len(asked.texts) * (asked.n or 1))
        return await self._answer(request, asked, asked.prompts(), Answer, asked.logprobs is not None)

    async def chat(self, request: Request) -> Response:
        """Continue a conversation."""
        asked = await self._read(request, ChatRequest)
        self._check_count(asked.n or 1)
        try:
            ids = await self._aside(self.model.chat, asked.turns) if self.model.has_chat_template else None
        except SconceError as bad:
            raise _RefusalError(400, str(bad)) from None
        prompts = asked.prompts(self.model.spec.max_position_embeddings, ids)
        return await self._answer(request, asked, prompts, ChatAnswer, bool(asked.logprobs))

    async def _answer(
        self, request: Request, asked: Options, prompts: list[Prompt], kind: type[Answer], with_logprobs: bool
    ) -> Response:
        if asked.model is not None:
            self._check_name(asked.model)
        inbox = _Inbox()
        prompts = await self._aside(self._encoded, prompts)
        jobs = self._submit(prompts, inbox)
        usage = Usage(sum(len(prompt.text) for prompt in prompts[:: asked.n or 1]))
        answer = kind(self.options.name, usage, with_logprobs)
        if asked.stream:
            events = self._events(inbox, jobs, answer, asked.with_usage)
            return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        return await self._whole(request, inbox, jobs, answer)

    async def _aside(self, function: Callable[[A], R], argument: A) -> R:
        """Call what takes seconds for a long text, while others are served."""
        return await asyncio.get_running_loop().run_in_executor(self._encoders, function, argument)

    def _encoded(self, prompts: list[Prompt]) -> list[Prompt]:
        """The prompts as token ids, each text made to them once."""
        try:
            ids = {text: tuple(self.model.encode(text)) for text in {prompt.text for prompt in prompts}}
        except SconceError as bad:
            raise _RefusalError(400, str(bad)) from None
        return [replace(prompt, text=ids[prompt.text]) for prompt in prompts]

    def _submit(self, prompts: list[Prompt], inbox: _Inbox) -> list[Job]:
        try:
            return self.scheduler.submit(prompts, inbox.deliver)
        except BusyError as busy:
            raise _RefusalError(429, str(busy), "rate_limit_error", code="busy") from None
        except EndedError as ended:
            raise _RefusalError(503, str(ended), "server_error") from None
        except SconceError as bad:
            raise _RefusalError(400, str(bad)) from None

    async def _events(
        self, inbox: _Inbox, jobs: list[Job], answer: Answer, with_usage: bool
    ) -> AsyncGenerator[str, None]:
        """A stream of server-sent events; when the client goes, the response closes it, and its jobs end."""
        try:
            for opening in answer.opening(len(jobs)):
                yield _event(opening)
            async for piece in inbox.pieces(len(jobs)):
                answer.usage.completion_tokens += piece.token is not None
                yield _event(answer.chunk(piece))
            if with_usage:
                yield _event(answer.usage_chunk())
            yield "data: [DONE]\n\n"
        except SconceError as failed:
            yield _event(error(str(failed), "server_error"))
        finally:
            self.scheduler.cancel(jobs)

    async def _whole(self, request: Request, inbox: _Inbox, jobs: list[Job], answer: Answer) -> Response:
        gone = asyncio.ensure_future(_disconnected(request))
        done = asyncio.ensure_future(_collect(inbox, len(jobs)))
        try:
            await asyncio.wait((gone, done), return_when=asyncio.FIRST_COMPLETED)
            if not done.done():
                raise ClientDisconnect
            choices = done.result()
        except SconceError as failed:
            raise _RefusalError(500, str(failed), "server_error") from None
        finally:
            self.scheduler.cancel(jobs)
            gone.cancel()
            done.cancel()
        answer.usage.completion_tokens = sum(piece.token is not None for kept in choices.values() for piece in kept)
        return JSONResponse(answer.whole(choices))

    async def _read(self, request: Request, kind: type[T]) -> T:
        """The request's body, checked."""
        media_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
        if media_type != "application/json":
            # Another type could come from any web page without the browser asking us first.
            raise _RefusalError(415, "the body must be JSON, with Content-Type: application/json")
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > self.options.max_request_bytes:
                raise _RefusalError(413, f"the request has more than {self.options.max_request_bytes:,} bytes")
        try:
            return kind.model_validate_json(bytes(body))
        except ValidationError as bad:
            faults = bad.errors(include_url=False)
            raise _RefusalError(400, _describe(faults), param=_place(faults[0]) or None) from None

    def _guarded(self, route: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """The route, for those who have the key; what it refuses becomes a response."""

        async def guarded(request: Request) -> Response:
            try:
                self._check_key(request)
                return await route(request)
            except _RefusalError as refusal:
                return refusal.response
            except ClientDisconnect:
                return Response(status_code=499)  # nobody reads it

        return guarded

    def _check_key(self, request: Request) -> None:
        if self.options.api_key is None:
            return
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), self.options.api_key.encode()):
            raise _RefusalError(401, "the API key is missing or wrong: send Authorization: Bearer KEY", code="bad_key")

    def _check_count(self, choices: int) -> None:
        """More than ever fit can come again and again: that is no matter of waiting."""
        if choices > self.scheduler.most:
            most = f"this server takes {self.scheduler.most} at most: split them over several"
            raise _RefusalError(400, f"{choices:,} texts are asked for in one request; {most}")

    def _check_name(self, name: str) -> None:
        if name != self.options.name:
            raise _RefusalError(404, f"no model {name!r} here; there is {self.options.name!r}", code="model_not_found")

    def _model(self) -> dict[str, object]:
        return {
            "id": self.options.name,
            "object": "model",
            "created": 0,
            "owned_by": "sconce",
            "max_model_len": self.model.spec.max_position_embeddings,
        }


async def _collect(inbox: _Inbox, choices: int) -> dict[int, list[Piece]]:
    collected: dict[int, list[Piece]] = {}
    async for piece in inbox.pieces(choices):
        collected.setdefault(piece.index, []).append(piece)
    return collected


async def _disconnected(request: Request) -> None:
    """Returns when the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _event(value: dict[str, object]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def _describe(faults: list[ErrorDetails]) -> str:
    """The first few faults, in one line."""
    told = list(dict.fromkeys(map(_say, faults)))  # of a parameter of several types each may say the same
    return "; ".join(told[:3]) + (f"; and {len(told) - 3} more" if len(told) > 3 else "")


def _say(fault: ErrorDetails) -> str:
    place = _place(fault)
    return f"{place or 'body'}: {'not supported here: leave it out' if place in NEUTRAL else fault['msg']}"


def _place(fault: ErrorDetails) -> str:
    """The parameter that is wrong, "" for the whole body; without the types that it may have, which pydantic names."""
    *above, last = fault["loc"] or ("",)
    own = [str(part) for part in above if isinstance(part, int) or part in NAMES]
    if isinstance(last, int) or last in NAMES or fault["type"] == "extra_forbidden":
        own.append(str(last))
    return ".".join(own)
