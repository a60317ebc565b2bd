"""Writes the tiny models as Hugging Face folders, by hand: no transformers, nothing of airllm.

Names, the order of Llama's Q and K and the 1 in Gemma's norms are undone here as llama.cpp's
converter does them.
"""

import json
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tiny_model import CHAT_TEMPLATE, MERGES, SPECIAL, Sizes, TinyModel, vocabulary_tokens

Arrays = Mapping[str, tuple[str, np.ndarray]]  # by name: "BF16", and the array whose bytes it is


def safetensors_bytes(tensors: Arrays, metadata: Mapping[str, str] | None = None) -> bytes:
    """A file, its tensors in the order given."""
    table: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    data = b""
    for name, (dtype, array) in tensors.items():
        raw = np.ascontiguousarray(array).tobytes()
        offsets = [len(data), len(data) + len(raw)]
        table[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": offsets}
        data += raw
    return table_bytes(json.dumps(table).encode()) + data


def table_bytes(header: bytes) -> bytes:
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header


def write_folder(
    folder: Path,
    model: TinyModel,
    *,
    dtype: str = "F32",
    n_shards: int = 1,
    config: Mapping[str, object] | None = None,
    fused_experts: bool = False,
) -> Path:
    """config: entries in place of the valid ones; None leaves one out."""
    folder.mkdir(exist_ok=True)
    arrays = {
        name: (dtype, stored(values, dtype))
        for name, values in hf_values(model, fused_experts=fused_experts).items()
    }
    if n_shards == 1:
        (folder / "model.safetensors").write_bytes(safetensors_bytes(arrays, {"format": "pt"}))
    else:
        write_shards(folder, arrays, n_shards)
    described = hf_config(model.sizes, len(vocabulary_tokens()), dtype)
    described["tie_word_embeddings"] = "output.weight" not in model.tensors
    write_json(folder / "config.json", described | dict(config or {}))
    write_json(folder / "tokenizer.json", tokenizer())
    settings = {"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}}
    write_json(folder / "tokenizer_config.json", settings | {"chat_template": CHAT_TEMPLATE})
    return folder


def write_shards(folder: Path, arrays: Arrays, count: int) -> None:
    """Every so-many-th tensor in each file, and the index."""
    names, places = list(arrays), {}
    for index in range(count):
        file = f"model-{index + 1:05}-of-{count:05}.safetensors"
        own = names[index::count]
        (folder / file).write_bytes(safetensors_bytes({name: arrays[name] for name in own}))
        places |= dict.fromkeys(own, file)
    index_entry = {"metadata": {"total_size": 1}, "weight_map": places}
    write_json(folder / "model.safetensors.index.json", index_entry)


def write_json(path: Path, value: Mapping[str, object]) -> None:
    path.write_text(json.dumps({key: item for key, item in value.items() if item is not None}))


def stored(values: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "BF16":
        return (values.astype("<f4").view("<u4") >> 16).astype("<u2")
    return values.astype("<f4" if dtype == "F32" else "<f2")


MODEL_TYPES = {"gemma3": "gemma3_text", "qwen3moe": "qwen3_moe"}


def hf_config(sizes: Sizes, n_vocab: int, dtype: str) -> dict[str, object]:
    kind = MODEL_TYPES.get(sizes.arch, sizes.arch)
    config: dict[str, object] = {
        "architectures": ["ForCausalLM"],
        "model_type": "mistral" if kind == "llama" and sizes.window else kind,
        "dtype": {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}[dtype],
        "transformers_version": "5.0.0",
        "vocab_size": n_vocab,
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.ffn,
        "num_hidden_layers": sizes.n_layers,
        "num_attention_heads": sizes.n_heads,
        "num_key_value_heads": sizes.n_kv_heads,
        "head_dim": sizes.head_dim,
        "max_position_embeddings": sizes.context,
        "rms_norm_eps": sizes.eps,
        "rope_theta": sizes.theta,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if sizes.window:
        config["sliding_window"] = sizes.window
    if sizes.n_experts:
        config |= {"num_experts": sizes.n_experts, "num_experts_per_tok": sizes.n_used}
        config |= {"moe_intermediate_size": sizes.ffn, "norm_topk_prob": True}
    if sizes.arch.startswith("gemma"):
        config |= {"hidden_act": "gelu_pytorch_tanh", "query_pre_attn_scalar": sizes.head_dim}
        config |= {"hidden_activation": "gelu_pytorch_tanh"}
        config["attn_logit_softcapping"] = sizes.attention_softcap or None
        config["final_logit_softcapping"] = sizes.final_softcap or None
    if sizes.arch == "gemma3":
        config |= {"rope_local_base_freq": sizes.window_theta}
        config |= {"sliding_window_pattern": sizes.window_period}
    return config


def tokenizer() -> dict[str, object]:
    """That of the tiny models: GPT-2's words, each digit by itself."""
    added = [{"id": id, "content": text, "special": True} for id, text in enumerate(SPECIAL)]
    return {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
            ],
        },
        "post_processor": None,
        "decoder": {"type": "ByteLevel"},
        "model": {
            "type": "BPE",
            "vocab": {text: id for id, text in enumerate(vocabulary_tokens())},
            "merges": MERGES,
        },
    }


NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
}
_GEMMA_NAMES = NAMES | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}


def hf_values(model: TinyModel, *, fused_experts: bool = False) -> dict[str, np.ndarray]:
    """The values of each tensor by the name that transformers gives it."""
    arch, found = model.sizes.arch, {}
    gemma = arch.startswith("gemma")
    for name, values in model.tensors.items():
        layer, stem, suffix = re.fullmatch(r"(?:blk\.(\d+)\.)?(.*)\.(\w+)", name).groups()
        place = "" if layer is None else f"model.layers.{layer}."
        if stem.endswith("_exps"):
            part = stem.removeprefix("ffn_").removesuffix("_exps")
            if fused_experts:
                found[f"{place}mlp.experts.{part}"] = values
                continue
            for expert, matrix in enumerate(values):
                found[f"{place}mlp.experts.{expert}.{part}_proj.weight"] = matrix
            continue
        if gemma and stem.endswith("norm"):
            values = values - 1.0
        if arch == "llama" and stem in ("attn_q", "attn_k"):
            values = _halves(values, model.sizes.head_dim)
        found[f"{place}{(_GEMMA_NAMES if gemma else NAMES)[stem]}.{suffix}"] = values
    return _fused(found) if fused_experts else found


def _halves(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """Rows of each head in the order 0, 2, ..., 1, 3, ...: rope's pairs are half a head apart."""
    pairs = rows.reshape(-1, head_dim // 2, 2, rows.shape[-1])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def _fused(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Gate and up of all experts in one tensor, [n_experts, 2 * n, k], and down in another."""
    fused = {}
    for name, value in values.items():
        place, _, part = name.rpartition(".")
        if part == "gate":
            fused[f"{place}.gate_up_proj"] = np.concatenate([value, values[f"{place}.up"]], axis=1)
        elif part == "down":
            fused[f"{place}.down_proj"] = value
        elif part != "up":
            fused[name] = value
    return fused
