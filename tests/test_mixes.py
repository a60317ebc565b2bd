"""The types of tensors in the mixes that people know by name: those that llama-quantize chooses."""

from collections.abc import Mapping

import numpy as np
import pytest
from gguf_writer import write_gguf

from airllm.formats.gguf import GGUFFile
from airllm.formats.mixes import FILE_TYPES, MIXES, ChosenTypes, chosen_types

# Layers whose attn_v and ffn_down have more bits in q4_k_m and q5_k_m, of 22.
MORE_BITS_OF_22 = [0, 1, 4, 7, 10, 13, 16, 19, 20, 21]


def chosen(tmp_path, mix: str, tensors: Mapping[str, tuple[int, ...]], **keys: object):
    """For a model with these tensors. keys: of its metadata."""
    arch = str(keys.pop("arch", "llama"))
    metadata = {"general.architecture": arch}
    metadata |= {f"{arch}.{key.replace('__', '.')}": value for key, value in keys.items()}
    data = [(name, "f32", shape, np.zeros(shape, np.float32)) for name, shape in tensors.items()]
    with GGUFFile.open(write_gguf(tmp_path / "m.gguf", metadata, data)) as file:
        return chosen_types(file, mix)


def model(n_layers: int, *, k: int = 256, n_experts: int = 0, tied: bool = False, qkv=False):
    names = ["attn_qkv"] if qkv else ["attn_q", "attn_k", "attn_v"]
    tensors = {"token_embd.weight": (2, k), "output_norm.weight": (k,)}
    if not tied:
        tensors["output.weight"] = (2, k)
    for layer in range(n_layers):
        for name in (*names, "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
            experts = n_experts and name.startswith("ffn")
            suffix, shape = ("_exps", (n_experts, 2, k)) if experts else ("", (2, k))
            tensors[f"blk.{layer}.{name}{suffix}.weight"] = shape
        tensors[f"blk.{layer}.attn_norm.weight"] = (k,)
        if n_experts:
            tensors[f"blk.{layer}.ffn_gate_inp.weight"] = (n_experts, k)
    return tensors


def heads(n: int, n_kv: int, n_layers: int, **more: object):
    return {
        "block_count": n_layers,
        "attention__head_count": n,
        "attention__head_count_kv": n_kv,
        **more,
    }


def of_slot(found: ChosenTypes, slot: str) -> list[str]:
    """In the order of layers."""
    of_layer = {int(n.split(".")[1]): t for n, t in found.types.items() if f".{slot}." in n}
    return [of_layer[layer] for layer in sorted(of_layer)]


# What llama_model_quantize of llama.cpp 0.5 makes of such a model of 22 layers, 8 heads of which 4
# share keys: {slot: the types of its layers}, other matrices having the mix's own.
Q6_SOMEWHERE = {
    slot: ["q6_k" if layer in MORE_BITS_OF_22 else None for layer in range(22)]
    for slot in ("attn_v", "ffn_down")
}
MORE_BITS_OF_LOGITS = {"mxfp4_moe": "q8_0"}
LLAMA_QUANTIZE: dict[str, tuple[str, dict[str, list[str | None]]]] = {
    "q6_k": ("q6_k", {}),
    "q5_k_m": ("q5_k", Q6_SOMEWHERE),
    "q5_k_s": ("q5_k", {}),
    "q4_k_m": ("q4_k", Q6_SOMEWHERE),
    "q4_k_s": (
        "q4_k",
        {"attn_v": ["q5_k"] * 4 + [None] * 18, "ffn_down": ["q5_k"] * 2 + [None] * 20},
    ),
    "q3_k_l": (
        "q3_k",
        {slot: ["q5_k"] * 22 for slot in ("attn_v", "ffn_down", "attn_output")},
    ),
    "q3_k_m": (
        "q3_k",
        {
            "attn_v": ["q5_k"] * 2 + ["q4_k"] * 20,
            "ffn_down": ["q5_k"] + ["q4_k"] * 21,
            "attn_output": ["q4_k"] * 22,
        },
    ),
    "q3_k_s": ("q3_k", {}),
    "q2_k": (
        "q2_k",
        {"attn_v": ["q4_k"] * 22, "ffn_down": ["q3_k"] * 22, "attn_output": ["q3_k"] * 22},
    ),
    "q2_k_s": (
        "q2_k",
        {"attn_v": ["q4_k"] * 22, "ffn_down": ["q4_k"] * 2 + [None] * 20},
    ),
    "mxfp4_moe": ("q8_0", {}),
}


@pytest.mark.parametrize("mix", MIXES)
def test_tensors_have_the_types_that_llama_quantize_gives_them(tmp_path, mix):
    found = chosen(tmp_path, mix, model(22), **heads(8, 2, 22))
    own, others = LLAMA_QUANTIZE[mix]
    for slot in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        expected = [type or own for type in others.get(slot, [None] * 22)]
        assert of_slot(found, slot) == expected, slot
    assert found.types["output.weight"] == MORE_BITS_OF_LOGITS.get(mix, "q6_k")
    assert found.types["token_embd.weight"] == own
    assert found.types["output_norm.weight"] == "f32"
    assert not found.fallbacks


@pytest.mark.parametrize("mix", MIXES)
def test_the_embedding_that_makes_the_logits_has_6_bits_or_more(tmp_path, mix):
    found = chosen(tmp_path, mix, model(1, tied=True), **heads(8, 8, 1))
    assert found.types["token_embd.weight"] == MORE_BITS_OF_LOGITS.get(mix, "q6_k")


@pytest.mark.parametrize(("mix", "values"), [("q2_k", "q3_k"), ("q2_k_s", "q2_k")])
def test_heads_that_share_no_keys_have_fewer_bits_in_q2_k(tmp_path, mix, values):
    found = chosen(tmp_path, mix, model(2), **heads(8, 4, 2))
    assert of_slot(found, "attn_v") == [values] * 2


def test_matrices_that_are_stacked_are_mxfp4_in_its_mix(tmp_path):
    found = chosen(tmp_path, "mxfp4_moe", model(2, n_experts=8), **heads(8, 2, 2, expert_count=8))
    for slot in ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"):
        assert of_slot(found, slot) == ["mxfp4"] * 2
    for slot in ("attn_q", "attn_k", "attn_v", "attn_output"):
        assert of_slot(found, slot) == ["q8_0"] * 2
    assert found.types["output.weight"] == found.types["token_embd.weight"] == "q8_0"


def test_queries_keys_and_values_in_one_matrix_count_as_values(tmp_path):
    found = chosen(tmp_path, "q4_k_m", model(16, qkv=True), arch="phi3", **heads(4, 4, 16))
    more = [0, 1, 4, 7, 10, 13, 14, 15]
    assert of_slot(found, "attn_qkv") == ["q6_k" if n in more else "q4_k" for n in range(16)]


def test_a_model_of_8_experts_has_more_bits_in_its_attention(tmp_path):
    for mix, output in (("q4_k_m", "q5_k"), ("q5_k_m", "q5_k"), ("q3_k_l", "q3_k")):
        found = chosen(tmp_path, mix, model(2, n_experts=8), **heads(8, 2, 2, expert_count=8))
        assert of_slot(found, "attn_k") == of_slot(found, "attn_v") == ["q8_0"] * 2
        assert of_slot(found, "attn_output") == [output] * 2
        assert of_slot(found, "ffn_gate_inp") == ["f32"] * 2


def test_the_layer_of_an_experts_matrix_is_that_of_its_name(tmp_path):
    """The first layer is dense, so the first matrix of experts is that of the second."""
    tensors = model(9, n_experts=4)
    del tensors["blk.0.ffn_down_exps.weight"]
    found = chosen(tmp_path, "q4_k_m", tensors, **heads(8, 2, 9, expert_count=4))
    more = [3, 6, 7, 8]
    assert of_slot(found, "ffn_down_exps") == ["q6_k" if n in more else "q4_k" for n in range(1, 9)]


@pytest.mark.parametrize(
    ("arch", "n_kv_heads", "values"),
    [("llama", 1, "q5_k"), ("llama", 8, "q4_k"), ("qwen2", 8, "q5_k")],
)
def test_values_of_80_layers_that_share_keys_have_5_bits(tmp_path, arch, n_kv_heads, values):
    keys = heads(8, n_kv_heads, 80)
    found = chosen(tmp_path, "q4_k_m", {"blk.12.attn_v.weight": (2, 256)}, arch=arch, **keys)
    # One attn_v alone is the first and the last of its kind.
    assert of_slot(found, "attn_v") == ["q6_k"]
    found = chosen(tmp_path, "q3_k_s", {"blk.12.attn_v.weight": (2, 256)}, arch=arch, **keys)
    assert of_slot(found, "attn_v") == [{"q4_k": "q3_k"}.get(values, values)]


@pytest.mark.parametrize(
    ("mix", "found_types"),
    [
        ("q6_k", "q8_0"),
        ("q5_k_s", "q5_1"),
        ("q4_k_s", "q5_0"),
        ("q3_k_s", "q4_0"),
        ("q2_k", "q4_0"),
    ],
)
def test_rows_that_are_no_multiple_of_256_get_blocks_of_32(tmp_path, mix, found_types):
    found = chosen(tmp_path, mix, model(8, k=160), **heads(4, 4, 8))
    own = MIXES[mix].type
    assert found.types["blk.7.ffn_up.weight"] == found_types
    assert found.fallbacks["blk.7.ffn_up.weight"] == (own, found_types)
    assert found.types["output.weight"] == "q8_0"


def test_rows_that_are_no_multiple_of_32_are_f16(tmp_path):
    found = chosen(tmp_path, "q4_k_m", {"blk.0.ffn_up.weight": (2, 40)}, **heads(4, 4, 1))
    assert found.types["blk.0.ffn_up.weight"] == "f16"
    assert found.fallbacks["blk.0.ffn_up.weight"] == ("q4_k", "f16")


def test_small_matrices_keep_their_type(tmp_path):
    names = ("per_layer_model_proj.weight", "blk.0.altup_router.weight")
    found = chosen(tmp_path, "q4_k_m", dict.fromkeys(names, (4, 256)), **heads(4, 4, 1))
    assert set(found.types.values()) == {"f32"}


@pytest.mark.parametrize("type", ["q8_0", "q4_k_m"])
def test_norms_with_a_row_for_each_head_are_float32(tmp_path, type):
    found = chosen(tmp_path, type, {"blk.0.attn_q_norm.weight": (4, 256)}, **heads(4, 4, 1))
    assert found.types["blk.0.attn_q_norm.weight"] == "f32"


def test_the_filters_behind_n_grams_are_float32(tmp_path):
    names = {"blk.1.ple_conv1d.weight": (192, 4), "blk.1.ple_key.weight": (192, 256)}
    for type in ("q8_0", "q4_k_m"):
        found = chosen(tmp_path, type, names, arch="qwen4exp", **heads(4, 4, 2)).types
        assert found["blk.1.ple_conv1d.weight"] == "f32"
        assert found["blk.1.ple_key.weight"] != "f32"


def test_a_matrix_of_one_row_is_a_vector(tmp_path):
    found = chosen(tmp_path, "q4_k_m", {"blk.0.gate.weight": (1, 256)}, **heads(4, 4, 1))
    assert found.types["blk.0.gate.weight"] == "f32"


@pytest.mark.parametrize("short", ["q3_k", "q4_k", "q5_k"])
def test_a_name_without_a_size_is_the_medium_mix(tmp_path, short):
    tensors, keys = model(22), heads(8, 2, 22)
    assert chosen(tmp_path, short, tensors, **keys) == chosen(
        tmp_path, f"{short}_m", tensors, **keys
    )


def test_each_mix_has_its_own_number_in_files():
    shared = {"mxfp4"}  # llama.cpp has a number for mxfp4_moe alone
    numbers = [number for name, number in FILE_TYPES.items() if name not in shared]
    assert len(set(numbers)) == len(numbers)
    assert FILE_TYPES["q4_k_m"] == 15


def test_an_unknown_mix_is_refused(tmp_path):
    with pytest.raises(ValueError, match="type is 'q4_k_xl'; expected one of q8_0, q6_k, q5_k_m"):
        chosen(tmp_path, "q4_k_xl", model(1), **heads(4, 4, 1))
