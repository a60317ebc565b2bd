"""Several models over HTTP: how requests name them, what clients see of them, and of their
loading."""

import threading
from typing import Any

import pytest

pytest.importorskip("starlette")

from scripted_models import ManyClient, Scripted
from scripted_server import Response, Say

CHAT = "/v1/chat/completions"
HELLO = {"messages": [{"role": "user", "content": "Hello?"}]}
MESSAGE = {**HELLO, "max_tokens": 9}


def two(**more: Any) -> ManyClient:
    a = Scripted("a", says=("I am A.",))
    return ManyClient(a, Scripted("b", says=("I am B.",)), **more)


def content(response: Response) -> str:
    text: str = response.json["choices"][0]["message"]["content"]
    return text


# ---- names ---------------------------------------------------------------------------------------


def test_the_model_that_a_request_names_answers() -> None:
    with two() as client:
        for name in "aba":
            response = client.post(CHAT, {**HELLO, "model": name})
            assert response.json["model"] == name
            assert content(response) == f"I am {name.upper()}."


@pytest.mark.parametrize(
    ("path", "body", "shape"),
    [
        (CHAT, HELLO, lambda body: body["error"]["message"]),
        ("/v1/completions", {"prompt": "x"}, lambda body: body["error"]["message"]),
        ("/v1/responses", {"input": "x"}, lambda body: body["error"]["message"]),
        ("/v1/embeddings", {"input": "x"}, lambda body: body["error"]["message"]),
        ("/v1/messages", MESSAGE, lambda body: body["error"]["message"]),
        ("/v1/messages/count_tokens", HELLO, lambda body: body["error"]["message"]),
        ("/api/chat", HELLO, lambda body: body["error"]),
        ("/api/generate", {"prompt": "x"}, lambda body: body["error"]),
        ("/api/generate", {}, lambda body: body["error"]),
        ("/api/embed", {"input": "x"}, lambda body: body["error"]),
        ("/api/show", {}, lambda body: body["error"]),
        ("/tokenize", {"content": "x"}, lambda body: body["error"]["message"]),
        ("/detokenize", {"tokens": [1]}, lambda body: body["error"]["message"]),
        ("/models/load", {}, lambda body: body["error"]["message"]),
        ("/models/unload", {}, lambda body: body["error"]["message"]),
    ],
)
def test_a_name_that_nobody_has_is_a_404_that_says_which_there_are(
    path: str, body: dict[str, Any], shape: Any
) -> None:
    with two() as client:
        response = client.post(path, {**body, "model": "gpt-5"})
        assert response.status == 404
        assert shape(response.json) == "there is no model 'gpt-5' here; there are: a, b"


def test_a_request_without_a_name_is_told_to_give_one() -> None:
    with two() as client:
        response = client.post(CHAT, HELLO)
        assert response.status == 400
        assert response.json["error"]["param"] == "model"
        assert "there are: a, b" in response.json["error"]["message"]


def test_a_request_without_a_name_goes_to_the_default_or_to_the_only_model() -> None:
    with two(options={"default": "b"}) as client:
        assert client.post(CHAT, HELLO).json["model"] == "b"
        assert client.post(CHAT, {**HELLO, "model": "c"}).status == 404
    with ManyClient(Scripted("only")) as client:
        assert client.post(CHAT, HELLO).json["model"] == "only"


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "a\0", "a" * 100_000, "{}", " "])
def test_a_hostile_name_is_unknown(name: str) -> None:
    with two() as client:
        response = client.post(CHAT, {**HELLO, "model": name})
        assert response.status == 404
        assert len(response.body) < 4000
        assert client.get(f"/v1/models/{name[:100]}").status == 404


ALIASES = {"gpt-5": "a", "claude-*": "a", "claude-opus-*": "B:latest", "gone": "c", "b": "a"}


@pytest.mark.parametrize(
    ("name", "answers"),
    [
        ("gpt-5", "a"),
        ("GPT-5:latest", "a"),
        ("claude-haiku-4-5-20251001", "a"),
        ("claude-opus-4.1", "b"),
        ("b", "b"),
        ("gpt-5-mini", None),
        ("claude", None),
        ("gone", None),
        ("claude-" + "x" * 100_000, None),
    ],
)
def test_an_alias_leads_to_its_model(name: str, answers: str | None) -> None:
    with two(options={"aliases": ALIASES}) as client:
        response = client.post(CHAT, {**HELLO, "model": name})
        assert response.json.get("model") == answers
        assert response.status == (200 if answers else 404)


