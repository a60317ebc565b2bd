"""The server around the protocols: who may use it, who has left, limits, metrics and the log."""

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from airllm.engine.requests import DeadlineError

pytest.importorskip("starlette")

from scripted_server import Client, Response, Say, ScriptedEngine, scripted_model

from airllm.engine.requests import Handle, Request
from airllm.server import body_fields, http_exchange, remembered
from airllm.server.access import AccessGate
from airllm.server.answer import ChoiceEnded
from airllm.server.body_fields import BodyFields
from airllm.server.engine_thread import EngineThread
from airllm.server.errors import ApiError
from airllm.server.http_exchange import GoneError, HttpExchange
from airllm.server.remembered import MOST_CHARACTERS, MOST_RESPONSES, Remembered
from airllm.server.service import Live
from airllm.server.settings import ServerSettings

CHAT = {"messages": [{"role": "user", "content": "Hello?"}]}
LOCAL = frozenset(("localhost", "127.0.0.1", "::1"))


def ask(client: Client, **more: Any) -> Response:
    return client.post("/v1/chat/completions", CHAT, **more)


# ---- who may use it ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    ["localhost:8080", "127.0.0.1", "[::1]:8080", "LOCALHOST", "LOCALHOST:8080", "[FD00::A]:8080"],
)
def test_the_server_answers_to_its_own_names(host: str) -> None:
    with Client(hosts=LOCAL | {"fd00::a"}) as client:
        assert ask(client, headers=[("host", host)]).status == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example:8080", "", "[evil]"])
def test_a_name_that_was_pointed_at_the_server_is_refused(host: str) -> None:
    with Client(hosts=LOCAL) as client:
        response = ask(client, headers=[("host", host)])
        assert response.status == 403
        assert not client.engine.requests


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:9999"])
def test_a_page_of_another_origin_gets_nothing(origin: str) -> None:
    with Client(hosts=LOCAL) as client:
        response = ask(client, headers=[("origin", origin)])
        assert response.status == 403
        assert "access-control-allow-origin" not in response.headers
        assert not client.engine.requests


def test_a_page_without_an_origin_is_not_the_server_that_has_no_name() -> None:
    with Client() as client:
        assert ask(client, headers=[("origin", "null"), ("host", "")]).status == 403


def test_what_is_not_http_reaches_nothing() -> None:
    gate = AccessGate(None, ServerSettings(), lambda path: dict)  # type: ignore[arg-type]
    asyncio.run(gate({"type": "websocket", "headers": []}, None, None))  # type: ignore[arg-type]


def test_a_page_that_hides_its_origin_gets_nothing() -> None:
    with Client(hosts=LOCAL) as client:
        response = client.get("/props", headers=[("sec-fetch-site", "cross-site")])
        assert response.status == 403


def test_the_servers_own_page_is_answered() -> None:
    with Client(hosts=LOCAL) as client:
        assert ask(client, headers=[("origin", "http://localhost:8080")]).status == 200


def test_an_origin_that_was_allowed_is_answered_and_its_browser_told_so() -> None:
    with Client(origins=frozenset(["https://chat.example"])) as client:
        headers = [("origin", "https://chat.example")]
        response = ask(client, headers=headers)
        assert response.status == 200
        assert response.headers["access-control-allow-origin"] == "https://chat.example"
        assert response.headers["vary"] == "Origin"  # for caches
        assert client.call("OPTIONS", "/v1/chat/completions", headers=headers).status == 405
        wanted = [("access-control-request-method", "POST")]
        response = client.call("OPTIONS", "/v1/chat/completions", headers=[*headers, *wanted])
        assert response.status == 204
        assert "POST" in response.headers["access-control-allow-methods"]
        assert ask(client, headers=[("origin", "https://evil.example")]).status == 403
        # What is no page of another origin is answered as anybody is.
        response = client.call("OPTIONS", "/v1/chat/completions", headers=wanted)
        assert response.status == 405


