"""Next-token heads: what they guess, and that the answer is the same with them and without."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from extension import require_cpp
from family_models import CONTEXT, VOCAB, described, metadata_of, shapes, write_family_model
from hf_folder import safetensors_bytes
from next_heads import EVERY_HEAD, N_TOKENS, RECURRENT, STEP, WITH_HEADS, answer, opened
from next_heads import write_predictable_model as write_predictable
from reference_next_head import guess_logits

from airllm.cli import main
from airllm.engine.next_tokens import _shared
from airllm.engine.sampling import Sampler
from airllm.formats.gguf import GGUFFile
from airllm.formats.hf_config import HFConfig
from airllm.formats.hf_names import Shard, translate_tensors
from airllm.formats.mapped_file import MappedFile
from airllm.formats.safetensors import read_table
from airllm.layer_engine import LayerWiseInferenceEngine
from airllm.models import load_model
from airllm.models.hugging_face import NAMES
from airllm.models.opening import open_model
from airllm.util.metadata import FormatError
from airllm.weights.budget import BudgetError
from airllm.weights.plan_model import plan_model

TOKENS = np.random.default_rng(3).integers(0, VOCAB, 60).tolist()
PROMPT = [3, 1, 4, 1, 5]
EXACT: dict[str, Any] = {"kv_type": "f32", "activations": "f32"}
CLOSE = 3e-6  # norm of the difference over the norm of the logits
READ_BEFORE_NORMS = ("step35", "mimo2")
_YARN = ("type", "factor", "original_context_length", "yarn_log_multiplier")


@pytest.fixture(params=[pytest.param("numpy", marks=pytest.mark.variant), "cpp"])
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "cpp":
        require_cpp()
    return str(request.param)


@pytest.fixture(scope="module", params=WITH_HEADS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_family_model(tmp_path_factory.mktemp("random"), request.param)


@pytest.fixture(scope="module", params=["deepseek2", "qwen35"])
def predictable(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model that can be cut anywhere, and one that cannot."""
    require_cpp()
    return write_predictable(tmp_path_factory.mktemp("predictable"), request.param)


def values_of(path: Path) -> dict[str, np.ndarray]:
    with GGUFFile.open(path) as file:
        return {
            name: np.frombuffer(file.data(name).tobytes(), np.float32).reshape(tensor.shape)
            for name, tensor in file.tensors.items()
        }


def write_without_yarn(folder: Path, architecture: str) -> Path:
    left_out = {f"{architecture}.rope.scaling.{name}": None for name in _YARN}
    return write_family_model(folder, architecture, **left_out)


def residuals(engine: LayerWiseInferenceEngine, n: int) -> np.ndarray:
    """Behind the last layer, of the last n tokens of a pass of so many."""
    return np.array(engine._model.decoder._carried["residual"][:n])


def next_tokens(engine: LayerWiseInferenceEngine) -> Any:
    found = engine._model.decoder.next_tokens
    assert found is not None
    return found


def following(token: int, n: int) -> list[int]:
    return [(token + STEP * i) % N_TOKENS for i in range(1, n + 1)]


# What a head guesses.


@pytest.mark.parametrize("architecture", EVERY_HEAD)
def test_guesses_are_those_of_the_paper(tmp_path: Path, backend: str, architecture: str) -> None:
    """The first from the model's hidden states, further ones from the head's own."""
    path = write_without_yarn(tmp_path, architecture)
    with opened(path, backend=backend, mtp=True, **EXACT) as engine:
        engine.forward(TOKENS[:40])
        residual = residuals(engine, 40)
        expected = guess_logits(
            *(engine.config, values_of(path), 1e4, TOKENS[:41], residual, 3),
            normed=architecture not in READ_BEFORE_NORMS,
        )
        for n, logits in enumerate(expected, 1):
            guesses = next_tokens(engine).guess(TOKENS[:41], n)
            assert guesses == [int(np.argmax(each)) for each in expected[:n]]
            difference = next_tokens(engine)._logits[0] - logits
            assert np.linalg.norm(difference) <= CLOSE * np.linalg.norm(logits)


