"""Qwen3.8-Flash-Next: the rows that n-grams choose, and what of files and folders is refused."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family_models import (
    ARCHITECTURES,
    CONTEXT,
    Own,
    described,
    metadata_of,
    shapes,
    write_family_model,
)
from hf_case import VOCAB
from hf_cases import CASES
from hf_models import build, logits, require_hf, write_folder
from messages import check_refused

from airllm.formats.convert import convert
from airllm.formats.gguf import GGUFFile
from airllm.formats.model_file import Extent
from airllm.layer_engine import LayerWiseInferenceEngine
from airllm.models import Model, load_model
from airllm.models.config import NGramTable
from airllm.models.ngrams import TABLE, row_numbers
from airllm.models.opening import open_model, translate
from airllm.util.metadata import FormatError, Metadata
from airllm.weights.row_table import RowTable

ARCH = "qwen4exp"
ALL_SHAPES = shapes(ARCH, metadata_of(ARCH))
MULTIPLIERS, SIZES, OFFSETS = "ple.layer_multipliers", "ple.head_vocab_sizes", "ple.head_offsets"


# ---- n-grams -------------------------------------------------------------------------------------


def numbers_of(table: NGramTable, tokens: list[int]) -> list[list[int]]:
    """As row_numbers, one at a time in Python's integers. None stands for what does not count."""
    found = []
    for at in range(len(tokens)):
        seen, cut = [tokens[at]], False
        for back in range(1, len(table.multipliers)):
            earlier = tokens[at - back] if at >= back else table.end
            cut |= earlier == table.end
            seen.append(table.end if cut else earlier)
        rows = []
        for size in range(2, len(seen) + 1):
            mixed = 0
            for token, multiplier in zip(seen[:size], table.multipliers, strict=False):
                mixed ^= token * multiplier % 2**64
            first = (size - 2) * table.heads_per_size
            for head in range(first, first + table.heads_per_size):
                rows.append(table.offsets[head] + mixed % table.vocab_sizes[head])
        found.append(rows)
    return found


@pytest.mark.parametrize("size", [2, 3, 5])
def test_rows_are_hashes_of_the_tokens_back_to_the_last_end(size: int) -> None:
    random = np.random.default_rng(size)
    n_heads = 3 * (size - 1)
    sizes = tuple(random.integers(1, 10**6, n_heads).tolist())
    table = NGramTable(
        multipliers=tuple(random.integers(0, 2**63, size).tolist()),
        heads_per_size=3,
        vocab_sizes=sizes,
        offsets=tuple(np.cumsum([0, *sizes[:-1]]).tolist()),
        row_width=4,
        end=2,
    )
    tokens = random.integers(0, 5, 60).tolist()
    padded = np.array([-1] * (size - 1) + tokens, np.int64)
    expected = numbers_of(table, tokens)
    np.testing.assert_array_equal(row_numbers(table, padded), expected)
    for at in (1, 7, 40):  # with those before it
        np.testing.assert_array_equal(row_numbers(table, padded[at:]), expected[at:])


def test_the_tokens_of_a_conversation_are_those_of_all_its_parts(tmp_path: Path) -> None:
    """The logits of a token depend on the tokens before it, back to the last end and no further,
    through its n-grams as well as through the layers."""
    path = write_family_model(tmp_path, ARCH)
    exact = {"kv_type": "f32", "activations": "f32", "context": CONTEXT, "backend": "numpy"}
    tokens = [5, 9, 7, 9, 9, 11, 30]  # 7 ends a text
    with LayerWiseInferenceEngine(path, **exact) as engine:
        table, rows = engine._model.decoder._ngrams, []
        assert table is not None

        def looked_up(numbers: np.ndarray) -> np.ndarray:
            rows.extend(numbers.tolist())
            return RowTable.rows(table, numbers)

        table.rows = looked_up  # type: ignore[method-assign]
        config = engine._model.decoder._model.config.ngrams
        assert config is not None
        for part in (tokens[:1], tokens[1:2], tokens[2:6], tokens[6:]):
            engine.forward(part)
    assert rows == numbers_of(config, tokens)


# ---- the table -----------------------------------------------------------------------------------


