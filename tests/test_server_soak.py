"""A server under clients of all kinds: patient, slow, gone, and wrong. No answer goes to another
client, none is wrong, nothing leaks and nothing hangs.

AIRLLM_SOAK_REQUESTS: how many requests, for instance 10000.
"""

import gc
import http.client
import json
import os
import random
import socket
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from extension import require_cpp
from tiny_model import Sizes, write_tiny_model

pytest.importorskip("uvicorn")

from running_server import RunningServer

from airllm.layer_engine import LayerWiseInferenceEngine

pytestmark = pytest.mark.soak

N_REQUESTS = int(os.environ.get("AIRLLM_SOAK_REQUESTS") or 1500)
N_CLIENTS = 12
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
TEXTS = [f"{'hello world ' * (at % 7)}number {at}" for at in range(24)]
N_TOKENS = 12


def messages(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def body(text: str, **more: Any) -> dict[str, Any]:
    return {"messages": messages(text), "temperature": 0, "max_tokens": N_TOKENS, **more}


def raw_request(path: str, data: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


class Clients:
    """Clients that choose at random what they do next, with seeds of their own."""

    def __init__(self, address: tuple[str, int], expected: dict[str, str]) -> None:
        self._address, self._expected = address, expected
        self.seen: Counter[str] = Counter()
        self.faults: list[str] = []
        self._lock = threading.Lock()

    def run(self, n: int, seed: int) -> None:
        """n requests in all."""
        threads = [
            threading.Thread(target=self._client, args=(n // N_CLIENTS, seed * 1000 + at))
            for at in range(N_CLIENTS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(600)
        assert not any(thread.is_alive() for thread in threads)

    def _client(self, n: int, seed: int) -> None:
        chance = random.Random(seed)
        kinds: list[Callable[[random.Random], str]] = [
            *(self._whole,) * 4,
            *(self._streamed,) * 4,
            *(self._leaves_at_once,) * 2,
            *(self._leaves_midway,) * 3,
            self._malformed,
            self._wrong_field,
            self._reads_late,
        ]
        for _ in range(n):
            kind = chance.choice(kinds)
            try:
                outcome = kind(chance)
            except Exception as error:
                outcome = "fault"
                with self._lock:
                    self.faults.append(f"{kind.__name__}: {error!r}")
            with self._lock:
                self.seen[outcome] += 1

    def _ask(self, data: dict[str, Any]) -> tuple[http.client.HTTPConnection, Any]:
        connection = http.client.HTTPConnection(*self._address, timeout=120)
        connection.request("POST", CHAT, json.dumps(data))
        return connection, connection.getresponse()

    def _whole(self, chance: random.Random) -> str:
        text = chance.choice(TEXTS)
        connection, response = self._ask(body(text))
        try:
            answer = json.loads(response.read())
            if response.status == 429:
                assert int(response.headers["Retry-After"]) > 0
                return "full"
            assert response.status == 200, answer
            assert answer["choices"][0]["message"]["content"] == self._expected[text]
            return "whole"
        finally:
            connection.close()

    def _streamed(self, chance: random.Random) -> str:
        text = chance.choice(TEXTS)
        connection, response = self._ask(body(text, stream=True))
        try:
            return self._check_stream(text, response.status, response.read())
        finally:
            connection.close()

    def _check_stream(self, text: str, status: int, data: bytes) -> str:
        if status == 429:
            return "full"
        assert status == 200
        assert data.endswith(b"data: [DONE]\n\n"), data[-200:]
        lines = [line[6:] for line in data.split(b"\n") if line.startswith(b"data: {")]
        deltas = [json.loads(line)["choices"][0]["delta"] for line in lines]
        assert "".join(delta.get("content", "") for delta in deltas) == self._expected[text]
        return "streamed"

    def _leaves_at_once(self, chance: random.Random) -> str:
        data = json.dumps(body(chance.choice(TEXTS), max_tokens=200)).encode()
        with socket.create_connection(self._address, timeout=60) as connection:
            sent = raw_request(CHAT, data)
            connection.sendall(sent[: chance.choice([len(sent), len(sent), 30, len(sent) - 5])])
        return "left"

    def _leaves_midway(self, chance: random.Random) -> str:
        data = body(chance.choice(TEXTS), max_tokens=200, stream=True, n=chance.choice([1, 2]))
        connection, response = self._ask(data)
        for _ in range(chance.randrange(4)):
            response.readline()
        connection.close()
        response.close()
        return "left midway"

    def _malformed(self, chance: random.Random) -> str:
        data = bytearray(json.dumps(body("hello")).encode())
        for _ in range(chance.randrange(1, 6)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        connection = http.client.HTTPConnection(*self._address, timeout=120)
        try:
            connection.request("POST", chance.choice([CHAT, TEXT, "/api/chat"]), bytes(data))
            response = connection.getresponse()
            response.read()
            assert response.status in (200, 400, 429), response.status
            return "malformed"
        finally:
            connection.close()

    def _wrong_field(self, chance: random.Random) -> str:
        wrong = chance.choice([{"temperature": -1}, {"n": 99}, {"messages": []}, {"stop": [3]}])
        connection, response = self._ask({**body("hello"), **wrong})
        try:
            answer = json.loads(response.read())
            assert response.status == 400
            assert answer["error"]["param"] == next(iter(wrong))
            return "refused"
        finally:
            connection.close()

    def _reads_late(self, chance: random.Random) -> str:
        """Reads its stream only after other requests have been answered."""
        text = chance.choice(TEXTS)
        connection, response = self._ask(body(text, stream=True))
        try:
            for _ in range(3):
                self._whole(chance)
            return self._check_stream(text, response.status, response.read())
        finally:
            connection.close()


def metrics(address: tuple[str, int]) -> dict[str, float]:
    connection = http.client.HTTPConnection(*address, timeout=60)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    pairs = [line.rsplit(" ", 1) for line in text.splitlines() if line[:1] != "#"]
    return {name: float(value) for name, value in pairs}


def wait_until_idle(address: tuple[str, int]) -> None:
    for _ in range(10_000):
        now = metrics(address)
        if not now["airllm_requests_running"] and not now["airllm_requests_waiting"]:
            return
    raise AssertionError(f"requests remain: {now}")


def resident_bytes() -> int:
    gc.collect()
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmRSS:")[1].split()[0])


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_clients_of_all_kinds_get_their_own_answers_and_leave_nothing_behind(
    tmp_path: Path,
) -> None:
    require_cpp()
    path = write_tiny_model(tmp_path, sizes=Sizes(context=300)).path
    expected = {}
    with LayerWiseInferenceEngine(path) as engine:
        for text in TEXTS:
            engine.reset()
            answer = engine.generate(messages(text), temperature=0, max_new_tokens=N_TOKENS)
            expected[text] = answer.text
    # Fewer places than clients, so that the queue is full now and then, whatever the timing.
    scheduling = {"lanes": 4, "queue_length": 4, "piece_tokens": 32, "cache_bytes": 8 << 20}
    with RunningServer(path, scheduling=scheduling) as server:
        clients = Clients(server.address, expected)
        clients.run(N_REQUESTS // 3, seed=1)
        wait_until_idle(server.address)
        n_descriptors, n_bytes = descriptors(), resident_bytes()
        clients.run(2 * N_REQUESTS // 3, seed=2)
        wait_until_idle(server.address)
        assert not clients.faults
        for kind in ("whole", "streamed", "full", "left", "left midway", "malformed", "refused"):
            assert clients.seen[kind] > 0, clients.seen
        assert descriptors() <= n_descriptors + 4
        assert resident_bytes() <= n_bytes + (24 << 20)
        assert Clients(server.address, expected)._whole(random.Random(0)) == "whole"
