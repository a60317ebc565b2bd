"""A server without a model: the engine says what a test has written; the client needs no socket.

Its tokens are bytes.
"""

import asyncio
import json
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from airllm.engine.continuation import FinishReason, Generation
from airllm.engine.grammar import GrammarLibraryError
from airllm.engine.requests import (
    AfterEvents,
    Event,
    Failed,
    Finished,
    Handle,
    OnEvent,
    Piece,
    PromptProgress,
    QueueFullError,
    Request,
    TokenLogprob,
)
from airllm.server.app import make_app
from airllm.server.one_model import OneModel
from airllm.server.served_model import ServedModel
from airllm.server.service import Service
from airllm.server.settings import ServerSettings
from airllm.text.chat_template import ChatTemplate
from airllm.text.prompts import PromptReader
from airllm.util.metadata import Metadata

# Shows everything that it is given, so that tests can see what a template gets.
TEMPLATE = (
    "{% if tools %}<tools>{{ tools | tojson }}</tools>{% endif %}"
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}"
    "{% if message.reasoning_content %}"
    "<thought>{{ message.reasoning_content }}</thought>{% endif %}"
    "{% if message.tool_calls %}{{ message.tool_calls | tojson }}{% endif %}"
    "{% if message.tool_call_id %}({{ message.name }} {{ message.tool_call_id }}){% endif %}"
    "{{ '\n' }}"
    "{% endfor %}<assistant>{# <tool_call> <think></think> #}"
    "{% if enable_thinking %}<think>{% endif %}"
)


class ByteTokenizer:
    vocab_size = 256
    bos_id = None
    add_bos = False

    def encode(
        self, text: str, *, add_special: bool = True, parse_special: bool = False
    ) -> list[int]:
        return list(text.encode("utf-8", "replace"))

    def decode(self, tokens: Iterable[int], *, skip_special: bool = False) -> str:
        return bytes(tokens).decode(errors="replace")

    def token_bytes(self, id: int) -> bytes:
        return bytes([id])

    def control_ids(self, texts: Iterable[str]) -> frozenset[int]:
        return frozenset()

    def marks(self, texts: Iterable[str]) -> dict[str, int]:
        return {}

    def guarded(self, text: str) -> str:
        return text

    def least_tokens(self, text: str) -> int:
        return len(text)


def byte_prompts(template: str | None = TEMPLATE) -> PromptReader:
    prompts = PromptReader(Metadata("the test", {"tokenizer.ggml.tokens": ["a"]}))
    prompts.__dict__["tokenizer"] = ByteTokenizer()
    if template is not None:
        prompts.__dict__["chat_template"] = ChatTemplate(template)
    return prompts


@dataclass
class Say:
    """What an answer says. cut: characters of a piece. waits: before the first piece, and
    error_waits: before the error, until `go` is set. hangs_in_prompt: nothing comes after the
    first progress."""

    text: str = ""
    finish: FinishReason = "stop"
    cut: int = 3
    more: str = ""  # tokens that came and are no text, as those of a stop string
    error: Exception | None = None
    waits: bool = False
    error_waits: bool = False
    hangs_in_prompt: bool = False