def test_rows_are_read_from_any_number_of_places(tmp_path: Path) -> None:
    path = write_family_model(tmp_path, ARCH)
    with GGUFFile.open(path) as file:
        whole = file.data(TABLE).copy().view("<f4")
        numbers = np.array([[63, 0, 5], [5, 62, 31]])
        np.testing.assert_array_equal(RowTable(file, TABLE).rows(numbers), whole[numbers])
        tensor = file.tensors[TABLE]
        [place] = tensor.extents
        for cut in (24 * 10, 24 * 10 + 7):  # between rows, and in the middle of one
            places = (
                Extent(place.part, place.offset, cut),
                Extent(place.part, place.offset + cut, place.nbytes - cut),
            )
            apart = dataclasses.replace(tensor, extents=places)
            file.tensors = {**file.tensors, TABLE: apart}
            found = RowTable(file, TABLE).rows(np.arange(64))
            np.testing.assert_array_equal(found, whole)


@pytest.mark.parametrize("type", ["f16", "bf16", "q8_0"])
def test_rows_of_other_types_are_decoded(tmp_path: Path, type: str) -> None:
    width = {f"{ARCH}.embedding_length_per_layer_input": 32}
    monkey = ALL_SHAPES | {TABLE: (64, 32)}
    from family_models import ARCHITECTURES, Own

    del monkey
    own = ARCHITECTURES[ARCH]
    ARCHITECTURES[ARCH] = Own(own.metadata, {TABLE: (64, 32)})
    try:
        path = write_family_model(tmp_path, ARCH, **width)
    finally:
        ARCHITECTURES[ARCH] = own
    with open_model(path) as file:
        convert(file, tmp_path / "other.gguf", type)
    with open_model(tmp_path / "other.gguf") as file, open_model(path) as exact:
        assert file.tensors[TABLE].type == type
        found = RowTable(file, TABLE).rows(np.arange(64))
        values = exact.data(TABLE).copy().view("<f4")
    assert np.abs(found - values).max() <= 0.02 * np.abs(values).max()


def test_a_file_that_has_changed_is_refused_when_a_row_is_read(tmp_path: Path) -> None:
    path = write_family_model(tmp_path, ARCH)
    with GGUFFile.open(path) as file:
        table = RowTable(file, TABLE)
        with path.open("ab") as longer:
            longer.write(b"more")
        with pytest.raises(FormatError, match=r"qwen4exp\.gguf"):
            table.rows(np.arange(2))


def test_the_table_takes_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plans = []
    for n_rows in (64, 2**20):  # the last takes 24 MiB in the file
        own = Own(ARCHITECTURES[ARCH].metadata, {TABLE: (n_rows, 6)})
        monkeypatch.setitem(ARCHITECTURES, ARCH, own)
        path = write_family_model(tmp_path, ARCH)
        with LayerWiseInferenceEngine(path, backend="numpy", context=CONTEXT) as engine:
            plans.append(engine.plan())
            engine.forward([1, 2, 3])
    assert plans[0].total_bytes == plans[1].total_bytes
    budget = plans[0].total_bytes + 2**20
    with LayerWiseInferenceEngine(
        path, backend="numpy", context=CONTEXT, ram_budget=budget
    ) as engine:
        assert engine.forward([1, 2, 3]).shape == (160,)


def test_a_model_that_is_quantised_as_it_is_read_keeps_the_table(tmp_path: Path) -> None:
    path = write_family_model(tmp_path, ARCH)
    with open_model(path, "q8_0") as file:
        assert file.tensors[TABLE].type == "f32"
        assert file.tensors[TABLE].extents
        assert file.tensors["output.weight"].type == "q8_0"


# ---- files ---------------------------------------------------------------------------------------


def model_of(tensors: dict[str, tuple[int, ...]] = ALL_SHAPES, **changes: object) -> Model:
    """changes: of GGUF's keys; None takes a key away."""
    entries = metadata_of(ARCH) | {f"{ARCH}.{key}": value for key, value in changes.items()}
    entries = {key: value for key, value in entries.items() if value is not None}
    return load_model(described(entries, tensors))


def test_a_model_without_n_grams_has_no_table() -> None:
    keys = {key.partition(".")[2] for key in metadata_of(ARCH) if ".ple." in key}
    model = model_of(**dict.fromkeys(keys), embedding_length_per_layer_input=None)
    assert model.config.ngrams is None
    assert "ngrams" not in model.carried


def test_a_layer_keeps_one_key_of_an_index_for_each_block() -> None:
    states = model_of().states
    assert [index for index, state in enumerate(states) if state.index] == [2, 5]
    assert states[2].index is not None
    assert (states[2].index.every, states[2].index.head_dim) == (5, 24)