@pytest.mark.parametrize("header", [("authorization", "Bearer two"), ("x-api-key", "one")])
def test_a_key_opens_the_server(header: tuple[str, str]) -> None:
    with Client(api_keys=("one", "two", "of \udcff bytes")) as client:
        assert ask(client, headers=[header]).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("authorization", "Bearer three")],
        [("authorization", "Bearer ")],
        [("authorization", "Basic one")],
        [("x-api-key", "")],
        [("x-api-key", "one ")],
        [("x-api-key", "\xff")],
    ],
)
def test_without_the_key_there_is_no_answer(headers: list[tuple[str, str]]) -> None:
    with Client(api_keys=("one", "two")) as client:
        for path in ("/v1/models", "/props", "/metrics", "/api/tags"):
            assert client.get(path, headers=headers).status == 401
        response = ask(client, headers=headers)
        assert response.status == 401
        assert response.json["error"]["code"] == "invalid_api_key"
        assert response.headers["www-authenticate"] == "Bearer"
        assert client.get("/health", headers=headers).status == 200
        assert not client.engine.requests


# ---- who has left --------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_who_leaves_before_the_answer_is_cancelled(stream: bool) -> None:
    with Client(Say("Hello.", waits=True)) as client:
        body = {**CHAT, "stream": stream}
        response = client.post("/v1/chat/completions", body, leaves=True)
        assert response.status == 0
        assert [handle.stage for handle in client.engine.cancelled] == ["cancelled"]


def test_who_leaves_within_the_answer_is_cancelled() -> None:
    with Client(Say("Hello. " * 9, error=RuntimeError(), error_waits=True)) as client:
        body = {**CHAT, "stream": True}
        client.post("/v1/chat/completions", body, leaves_after=lambda response: response.pieces)
        assert [handle.stage for handle in client.engine.cancelled] == ["cancelled"]


def test_the_others_are_not_cancelled() -> None:
    with Client("Hello.") as client:
        ask(client)
        ask(client)
        stages = [handle.stage for handle in client.engine.cancelled]
        assert stages == ["finished", "finished"]


# ---- streams -------------------------------------------------------------------------------------


def test_a_stream_that_has_nothing_to_say_sends_heartbeats() -> None:
    with Client(Say("Hello.", waits=True), heartbeat_seconds=0.01) as client:

        def go_on_after_three(response: Response) -> bool:
            if response.body.count(b": still here") == 3:
                client.engine.go.set()
            return False

        body = {**CHAT, "stream": True}
        response = client.post("/v1/chat/completions", body, leaves_after=go_on_after_three)
        assert response.body.count(b": still here\n\n") >= 3
        assert response.data[0]["choices"][0]["delta"]["role"] == "assistant"
        assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in response.data)


def test_a_request_that_waits_too_long_has_the_status_of_its_error() -> None:
    with Client(Say(error=DeadlineError("it waited longer than queue_seconds=1"))) as client:
        for stream in (False, True):
            response = client.post("/v1/chat/completions", {**CHAT, "stream": stream})
            assert response.status in (200, 504)
            assert "queue_seconds" in response.body.decode()


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_may_not_take_for_ever(stream: bool) -> None:
    with Client(Say("Hello.", hangs_in_prompt=True), prompt_seconds=0.05) as client:
        response = client.post("/v1/chat/completions", {**CHAT, "stream": stream})
        assert "prompt-timeout" in response.body.decode()
        assert response.status == 504 if not stream else 200
        assert [handle.stage for handle in client.engine.cancelled] == ["cancelled"]


def test_an_answer_is_late_for_the_stage_that_it_is_in_now() -> None:
    now = time.perf_counter()
    settings = ServerSettings(prompt_seconds=1.0, answer_seconds=1000.0)
    handle = Handle(1, Request([1]), [1], print)
    request = SimpleNamespace(n_choices=1)
    live = Live("id", request, None, None, None, {handle: None})  # type: ignore[arg-type, dict-item]
    handle.started = now - 9.0
    due = now - 8.0
    assert live._is_late(settings, due, [])
    handle.first_token = now  # which came while it was waited for
    assert not live._is_late(settings, due, [])
    handle.first_token = now - 2000.0
    assert live._is_late(settings, due, [])
    assert not live._is_late(settings, due, [ChoiceEnded(0, "stop", None)])  # type: ignore[arg-type]


def test_an_answer_that_is_complete_when_its_time_is_over_is_told() -> None:
    with Client("Hello.", answer_seconds=1e-9) as client:
        submit = client.engine.submit

        def submit_and_wait(*rest: Any) -> Handle:
            handle = submit(*rest)
            assert handle.wait(10)  # all events are there when the first is taken
            return handle

        client.engine.submit = submit_and_wait  # type: ignore[method-assign]
        response = ask(client)
        assert response.json["choices"][0]["message"]["content"] == "Hello."


