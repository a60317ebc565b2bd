"""Models in less memory than they need: the same answers, and what is read for them.

What goes wrong meanwhile is in test_ram_budget_faults.py.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from streamed_model import SIZES, TOKENS, Open, smallest_budget
from tiny_model import FAMILIES, TinyModel, write_tiny_model
from variants import variant

from airllm.engine.sampling import Sampler
from airllm.layer_engine import LayerWiseInferenceEngine
from airllm.weights.budget import BudgetError
from airllm.weights.open_weights import FileWeights, in_context
from airllm.weights.plan_model import plan_model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TinyModel]:
    """For each backend: in Q4_0, and for NumPy, which widens Q4_0 anew in each pass, in F16."""
    types = {"cpp": "q4_0", "numpy": "f16"}
    return {
        backend: write_tiny_model(tmp_path_factory.mktemp(backend), type, sizes=SIZES)
        for backend, type in types.items()
    }


@pytest.fixture
def model(request: pytest.FixtureRequest, models: dict[str, TinyModel]) -> TinyModel:
    return models[request.node.callspec.params.get("open_engine", "cpp")]


# ---- the same answers ----------------------------------------------------------------------------


def logits_of(engine: LayerWiseInferenceEngine) -> list[np.ndarray]:
    """Of a prompt of three batches, of tokens one by one after it, and of a prompt again."""
    found = [engine.forward(TOKENS)]
    found += [engine.forward([token]) for token in (5, 6, 7)]
    engine.reset()
    found.append(engine.forward(TOKENS, last_only=False))
    return found


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 1.0])
def test_answers_are_the_same_bit_for_bit_whatever_the_budget(
    model: TinyModel, open_engine: Open, share: float
) -> None:
    expected = logits_of(open_engine(model, ram_budget="1GiB"))
    smallest = smallest_budget(open_engine, model)
    everything = open_engine(model, ram_budget="1GiB").plan().total_bytes
    engine = open_engine(model, ram_budget=int(smallest + share * (everything - smallest)))
    assert engine.plan().streams == (share < 1)
    for found, wanted in zip(logits_of(engine), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("type", ["q4_0", "f32"])
@pytest.mark.parametrize("n_tokens", [variant(64), 65, variant(145), 289, variant(513)])
def test_so_they_are_where_streaming_evaluates_fewer_tokens_at_once(
    tmp_path: Path, open_engine: Open, n_tokens: int, type: str
) -> None:
    """Up to 64 tokens at once are rounded to 16 bit, more to 8: no batch of either size may fall
    below that when the other's does not."""
    longer = replace(SIZES, n_layers=4, context=1024)
    model = write_tiny_model(tmp_path, type, sizes=longer)
    settings = {"batch_size": None, "context": 600}
    tokens = np.random.default_rng(2).integers(0, 268, n_tokens).tolist()
    whole = open_engine(model, ram_budget="1GiB", **settings)
    smallest = smallest_budget(open_engine, model, **settings)
    streamed = open_engine(model, ram_budget=smallest, **settings)
    assert whole.plan().batch_size == 512
    assert streamed.plan().batch_size == (512 if streamed.backend == "numpy" else 144)
    np.testing.assert_array_equal(streamed.forward(tokens), whole.forward(tokens))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_streams(tmp_path: Path, open_engine: Open, family: str) -> None:
    tiny = write_tiny_model(tmp_path, sizes=FAMILIES[family])
    expected = open_engine(tiny).forward(TOKENS[:40])
    engine = open_engine(tiny)
    streamed = stream_everything(engine)
    np.testing.assert_array_equal(streamed.evaluate(np.array(TOKENS[:40], np.int32)), expected)


