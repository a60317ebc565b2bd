"""Perplexity against sums written out here in float64, on a model whose logits are known."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from airllm.tools.perplexity import Perplexity, negative_log_likelihood, perplexity
from airllm.util.progress import OnProgress

VOCAB = 11


class KnownModel:
    """Logits of a token depend on it, on its position and on the token before it, nothing else."""

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale
        self.seen: list[int] = []
        self.chunks: list[list[int]] = []
        self.calls: list[int] = []

    def reset(self) -> None:
        self.seen = []
        self.chunks.append(self.seen)

    def forward(
        self,
        tokens: Sequence[int],
        *,
        last_only: bool = True,
        on_progress: OnProgress | None = None,
    ) -> NDArray[np.float32]:
        self.calls.append(len(tokens))
        if on_progress is not None:
            on_progress(1, 2)
            on_progress(2, 2)
        rows = []
        for token in tokens:
            self.seen.append(token)
            rows.append(self.logits(len(self.seen) - 1))
        return np.array(rows[-1] if last_only else rows, np.float32)

    def logits(self, position: int) -> list[float]:
        token = self.seen[position]
        before = self.seen[position - 1] if position else -1
        return [
            self.scale * math.sin(1 + v * token + 0.3 * position + 0.7 * before)
            for v in range(VOCAB)
        ]


def expected_losses(chunks: list[list[int]], scale: float = 1.0) -> list[float]:
    """-log p of every counted token, one at a time, straight from the definition."""
    losses = []
    for chunk in chunks:
        model = KnownModel(scale)
        model.reset()
        model.forward(chunk)
        for position in range(len(chunk) // 2, len(chunk) - 1):
            logits = model.logits(position)
            total = math.fsum(math.exp(logit) for logit in logits)
            losses.append(math.log(total) - logits[chunk[position + 1]])
    return losses


def random_tokens(n: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(5).integers(VOCAB, size=n)]


@pytest.mark.parametrize("context", [3, 4, 7, 16, 300])
def test_perplexity_is_exp_of_the_mean_loss_of_each_chunks_second_half(context: int) -> None:
    tokens = random_tokens(2 * context + 1)
    losses = expected_losses([tokens[:context], tokens[context : 2 * context]])
    result = perplexity(KnownModel(), tokens, context)
    assert result.chunks == 2
    assert result.tokens == len(losses) == 2 * (context - 1 - context // 2)
    assert result.perplexity == pytest.approx(math.exp(math.fsum(losses) / len(losses)), rel=1e-6)


def test_logits_come_in_slices_that_keep_them_small(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = random_tokens(40)
    whole = perplexity(KnownModel(), tokens, 40)
    monkeypatch.setattr("airllm.tools.perplexity._LOGITS_BYTES", 4 * VOCAB * 3)
    model = KnownModel()
    assert perplexity(model, tokens, 40) == whole
    assert model.calls == [20, 3, 3, 3, 3, 3, 3, 1]  # tokens of each forward call


def test_the_standard_error_follows_from_the_spread_of_the_losses() -> None:
    tokens = random_tokens(32)
    losses = expected_losses([tokens[:16], tokens[16:]])
    mean = math.fsum(losses) / len(losses)
    variance = math.fsum((loss - mean) ** 2 for loss in losses) / (len(losses) - 1)
    expected = math.exp(mean) * math.sqrt(variance / len(losses))
    assert perplexity(KnownModel(), tokens, 16).stderr == pytest.approx(expected, rel=1e-5)


def test_a_model_that_knows_nothing_has_the_vocabulary_as_its_perplexity() -> None:
    result = perplexity(KnownModel(scale=0.0), random_tokens(20), 10)
    assert result.perplexity == pytest.approx(VOCAB, rel=1e-12)


def test_the_remainder_after_the_last_whole_chunk_is_dropped() -> None:
    tokens = random_tokens(25)
    model = KnownModel()
    assert perplexity(model, tokens, 10) == perplexity(KnownModel(), tokens[:20], 10)
    assert len(model.chunks) == 2


def test_bos_replaces_the_first_token_of_every_chunk() -> None:
    tokens = random_tokens(20)
    model = KnownModel()
    perplexity(model, tokens, 10, bos_id=3)
    assert model.chunks == [[3, *tokens[1:9]], [3, *tokens[11:19]]]


def test_without_bos_the_text_is_left_as_it_is() -> None:
    tokens = random_tokens(10)
    model = KnownModel()
    perplexity(model, tokens, 10)
    assert model.chunks == [tokens[:9]]  # the last token is predicted, never fed


def test_progress_counts_tokens_and_knows_the_perplexity_of_the_chunks_so_far() -> None:
    seen: list[tuple[int, int, float | None]] = []
    tokens = random_tokens(20)
    both = perplexity(KnownModel(), tokens, 10, on_progress=lambda *now: seen.append(now))
    first = perplexity(KnownModel(), tokens[:10], 10).perplexity
    assert seen == [  # nine tokens of a chunk are fed: five, then four whose logits count
        (2, 18, None), (5, 18, None), (7, 18, None), (9, 18, None), (9, 18, first),
        (11, 18, first), (14, 18, first), (16, 18, first), (18, 18, first),
        (18, 18, both.perplexity),
    ]  # fmt: skip


def test_a_text_shorter_than_one_chunk_is_refused_with_both_lengths() -> None:
    with pytest.raises(ValueError, match=r"9 tokens, less than one chunk of 10"):
        perplexity(KnownModel(), random_tokens(9), 10)


@pytest.mark.parametrize("context", [2, 0, -4])
def test_a_context_without_a_counted_position_is_refused(context: int) -> None:
    with pytest.raises(ValueError, match=f"context is {context}"):
        perplexity(KnownModel(), random_tokens(9), context)


def test_huge_logits_do_not_overflow() -> None:
    logits = np.array([[1e30, 0.0, -1e30]], np.float32)
    assert negative_log_likelihood(logits, [0])[0] == 0.0
    assert negative_log_likelihood(logits, [1])[0] == np.float32(1e30)


def test_a_hopeless_model_has_infinite_perplexity() -> None:
    result = perplexity(KnownModel(scale=1e6), [1, 0] * 5, 10)
    assert result == Perplexity(math.inf, math.inf, 1, 4)
