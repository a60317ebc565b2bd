"""Streams answers from a server of OpenAI's protocol, many at once, and notes when text came."""

import http.client
import json
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

SECONDS = 600.0  # the longest that anything may take


@dataclass
class Answer:
    """text: of the whole answer. times: of each piece of text, by perf_counter. begun: when the
    request was sent. usage: what the server counted."""

    begun: float
    text: str = ""
    times: list[float] = field(default_factory=list)
    usage: Mapping[str, Any] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return self.times[-1] - self.begun

    @property
    def to_first(self) -> float:
        """Seconds to the first text."""
        return self.times[0] - self.begun

    @property
    def gaps(self) -> list[float]:
        """Seconds between pieces of text."""
        return [b - a for a, b in zip(self.times, self.times[1:], strict=False)]

    @property
    def tokens(self) -> int:
        return int(self.usage["completion_tokens"])

    @property
    def reused(self) -> int:
        """Tokens of the prompt that were not evaluated again."""
        details = self.usage.get("prompt_tokens_details") or {}
        return int(details.get("cached_tokens") or 0)


@dataclass(frozen=True)
class Server:
    port: int

    def complete(self, prompt: str, tokens: int, began: threading.Event | None = None) -> Answer:
        """Greedy text after a prompt. began: set at the first text."""
        return self._stream("/v1/completions", {"prompt": prompt}, tokens, began)

    def chat(self, messages: Sequence[Mapping[str, str]], tokens: int) -> Answer:
        return self._stream("/v1/chat/completions", {"messages": messages}, tokens, None)

    def complete_all(self, prompts: Sequence[str], tokens: int) -> list[Answer]:
        """All at once, each from a thread of its own."""
        answers: list[Answer | None] = [None] * len(prompts)

        def ask(at: int) -> None:
            answers[at] = self.complete(prompts[at], tokens)

        threads = [threading.Thread(target=ask, args=(at,)) for at in range(len(prompts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SECONDS)
        if None in answers:
            raise RuntimeError("an answer did not come")
        return [answer for answer in answers if answer is not None]

    def is_ready(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def _stream(
        self, path: str, body: Mapping[str, Any], tokens: int, began: threading.Event | None
    ) -> Answer:
        whole = {
            **body,
            **{"max_tokens": tokens, "temperature": 0, "stream": True, "ignore_eos": True},
            **{"stream_options": {"include_usage": True}, "cache_prompt": True},
        }
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        answer = Answer(time.perf_counter())
        try:
            headers = {"Content-Type": "application/json"}
            connection.request("POST", path, json.dumps(whole), headers)
            response = connection.getresponse()
            if response.status != 200:
                raise RuntimeError(f"status {response.status}: {response.read()[:500]!r}")
            for line in response:
                if line.startswith(b"data: {"):
                    self._take(answer, json.loads(line[6:]))
                    if began is not None and answer.times:
                        began.set()
        finally:
            connection.close()
        return answer

    def _take(self, answer: Answer, chunk: Mapping[str, Any]) -> None:
        if "error" in chunk:
            raise RuntimeError(str(chunk["error"]))
        answer.usage = chunk.get("usage") or answer.usage
        for choice in chunk.get("choices", ()):
            delta = choice.get("delta") or {}
            text = choice.get("text") or delta.get("content") or delta.get("reasoning_content")
            if text:
                answer.text += text
                answer.times.append(time.perf_counter())
