"""Tiny models whose next-token heads are right by construction, and answers of them.

No layer adds anything to the residual, so that the hidden state of a token is its embedding, which
has a single 1 at the token's place. The model says that token t + STEP follows token t, modulo
N_TOKENS. The head says the same of the last token's embedding, or of the hidden state before it,
which it then has to move by one step itself.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, cast

import numpy as np
from family_models import ARCHITECTURES, write_family_model
from variants import variant

from airllm.engine.continuation import Generation
from airllm.engine.generation import continue_prompt
from airllm.engine.settings import settings_of
from airllm.layer_engine import LayerWiseInferenceEngine
from airllm.models import FAMILIES

# The architectures whose heads are used. mistral4 is of deepseek2's family; no model of it has one.
# The layer of the heads of some is made of parts that others have, too: what heads guess is tested
# of EVERY_HEAD, and what is done with guesses of the others.
_OF_KNOWN_PARTS = {"bailingmoe3", "hy_v3", "mimo2", "step35"}
WITH_HEADS = [
    name
    for name in ARCHITECTURES
    if FAMILIES[name].next_layer is not None and name not in _OF_KNOWN_PARTS | {"mistral4"}
]
EVERY_HEAD = [*WITH_HEADS, *map(variant, sorted(_OF_KNOWN_PARTS))]
RECURRENT = {"bailingmoe3", "qwen35", "qwen35moe", "qwen3next"}
N_TOKENS, STEP = 64, 7  # as many tokens as the models' hidden states have values

Half = Literal["embedding", "hidden"]

_ADDS = ("attn_output", "ffn_down", "ffn_down_exps", "ffn_down_shexp", "ssm_out")


def write_predictable_model(
    folder: Path, architecture: str, half: Half = "hidden", wrong: Sequence[int] = ()
) -> Path:
    """half: of eh_proj's input, the one that the head reads. wrong: tokens after which its guess is
    wrong."""
    one, step = np.eye(N_TOKENS), np.roll(np.eye(N_TOKENS), STEP, axis=0)  # step @ one[t]: t + STEP
    known = [(token - STEP) % N_TOKENS for token in wrong] if half == "hidden" else list(wrong)
    wrongly = step if half == "hidden" else one  # what eh_proj makes of the half
    wrongly = wrongly.copy()
    wrongly[:, known] = np.roll(wrongly[:, known], 1, axis=0)

    def changed(name: str, values: np.ndarray) -> np.ndarray:
        slot = name.removesuffix(".weight").rpartition(".")[2]
        if slot in _ADDS:
            return np.zeros_like(values)
        if slot in ("token_embd", "embed_tokens"):
            return np.concatenate([one, np.zeros((len(values) - N_TOKENS, N_TOKENS))])
        if slot in ("output", "shared_head_head"):  # row t is the embedding of the token before t
            return np.concatenate([step, np.zeros((len(values) - N_TOKENS, N_TOKENS))])
        if slot == "eh_proj":
            zero = np.zeros_like(one)
            return np.hstack([zero, wrongly] if half == "hidden" else [wrongly, zero])
        return np.ones_like(values) if slot.endswith("norm") else values

    return write_family_model(folder, architecture, changed)


@contextmanager
def opened(path: Path, **settings: Any) -> Iterator[LayerWiseInferenceEngine]:
    """An engine whose model has no text: prompts are lists of tokens, and no token ends an
    answer."""
    tokenizer = SimpleNamespace(
        eos_ids=frozenset(),
        add_bos=False,
        bos_id=None,
        is_control=lambda token: False,
        token_bytes=lambda token: b"%d " % token,
    )
    with LayerWiseInferenceEngine(path, **settings) as engine:
        prompts = SimpleNamespace(tokenizer=tokenizer, some_tokens=list)
        engine._model.prompts = cast(Any, prompts)
        yield engine


def answer(
    engine: LayerWiseInferenceEngine,
    prompt: Sequence[int],
    n: int,
    lookahead: int | None = None,
    **options: Any,
) -> Generation:
    """n: the most tokens. Greedy, unless the options say otherwise."""
    options = {"temperature": 0, "max_new_tokens": n, **options}
    pieces = continue_prompt(
        engine._model, cast(Any, prompt), *settings_of(**options), lookahead=lookahead
    )
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            return cast(Generation, end.value)
