"""OpenAI's text completions: texts or tokens to continue, or a gap before a suffix to fill, without
a chat template."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from airllm.engine.requests import TokenLogprob
from airllm.server.answer import AnswerEvent, ChoiceEnded, Collected, Evaluated, Told
from airllm.server.body_fields import BodyFields
from airllm.server.chat import MOST_CHOICES, MOST_STOPS, ChatRequest, read_sampling
from airllm.server.errors import bad
from airllm.server.openai_chat import ChunkWriter, read_form, timings_body, usage_body
from airllm.server.writer import Reply, TokenTexts
from airllm.text.answer import AnswerText

__all__ = ["CompletionWriter", "read_completion", "read_prompts_field"]

MOST_PROMPTS = 256
DEFAULT_TOKENS = 16  # of an answer, as OpenAI's


def read_completion(body: object, defaults: Mapping[str, object]) -> ChatRequest:
    given = BodyFields(body)
    prompts = read_prompts_field(given, "prompt", MOST_PROMPTS)
    suffix = given.text("suffix", "")
    if suffix and not (len(prompts) == 1 and isinstance(prompts[0], str)):
        raise bad("suffix", "a suffix is for one prompt, which is a text")
    stream = given.flag("stream")
    options = given.fields("stream_options")
    logprobs = given.count("logprobs", 0, 20)
    most = given.count("max_tokens", -1)
    echo = given.flag("echo")
    n = given.count("n", 1, MOST_CHOICES) or 1
    best_of = given.count("best_of", 1, MOST_CHOICES)
    if best_of is not None and best_of < n:
        raise bad("best_of", f"best_of is {best_of}; expected at least n, which is {n}")
    if best_of is not None and best_of > n and stream:
        raise bad("best_of", "best_of cannot be streamed: which answer is best shows at the end")
    given.without_effect("user", "service_tier", "metadata", "cache_prompt")
    request = ChatRequest(
        prompts=prompts,
        suffix=suffix,
        form=read_form(given),
        sampling=read_sampling(given),
        max_tokens=DEFAULT_TOKENS if most is None else None if most == -1 else most,
        stop=given.texts("stop", MOST_STOPS),
        n=n,
        best_of=best_of if best_of != n else None,
        logprobs=logprobs is not None,
        top_logprobs=logprobs or 0,
        prompt_logprobs=echo and logprobs is not None,
        echo=echo,
        stream=stream,
        stream_usage=options.flag("include_usage"),
        model=given.text("model", ""),
    )
    given.log_unknown("completions")
    return request


def read_prompts_field(given: BodyFields, field: str, most: int) -> list[str | list[int]]:
    """A text, several, tokens, or several lists of tokens."""
    value = given.raw(field)
    found = value if isinstance(value, list) and value and not _is_tokens(value) else [value]
    if len(found) > most:
        raise bad(given.name(field), f"{given.name(field)} has {len(found)}; at most {most}")
    for item in found:
        if not isinstance(item, str) and not (isinstance(item, list) and _is_tokens(item) and item):
            raise given.wrong(field, "a text, a list of texts, or lists of tokens")
    return found


def _is_tokens(value: list[Any]) -> bool:
    return all(isinstance(item, int) and not isinstance(item, bool) for item in value)


class CompletionWriter(ChunkWriter):
    """Writes completions, whole and as chunks."""

    def __init__(self, request: ChatRequest, reply: Reply, texts: TokenTexts) -> None:
        super().__init__(request, reply, texts)
        self._offsets = [0] * request.n_choices  # in the text, of the next token
        # Logprobs of a prompt stand before those of the first piece of each of its choices.
        self._prompt_logprobs: dict[int, list[TokenLogprob]] = {}

    def begin(self) -> bytes:
        if not self._request.echo or self._request.logprobs:
            return b""
        return b"".join(self._chunk(at, self._echo(at)) for at in range(self._request.n_choices))

    def write(self, event: AnswerEvent) -> bytes:
        match event:
            case Evaluated() if self._request.prompt_logprobs:
                self._prompt_logprobs.setdefault(event.choice, []).extend(event.logprobs)
                if event.done < event.total:
                    return b""
                first, logprobs = event.choice, self._prompt_logprobs[event.choice]
                return b"".join(
                    self._chunk(at, self._echo(at), self._echoed(at, logprobs))
                    for at in range(first, first + self._request.n)
                )
            case Told():
                text = "".join(part.text for part in event.parts if isinstance(part, AnswerText))
                return self._chunk(event.choice, text, self._logprobs(event.choice, event.logprobs))
            case ChoiceEnded():
                self._ends.append(event)
                return self._chunk(event.choice, "", finish=event.finish)
        return b""

    def whole(self, answer: Collected) -> dict[str, Any]:
        choices = []
        for at, choice in enumerate(answer.choices):
            text, logprobs = choice.text, None
            if self._request.logprobs:
                first = answer.choices[at - at % self._request.n]
                logprobs = self._joined(
                    self._echoed(at, first.prompt_logprobs) if self._request.echo else None,
                    self._logprobs(at, choice.logprobs),
                )
            if self._request.echo:
                text = self._echo(at) + text
            one = {"index": at, "text": text, "logprobs": logprobs}
            choices.append({**one, "finish_reason": choice.finish})
        usage = answer.usage
        body = {**self.chunk_head, "choices": choices, "usage": usage_body(usage)}
        return {**body, "timings": timings_body(usage)}

    def _echo(self, choice: int) -> str:
        given = self._request.prompts[choice // self._request.n]
        return given if isinstance(given, str) else self._texts.decoded(given)

    def _echoed(self, choice: int, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
        """Logprobs of the prompt; its first token has none."""
        prompt = self._reply.prompts[choice // self._request.n]
        rest = self._logprobs(choice, logprobs, self._texts.text(prompt[0])) or {}
        first = self._texts.text(prompt[0])
        return {
            "tokens": [first, *rest["tokens"]],
            "token_logprobs": [None, *rest["token_logprobs"]],
            "top_logprobs": [None, *rest["top_logprobs"]],
            "text_offset": [0, *rest["text_offset"]],
        }

    def _logprobs(
        self, choice: int, logprobs: Iterable[TokenLogprob], after: str = ""
    ) -> dict[str, Any] | None:
        """after: text before the tokens that has not been counted yet."""
        if not self._request.logprobs:
            return None
        self._offsets[choice] += len(after)
        tokens, offsets, values, tops = [], [], [], []
        for one in logprobs:
            text = self._texts.text(one.token)
            tokens.append(text)
            offsets.append(self._offsets[choice])
            self._offsets[choice] += len(text)
            values.append(max(one.logprob, -9999.0))
            tops.append({self._texts.text(id): max(value, -9999.0) for id, value in one.top})
        return {
            "tokens": tokens,
            "token_logprobs": values,
            "top_logprobs": tops,
            "text_offset": offsets,
        }

    def _joined(
        self, first: dict[str, Any] | None, second: dict[str, Any] | None
    ) -> dict[str, Any] | None:
        if first is None or second is None:
            return second if first is None else first
        return {name: [*first[name], *second[name]] for name in first}

    def _chunk(
        self,
        choice: int,
        text: str,
        logprobs: dict[str, Any] | None = None,
        finish: str | None = None,
    ) -> bytes:
        return self._sse(
            {"index": choice, "text": text, "logprobs": logprobs, "finish_reason": finish}
        )

    @property
    def chunk_head(self) -> dict[str, Any]:
        return {
            "id": f"cmpl-{self._reply.id}",
            "object": "text_completion",
            "created": self._reply.created,
            "model": self._reply.model,
        }