def test_layers_without_blocks_see_all_positions() -> None:
    """As files say that llama.cpp's converter makes with a transformers that knows the model."""
    model = model_of(**{"attention.compress_ratios": np.zeros(8, np.int32)})
    assert not any(state.index for state in model.states)
    kinds = [{op.kind for op in kind.graph.ops} for kind in model.kinds]
    assert any("attention" in each for each in kinds)
    assert not any("block_attention" in each for each in kinds)
    names = {f"blk.{i}.indexer.{part}_norm.weight" for i in (2, 5) for part in "qk"}
    assert model.config.idle_tensors >= names


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("ple.layers", np.array([3, 4], np.int32), "has 2 layers; expected one"),
        ("ple.layers", np.array([8], np.int32), "has 8; expected 0 to 7"),
        ("ple.layers", np.array([-1], np.int32), "has -1; expected 0 to 7"),
        ("ple.layers", np.array([2], np.int32), "has 2; expected a layer of linear attention"),
        ("ple.layers", "3", "is no array of integers"),
        ("ple.ngram_size", 1, "is 1; expected 2 to 8"),
        ("ple.ngram_size", 9, "is 9; expected 2 to 8"),
        ("ple.ngram_size", 4, "has 3 entries; expected 4 for n-grams of up to 4 tokens"),
        ("ple.heads_per_ngram", 0, "is 0; expected 1 to 64"),
        ("ple.heads_per_ngram", 3, "has 4 entries; expected 6"),
        ("ple.conv_kernel", 0, "is 0; expected 1 to 8"),
        ("ple.conv_kernel", 9, "is 9; expected 1 to 8"),
        ("ple.eos_token_id", -1, "is -1; expected 0 to"),
        ("ple.eos_token_id", None, "is missing"),
        ("ple.dilation", 4, "asks for something that qwen4exp models here do not do"),
        (MULTIPLIERS, np.array([1, 2], np.uint64), "has 2 entries; expected 3"),
        (MULTIPLIERS, np.array([1, -2, 3], np.int64), "has -2; expected 0 to"),
        (MULTIPLIERS, np.array([1.0, 2.0, 3.0]), "is no array of integers"),
        (SIZES, np.array([11, 0, 17, 19], np.uint64), "has 0 to 19 rows; expected 1 or more"),
        (SIZES, np.array([11, 13, 17, 2**63], np.uint64), "expected 1 or more, and less than"),
        (OFFSETS, np.array([0, 11, 24, 60], np.uint64), "has shape [64, 6]; expected [79, 6]"),
        (OFFSETS, np.array([0, 11, 24, 2**40], np.uint64), "expected 1 or more, and less than"),
        ("embedding_length_per_layer_input", 7, "has shape [64, 6]; expected [60, 7]"),
        ("embedding_length_per_layer_input", 2**30, "is 1073741824; expected 1 to 262144"),
        ("hyper_connection.count", 1, "is 1; expected 2 to 16"),
        ("hyper_connection.count", 17, "is 17; expected 2 to 16"),
        ("hyper_connection.low_rank", 0, "is 0; expected 1 to"),
        ("hyper_connection.epsilon", 0.1, "asks for something that qwen4exp models here"),
        ("attention.indexer.head_count", 0, "is 0; expected 1 to 1024"),
        ("attention.indexer.key_length", 7, "is 7; expected 8 to 576"),
        ("attention.indexer.top_k", 4, "is 4; expected 5 to"),
        ("attention.indexer.top_k", 22, "is 22; expected a multiple of 5"),
        ("attention.indexer.top_k", 2**20, "is 1048576; expected 5 to 65531"),
        ("attention.compress_ratios", np.array([0, 0, 5, 0, 0, 4, 0, 0]), "has 4 and 5; expected"),
        ("attention.compress_ratios", None, "is missing"),
        ("attention.compress_ratios", np.full(8, 2**13), "has 8192; expected 0 to 4096"),
        ("expert_shared_feed_forward_length", 0, "is 0; expected 1 to"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused_by_name(key: str, value: object, said: str) -> None:
    with pytest.raises(FormatError) as refused:
        model_of(**{key: value})
    assert said in str(refused.value)


def test_a_file_without_the_table_is_refused() -> None:
    with pytest.raises(FormatError, match=r"tensor per_layer_token_embd\.weight is missing"):
        model_of({name: shape for name, shape in ALL_SHAPES.items() if name != TABLE})


# ---- folders -------------------------------------------------------------------------------------

TEXT: dict[str, Any] = {
    **{"num_hidden_layers": 4, "ple_layer_ids": [2], "eos_token_id": [7, 8], "seed": 1234},
    **{"indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 128},
    **{"indexer_budget": 2048, "indexer_compress_ratio": 4, "output_gate_type": "sigmoid"},
}


def translated(**changes: object) -> dict[str, object]:
    config = {"model_type": "qwen4_exp", "text_config": TEXT | changes, "vision_config": {}}
    found = translate(Metadata("config.json", config)).metadata
    return {key.removeprefix(f"{ARCH}."): value for key, value in found.items()}


def test_a_folder_says_which_rows_n_grams_choose() -> None:
    found = translated()
    np.testing.assert_array_equal(found["ple.layers"], [1])
    assert (found["ple.ngram_size"], found["ple.heads_per_ngram"]) == (3, 8)
    assert found["ple.eos_token_id"] == 7
    assert found["embedding_length_per_layer_input"] == 128
    sizes, offsets = found[SIZES], found[OFFSETS]
    assert isinstance(sizes, np.ndarray)
    assert isinstance(offsets, np.ndarray)
    assert sizes.tolist()[:3] == [20000003, 20000023, 20000033]
    assert offsets.tolist()[:3] == [0, 20000003, 40000026]
    assert len(sizes) == len(offsets) == 16


def test_full_attention_of_a_published_folder_chooses_blocks() -> None:
    types = ["linear_attention"] * 3 + ["full_attention"]
    for said in ({"layer_types": types}, {"full_attention_interval": 4}, {}):
        np.testing.assert_array_equal(translated(**said)["attention.compress_ratios"], [0, 0, 0, 4])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"output_gate_type": "silu"}, "output_gate_type is 'silu'; expected 'sigmoid'"),
        ({"output_gate_type": None}, "output_gate_type is 'None'; expected 'sigmoid'"),
        ({"indexer_kv_heads": 2}, "indexer_kv_heads is '2'; expected 1"),
        ({"indexer_budget": None}, "indexer_budget is missing"),
        ({"indexer_mode": "other"}, "indexer_mode asks for something"),
        ({"layer_types": ["linear_attention"] * 3}, "layer_types does not say of each of 4 layers"),
        ({"layer_types": ["sliding_attention"] * 4}, "layer_types does not say of each of 4"),
        ({"ple_layer_ids": [1, 2]}, "ple_layer_ids has 2 layers; expected one"),
        ({"ple_layer_ids": [5]}, "ple_layer_ids is no list of layers from 1 to 4"),
        ({"ple_layer_ids": "2"}, "ple_layer_ids is no list of layers"),
        ({"eos_token_id": None}, "eos_token_id is None; expected a token"),
        ({"eos_token_id": []}, "eos_token_id is []; expected a token"),
        ({"ple_embed_dim": 2049}, "ple_embed_dim is 2049; expected a multiple of 16"),
        ({"ngram_size": 1}, "ngram_size is 1; expected 2 to 8"),
        ({"ngram_vocab_size_base": 2**62}, "ngram_vocab_size_base is 4611686018427387904"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; expected 'silu'"),
    ],
)
def test_a_folder_that_asks_for_more_is_refused_by_name(
    changes: dict[str, object], said: str
) -> None:
    check_refused(lambda: translated(**changes), said)