def test_who_takes_nothing_of_an_answer_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_exchange, "STALL_SECONDS", 0.05)
    with Client("Hello. " * 9) as client:
        client.post("/v1/chat/completions", {**CHAT, "stream": True}, takes=lambda piece: False)
        assert [handle.is_over for handle in client.engine.cancelled] == [True]
        lines = client.get("/metrics").body.decode().splitlines()
        path = 'endpoint="/v1/chat/completions"'
        assert f'airllm_requests_total{{{path},outcome="cancelled"}} 1' in lines


def exchange(
    receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]], **settings: Any
) -> HttpExchange:
    service = SimpleNamespace(settings=ServerSettings(**settings))
    return HttpExchange(service, {"headers": []}, receive, send, dict)  # type: ignore[arg-type]


async def never(*_: Any) -> None:
    await asyncio.Event().wait()


async def gone() -> dict[str, str]:
    return {"type": "http.disconnect"}


def soon(work: Awaitable[Any]) -> Any:
    async def within_10_seconds() -> Any:
        return await asyncio.wait_for(work, 10)

    return asyncio.run(within_10_seconds())


def test_who_leaves_within_the_body_has_sent_none() -> None:
    with pytest.raises(GoneError):
        soon(exchange(gone, never).body())


def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    with pytest.raises(ApiError, match="did not come within 0 s") as error:
        soon(exchange(never, never, body_seconds=0.0).body())
    assert error.value.status == 408


def test_who_takes_nothing_of_an_error_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_exchange, "STALL_SECONDS", 0.0)
    with pytest.raises(GoneError):
        soon(exchange(gone, never).send({}))


def test_who_has_taken_all_may_wait_for_more_as_long_as_it_takes() -> None:
    async def taken(message: Any) -> None:
        pass

    one = exchange(gone, taken)
    one._stalled = stalled = MagicMock()
    asyncio.run(one.send({}))
    assert [call[0] for call in stalled.method_calls] == ["set", "clear"]


# ---- limits --------------------------------------------------------------------------------------


def test_a_full_queue_asks_to_come_again() -> None:
    with Client() as client:
        client.engine.is_full = True
        response = ask(client)
        assert response.status == 429
        assert int(response.headers["retry-after"]) > 0
        assert response.json["error"]["code"] == "queue_full"


def test_a_body_that_is_too_long_is_refused() -> None:
    with Client(max_body=100) as client:
        body = {"messages": [{"role": "user", "content": "x" * 200}]}
        response = client.post("/v1/chat/completions", body)
        assert response.status == 413
        assert response.headers["connection"] == "close"
        assert (
            client.post("/v1/chat/completions", json.dumps(CHAT).ljust(100).encode()).status == 200
        )


def test_a_prompt_that_is_too_long_is_refused() -> None:
    with Client(max_prompt=10) as client:
        response = ask(client)
        assert response.status == 400
        assert response.json["error"]["code"] == "prompt_too_long"
    with Client() as client:
        ask(client)
        n_tokens = len(client.engine.requests[0].prompt)
    for most, status in ((n_tokens, 200), (n_tokens - 1, 400)):
        with Client(max_prompt=most) as client:
            assert ask(client).status == status


def test_of_several_prompts_none_goes_on_if_one_has_no_room() -> None:
    with Client() as client:
        submit = client.engine.submit

        def first_alone(*rest: Any) -> Handle:
            handle = submit(*rest)
            client.engine.is_full = True
            return handle

        client.engine.submit = first_alone  # type: ignore[method-assign]
        response = client.post("/v1/completions", {"prompt": ["one", "two"]})
        assert response.status == 429
        assert [handle.number for handle in client.engine.cancelled] == [1]


def test_the_servers_limits_reach_the_engine() -> None:
    with Client(queue_seconds=1.0, prompt_seconds=2.0, answer_seconds=4.0, max_tokens=5) as client:
        ask(client)
        request = client.engine.requests[0]
        assert request.queue_seconds == 1.0
        assert request.deadline_seconds == 7.0
        assert request.limits.max_new_tokens == 5
        room = 4096 - len(request.prompt)
        client.post("/v1/chat/completions", {**CHAT, "max_tokens": 10**6})
        assert client.engine.requests[1].limits.max_new_tokens == room


def test_a_path_that_is_not_there_and_a_method_that_does_not_fit_are_named() -> None:
    with Client() as client:
        response = client.get("/v1/nothing")
        assert response.status == 404
        assert "/v1/nothing" in response.json["error"]["message"]
        response = client.get("/v1/chat/completions")
        assert response.status == 405
        assert "POST" in response.json["error"]["message"]
        assert client.get("/api/nothing").json == {
            "error": client.get("/api/nothing").json["error"]
        }


