"""/tokenize and /detokenize, as llama.cpp has them."""

import asyncio
from functools import partial
from typing import Any

from airllm.server.body_fields import BodyFields
from airllm.server.chat import ChatRequest
from airllm.server.errors import bad
from airllm.server.http_exchange import HttpExchange
from airllm.server.openai_messages import read_messages
from airllm.server.served_model import ServedModel

__all__ = ["detokenize", "tokenize"]


async def tokenize(exchange: HttpExchange) -> None:
    """Tokens of a text (`content`), or of a chat (`messages`) as its template writes it."""
    given = BodyFields(await exchange.json())
    tokens = partial(_tokens, exchange, given)
    await exchange.send_json(await exchange.with_model(given.text("model", ""), tokens))


async def _tokens(exchange: HttpExchange, given: BodyFields, model: ServedModel) -> dict[str, Any]:
    tokenizer = model.prompts.tokenizer
    if given.has("messages"):
        request = ChatRequest(
            messages=read_messages(given), variables=exchange.service.settings.variables
        )
        tokens = (await exchange.service.read(request, model))[0].tokens
    else:
        text = given.text("content")
        # A megabyte of text takes 270 MB to encode.
        if tokenizer.least_tokens(text) > 4 * model.context:
            raise bad("content", f"content is longer than 4 contexts of {model.context} tokens")
        special = given.flag("add_special")
        tokens = await asyncio.to_thread(
            tokenizer.encode, text, add_special=special, parse_special=given.flag("parse_special")
        )
    if not given.flag("with_pieces"):
        return {"tokens": tokens}
    pieces = [tokenizer.token_bytes(token).decode(errors="replace") for token in tokens]
    pairs = [{"id": token, "piece": piece} for token, piece in zip(tokens, pieces, strict=True)]
    return {"tokens": pairs}


async def detokenize(exchange: HttpExchange) -> None:
    given = BodyFields(await exchange.json())
    text = await exchange.with_model(given.text("model", ""), partial(_text, given))
    await exchange.send_json({"content": text})


async def _text(given: BodyFields, model: ServedModel) -> str:
    tokenizer = model.prompts.tokenizer
    tokens = [item for _, item in given.items("tokens", required=True)]
    for token in tokens:
        if isinstance(token, bool) or not isinstance(token, int):
            raise given.wrong("tokens", "a list of token ids")
        if not 0 <= token < tokenizer.vocab_size:
            raise bad("tokens", f"tokens has {token}; expected 0 to {tokenizer.vocab_size - 1}")
    return tokenizer.decode(tokens)