def test_constants_that_differ_from_config_json_are_refused(tmp_path: Path) -> None:
    require_hf()
    case = CASES["Qwen3.8-Flash-Next"]
    folder = write_folder(tmp_path / "model", case, build(case))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"seed": 1}))
    with pytest.raises(FormatError, match=r"layer_multipliers.*differs from what config\.json"):
        open_model(folder)


def test_a_folder_without_a_part_of_the_table_is_refused(tmp_path: Path) -> None:
    require_hf()
    from safetensors.numpy import load_file, save_file

    case = CASES["Qwen3.8-Flash-Next"]
    folder = write_folder(tmp_path / "model", case, build(case))
    [path] = folder.glob("*.safetensors")
    tensors = load_file(path)
    save_file({name: each for name, each in tensors.items() if "shard_2." not in name}, path)
    with pytest.raises(FormatError, match=r"part 2 of per_layer_token_embd\.weight is missing"):
        open_model(folder)


def test_the_model_that_sees_pictures_gives_the_logits_of_its_text(tmp_path: Path) -> None:
    require_hf()
    case = CASES["Qwen3.8-Flash-Next"]
    hf = build(case)
    folder = write_folder(tmp_path / "model", case, hf)
    config = json.loads((folder / "config.json").read_text())
    outer = {"model_type": "qwen4_exp", "text_config": config, "vision_config": {"depth": 1}}
    (folder / "config.json").write_text(json.dumps(outer))
    tokens = np.random.default_rng(2).integers(0, VOCAB, 40).tolist()
    with LayerWiseInferenceEngine(folder, backend="numpy", kv_type="f32") as engine:
        found = engine.forward(tokens, last_only=False)
    expected = logits(hf, tokens)
    assert np.linalg.norm(found - expected) <= 3e-6 * np.linalg.norm(expected)