def test_the_alias_of_everything_does_not_answer_for_a_request_without_a_name() -> None:
    with two(options={"aliases": {"*": "b"}}) as client:
        assert client.post(CHAT, {**HELLO, "model": "whatever"}).json["model"] == "b"
        assert client.post(CHAT, {**HELLO, "model": "a"}).json["model"] == "a"
        assert client.post(CHAT, HELLO).status == 400


def test_aliases_are_listed_with_their_models() -> None:
    with two(options={"aliases": ALIASES}) as client:
        found = {one["id"]: one["aliases"] for one in client.get("/v1/models").json["data"]}
        assert found == {"a": ["gpt-5", "claude-*"], "b": ["claude-opus-*"]}
        assert client.get("/v1/models/gpt-5").json["id"] == "a"
        tags = [one["model"] for one in client.get("/api/tags").json["models"]]
        assert tags == ["a", "gpt-5", "b"]


# ---- what clients see ----------------------------------------------------------------------------


def test_all_models_are_listed_with_their_state() -> None:
    with two() as client:
        client.post(CHAT, {**HELLO, "model": "b"})
        for path in ("/v1/models", "/models"):
            found = client.get(path).json["data"]
            states = [(one["id"], one["status"]["value"]) for one in found]
            assert states == [("a", "unloaded"), ("b", "loaded")]
            assert [one["max_model_len"] for one in found] == [4096, 4096]
        assert client.get("/v1/models/b").json["status"] == {"value": "loaded"}
        anthropic = client.get("/v1/models", headers=[("anthropic-version", "2023-06-01")]).json
        assert [one["id"] for one in anthropic["data"]] == ["a", "b"]
        assert (anthropic["first_id"], anthropic["last_id"]) == ("a", "b")


def test_ollamas_clients_see_all_models_and_those_that_are_loaded() -> None:
    with two() as client:
        client.post("/api/generate", {"model": "b:latest", "prompt": "x", "stream": False})
        tags = client.get("/api/tags").json["models"]
        assert [(one["name"], one["size"]) for one in tags] == [("a", 10), ("b", 10)]
        assert [one["name"] for one in client.get("/api/ps").json["models"]] == ["b"]
        shown = client.post("/api/show", {"model": "a"}).json
        assert shown["details"]["family"] == "llama"
        assert shown["model_info"]["llama.context_length"] == 4096


def test_props_are_of_the_model_that_is_asked_for_and_load_nothing() -> None:
    with two() as client:
        client.post(CHAT, {**HELLO, "model": "a"})
        response = client.call("GET", "/props", query=b"model=a")
        assert response.json["answer_format"] == "hermes"
        response = client.call("GET", "/props", query=b"model=b")
        assert (response.json["model"], response.json["state"]) == ("b", "unloaded")
        assert client.scripted["b"].n_loads == 0
        assert client.get("/props").status == 400


def test_metrics_and_the_log_tell_the_models_apart(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "airllm")
    with two() as client:
        client.post(CHAT, {**HELLO, "model": "a"})
        client.post(CHAT, {**HELLO, "model": "b"})
        lines = client.get("/metrics").body.decode().splitlines()
        n = len(client.scripted["b"].engine.prompt())
        assert f'airllm_prompt_tokens_total{{model="a"}} {n}' in lines
        assert f'airllm_prompt_tokens_total{{model="b"}} {n}' in lines
        assert "airllm_models_loaded 1" in lines
        assert 'airllm_requests_running{model="b"} 0' in lines
    assert [f"{CHAT} {name}: prompt" in caplog.text for name in "ab"] == [True, True]


def test_the_server_is_healthy_with_no_model_loaded() -> None:
    with two() as client:
        assert client.get("/health").json == {"status": "ok"}


# ---- loading and unloading -----------------------------------------------------------------------


def test_ollamas_empty_request_loads_a_model_and_with_keep_alive_0_unloads_it() -> None:
    with two() as client:
        body = client.post("/api/generate", {"model": "a"}).json
        assert (body["model"], body["done_reason"]) == ("a", "load")
        assert client.scripted["a"].n_loaded == 1
        body = client.post("/api/chat", {"model": "a", "keep_alive": 0}).json
        assert body["done_reason"] == "unload"
        wait_until_unloaded(client, "a")


@pytest.mark.parametrize("keep_alive", [0, "0", "0s", "0m0s", 0.0])
def test_keep_alive_0_unloads_the_model_after_the_answer(keep_alive: Any) -> None:
    with two() as client:
        body = {**HELLO, "model": "a", "stream": False, "keep_alive": keep_alive}
        assert client.post("/api/chat", body).json["message"]["content"] == "I am A."
        wait_until_unloaded(client, "a")