@pytest.mark.parametrize("sizes", [[1] * 40, [7, 1, 32], [40]], ids=["each", "pieces", "whole"])
def test_a_prompt_may_come_in_any_pieces(model: Path, backend: str, sizes: list[int]) -> None:
    settings = {**EXACT, "backend": backend, "mtp": True}
    found = []
    for pieces in ([40], sizes):
        with opened(model, batch_size=16, **settings) as engine:
            for end, size in zip(np.cumsum(pieces).tolist(), pieces, strict=True):
                engine.forward(TOKENS[end - size : end])
            next_tokens(engine).guess(TOKENS[:41], 2)
            found.append(next_tokens(engine)._logits[0].copy())
    assert np.linalg.norm(found[1] - found[0]) <= CLOSE * np.linalg.norm(found[0])


@pytest.mark.parametrize("half", ["embedding", "hidden"])
@pytest.mark.parametrize("architecture", WITH_HEADS)
def test_a_head_that_is_right_gives_a_token_more_for_each_guess(
    tmp_path: Path, backend: str, architecture: str, half: Any
) -> None:
    path = write_predictable(tmp_path, architecture, half)
    with opened(path, backend=backend, mtp=True) as engine:
        for n_guesses in (1, 3):
            engine.reset()
            found = answer(engine, PROMPT, 41, n_guesses)
            assert list(found.tokens) == following(PROMPT[-1], 41)
            assert found.passes == 1 + 40 // (1 + n_guesses)
            assert found.accepted_tokens == 41 - found.passes
            assert found.tokens_per_pass == pytest.approx(41 / found.passes)


# The answer.


