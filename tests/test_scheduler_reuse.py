"""What the requests of a scheduler take from each other: whole shared beginnings, and no bit."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from extension import require_cpp
from family_models import VOCAB, write_family_model
from scheduling import NoText, alone, ask, run
from tiny_model import Sizes, write_tiny_model
from variants import variant

from airllm.engine import running
from airllm.engine.scheduler import Scheduler
from airllm.layer_engine import LayerWiseInferenceEngine as Engine

RANDOM = np.random.default_rng(8)
CONTEXT = 1500


def some(n: int) -> list[int]:
    return RANDOM.integers(3, VOCAB, n).tolist()


@dataclass
class Server:
    engine: Engine
    scheduler: Scheduler
    evaluated: list[int]  # tokens that prompts and answers took, of each step

    def answer(self, prompt: list[int], n: int = 12, **settings: object) -> list[int]:
        _, self.told = ask(self.scheduler, prompt, max_new_tokens=n, **settings)
        self.evaluated.clear()
        run(self.scheduler)
        return list(self.told.answer.tokens)

    @property
    def n_again(self) -> int:
        """Tokens of the last prompt that were evaluated."""
        return sum(self.evaluated) - len(self.told.answer.tokens) + 1


def serve(path, monkeypatch, **settings) -> Iterator[Server]:
    require_cpp()
    with Engine(path, backend="cpp", context=CONTEXT, **settings) as engine:
        engine._model.prompts.tokenizer = NoText()
        evaluated: list[int] = []
        evaluate = engine._model.decoder.evaluate_each

        def note(steps, *rest):
            evaluated.extend(len(step.tokens) for step in steps)
            return evaluate(steps, *rest)

        monkeypatch.setattr(engine._model.decoder, "evaluate_each", note)
        with engine.scheduler(lanes=4, piece_tokens=130) as scheduler:
            yield Server(engine, scheduler, evaluated)


@pytest.fixture
def server(tmp_path, monkeypatch):
    path = write_tiny_model(tmp_path, "q8_0", sizes=Sizes(context=CONTEXT)).path
    yield from serve(path, monkeypatch)


@pytest.fixture(params=["gemma3", "qwen35", variant("falcon-h1"), variant("llama4")])
def uncut(request, tmp_path, monkeypatch):
    """A model whose sequences cannot be cut at any length."""
    path = write_family_model(
        tmp_path, request.param, **{f"{request.param}.context_length": CONTEXT}
    )
    yield from serve(path, monkeypatch)


def test_of_a_conversation_only_what_is_new_is_evaluated(server):
    prompt = some(200)
    for turn in range(20):
        prompt += server.answer(prompt, reuse="any") + some(20)
        # The last token of an answer was chosen, and not evaluated.
        assert server.n_again == (200 if turn == 0 else 21)


def test_with_a_seed_the_last_answer_is_evaluated_again_and_no_bit_differs(server):
    prompt = some(200)
    for turn in range(5):
        answer = server.answer(prompt)
        assert tuple(answer) == alone(server.engine, prompt, max_new_tokens=12).tokens
        assert server.n_again == (200 if turn == 0 else 12 + 60)
        prompt += answer + some(60)


def test_a_conversation_that_is_edited_in_the_middle_is_evaluated_from_there(server):
    before, after = some(300), some(300)
    server.answer([*before, *some(1), *after])
    server.answer([*before, 1, *after])
    assert server.n_again == 301


def test_a_changed_line_in_front_is_evaluated_with_all_after_it(server):
    after = some(300)
    server.answer([3, *after])
    server.answer([4, *after])
    assert server.n_again == 301


def test_requests_at_the_same_time_share_what_they_begin_with(server):
    system = some(400)
    asked = [[*system, *some(70)] for _ in range(6)]
    told = [ask(server.scheduler, prompt)[1] for prompt in asked]
    run(server.scheduler)
    assert [each.answer.reused_tokens for each in told] == [0] + [400] * 5
    for prompt, each in zip(asked, told, strict=True):
        assert each.answer.tokens == alone(server.engine, prompt).tokens


def test_who_wants_no_reuse_gets_none_but_leaves_something_for_others(server):
    prompt = some(200)
    server.answer(prompt)
    server.answer(prompt, reuse="none")
    assert (server.n_again, server.told.answer.reused_tokens) == (200, 0)
    server.answer(prompt)
    assert server.told.answer.reused_tokens == 200 - 65


def test_progress_begins_after_what_is_reused(server):
    prompt = some(400)
    server.answer(prompt)
    server.answer(prompt, reuse="any")
    (progress,) = [event for event in server.told.events if hasattr(event, "done")]
    assert (progress.done, progress.total, progress.reused) == (400, 400, 399)


def test_without_cuts_a_conversation_goes_on_from_where_it_was(uncut):
    prompt = some(200)
    for turn in range(6):
        prompt += uncut.answer(prompt, reuse="any") + some(20)
        assert uncut.n_again == (200 if turn == 0 else 21)


def test_without_cuts_an_edited_conversation_goes_on_from_a_snapshot_before_it(uncut):
    before, after = some(1000), some(300)
    uncut.answer([*before, *some(1), *after])
    prompt = [*before, 1, *after]
    answer = uncut.answer(prompt)
    assert tuple(answer) == alone(uncut.engine, prompt, max_new_tokens=12).tokens
    assert 301 <= uncut.n_again <= 301 + 512 + 130


def test_without_cuts_the_same_prompt_again_evaluates_its_last_piece(uncut):
    prompt = some(1000)
    first = uncut.answer(prompt)
    assert uncut.answer(prompt) == first
    assert uncut.n_again <= 130


def test_without_cuts_a_prompt_is_kept_now_and_then_and_before_its_last_piece(uncut, monkeypatch):
    monkeypatch.setattr(running, "SNAPSHOT_TOKENS", 50)
    monkeypatch.setattr(running, "MOST_SNAPSHOTS", 4)
    uncut.answer(some(1000), 1)  # in pieces of 125
    found = [snapshot.length for _, snapshot in uncut.scheduler._tree.snapshots()]
    assert found == [250, 500, 750, 875, 1000]


def test_with_cuts_a_prompt_is_kept_at_its_end(server):
    server.answer(some(1000), 1)
    assert server.scheduler._tree.n_added == 2  # and at that of its answer


def test_without_cuts_prompts_that_begin_alike_do_not_wait_for_each_other(uncut):
    begin = some(64)
    for last in (1, 2):
        ask(uncut.scheduler, [*begin, last], reuse="any")
    uncut.scheduler.step()
    assert uncut.evaluated == [65, 65]
