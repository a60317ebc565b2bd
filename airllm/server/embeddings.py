"""Embeddings, for OpenAI's and for Ollama's clients."""

import asyncio
import base64
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from airllm.engine.requests import Embedded, Failed, Finished, Request
from airllm.engine.settings import Limits
from airllm.server.body_fields import BodyFields
from airllm.server.chat import ChatRequest
from airllm.server.errors import ApiError, as_api_error, bad
from airllm.server.http_exchange import HttpExchange
from airllm.server.openai_completions import read_prompts_field

__all__ = ["ollama_embed", "ollama_embeddings", "openai_embeddings"]

MOST_INPUTS = 2048  # as OpenAI's
AT_ONCE = 4  # of a request, so that it does not fill the queue

Prompts = Sequence[str | Sequence[int]]


@dataclass(frozen=True)
class _Embeddings:
    vectors: list[NDArray[np.float32]]  # each [hidden_size], of length 1
    n_tokens: int


async def openai_embeddings(exchange: HttpExchange) -> None:
    given = BodyFields(await exchange.json())
    prompts = read_prompts_field(given, "input", MOST_INPUTS)
    form = given.choice("encoding_format", ("float", "base64"), "float")
    size = given.count("dimensions", 1)
    given.without_effect("model", "user")
    given.log_unknown("embeddings")
    found = await _embed(exchange, prompts, size)
    data = [
        {"object": "embedding", "index": at, "embedding": _encoded(vector, form)}
        for at, vector in enumerate(found.vectors)
    ]
    usage = {"prompt_tokens": found.n_tokens, "total_tokens": found.n_tokens}
    model = exchange.service.model.name
    await exchange.send_json({"object": "list", "data": data, "model": model, "usage": usage})


async def ollama_embed(exchange: HttpExchange) -> None:
    start = time.perf_counter()
    given = BodyFields(await exchange.json())
    prompts = read_prompts_field(given, "input", MOST_INPUTS)
    size = given.count("dimensions", 1)
    given.without_effect("model", "truncate", "options", "keep_alive")
    given.log_unknown("/api/embed")
    found = await _embed(exchange, prompts, size)
    await exchange.send_json(
        {
            "model": exchange.service.model.name,
            "embeddings": [vector.tolist() for vector in found.vectors],
            "total_duration": int(1e9 * (time.perf_counter() - start)),
            "load_duration": 0,
            "prompt_eval_count": found.n_tokens,
        }
    )


async def ollama_embeddings(exchange: HttpExchange) -> None:
    """The older form, for a single text."""
    given = BodyFields(await exchange.json())
    prompt = given.text("prompt")
    given.without_effect("model", "options", "keep_alive")
    found = await _embed(exchange, [prompt], None)
    await exchange.send_json({"embedding": found.vectors[0].tolist()})


async def _embed(exchange: HttpExchange, prompts: Prompts, size: int | None) -> _Embeddings:
    """The embeddings of all prompts. size: only the first so many numbers, as models allow that
    were trained for it."""
    service = exchange.service
    asked = ChatRequest(prompts=prompts)
    read = await service.read(asked)
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(tokens: Sequence[int]) -> NDArray[np.float32]:
        async with slots:
            return _unit(await _embedding(exchange, tokens), size)

    async def all_of_them() -> list[NDArray[np.float32]]:
        tasks = [asyncio.create_task(one(prompt.tokens)) for prompt in read]
        try:
            return [await task for task in tasks]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    vectors = await exchange.unless_gone(all_of_them())
    return _Embeddings(vectors, sum(len(prompt.tokens) for prompt in read))


async def _embedding(exchange: HttpExchange, tokens: Sequence[int]) -> NDArray[np.float32]:
    service = exchange.service
    scheduler, settings = service.model.scheduler, service.settings
    mailbox = service.new_mailbox()
    request = Request(
        tokens,
        limits=Limits(0),
        embedding="model",
        reuse="exact",  # the same text has the same embedding
        queue_seconds=settings.queue_seconds,
        deadline_seconds=settings.queue_seconds + settings.prompt_seconds,
    )
    handle = scheduler.submit(request, mailbox.put)
    try:
        while True:
            for _, event in await mailbox.take(60.0):
                if isinstance(event, Failed):
                    raise as_api_error(event.error)
                if isinstance(event, Embedded):
                    return event.embedding
                if isinstance(event, Finished):
                    raise ApiError(501, "this model gives no embeddings", code="no_embeddings")
    finally:
        scheduler.cancel(handle)


def _unit(vector: NDArray[np.float32], size: int | None) -> NDArray[np.float32]:
    if size is not None and size > len(vector):
        text = f"dimensions is {size}; this model's embeddings have {len(vector)}"
        raise bad("dimensions", text)
    vector = vector[:size]
    return vector / max(float(np.linalg.norm(vector)), 1e-12)


def _encoded(vector: NDArray[np.float32], form: str) -> Any:
    if form == "float":
        return vector.tolist()
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()
