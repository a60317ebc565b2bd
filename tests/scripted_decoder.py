"""A decoder that says what it is told, in the place of a tiny model's."""

from types import SimpleNamespace

import numpy as np
from tiny_model import byte_token

from airllm.state.kv_cache import KVCache


def tokens_of(text: str) -> list[int]:
    return [byte_token(byte) for byte in text.encode()]


class ScriptedDecoder:
    """In a Decoder's place: whatever it reads, its likeliest next token is the script's."""

    streams = False
    plan = SimpleNamespace(guesses_pay=False)

    def __init__(self, script: list[int], context: int) -> None:
        self.script = script
        self.cache = KVCache(n_layers=1, n_kv_heads=1, head_dim=1, capacity=context)
        self.evaluated: list[list[int]] = []
        self._step = 0

    def close(self) -> None:
        pass

    def evaluate(self, tokens: np.ndarray, *_: object) -> np.ndarray:
        self.evaluated.append(tokens.tolist())
        self.cache.tokens.extend(tokens.tolist())
        assert self.cache.length <= self.cache.capacity
        logits = np.zeros(268, np.float32)
        logits[self.script[self._step]] = 100.0
        self._step += 1
        return logits