def recorded(
    engine: LayerWiseInferenceEngine, monkeypatch: pytest.MonkeyPatch, *args: Any, **options: Any
) -> tuple[tuple[int, ...], np.ndarray]:
    """The tokens of an answer, and the logits that each was chosen from."""
    rows: list[np.ndarray] = []
    sample = Sampler.sample

    def record(self: Sampler, logits: np.ndarray, *args: Any) -> int:
        rows.append(logits.copy())
        return sample(self, logits, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Sampler, "sample", record)
        tokens = answer(engine, *args, **options).tokens
    return tokens, np.stack(rows)


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 5}], ids=["greedy", "drawn"])
def test_an_answer_is_the_same_bit_for_bit(
    model: Path, backend: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of random models, most guesses of which are wrong."""
    with opened(model, backend=backend) as engine:
        expected = recorded(engine, monkeypatch, TOKENS[:20], 24, **options)
    with opened(model, backend=backend, mtp=True) as engine:
        for lookahead in (0, 1, 4):
            engine.reset()
            found = recorded(engine, monkeypatch, TOKENS[:20], 24, lookahead, **options)
            assert found[0] == expected[0]
            np.testing.assert_array_equal(found[1], expected[1])


@pytest.mark.parametrize("half", ["embedding", "hidden"])
@pytest.mark.parametrize("architecture", ["deepseek2", "qwen35"])
def test_some_guesses_may_be_wrong(tmp_path: Path, architecture: str, half: Any) -> None:
    require_cpp()
    path = write_predictable(tmp_path, architecture, half, wrong=range(0, N_TOKENS, 3))
    with opened(path, backend="cpp", mtp=True) as engine:
        found = answer(engine, PROMPT, 60, 3)
    assert list(found.tokens) == following(PROMPT[-1], 60)
    assert 0 < found.accepted_tokens < 60 * 3 // 4
    assert found.passes + found.accepted_tokens == 60


def test_a_streamed_model_answers_alike_and_keeps_its_head(model: Path, backend: str) -> None:
    settings: dict[str, Any] = {"backend": backend, "mtp": True, "context": CONTEXT}
    with opened(model, **settings) as engine:
        expected = answer(engine, TOKENS[:20], 16, 3).tokens
    with pytest.raises(BudgetError, match=r"next-token head \(`mtp`\)") as refusal:
        LayerWiseInferenceEngine(model, ram_budget=1, **settings)
    with opened(model, ram_budget=refusal.value.minimum, **settings) as engine:
        plan = engine.plan()
        assert plan.streams
        assert plan.head == "pinned"
        assert plan.next_head_bytes > 0
        assert answer(engine, TOKENS[:20], 16, 3).tokens == expected


def test_guesses_of_a_streamed_model_are_right_as_well(predictable: Path) -> None:
    settings: dict[str, Any] = {"backend": "cpp", "mtp": True, "context": CONTEXT}
    with pytest.raises(BudgetError) as refusal:
        LayerWiseInferenceEngine(predictable, ram_budget=1, **settings)
    with opened(predictable, ram_budget=refusal.value.minimum, **settings) as engine:
        found = answer(engine, PROMPT, 41)
    assert list(found.tokens) == following(PROMPT[-1], 41)
    assert found.passes == 1 + 40 // 4


def test_a_pass_that_waits_for_the_disk_has_guesses_beside_what_it_evaluates_again(
    tmp_path: Path,
) -> None:
    require_cpp()
    path = write_predictable(tmp_path, "qwen35", "embedding", wrong=range(0, N_TOKENS, 3))
    settings: dict[str, Any] = {"backend": "cpp", "mtp": True, "context": CONTEXT}
    with pytest.raises(BudgetError) as refusal:
        LayerWiseInferenceEngine(path, ram_budget=1, **settings)
    with opened(path, **settings) as engine:
        resident = answer(engine, PROMPT, 60)
    with opened(path, ram_budget=refusal.value.minimum, **settings) as engine:
        streamed = answer(engine, PROMPT, 60)
    assert streamed.tokens == resident.tokens
    assert streamed.passes < 0.9 * resident.passes


# What a sequence goes through.


def test_a_prompt_that_is_reused_keeps_its_rows(predictable: Path) -> None:
    with opened(predictable, backend="cpp", mtp=True) as engine:
        first = answer(engine, PROMPT, 20, 3)
        again = [*PROMPT, *first.tokens, 9]
        second = answer(engine, again, 13, 3)
        assert second.reused_tokens > 0
        assert list(second.tokens) == following(9, 13)
        assert second.passes == 1 + 12 // 4
        other = answer(engine, [*PROMPT, *first.tokens[:5], 11], 13, 3)  # cut, then another token
        assert list(other.tokens) == following(11, 13)
        assert other.passes == 1 + 12 // 4
        assert next_tokens(engine)._state.tokens[: len(PROMPT) + 5] == [*PROMPT, *first.tokens[:5]]


@pytest.mark.parametrize("architecture", EVERY_HEAD)
def test_where_a_text_was_cut_the_hidden_state_before_is_0(
    tmp_path: Path, backend: str, architecture: str
) -> None:
    path = write_without_yarn(tmp_path, architecture)
    with opened(path, backend=backend, mtp=True, **EXACT) as engine:
        engine.forward(TOKENS[:24])
        first = residuals(engine, 24)
        engine.forward(TOKENS[50:56])
        other = [*TOKENS[:20], *TOKENS[30:50], 7]
        kept = engine._model.decoder.state.keep_shared(other)
        assert kept == (0 if architecture in RECURRENT else 20)  # then all is evaluated again
        engine.forward(other[kept:40])
        residual = np.concatenate([first[:kept], residuals(engine, 40 - kept)])
        logits, second = guess_logits(
            *(engine.config, values_of(path), 1e4, other, residual, 2),
            unknown=kept,
            normed=architecture not in READ_BEFORE_NORMS,
        )
        assert next_tokens(engine).guess(other, 2)[0] == int(np.argmax(logits))
        difference = next_tokens(engine)._logits[0] - second
        assert np.linalg.norm(difference) <= CLOSE * np.linalg.norm(second)


def test_the_hidden_states_of_another_text_are_not_known(predictable: Path) -> None:
    with opened(predictable, backend="cpp", mtp=True) as engine:
        engine.forward(PROMPT)
        head = next_tokens(engine)
        assert head._before(len(PROMPT)).any()
        other = [token + 1 for token in PROMPT]
        assert head.guess([*other, 7], 2) == []
        engine.forward(PROMPT)
        head._keep(other)
        assert not head._before(len(PROMPT)).any()


@pytest.mark.parametrize("changed", [0, 500, 998, 999, None])
def test_texts_share_what_stands_before_the_first_token_that_differs(changed: int | None) -> None:
    tokens = list(range(1000))
    other = [-1 if token == changed else token for token in tokens]
    assert _shared(tokens, [*other, 5]) == (1000 if changed is None else changed)


@pytest.mark.parametrize("on_full", ["stop", "shift"])
def test_the_contexts_end_is_where_it_is_without(predictable: Path, on_full: str) -> None:
    options = {"on_full": on_full, "keep": 2}
    with opened(predictable, backend="cpp", context=48, mtp=True) as engine:
        found = [answer(engine, PROMPT, 90, lookahead, **options) for lookahead in (0, 3)]
    assert found[0].tokens == found[1].tokens
    assert found[0].finish_reason == found[1].finish_reason
    assert found[0].shifted_tokens == found[1].shifted_tokens
    assert found[1].accepted_tokens > 20


@pytest.mark.parametrize(("saved", "loaded"), [(True, True), (True, False), (False, True)])
def test_a_session_goes_on_with_heads_or_without(
    predictable: Path, tmp_path: Path, saved: bool, loaded: bool
) -> None:
    """The head begins anew behind the session's tokens."""
    with opened(predictable, backend="cpp", mtp=saved) as engine:
        first = answer(engine, PROMPT, 9)
        engine.save_session(tmp_path / "session")
    with opened(predictable, backend="cpp", mtp=loaded) as engine:
        answer(engine, [9, 9, 9], 5)  # another text before
        engine.load_session(tmp_path / "session")
        position = engine.position
        second = answer(engine, [*PROMPT, *first.tokens, 9], 17)
        assert second.reused_tokens == position
        assert list(second.tokens) == following(9, 17)
        assert second.passes == (1 + 16 // 4 if loaded else 17)


def test_several_sequences_do_without(model: Path, backend: str) -> None:
    with opened(model, backend=backend, mtp=True, **EXACT) as engine:
        with engine.sequences(2) as sequences:
            assert len(sequences.states[0].layout.layers) == engine.config.n_layers
            together = sequences.forward(TOKENS[:2]).copy()
        alone = engine.forward(TOKENS[1:2])
    np.testing.assert_array_equal(together[1], alone)


def test_a_pass_that_fails_leaves_a_sequence_that_goes_on(predictable: Path) -> None:
    class StopError(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise StopError

    with opened(predictable, backend="cpp", mtp=True) as engine:
        with pytest.raises(StopError):
            engine.forward(PROMPT, on_progress=stop)
        found = answer(engine, PROMPT, 13, 3)
    assert list(found.tokens) == following(PROMPT[-1], 13)
    assert found.passes == 1 + 12 // 4


# Whether there are guesses.


def test_a_head_guesses_three_tokens_where_nobody_says_how_many(predictable: Path) -> None:
    with opened(predictable, backend="cpp", mtp=True) as engine:
        assert answer(engine, PROMPT, 41).passes == 1 + 40 // 4
        engine.reset()
        assert answer(engine, PROMPT, 41, 0).passes == 41


@pytest.mark.parametrize(("variable", "mtp", "used"), [("1", None, True), ("1", False, False)])
def test_a_variable_may_ask_for_heads(
    predictable: Path, monkeypatch: pytest.MonkeyPatch, variable: str, mtp: Any, used: bool
) -> None:
    monkeypatch.setenv("AIRLLM_MTP", variable)
    with opened(predictable, backend="cpp", mtp=mtp) as engine:
        assert (engine._model.decoder.next_tokens is not None) == used


def test_a_head_is_not_used_unless_somebody_asks(predictable: Path) -> None:
    assert plan_model(predictable, backend="cpp").next_head_bytes == 0
    with opened(predictable, backend="cpp") as engine:
        assert engine._model.decoder.next_tokens is None
        assert answer(engine, PROMPT, 5).passes == 5


def test_a_model_without_a_head_is_refused_only_where_it_is_asked_for_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_family_model(tmp_path, "llama")
    with pytest.raises(ValueError, match="has no next-token head that mtp could use"):
        LayerWiseInferenceEngine(path, mtp=True)
    monkeypatch.setenv("AIRLLM_MTP", "1")
    LayerWiseInferenceEngine(path).close()
    monkeypatch.setenv("AIRLLM_MTP", "yes")
    with pytest.raises(ValueError, match="AIRLLM_MTP is 'yes'; expected '0' or '1'"):
        LayerWiseInferenceEngine(path)
    with pytest.raises(TypeError, match="mtp is 1; expected True or False"):
        LayerWiseInferenceEngine(path, mtp=1)  # type: ignore[arg-type]


# Files.


@pytest.mark.parametrize("architecture", WITH_HEADS)
@pytest.mark.parametrize("count", [2, 8])
def test_a_count_of_heads_that_the_tensors_contradict_is_refused(
    architecture: str, count: int
) -> None:
    tensors = shapes(architecture, metadata_of(architecture))
    entries = metadata_of(architecture) | {f"{architecture}.nextn_predict_layers": count}
    missing = f"blk.{9 - count}.nextn.eh_proj.weight"
    said = f"nextn_predict_layers is {count}; tensor {missing} is missing"
    with pytest.raises(FormatError, match=said):
        load_model(described(entries, tensors))


@pytest.mark.parametrize("architecture", WITH_HEADS)
def test_a_head_with_a_missing_or_odd_tensor_is_refused_where_it_is_used(
    tmp_path: Path, architecture: str
) -> None:
    path = write_family_model(tmp_path, architecture)
    for name in ("attn_norm", "nextn.hnorm"):
        full = f"blk.8.{name}.weight"
        for values, said in ((None, "is missing"), (np.ones(7), "has shape")):
            broken = rewritten(path, tmp_path / "broken.gguf", full, values)
            LayerWiseInferenceEngine(broken).close()
            with pytest.raises(FormatError, match=f"tensor {full} {said}"):
                LayerWiseInferenceEngine(broken, mtp=True)
    more = rewritten(path, tmp_path / "broken.gguf", "blk.8.nextn.odd.weight", np.ones(7))
    LayerWiseInferenceEngine(more).close()
    with pytest.raises(FormatError, match=r"tensor blk.8.nextn.odd.weight has no place"):
        LayerWiseInferenceEngine(more, mtp=True)


def rewritten(source: Path, path: Path, name: str, values: np.ndarray | None) -> Path:
    """The same file with another tensor of that name, or none."""
    from gguf_writer import write_gguf

    with GGUFFile.open(source) as file:
        metadata = dict(file.metadata)
    tensors = values_of(source)
    tensors.pop(name, None)
    if values is not None:
        tensors[name] = values.astype(np.float32)
    specs = [(each, "f32", array.shape, array) for each, array in tensors.items()]
    return write_gguf(path, metadata, specs)


@pytest.mark.parametrize("type", ["f32", "q8_0", "q4_k_m"])
def test_a_converted_model_keeps_its_head(predictable: Path, tmp_path: Path, type: str) -> None:
    from airllm.formats.convert import convert

    with open_model(predictable) as file:
        convert(file, tmp_path / "model.gguf", type)
        names = set(file.tensors)
    with open_model(tmp_path / "model.gguf") as file:
        assert set(file.tensors) == names
    with opened(tmp_path / "model.gguf", backend="cpp", mtp=True) as engine:
        assert answer(engine, PROMPT, 41).passes == 1 + 40 // 4


def test_a_model_that_is_quantised_as_it_is_read_has_its_head(predictable: Path) -> None:
    with opened(predictable, backend="cpp", quantize="q8_0", mtp=True) as engine:
        assert answer(engine, PROMPT, 41).passes == 1 + 40 // 4


_NORM = ("F32", np.full(4, 0.5, np.float32))
_LAYER_3 = {
    "blk.3.nextn.eh_proj.weight": (4, 8),
    "blk.3.nextn.enorm.weight": (4,),
    "blk.3.nextn.hnorm.weight": (4,),
    "blk.3.nextn.shared_head_norm.weight": (4,),
    "blk.3.nextn.embed_tokens.weight": (6, 4),
    "blk.3.attn_q.weight": (4, 4),
}
_OF_LAYER = {
    "eh_proj": ("F32", np.zeros((4, 8), np.float32)),
    "enorm": _NORM,
    "hnorm": _NORM,
    "shared_head.norm": _NORM,
    "embed_tokens": ("F32", np.zeros((6, 4), np.float32)),
    "self_attn.q_proj": ("F32", np.zeros((4, 4), np.float32)),
}
_QWENS = {
    "eh_proj": "fc",
    "enorm": "pre_fc_norm_embedding",
    "hnorm": "pre_fc_norm_hidden",
    "shared_head.norm": "norm",
    "embed_tokens": "embed_tokens",
    "self_attn.q_proj": "layers.0.self_attn.q_proj",
}
NAMED: dict[Any, dict[str, Any]] = {
    "layers": {f"model.layers.3.{name}.weight": each for name, each in _OF_LAYER.items()},
    "mtp": {f"mtp.{_QWENS[name]}.weight": each for name, each in _OF_LAYER.items()},
}


def of_folder(folder: Path, heads: Any, tensors: dict[str, Any], **config: Any) -> tuple[Any, int]:
    """The shapes of a folder's tensors beside the embedding, and the number of its heads."""
    embedding = {"model.embed_tokens.weight": ("F32", np.zeros((6, 4), np.float32))}
    path = folder / "model.safetensors"
    path.write_bytes(safetensors_bytes(embedding | tensors))
    with MappedFile.open(path, hint="") as file:
        said = HFConfig({}, NAMES, range(3, 5), heads, **config)
        found = translate_tensors(str(folder), [Shard(file, read_table(file))], said)
    shapes = {tensor.name: tensor.shape for tensor in found.tensors}
    assert shapes.pop("token_embd.weight") == (6, 4)
    return shapes, found.n_heads


@pytest.mark.parametrize("heads", NAMED)
def test_a_folders_head_is_the_layer_behind_the_last(tmp_path: Path, heads: Any) -> None:
    assert of_folder(tmp_path, heads, NAMED[heads]) == (_LAYER_3, 1)
    within = {f"model.{name}": each for name, each in NAMED["mtp"].items()}
    assert of_folder(tmp_path, "mtp", within) == (_LAYER_3, 1)


@pytest.mark.parametrize("heads", NAMED)
def test_heads_of_other_families_and_what_is_left_of_a_head_are_left_out(
    tmp_path: Path, heads: Any
) -> None:
    assert of_folder(tmp_path, "", NAMED[heads]) == ({}, 0)
    rest = {name: each for name, each in NAMED[heads].items() if "proj" in name or "norm" in name}
    rest = {name: each for name, each in rest.items() if not name.endswith("eh_proj.weight")}
    assert of_folder(tmp_path, heads, rest) == ({}, 0)


def test_a_layer_more_than_a_folder_should_have_is_no_head(tmp_path: Path) -> None:
    """It keeps a name that no model has a place for."""
    found = of_folder(tmp_path, "mtp", NAMED["mtp"] | NAMED["layers"])
    own = {f"layers.3.{name}.weight": each[1].shape for name, each in _OF_LAYER.items()}
    assert found == (_LAYER_3 | own, 1)


def test_a_folder_with_heads_says_how_many_and_what_each_of_its_layers_has() -> None:
    recurrent = np.array([True, False, True])
    said = {
        "general.architecture": "x",
        "x.block_count": 3,
        "x.attention.recurrent_layers": recurrent,
        "x.attention.head_count_kv": np.array([0, 1, 0], np.int32),
        "x.swiglu_clamp_exp": 0.5,  # one number for all layers
    }
    of_heads = {"attention.recurrent_layers": False, "attention.head_count_kv": 1}
    of_heads |= {"swiglu_clamp_exp": 0.0, "swiglu_clamp_shexp": 0.0}
    config = HFConfig(said, {}, range(3, 67), "mtp", of_heads=of_heads)
    assert config.with_heads(0) == said
    found = config.with_heads(2)
    assert (found["x.block_count"], found["x.nextn_predict_layers"]) == (5, 2)
    np.testing.assert_array_equal(
        found["x.attention.recurrent_layers"], [True, False, True, False, False]
    )
    np.testing.assert_array_equal(found["x.attention.head_count_kv"], [0, 1, 0, 1, 1])
    assert found["x.swiglu_clamp_exp"] == 0.5
    assert "x.swiglu_clamp_shexp" not in found


# Memory.


def test_memory_is_what_the_plan_says(model: Path) -> None:
    require_cpp()
    with opened(model, backend="cpp", context=CONTEXT, mtp=True) as engine:
        engine.forward(np.resize(TOKENS, CONTEXT).tolist())
        used, plan = engine.memory_usage(), engine.plan()
    assert used["weights"] == pytest.approx(plan.pinned_bytes, rel=0.02)
    checkpoints = 4 if any(name in model.name for name in RECURRENT) else 1
    assert used["kv_cache"] <= plan.kv_cache_bytes <= 1.02 * checkpoints * used["kv_cache"]


def test_the_head_is_what_a_plan_with_it_has_more(model: Path) -> None:
    require_cpp()
    plain, with_head = (plan_model(model, backend="cpp", mtp=mtp) for mtp in (False, True))
    assert with_head.pinned_bytes - plain.pinned_bytes == with_head.next_head_bytes + tables(model)
    assert with_head.kv_cache_bytes > plain.kv_cache_bytes
    assert with_head.buffer_bytes > plain.buffer_bytes


def test_the_plan_command_names_the_head(
    predictable: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["plan", "-m", str(predictable), "--ram", "1GiB"]
    assert main([*command, "--mtp"]) == 0
    assert "for the next-token head" in capsys.readouterr().out
    assert main([*command, "--no-mtp"]) == 0
    assert "next-token head" not in capsys.readouterr().out
    assert main([*command, "--mtp", "--ram", "1KiB"]) == 1
    assert "the next-token head (`mtp`), which no model needs" in capsys.readouterr().err


def test_a_profile_has_the_heads_ops(predictable: Path) -> None:
    with opened(predictable, backend="cpp", mtp=True, fusion=False) as engine:
        executors = next_tokens(engine).executors
        with engine.profile() as profile:
            engine.forward(PROMPT)
            next_tokens(engine).guess([*PROMPT, 7], 2)
        calls = {op.name: op.calls for op in profile.ops()}
        assert calls["linear nextn.eh_proj"] == 1 + 2
        assert next_tokens(engine).executors is executors
        assert answer(engine, PROMPT, 5).passes == 1 + 4 // 4


def tables(path: Path) -> int:
    """Bytes of the head's own embedding."""
    own = values_of(path).get("blk.8.nextn.embed_tokens.weight")
    return 0 if own is None else own.nbytes


@pytest.fixture(autouse=True)
def no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AIRLLM_MTP", raising=False)