def test_keep_alive_says_when_a_model_expires() -> None:
    with two() as client:
        for keep_alive, year in (("-1m", "0001"), (-1, "0001"), ("1h30m", "2"), (300, "2")):
            client.post("/api/generate", {"model": "a", "keep_alive": keep_alive})
            expires = client.get("/api/ps").json["models"][0]["expires_at"]
            assert expires.startswith(year)


@pytest.mark.parametrize("keep_alive", ["soon", "", "5 m", "m", "1h" * 50, [], True, "1e9"])
def test_a_keep_alive_that_is_none_is_refused(keep_alive: Any) -> None:
    with two() as client:
        body = {**HELLO, "model": "a", "keep_alive": keep_alive}
        response = client.post("/api/chat", body)
        assert response.status == 400
        assert "keep_alive" in response.json["error"]


def test_models_are_loaded_and_unloaded_in_llama_cpps_way() -> None:
    with two() as client:
        assert client.post("/models/load", {"model": "b"}).json == {"success": True}
        assert client.scripted["b"].n_loaded == 1
        assert client.post("/models/unload", {"model": "b"}).json == {"success": True}
        wait_until_unloaded(client, "b")


def wait_until_unloaded(client: ManyClient, name: str) -> None:
    for _ in range(10_000):
        if client.get(f"/v1/models/{name}").json["status"]["value"] == "unloaded":
            return
    raise AssertionError(f"{name} was not unloaded")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, HELLO),
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/responses", {"input": "x"}),
        ("/v1/messages", MESSAGE),
    ],
)
def test_a_stream_says_that_it_is_there_while_its_model_is_loaded(
    path: str, body: dict[str, Any]
) -> None:
    with two(heartbeat_seconds=0.01) as client:
        a = client.scripted["a"]
        a.may_load.clear()

        def load_after_three(response: Response) -> bool:
            if response.body.count(b": still here\n\n") == 3:
                a.may_load.set()
            return False

        asked = {**body, "model": "a", "stream": True}
        response = client.post(path, asked, leaves_after=load_after_three)
        assert response.status == 200
        whole = response.body.decode()
        assert "I a" in whole
        names = [name for name, _ in response.events if name]
        firsts = {"/v1/messages": "message_start", "/v1/responses": "response.created"}
        assert names[:1] == [firsts.get(path)] * (path in firsts)


@pytest.mark.parametrize("path", [CHAT, "/v1/messages", "/v1/responses", "/api/chat"])
def test_a_stream_that_has_begun_tells_of_a_load_that_fails(path: str) -> None:
    with two(heartbeat_seconds=0.01) as client:
        a = client.scripted["a"]
        a.may_load.clear()
        a.error = ValueError("the file lies")

        def load_after_the_status(response: Response) -> bool:
            if response.status:
                a.may_load.set()
            return False

        body = {**MESSAGE, "input": "x", "model": "a", "stream": True}
        response = client.post(path, body, leaves_after=load_after_the_status)
        assert response.status == 200
        assert "a cannot be loaded: the file lies" in response.body.decode()


def test_a_load_that_fails_before_anything_was_sent_has_the_status_of_its_error() -> None:
    with two() as client:
        client.scripted["a"].error = ValueError("the file lies")
        for stream in (False, True):
            response = client.post(CHAT, {**HELLO, "model": "a", "stream": stream})
            assert response.status == 500
            assert response.json["error"]["code"] == "model_not_loaded"


def test_a_model_that_gets_no_memory_in_time_asks_to_come_again() -> None:
    with two(options={"queue_seconds": 0.05}) as client:
        a = client.scripted["a"]
        a.says = (Say("I am A.", waits=True),)
        while client.post("/models/load", {"model": "a"}).status != 200:  # it takes its time, too
            pass
        asking = threading.Thread(target=client.post, args=(CHAT, {**HELLO, "model": "a"}))
        asking.start()
        assert a.engine.submitted.wait(10)
        response = client.post(CHAT, {**HELLO, "model": "b"})
        assert response.status == 503
        assert int(response.headers["retry-after"]) > 0
        assert response.json["error"]["code"] == "model_busy"
        a.engine.go.set()
        asking.join(10)


def test_who_leaves_while_a_model_is_loaded_is_gone() -> None:
    with two(heartbeat_seconds=0.01) as client:
        a = client.scripted["a"]
        a.may_load.clear()
        asked = {**HELLO, "model": "a", "stream": True}
        client.post(CHAT, asked, leaves_after=lambda response: bool(response.pieces))
        a.may_load.set()
        assert content(client.post(CHAT, {**HELLO, "model": "b"})) == "I am B."
        assert not a.engine.requests