# ---- what it says of itself ----------------------------------------------------------------------


def test_the_server_says_that_it_is_loading_until_the_model_is_there() -> None:
    may_open = threading.Event()
    engine = ScriptedEngine("Hello.")

    def opened() -> Any:
        may_open.wait(10)
        return scripted_model(engine)

    client = Client(opened=opened)
    client.thread.start()
    assert client.get("/health").status == 503
    response = ask(client)
    assert response.status == 503
    assert response.json["error"]["code"] == "loading"
    may_open.set()
    client.thread.wait_until_open()
    assert client.get("/health").json == {"status": "ok"}
    client.thread.close()
    engine.close()


def test_a_model_that_cannot_be_opened_is_the_servers_error() -> None:
    ended = threading.Event()

    def opened() -> Any:
        raise ValueError("no such model")

    thread = EngineThread(opened, ended.set)
    thread.start()
    with pytest.raises(ValueError, match="no such model"):
        thread.wait_until_open()
    assert ended.wait(10)


def test_metrics_count_requests_and_tokens() -> None:
    with Client("Hello.") as client:
        ask(client)
        client.post("/v1/chat/completions", {"messages": []})
        lines = client.get("/metrics").body.decode().splitlines()
        path = 'endpoint="/v1/chat/completions"'
        assert f'airllm_requests_total{{{path},outcome="stop"}} 1' in lines
        assert f"airllm_prompt_tokens_total {len(client.engine.prompt())}" in lines
        assert f'airllm_requests_total{{{path},outcome="error 400"}} 1' in lines
        assert "airllm_model_loaded 1" in lines
        assert 'airllm_queue_seconds_bucket{le="+Inf"} 1' in lines


def test_the_log_has_a_line_for_a_request_and_no_word_of_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "airllm")
    with Client("A secret answer.") as client:
        body = {"messages": [{"role": "user", "content": "A secret question"}]}
        id = client.post("/v1/chat/completions", body).headers["x-request-id"]
        lines = [record.message for record in caplog.records if id in record.message]
        assert len(lines) == 1
        assert "/v1/chat/completions" in lines[0]
        assert lines[0].endswith("; stop")
        assert "secret" not in caplog.text


def test_tokens_of_a_text_and_of_a_chat_are_shown() -> None:
    with Client() as client:
        assert client.post("/tokenize", {"content": "AB"}).json == {"tokens": [65, 66]}
        pieces = client.post("/tokenize", {"content": "A", "with_pieces": True}).json["tokens"]
        assert pieces == [{"id": 65, "piece": "A"}]
        tokens = client.post("/tokenize", CHAT).json["tokens"]
        text = client.post("/detokenize", {"tokens": tokens}).json["content"]
        assert text == "<user>Hello?\n<assistant>"
        assert client.post("/detokenize", {"tokens": [300]}).status == 400
        assert client.post("/detokenize", {"tokens": ["a"]}).status == 400


def test_props_describe_the_model() -> None:
    with Client() as client:
        props = client.get("/props").json
        assert props["model"] == "scripted"
        assert props["context"] == 4096
        assert props["answer_format"] == "hermes"


def test_models_are_listed_and_found_by_name() -> None:
    with Client() as client:
        assert client.get("/v1/models").json["data"][0]["id"] == "scripted"
        assert client.get("/v1/models/scripted").json["id"] == "scripted"
        assert client.get("/v1/models/other").status == 404


# ---- what is remembered, and what is told -------------------------------------------------------


def test_a_response_that_is_too_long_to_remember_drives_no_other_out() -> None:
    kept = Remembered()
    kept.add({"id": "small"}, [{"role": "user", "content": "hello"}])
    kept.add({"id": "large"}, [{"role": "user", "content": "x" * MOST_CHARACTERS}])
    assert kept.messages("small")
    with pytest.raises(ApiError, match="there is no response 'large'"):
        kept.messages("large")


def test_no_more_responses_are_remembered_than_may_be() -> None:
    kept = Remembered()
    for number in range(MOST_RESPONSES + 1):
        kept.add({"id": str(number)}, [])
    assert kept.response("1")
    with pytest.raises(ApiError, match="there is no response '0'"):
        kept.response("0")


