"""A decoder that says what it is told, in the place of a tiny model's."""

from types import SimpleNamespace

import numpy as np
from sequence_states import heads_of, new_state
from tiny_model import byte_token

from airllm.backends.numpy_backend import NumpyBackend


def tokens_of(text: str) -> list[int]:
    return [byte_token(byte) for byte in text.encode()]


class ScriptedDecoder:
    """In a Decoder's place: whatever it reads, its likeliest next token is the script's."""

    streams, next_tokens = False, None
    plan = SimpleNamespace(guesses_pay=False)

    def __init__(self, script: list[int], context: int) -> None:
        self.script = script
        self.state = new_state(NumpyBackend(), [heads_of(1, 1)], context)
        self.evaluated: list[list[int]] = []
        self._step = 0

    def close(self) -> None:
        pass

    def evaluate(self, tokens: np.ndarray, *_: object) -> np.ndarray:
        self.evaluated.append(tokens.tolist())
        self.state.advance(tokens.tolist())
        assert self.state.length <= self.state.capacity
        logits = np.zeros(268, np.float32)
        logits[self.script[self._step]] = 100.0
        self._step += 1
        return logits