def stream_everything(engine: LayerWiseInferenceEngine) -> Any:
    """The engine's decoder with weights none of which is kept: tiny models are too small for a
    budget to do that."""
    from dataclasses import replace

    from airllm.weights.plan import model_parts
    from airllm.weights.stream_weights import StreamWeights

    decoder = engine._model.decoder
    assert decoder is not None
    n_layers = engine.config.n_layers
    parts = model_parts(engine._model.planned.file, decoder._model, decoder.backend)
    plan = replace(
        engine.plan(),
        pinned_layers=(),
        streamed_layers=tuple(range(n_layers)),
        head="streamed",
        embedding="looked up",
        slots=2,
    )
    decoder.weights = StreamWeights(
        engine._model.planned.file,
        decoder._model,
        decoder.backend,
        plan,
        parts,
        embed=decoder._embed,
        layers=decoder._layers,
        head=decoder._head,
    )
    return decoder


def test_several_sequences_and_guesses_give_the_same_answers_and_share_a_pass(
    model: TinyModel, open_engine: Open
) -> None:
    settings: dict[str, Any] = {"max_new_tokens": 8, "temperature": 0}
    prompts = ["hello world hello world", "hello", "world"]
    resident = open_engine(model, ram_budget="1GiB")
    engine = open_engine(model, ram_budget=smallest_budget(open_engine, model))
    expected = [answer.tokens for answer in resident.generate_batch(prompts, **settings)]
    found = [answer.tokens for answer in engine.generate_batch(prompts, **settings)]
    assert found == expected
    assert bytes_taken(engine) == 8 * engine.plan().streamed_bytes_per_pass
    guessed = engine.generate(prompts[0], lookahead=4, **settings)
    assert guessed.tokens == resident.generate(prompts[0], lookahead=4, **settings).tokens


def test_sixteen_prompts_make_twelve_tokens_a_pass_though_their_answers_are_short(
    model: TinyModel, open_engine: Open
) -> None:
    """All prompts share a pass. Eight wait until there is room; theirs joins the others' tokens."""
    engine = open_engine(model, ram_budget=smallest_budget(open_engine, model))
    engine.tokenizer.eos_ids = frozenset()
    prompts = ["hello " * (1 + n % 5) for n in range(24)]
    answers = engine.generate_batch(prompts, batch=16, max_new_tokens=8)
    passes = bytes_taken(engine) / engine.plan().streamed_bytes_per_pass
    assert sum(len(answer.tokens) for answer in answers) == 24 * 8
    assert passes == 16


def test_prompts_that_are_too_long_together_take_more_passes(
    model: TinyModel, open_engine: Open
) -> None:
    engine = open_engine(model, ram_budget=smallest_budget(open_engine, model))
    prompts = ["x" * 60] * 3  # of a context of 96 tokens
    engine.generate_batch(prompts, max_new_tokens=1)
    # 3 prompts of 60 tokens; where a prompt has pieces, the second begins in the first one's pass.
    n_passes = bytes_taken(engine) / engine.plan().streamed_bytes_per_pass
    assert n_passes in (2, 3)


