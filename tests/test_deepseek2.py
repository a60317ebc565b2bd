"""Latent attention: what it keeps, which files and folders it refuses, and its heads' matrices."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from extension import require_cpp
from family_models import CONTEXT, described, metadata_of, shapes, write_family_model
from gguf_writer import TensorSpec, write_gguf
from hf_folder import safetensors_bytes, stored
from hf_quantized import FORMATS, fp8
from messages import check_refused

from airllm.backends import load_backend
from airllm.formats.convert import convert
from airllm.formats.gguf import GGUFFile
from airllm.formats.hf_config import LATENTS_JOINED, HFConfig, Slots
from airllm.formats.hf_names import Shard, translate_tensors
from airllm.formats.hf_quantization import read_quantization
from airllm.formats.joined_latents import joined_latents
from airllm.formats.mapped_file import MappedFile
from airllm.formats.model_file import DerivedModel, ModelParts
from airllm.formats.numbers import decode, encode
from airllm.formats.safetensors import read_table
from airllm.layer_engine import LayerWiseInferenceEngine
from airllm.models import load_model
from airllm.models.hugging_face import HFReader
from airllm.models.opening import open_model, translate
from airllm.util.metadata import FormatError, Metadata
from airllm.weights.plan import model_parts

ARCH = "deepseek2"
RANK, ROPE = 24, 8
NOPE_OLD, VALUES_OLD = 12, 9  # of a head, in the model that family_models writes

CONFIG = {
    **{"model_type": "deepseek_v3", "hidden_size": 64, "intermediate_size": 96},
    **{"num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4},
    **{"max_position_embeddings": 128, "vocab_size": 160, "rms_norm_eps": 1e-6},
    **{"hidden_act": "silu", "kv_lora_rank": 32, "q_lora_rank": None, "v_head_dim": 24},
    **{"qk_nope_head_dim": 32, "qk_rope_head_dim": 8, "n_routed_experts": 8},
    **{"num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_shared_experts": 2},
    **{"first_k_dense_replace": 1, "n_group": 2, "topk_group": 1, "scoring_func": "sigmoid"},
}


def translated(**changes: object) -> dict[str, object]:
    """The metadata of a folder with this config.json, without the architecture in front."""
    said = {key: value for key, value in (CONFIG | changes).items() if value != "left out"}
    found = translate(Metadata("config.json", said)).metadata
    return {key.removeprefix(f"{ARCH}."): value for key, value in found.items()}


@pytest.mark.parametrize(("kv_type", "value_bytes"), [("f16", 2), ("f32", 4)])
def test_a_token_keeps_one_latent_for_each_layer(
    tmp_path: Path, kv_type: str, value_bytes: int
) -> None:
    path = write_family_model(tmp_path, ARCH)
    with LayerWiseInferenceEngine(
        path, backend="numpy", context=CONTEXT, kv_type=kv_type
    ) as engine:
        kept = engine.plan().kv_cache_bytes
    assert kept == 8 * CONTEXT * (RANK + ROPE) * value_bytes


def test_the_matrices_of_heads_are_no_experts_that_can_be_fetched(tmp_path: Path) -> None:
    path = write_family_model(tmp_path, ARCH)
    with open_model(path) as file:
        model = load_model(file)
        part = model_parts(file, model, load_backend("numpy"))[1 + 2]
        slots = [{matrix.slot for matrix in expert} for expert in part.experts()]
        assert slots == [{"ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"}] * 6
        kept = [matrix.slot for matrix in part.without_experts().matrices]
        assert kept.count("attn_k_b") == kept.count("attn_v_b") == 4


@pytest.mark.parametrize("backend", ["numpy", "cpp"])
def test_a_profile_counts_the_matrices_of_all_heads(tmp_path: Path, backend: str) -> None:
    if backend == "cpp":
        require_cpp()
    path = write_family_model(tmp_path, ARCH)
    with LayerWiseInferenceEngine(path, backend=backend, context=CONTEXT) as engine:
        with engine.profile() as profile:
            engine.forward([1, 2, 3])
        [op] = [op for op in profile.ops() if op.name == "head_linear attn_v_b"]
    assert op.flops == 8 * 3 * 2 * 4 * 9 * RANK
    assert op.nbytes >= 8 * 4 * 4 * 9 * RANK  # f32


# ---- GGUF ----------------------------------------------------------------------------------------


def refusal(**changes: object) -> str:
    entries = metadata_of(ARCH) | {f"{ARCH}.{key}": value for key, value in changes.items()}
    entries = {key: value for key, value in entries.items() if value is not None}
    with pytest.raises(FormatError) as refused:
        load_model(described(entries, shapes(ARCH, metadata_of(ARCH))))
    return str(refused.value)


def older_file(path: Path, folder: Path, type: str = "f32", **changes: object) -> Path:
    """The model as converters wrote it before May 2025. type: of attn_kv_b. changes: None leaves
    a key out."""
    own = {"head_count_kv": 4, "key_length": NOPE_OLD + ROPE, "value_length": VALUES_OLD}
    arch = path.stem
    with open_model(path) as file:
        entries = {key: value for key, value in file.metadata.items() if "_mla" not in key}
        values = {
            name: file.data(name).view("<f4").reshape(tensor.shape)
            for name, tensor in file.tensors.items()
        }
    entries |= {f"{arch}.attention.{key}": value for key, value in own.items()}
    entries |= {f"{arch}.{key}": value for key, value in changes.items()}
    entries = {key: value for key, value in entries.items() if value is not None}
    specs: list[TensorSpec] = []
    for name, found in values.items():
        if ".attn_k_b." in name:
            both = found.swapaxes(1, 2), values[name.replace("k_b", "v_b")]
            whole = np.concatenate(both, 1).reshape(-1, found.shape[1])
            specs.append((name.replace("k_b", "kv_b"), type, whole.shape, encode(whole, type)))
        elif ".attn_v_b." not in name:
            specs.append((name, "f32", found.shape, found))
    folder.mkdir()
    return write_gguf(folder / "older.gguf", entries, specs)


@pytest.mark.parametrize(
    ("architecture", "left_out"), [(ARCH, ()), ("minicpm3", ("attention.value_length",))]
)
def test_a_file_from_before_the_matrices_of_heads_gives_the_same_logits(
    tmp_path: Path, architecture: str, left_out: tuple[str, ...]
) -> None:
    """Those of MiniCPM3 do not say how wide values are: as wide as hidden_size / heads."""
    path = write_family_model(tmp_path, architecture)
    older = older_file(path, tmp_path / "older", **dict.fromkeys(left_out))
    logits = []
    for each in (path, older):
        with LayerWiseInferenceEngine(each, backend="numpy", context=CONTEXT) as engine:
            logits.append(engine.forward([1, 2, 3, 4, 5]))
            assert engine.plan().kv_cache_bytes == 8 * CONTEXT * (RANK + ROPE) * 2
    assert np.linalg.norm(logits[1] - logits[0]) < 1e-6 * np.linalg.norm(logits[0])


def test_a_conversion_of_minicpm3_has_the_matrices_and_sizes_of_its_file(tmp_path: Path) -> None:
    """llama.cpp opens no others."""
    path, value_dim = write_family_model(tmp_path, "minicpm3"), 16
    source = older_file(path, tmp_path / "older", **{"attention.value_length": value_dim})
    with open_model(source) as model:
        convert(model, tmp_path / "new.gguf", "f32")
        joined, name = joined_latents(model), "blk.1.attn_kv_b.weight"
        whole, memory = joined.data(name), np.empty(joined.tensors[name].nbytes, np.uint8)
        for rows in ((0, 5), (17, 18), (NOPE_OLD - 1, 2 * (NOPE_OLD + value_dim) + 3)):
            np.testing.assert_array_equal(joined.read(name, memory, rows), whole[slice(*rows)])
    with GGUFFile.open(source) as expected, GGUFFile.open(tmp_path / "new.gguf") as actual:
        sizes = {key: value for key, value in expected.metadata.items() if "minicpm3" in key}
        assert {key: actual.metadata.get(key) for key in sizes} == sizes
        assert not any("_mla" in key or "airllm" in key for key in actual.metadata)
        assert set(actual.tensors) == set(expected.tensors)
        for name in expected.tensors:
            np.testing.assert_array_equal(actual.data(name), expected.data(name))


@pytest.mark.parametrize("left", [None, (4, 7, 31)])
def test_latents_whose_values_do_not_fit_are_named(
    left: tuple[int, ...] | None, tmp_path: Path
) -> None:
    path = write_family_model(tmp_path, "minicpm3")
    with open_model(path) as model:
        name = "blk.1.attn_v_b.weight"
        tensors = {key: each for key, each in model.tensors.items() if key != name}
        if left is not None:
            tensors[name] = replace(model.tensors[name], shape=left)
        entries = {**dict(model.metadata.items()), LATENTS_JOINED: True}
        broken = DerivedModel(model, Metadata(model.metadata.source, entries), tensors)
        with pytest.raises(FormatError, match=r"blk\.1\.attn_k_b\.weight has the shape"):
            joined_latents(broken)


def test_keys_of_a_quantised_older_file_are_its_values_in_f16(tmp_path: Path) -> None:
    n_heads, rank = 4, 32
    path = write_family_model(tmp_path, ARCH, **{f"{ARCH}.attention.kv_lora_rank": rank})
    older = older_file(path, tmp_path / "older", "q8_0")
    with GGUFFile.open(older) as file, open_model(older) as model:
        whole = decode(file.data("blk.1.attn_kv_b.weight"), "q8_0")
        heads = whole.reshape(n_heads, NOPE_OLD + VALUES_OLD, rank)
        keys, values = model.tensors["blk.1.attn_k_b.weight"], model.data("blk.1.attn_v_b.weight")
        assert (keys.type, keys.shape) == ("f16", (n_heads, rank, NOPE_OLD))
        turned = heads[:, :NOPE_OLD].swapaxes(1, 2).astype(np.float16).reshape(-1, NOPE_OLD)
        for rows in ((0, n_heads * rank), (rank - 3, 2 * rank + 5), (7, 8)):
            raw = model.read(keys.name, np.empty(keys.nbytes, np.uint8), rows)
            np.testing.assert_array_equal(raw.view("<f2"), turned[slice(*rows)])
        unpacked = decode(values.reshape(-1, values.shape[-1]), "q8_0")
        np.testing.assert_array_equal(
            unpacked.reshape(n_heads, VALUES_OLD, rank), heads[:, NOPE_OLD:]
        )


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("attention.key_length", 8, "attention.key_length is 8; expected 9 to"),
        ("attention.key_length", 2**31 - 1, "has shape [84, 24]; expected [8589934592, 24]"),
        ("attention.head_count", 2**30, "attention.head_count is 1073741824; expected 1 to 4096"),
        ("attention.kv_lora_rank", 25, "has shape [84, 24]; expected [84, 25]"),
        ("rope.dimension_count", 0, "rope.dimension_count is 0; expected 2 to"),
    ],
)
def test_an_older_file_whose_sizes_contradict_each_other_is_refused(
    tmp_path: Path, key: str, value: int, said: str
) -> None:
    older = older_file(write_family_model(tmp_path, ARCH), tmp_path / "older", **{key: value})
    check_refused(lambda: open_model(older), said)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("attention.kv_lora_rank", 600, "is 600; expected 1 to 568"),
        ("attention.key_length", 33, "is 33; expected 32, of a latent"),
        ("attention.value_length", 32, "is 32; expected 24, of a latent"),
        ("attention.key_length_mla", 8, "is 8; expected 9 to 1048576"),
        ("attention.head_count_kv", 2, "is 2; expected 1"),
        ("rope.scaling.yarn_log_multiplier", -1.0, "is -1.0; expected a magnitude"),
    ],
)
def test_sizes_that_contradict_each_other_are_refused(key: str, value: object, said: str) -> None:
    assert f"{ARCH}.{key} {said}" in refusal(**{key: value})


def config_of(**changes: object) -> object:
    entries = metadata_of(ARCH) | {f"{ARCH}.{key}": value for key, value in changes.items()}
    return load_model(described(entries, shapes(ARCH, metadata_of(ARCH)))).config


def test_yarn_makes_scores_larger_by_the_square_of_its_magnitude() -> None:
    config = config_of(**{"rope.scaling.factor": 40.0, "rope.scaling.yarn_log_multiplier": 0.1})
    magnitude = 1 + 0.1 * np.log(40)
    assert config.attention_scale == pytest.approx(magnitude**2 / 20**0.5)


@pytest.mark.parametrize(("gating", "score"), [(1, "max"), (2, "top2")])
def test_groups_are_scored_as_the_router_is_of_v2_or_of_v3(gating: int, score: str) -> None:
    assert config_of(expert_gating_func=gating).router.group_score == score


def test_a_file_without_the_kind_of_router_has_a_sigmoid_where_there_is_a_bias() -> None:
    assert config_of().router.gating == "sigmoid"


# ---- Hugging Face --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["deepseek_v3", "kimi_k2", "glm4_moe_lite"])
def test_a_folder_keeps_one_latent(kind: str) -> None:
    found = translated(model_type=kind)
    assert found["attention.head_count_kv"] == 1
    assert found["attention.key_length"], found["attention.value_length"] == (40, 32)
    assert found["expert_group_count"] == 2


# What the published folders say, beside sizes.
V2_LITE: dict[str, Any] = {
    **{"model_type": "deepseek_v2", "scoring_func": "softmax", "topk_method": "greedy"},
    **{"n_group": 1, "topk_group": 1, "norm_topk_prob": False, "routed_scaling_factor": 1.0},
    **{"moe_layer_freq": 1, "aux_loss_alpha": 0.001, "seq_aux": True, "q_lora_rank": None},
    "rope_scaling": {
        **{"type": "yarn", "factor": 40, "original_max_position_embeddings": 32},
        **{"beta_fast": 32, "beta_slow": 1, "mscale": 0.707, "mscale_all_dim": 0.707},
    },
}
V3: dict[str, Any] = {
    **{"model_type": "deepseek_v3", "scoring_func": "sigmoid", "topk_method": "noaux_tc"},
    **{"norm_topk_prob": True, "routed_scaling_factor": 2.5, "num_nextn_predict_layers": 1},
    **{"moe_layer_freq": 1, "ep_size": 1, "q_lora_rank": 32},
    "rope_scaling": V2_LITE["rope_scaling"] | {"mscale": 1.0, "mscale_all_dim": 1.0},
}


@pytest.mark.parametrize(("config", "multiplier"), [(V2_LITE, 0.0707), (V3, 0.1)])
def test_the_published_folders_are_translated(config: dict[str, object], multiplier: float) -> None:
    found = translated(**config)
    assert found["rope.scaling.yarn_log_multiplier"] == pytest.approx(multiplier)
    assert found["rope.scaling.attn_factor"] == 1.0
    assert found["expert_weights_norm"] == config["norm_topk_prob"]
    assert ("attention.q_lora_rank" in found) == (config["q_lora_rank"] is not None)


def test_groups_of_a_greedy_router_do_not_count() -> None:
    v2 = {"model_type": "deepseek_v2", "scoring_func": "softmax"}
    assert "expert_group_count" not in translated(**v2, topk_method="greedy")
    assert translated(**v2, topk_method="group_limited_greedy")["expert_group_count"] == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rope_interleave": False}, "rope_interleave is 'False'; expected True"),
        ({"scoring_func": "softmax"}, "scoring_func is 'softmax'; expected 'sigmoid'"),
        ({"topk_method": "greedy"}, "topk_method is 'greedy'; expected 'noaux_tc'"),
        ({"moe_layer_freq": 2}, "moe_layer_freq is '2'; expected 1"),
        ({"mlp_layer_types": ["sparse", "dense"] * 2}, "no list of 4 dense, then sparse layers"),
        ({"mlp_layer_types": ["dense"]}, "no list of 4 dense, then sparse layers"),
        (
            {"rope_scaling": {"type": "yarn", "factor": 4.0, "mscale": 0.7, "mscale_all_dim": 1.0}
             | {"original_max_position_embeddings": 32}},
            "mscale is 0.7; expected 1.0",
        ),
        (
            {"model_type": "deepseek_v2", "scoring_func": "softmax", "norm_topk_prob": True}
            | {"routed_scaling_factor": 16.0},
            "routed_scaling_factor is '16.0'; expected 1.0",
        ),
    ],
)  # fmt: skip
def test_a_folder_that_asks_for_more_is_refused_by_name(
    changes: dict[str, object], said: str
) -> None:
    check_refused(lambda: translated(**changes), said)


HEADS, NOPE, VALUES, K = 3, 32, 24, 64
KV_B = "model.layers.0.self_attn.kv_b_proj"


def made_of(folder: Path, tensors: dict[str, tuple[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """What becomes of kv_b_proj: values by name, read in pieces of 7 rows."""
    path = folder / "model.safetensors"
    embedding = {"model.embed_tokens.weight": ("F32", np.zeros((4, 32), np.float32))}
    path.write_bytes(safetensors_bytes(embedding | tensors))
    said = {"quantization_config": dict(FORMATS["FP8 in blocks"].config)}
    quantization = read_quantization(HFReader("config.json", said)) if len(tensors) > 1 else None
    slots = Slots(("attn_k_b", "attn_v_b"), head_rows=(NOPE, VALUES))
    names = {"embed_tokens": "token_embd", "self_attn.kv_b_proj": slots}
    with MappedFile.open(path, hint="") as file:
        shard = Shard(file, read_table(file))
        config = HFConfig({}, names, quantization=quantization)
        found = translate_tensors(str(folder), [shard], config)
        model = ModelParts(folder, Metadata("", {}), found.tensors, [file], made=found.made)
        values = {}
        for name, tensor in model.tensors.items():
            pieces = [
                decode(model.read(name, np.empty(tensor.nbytes, np.uint8), (at, end)), tensor.type)
                for at in range(0, tensor.n_rows, 7)
                for end in [min(at + 7, tensor.n_rows)]
            ]
            values[name.removeprefix("blk.0.")] = np.concatenate(pieces).reshape(tensor.shape)
    return values


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_keys_of_heads_are_transposed_and_values_are_not(tmp_path: Path, dtype: str) -> None:
    matrix = np.random.default_rng(1).integers(-99, 99, (HEADS, NOPE + VALUES, K))
    rows = stored(matrix.reshape(-1, K).astype(np.float64), dtype)
    found = made_of(tmp_path, {f"{KV_B}.weight": (dtype, rows)})
    np.testing.assert_array_equal(found["attn_k_b.weight"], matrix[:, :NOPE].swapaxes(1, 2))
    np.testing.assert_array_equal(found["attn_v_b.weight"], matrix[:, NOPE:])


def test_heads_of_a_quantised_folder_are_its_values(tmp_path: Path) -> None:
    packed = fp8(np.random.default_rng(1).standard_normal((HEADS * (NOPE + VALUES), K)), "block")
    found = made_of(tmp_path, {f"{KV_B}{end}": each for end, each in packed.tensors.items()})
    matrix = packed.values.reshape(HEADS, NOPE + VALUES, K)
    for name, expected in (
        ("attn_k_b.weight", matrix[:, :NOPE].swapaxes(1, 2)),
        ("attn_v_b.weight", matrix[:, NOPE:]),
    ):
        assert np.abs(found[name] - expected).max() <= 0.005 * np.abs(matrix).max()  # as Q8_0


def test_rows_that_do_not_divide_into_heads_are_refused(tmp_path: Path) -> None:
    rows = np.zeros((HEADS * (NOPE + VALUES) + 1, K), np.float32)
    with pytest.raises(FormatError, match=r"expected a multiple of 56 rows, 32 and 24 for each"):
        made_of(tmp_path, {f"{KV_B}.weight": ("F32", rows)})