def test_no_more_characters_are_remembered_than_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "MOST_CHARACTERS", 100)
    kept = Remembered()
    for number in range(9):
        kept.add({"id": str(number)}, [{"role": "user", "content": "x" * 10}])
    assert list(kept._kept) == ["8"]  # 61 characters each


def test_an_error_says_nothing_to_a_terminal() -> None:
    told = ApiError(400, "a field \x1b[2J of \u202e names")
    assert told.message.isprintable()


def test_the_thread_of_the_engine_ends_with_its_model() -> None:
    ending, closed, drained = threading.Event(), [], []

    def close(drain: bool) -> None:
        drained.append(drain)
        ending.set()

    scheduler = SimpleNamespace(serve_forever=ending.wait, close=close)
    model = SimpleNamespace(scheduler=scheduler, close=lambda: closed.append(True))
    thread = EngineThread(lambda: model)  # type: ignore[arg-type, return-value]
    thread.start()
    assert thread.wait_until_open() is model
    assert not thread.is_ending
    thread.close(drain=True)
    assert (closed, thread.is_ending, thread.error) == ([True], True, None)
    assert drained == [True]
    with pytest.raises(ApiError, match="the model has gone"):
        thread.model  # noqa: B018


def test_a_load_is_not_waited_for_when_the_server_ends() -> None:
    may_open, closed, told = threading.Event(), threading.Event(), threading.Event()
    ran: list[bool] = []
    scheduler = SimpleNamespace(serve_forever=lambda: ran.append(True))

    def opened() -> Any:
        assert may_open.wait(30)
        return SimpleNamespace(scheduler=scheduler, close=closed.set)

    def wait() -> None:
        with pytest.raises(ApiError, match="is being loaded"):
            thread.wait_until_open()
        told.set()

    thread = EngineThread(opened)
    thread.start()
    threading.Thread(target=wait).start()
    thread.close()
    assert told.wait(10)
    assert not closed.is_set()
    may_open.set()
    assert closed.wait(10)
    assert (ran, thread.error) == ([], None)


@pytest.mark.parametrize("ends", [False, True])
def test_a_load_that_fails_is_an_error_unless_the_server_ends(ends: bool) -> None:
    may_fail = threading.Event()

    def fail() -> Any:
        assert may_fail.wait(30)
        raise OSError("no such file")

    thread = EngineThread(fail)
    thread.start()
    if ends:
        thread.close()
    may_fail.set()
    thread._thread.join(30)
    assert thread.is_ending
    assert str(thread.error) == ("None" if ends else "no such file")
    with pytest.raises(ApiError, match="the model has gone"):
        thread.model  # noqa: B018


def test_fields_that_nobody_knows_are_logged_within_bounds(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(body_fields, "_logged", set())
    monkeypatch.setattr(body_fields, "_MOST_LOGGED", 3)
    for at in range(5):
        BodyFields({f"{at} \x1b[2J {'x' * 1000}": 1}).log_unknown("/here")
    assert len(caplog.messages) == 3
    assert all(text.isprintable() and len(text) < 200 for text in caplog.messages)


@pytest.mark.parametrize(
    ("read", "value"),
    [
        (lambda fields: fields.count("x", most=5), 6),
        (lambda fields: fields.count("x", most=5), True),
        (lambda fields: fields.count("x", most=5), "5"),
        (lambda fields: fields.number("x", 0.0, 1.0), 1.5),
        (lambda fields: fields.number("x", 0.0, 1.0), float("nan")),
        (lambda fields: fields.mapping("x"), ["a"]),
    ],
)
def test_a_value_that_does_not_fit_is_refused_by_its_name(
    read: Callable[[BodyFields], object], value: object
) -> None:
    with pytest.raises(ApiError, match=r"x is .*; expected"):
        read(BodyFields({"x": value}))


def test_the_largest_count_that_is_allowed_is_taken() -> None:
    assert BodyFields({"x": 5}).count("x", most=5) == 5


def test_as_many_texts_as_are_allowed_are_taken() -> None:
    fields = BodyFields({"stop": ["a", "b", "c"]})
    assert fields.texts("stop", 3) == ("a", "b", "c")
    with pytest.raises(ApiError, match="stop has 3; at most 2"):
        fields.texts("stop", 2)


def test_the_page_may_load_and_reach_nothing_of_others() -> None:
    with Client() as client:
        headers = client.get("/").headers
    policy = {each.strip() for each in headers["content-security-policy"].split(";")}
    assert policy == {
        *("default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'"),
        *("img-src data:", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"),
    }
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