def test_guesses_are_made_where_tokens_wait_for_the_disk(
    model: TinyModel, open_engine: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the sampler's turns the text repeats itself."""
    turns = [7, 9, 11]
    monkeypatch.setattr(
        Sampler, "sample", lambda self, logits, history, *_: turns[len(history) % 3]
    )
    resident = open_engine(model, ram_budget="1GiB")
    engine = open_engine(model, ram_budget=smallest_budget(open_engine, model))
    assert resident.generate("x", max_new_tokens=40).passes == 40
    assert engine.generate("x", max_new_tokens=40, lookahead=0).passes == 40
    engine.reset()
    answer = engine.generate("x", max_new_tokens=40)
    assert answer.tokens_per_pass > 1.8
    steps: list[tuple[int, int]] = []
    engine.reset()
    engine.generate("x", max_new_tokens=40, on_progress=lambda *step: steps.append(step))
    assert len(steps) == answer.passes * engine.config.n_layers  # a live line sees each


# ---- what is read, and how much memory it takes --------------------------------------------------


def bytes_taken(engine: LayerWiseInferenceEngine) -> int:
    stats = engine.stream_stats()
    assert stats is not None
    taken: int = stats["bytes_taken"]
    return taken


def test_a_prompt_takes_one_pass_however_long_it_is(model: TinyModel, open_engine: Open) -> None:
    engine = open_engine(model, ram_budget=smallest_budget(open_engine, model))
    per_pass = engine.plan().streamed_bytes_per_pass
    engine.forward(TOKENS)  # three batches
    assert bytes_taken(engine) == per_pass
    engine.forward([5])
    assert bytes_taken(engine) == 2 * per_pass


def test_half_the_layers_memory_halves_what_is_read(tmp_path: Path, open_engine: Open) -> None:
    model = write_tiny_model(tmp_path, "q4_0", sizes=replace(SIZES, n_layers=24))
    everything = open_engine(model, ram_budget="1GiB").plan()
    least = open_engine(model, ram_budget=smallest_budget(open_engine, model)).plan()
    layers = least.streamed_bytes_per_pass
    half = open_engine(model, ram_budget=least.total_bytes + everything.pinned_bytes // 2).plan()
    assert 0.3 * layers < half.streamed_bytes_per_pass < 0.7 * layers
    gaps = np.diff(half.pinned_layers)  # evenly spread, so that the disk never waits for long
    assert gaps.max() - gaps.min() <= 1


def test_above_the_models_size_nothing_is_streamed(model: TinyModel, open_engine: Open) -> None:
    engine = open_engine(model, ram_budget=2 * model.path.stat().st_size + (8 << 20))
    assert isinstance(engine._model.decoder and engine._model.decoder.weights, FileWeights)
    assert engine.stream_stats() is None
    assert not engine.plan().streams


def test_the_memory_that_a_plan_names_is_within_the_budget(
    model: TinyModel, open_engine: Open
) -> None:
    smallest = smallest_budget(open_engine, model)
    for extra in range(0, 12_000_000, 1_500_000):
        plan = open_engine(model, ram_budget=smallest + extra).plan()
        assert plan.total_bytes <= smallest + extra


def test_the_smallest_budget_does_and_a_byte_less_does_not(
    model: TinyModel, open_engine: Open
) -> None:
    smallest = smallest_budget(open_engine, model)
    open_engine(model, ram_budget=smallest).forward([1])
    with pytest.raises(BudgetError, match=f"needs at least .*{smallest} bytes"):
        open_engine(model, ram_budget=smallest - 1)


def test_the_smallest_budget_is_that_of_a_model_in_memory_where_streaming_takes_more(
    tmp_path: Path, open_engine: Open
) -> None:
    """All tokens of a prompt wait for a streamed layer."""
    model = write_tiny_model(tmp_path, sizes=replace(FAMILIES["llama"], context=4096))
    smallest = smallest_budget(open_engine, model, context=4096)
    plan = open_engine(model, ram_budget=smallest, context=4096).plan()
    assert (plan.total_bytes, plan.streams) == (smallest, False)
    with pytest.raises(BudgetError, match=f"needs at least .*{smallest} bytes"):
        open_engine(model, ram_budget=smallest - 1, context=4096)


# ---- the budget itself ---------------------------------------------------------------------------


def test_weights_that_are_quantised_while_they_are_read_are_kept(
    tmp_path: Path, open_engine: Open
) -> None:
    model = write_tiny_model(tmp_path, sizes=SIZES)
    expected = open_engine(model, quantize="q4_0", ram_budget="1GiB").forward(TOKENS)
    with pytest.raises(BudgetError, match="`airllm convert` writes") as refusal:
        open_engine(model, quantize="q4_0", ram_budget=1)
    engine = open_engine(model, quantize="q4_0", ram_budget=refusal.value.minimum)
    np.testing.assert_array_equal(engine.forward(TOKENS), expected)


@pytest.mark.parametrize("budget", [0, -1, "2 elephants", "", True, 1.5])
def test_a_budget_that_is_none_is_refused(model: TinyModel, open_engine: Open, budget: Any) -> None:
    with pytest.raises(ValueError, match=r"elephants|ram_budget|''"):
        open_engine(model, ram_budget=budget)


def test_the_environments_budget_holds_where_none_is_given(
    model: TinyModel, open_engine: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRLLM_RAM", "1KiB")
    with pytest.raises(BudgetError, match=r"does not run in 1\.0 KiB"):
        open_engine(model)
    open_engine(model, ram_budget="1GiB")
    monkeypatch.setenv("AIRLLM_RAM", "much")
    with pytest.raises(ValueError, match="AIRLLM_RAM: 'much' is no size"):
        open_engine(model)


def test_the_environment_says_how_streams_read(
    model: TinyModel, open_engine: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    smallest = smallest_budget(open_engine, model)
    monkeypatch.setenv("AIRLLM_STREAM_IO", "threads")
    monkeypatch.setenv("AIRLLM_STREAM_DIRECT", "0")
    engine = open_engine(model, ram_budget=smallest)
    engine.forward([1])
    stats = engine.stream_stats()
    assert stats is not None
    assert stats["io"] == ("threads" if engine.backend == "cpp" else "plain")
    assert not stats["direct"]
    if engine.backend == "cpp":
        for name, other in (("AIRLLM_STREAM_IO", "magic"), ("AIRLLM_STREAM_DIRECT", "maybe")):
            monkeypatch.setenv(name, other)
            with pytest.raises(ValueError, match=f"{name} is '{other}'"):
                open_engine(model, ram_budget=smallest)
            monkeypatch.delenv(name)


def test_a_default_context_leaves_most_of_the_budget_to_the_weights(open_engine: Open) -> None:
    from airllm.weights.plan import default_context

    def state_bytes(context: int) -> int:
        return 1000 * context

    assert default_context(4096, 512, state_bytes, None) == 4096
    assert default_context(4096, 512, state_bytes, 1 << 30) == 4096
    assert default_context(4096, 512, state_bytes, 4_000_000) == 768  # 1000 in steps of 256
    assert default_context(4096, 512, state_bytes, 1) == 512
    assert default_context(100, 512, state_bytes, 1) == 100


def test_a_default_context_is_shorter_where_the_model_would_not_run_otherwise(
    tmp_path: Path, open_engine: Open
) -> None:
    """So that the smallest budget that is named does, whatever budget was refused."""
    model = write_tiny_model(tmp_path, "q4_0", sizes=replace(SIZES, context=512))
    smallest = smallest_budget(open_engine, model, context=None)
    engine = open_engine(model, ram_budget=smallest, context=None)
    assert engine.context == 256
    found = plan_model(model.path, ram_budget=smallest, batch_size=32, backend=engine.backend)
    assert found.context == 256
    for_all = smallest_budget(open_engine, model, context=512)
    assert for_all > smallest
    assert open_engine(model, ram_budget=4 * for_all, context=None).context == 512
    with pytest.raises(BudgetError, match=f"needs at least .*{smallest} bytes"):
        open_engine(model, ram_budget=smallest - 1, context=None)


def test_a_default_context_is_no_shorter_than_it_must_be(
    model: TinyModel, open_engine: Open
) -> None:
    config = replace(open_engine(model).config, context_length=4096)
    tried = []

    def state_bytes(context: int) -> int:
        return 1000 * context

    def make(context: int) -> None:
        tried.append(context)
        if context > 1100:
            needed = state_bytes(context - 1100)
            raise BudgetError("it does not run", 10**9 + needed)

    assert in_context(make, None, config, state_bytes, 10**9) == (1024, None)
    assert tried == [4096, 1024]
    with pytest.raises(BudgetError):
        in_context(make, 2000, config, state_bytes, 10**9)