class ScriptedEngine:
    """A scheduler that says what it was told to; the last answer again and again."""

    def __init__(self, *answers: Say | str) -> None:
        self._answers = [Say(one) if isinstance(one, str) else one for one in answers]
        self.requests: list[Request] = []
        self.cancelled: list[Handle] = []
        self.go = threading.Event()
        self.submitted = threading.Event()
        self.is_full = False
        self.ends_with: Exception | None = None
        self.n_running = self.n_waiting = self.cached_bytes = 0
        self._ended = threading.Event()
        self._lock = threading.Lock()

    def submit(
        self, request: Request, on_event: OnEvent, after_events: AfterEvents | None = None
    ) -> Handle:
        if self.is_full:
            raise QueueFullError("the queue is full")
        with self._lock:
            self.requests.append(request)
            handle = Handle(
                len(self.requests), request, list(request.prompt), on_event, after_events
            )
        threading.Thread(target=self._tell, args=(handle,), daemon=True).start()
        self.submitted.set()
        return handle

    def prompt(self, at: int = -1) -> str:
        """The text of a prompt that came."""
        return bytes(self.requests[at].prompt).decode()

    def cancel(self, handle: Handle) -> bool:
        with self._lock:
            self.cancelled.append(handle)
        going_on = handle.end("cancelled")
        self.go.set()
        return going_on

    def serve_forever(self) -> None:
        self._ended.wait()
        if self.ends_with is not None:
            raise self.ends_with

    def close(self, *, drain: bool = False) -> None:
        self._ended.set()

    def _tell(self, handle: Handle) -> None:
        request = handle.request
        with self._lock:
            says = [
                self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
                for _ in range(request.n)
            ]
        if any(say.waits for say in says):
            self.go.wait(30)
        n = len(request.prompt)
        handle.started = handle.submitted
        if any(say.hangs_in_prompt for say in says):
            _tell_one(handle, PromptProgress(1, len(request.prompt)))
            return
        handle.first_token = handle.started
        events = [PromptProgress(n // 2, n), PromptProgress(n, n, 0, self._of_prompt(request))]
        for choice, say in enumerate(says):
            events += self._events(choice, say, request)
        for event in events:
            if isinstance(event, Failed) and any(say.error_waits for say in says):
                self.go.wait(30)
            with handle.telling():  # the end follows the last event at once, as in the scheduler
                try:
                    _tell_one(handle, event)
                except Exception as error:
                    _tell_one(handle, Failed(error))
                    handle.end("finished")
                if event is events[-1]:
                    handle.end("finished")

    def _of_prompt(self, request: Request) -> tuple[TokenLogprob, ...]:
        if not request.prompt_logprobs:
            return ()
        return tuple(self._logprob(token, request) for token in request.prompt[1:])

    def _logprob(self, token: int, request: Request) -> TokenLogprob:
        top = [(token, -0.5), (ord("?"), float("-inf"))][: request.top_logprobs or 0]
        return TokenLogprob(token, -0.5, tuple(top))

    def _events(self, choice: int, say: Say, request: Request) -> list[Any]:
        events: list[Any] = []
        most = request.limits.max_new_tokens
        finish, text = say.finish, say.text
        if len(text.encode()) > most:
            text, finish = text.encode()[:most].decode(errors="ignore"), "length"
        for at in range(0, len(text), say.cut):
            piece = text[at : at + say.cut]
            tokens = tuple(piece.encode())
            logprobs = [self._logprob(token, request) for token in tokens if request.logprobs]
            events.append(Piece(choice, piece, tokens, tuple(logprobs)))
        if say.error is not None:
            return [*events, Failed(say.error)]
        tokens = tuple((text + say.more).encode())
        n = len(request.prompt)
        generation = Generation(text, tokens, n, 0, 0, finish, 0.5, 1.0, 0.0, 0.0, 1, 0)
        return [*events, Finished(choice, generation)]


def _tell_one(handle: Handle, event: Event) -> None:
    handle.tell(event)
    if handle.after_events is not None:
        handle.after_events()


def scripted_model(
    engine: ScriptedEngine,
    template: str | None = TEMPLATE,
    grammar: Callable[..., Any] | None = None,
) -> ServedModel:
    def no_grammar(**wanted: Any) -> Any:
        raise GrammarLibraryError(f"llguidance is not installed; wanted {wanted}")

    prompts = byte_prompts(template)
    return ServedModel("scripted", engine, prompts, 4096, lambda: None, grammar or no_grammar)


@dataclass
class Response:
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    pieces: list[bytes] = field(default_factory=list)

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[tuple[str | None, Any]]:
        """The server-sent events: their names and their data, without [DONE] and comments."""
        found = []
        for block in self.body.decode().split("\n\n"):
            lines = dict(
                line.split(": ", 1) for line in block.split("\n") if line[:1] != ":" and line
            )
            if lines.get("data", "[DONE]") != "[DONE]":
                found.append((lines.get("event"), json.loads(lines["data"])))
        return found

    @property
    def data(self) -> list[Any]:
        return [data for _, data in self.events]

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.body.splitlines()]


class Client:
    """Calls a server's application, without sockets.

    with Client("Hello.") as client: client.post("/v1/completions", {...})
    """

    def __init__(
        self,
        *answers: Say | str,
        template: str | None = TEMPLATE,
        opened: Callable[[], ServedModel] | None = None,
        grammar: Callable[..., Any] | None = None,
        **settings: Any,
    ) -> None:
        self.engine = ScriptedEngine(*(answers or ("Hello.",)))
        self.models = OneModel(opened or (lambda: scripted_model(self.engine, template, grammar)))
        self.thread = self.models.engine
        self._settings = ServerSettings(**settings)
        self.service: Service | None = None

    def __enter__(self) -> "Client":
        self.thread.start()
        self.thread.wait_until_open()
        return self

    def __exit__(self, *_: object) -> None:
        self.thread.close()

    def post(self, path: str, body: object, **more: Any) -> Response:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.call("POST", path, raw, **more)

    def get(self, path: str, **more: Any) -> Response:
        return self.call("GET", path, **more)

    def call(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Sequence[tuple[str, str]] = (),
        leaves: bool = False,
        leaves_after: Callable[[Response], bool] | None = None,
        takes: Callable[[bytes], bool] = lambda piece: True,
    ) -> Response:
        """leaves: disconnect once the request has been submitted. leaves_after: disconnect when it
        says so of what has come. takes: whether the client takes a piece; if not, it stands
        still."""
        call = self._call(method, path, body, headers, leaves, leaves_after, takes)
        return asyncio.run(call)

    async def _call(
        self,
        method: str,
        path: str,
        body: bytes,
        headers: Sequence[tuple[str, str]],
        leaves: bool,
        leaves_after: Callable[[Response], bool] | None,
        takes: Callable[[bytes], bool],
        query: bytes = b"",
    ) -> Response:
        if self.service is None:
            self.service = Service(self.models, self._settings)
        app = make_app(self.service)
        response, gone, sent = Response(), asyncio.Event(), False
        own = dict({"host": "localhost:8080"}, **dict(headers))
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": query,
            "root_path": "",
            "scheme": "http",
            "headers": [(name.encode(), value.encode()) for name, value in own.items()],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8080),
        }

        async def receive() -> dict[str, Any]:
            nonlocal sent
            if not sent:
                sent = True
                return {"type": "http.request", "body": body, "more_body": False}
            if leaves:
                await asyncio.to_thread(self.engine.submitted.wait, 10)
            else:
                await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                response.status = message["status"]
                for name, value in message["headers"]:
                    response.headers[name.decode()] = value.decode()
            else:
                if not takes(message.get("body", b"")):
                    await asyncio.Event().wait()
                response.pieces.append(message.get("body", b""))
            if leaves_after is not None and leaves_after(response):
                gone.set()

        await asyncio.wait_for(app(scope, receive, send), 30)
        return response
