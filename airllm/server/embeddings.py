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
from airllm.server.ollama import read_keep_alive
from airllm.server.openai_completions import read_prompts_field
from airllm.server.served_model import ServedModel
from airllm.server.service import Service

__all__ = ["ollama_embed", "ollama_embeddings", "openai_embeddings"]

MOST_INPUTS = 2048  # as OpenAI's
AT_ONCE = 4  # of a request, so that it does not fill the queue

Prompts = Sequence[str | Sequence[int]]


@dataclass(frozen=True)
class _Asked:
    """size: only the first so many numbers, as models allow that were trained for it."""

    model: str
    prompts: Prompts
    size: int | None
    keep_alive: float | None = None


@dataclass(frozen=True)
class _Embeddings:
    vectors: list[NDArray[np.float32]]  # each [hidden_size], of length 1
    n_tokens: int
    model: str


async def openai_embeddings(exchange: HttpExchange) -> None:
    given = BodyFields(await exchange.json())
    prompts = read_prompts_field(given, "input", MOST_INPUTS)
    form = given.choice("encoding_format", ("float", "base64"), "float")
    size = given.count("dimensions", 1)
    given.without_effect("user")
    asked = _Asked(given.text("model", ""), prompts, size)
    given.log_unknown("embeddings")
    found = await _embed(exchange, asked)
    data = [
        {"object": "embedding", "index": at, "embedding": _encoded(vector, form)}
        for at, vector in enumerate(found.vectors)
    ]
    usage = {"prompt_tokens": found.n_tokens, "total_tokens": found.n_tokens}
    head = {"object": "list", "data": data, "model": found.model}
    await exchange.send_json({**head, "usage": usage})


async def ollama_embed(exchange: HttpExchange) -> None:
    start = time.perf_counter()
    given = BodyFields(await exchange.json())
    prompts = read_prompts_field(given, "input", MOST_INPUTS)
    size = given.count("dimensions", 1)
    given.without_effect("truncate", "options")
    asked = _Asked(given.text("model", ""), prompts, size, read_keep_alive(given))
    given.log_unknown("/api/embed")
    found = await _embed(exchange, asked)
    await exchange.send_json(
        {
            "model": found.model,
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
    given.without_effect("options")
    asked = _Asked(given.text("model", ""), [prompt], None, read_keep_alive(given))
    found = await _embed(exchange, asked)
    await exchange.send_json({"embedding": found.vectors[0].tolist()})


async def _embed(exchange: HttpExchange, asked: _Asked) -> _Embeddings:
    service = exchange.service

    async def embedded(model: ServedModel) -> _Embeddings:
        read = await service.read(ChatRequest(prompts=asked.prompts), model)
        vectors = await _vectors([prompt.tokens for prompt in read], asked.size, model, service)
        return _Embeddings(vectors, sum(len(prompt.tokens) for prompt in read), model.name)

    return await exchange.with_model(asked.model, embedded, asked.keep_alive)


async def _vectors(
    prompts: Sequence[Sequence[int]], size: int | None, model: ServedModel, service: Service
) -> list[NDArray[np.float32]]:
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(tokens: Sequence[int]) -> NDArray[np.float32]:
        async with slots:
            return _unit(await _embedding(tokens, model, service), size)

    tasks = [asyncio.create_task(one(tokens)) for tokens in prompts]
    try:
        return [await task for task in tasks]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _embedding(
    tokens: Sequence[int], model: ServedModel, service: Service
) -> NDArray[np.float32]:
    scheduler, settings = model.scheduler, service.settings
    mailbox = service.new_mailbox()
    request = Request(
        tokens,
        limits=Limits(0),
        embedding="model",
        reuse="exact",  # the same text has the same embedding
        queue_seconds=settings.queue_seconds,
        deadline_seconds=settings.queue_seconds + settings.prompt_seconds,
    )
    handle = scheduler.submit(request, mailbox.put, mailbox.doorbell.ring)
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
