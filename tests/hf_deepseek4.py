"""Writes a tiny DeepSeek V4 as its makers publish it: other names than transformers' folders have,
experts in MXFP4, matrices in FP8 with scales that are powers of two, and other keys of
config.json."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from hf_case import Case
from hf_folder import safetensors_bytes, write_json
from hf_quantized import E4M3, mxfp4, nearest_e4m3

# Matrices in FP8, as in DeepSeek-V4-Flash.
_FP8 = ("wq_a", "wq_b", "wkv", "wo_a", "wo_b", "w1", "w2", "w3")
_BLOCK = 128
QUANTIZATION = {
    **{"quant_method": "fp8", "fmt": "e4m3", "scale_fmt": "ue8m0"},
    **{"activation_scheme": "dynamic", "weight_block_size": [_BLOCK, _BLOCK]},
}


def with_published_groups(case: Case) -> Case:
    """The case with groups of as many positions as published models have."""
    rates = {"compressed_sparse_attention": 4, "heavily_compressed_attention": 128}
    return replace(case, config=case.config | {"compress_rates": rates})


def write_published(folder: Path, saved: Path, model: Any, *, fp8: bool = True) -> Path:
    """saved: the model as save_pretrained writes it, with a tokeniser. fp8: or the matrices that
    are no experts' stay F32. Gives `model` the values that the folder has."""
    import torch
    from safetensors.numpy import load_file

    folder.mkdir(exist_ok=True)
    arrays: dict[str, tuple[str, np.ndarray]] = {}
    values = {}
    for path in saved.glob("*.safetensors"):
        values |= load_file(path)
    for name, array in values.items():
        arrays |= _stored(_published(name), array, fp8)
    (folder / "model.safetensors").write_bytes(safetensors_bytes(arrays, {"format": "pt"}))
    (folder / "tokenizer.json").write_text((saved / "tokenizer.json").read_text())
    config = json.loads((saved / "config.json").read_text())
    write_json(folder / "config.json", _config(config))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            parts = weight if name.endswith(("gate_up_proj", "down_proj")) else [weight]
            for part in parts:
                part.copy_(torch.from_numpy(_rounded(name, part.numpy(), fp8)))
    return folder


def _published(name: str) -> str:
    name = name.removeprefix("model.")
    for old, new in (
        ("embed_tokens.", "embed."),
        ("hc_head.hc_", "hc_head_"),
        (".attn.norm.", ".attn.kv_norm."),
    ):
        name = name.replace(old, new)
    return name


def _stored(name: str, values: np.ndarray, fp8: bool) -> dict[str, tuple[str, np.ndarray]]:
    stem = name.removesuffix(".weight")
    if ".experts." in name:
        packed = mxfp4(values.astype(np.float64))
        codes, scales = (packed.tensors[part][1] for part in ("_blocks", "_scales"))
        codes = codes.reshape(len(codes), -1).view(np.int8)
        return {name: ("I8", codes), f"{stem}.scale": ("F8_E8M0", scales)}
    if fp8 and stem.endswith(_FP8) and "compressor" not in name and "indexer" not in name:
        codes, exponents = _fp8(values)
        return {name: ("F8_E4M3", codes), f"{stem}.scale": ("F8_E8M0", exponents)}
    if values.dtype == np.int64:
        return {name: ("I64", values)}
    return {name: ("F32", values)}


def _fp8(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes, and the biased exponent of each block."""
    n, k = values.shape
    exponents = np.empty((-(-n // _BLOCK), -(-k // _BLOCK)), np.uint8)
    codes = np.empty((n, k), np.uint8)
    for i, j in np.ndindex(exponents.shape):
        place = np.s_[i * _BLOCK : (i + 1) * _BLOCK, j * _BLOCK : (j + 1) * _BLOCK]
        exponent = np.ceil(np.log2(np.abs(values[place]).max() / 448))
        exponents[i, j] = exponent + 127
        codes[place] = nearest_e4m3(values[place] / 2.0**exponent)
    return codes, exponents


def _rounded(name: str, values: np.ndarray, fp8: bool) -> np.ndarray:
    """What the folder has of one of transformers' weights."""
    if ".mlp.experts." in name:
        return mxfp4(values.astype(np.float64)).values.astype(np.float32)
    attends = ".self_attn." in name and "compressor" not in name and name.endswith("proj.weight")
    if not fp8 or (not attends and ".shared_experts." not in name):
        return values
    codes, exponents = _fp8(values)
    n, k = values.shape
    scales = np.repeat(np.repeat(2.0 ** (exponents - 127.0), _BLOCK, 0), _BLOCK, 1)[:n, :k]
    return (E4M3[codes] * scales).astype(np.float32)


def _config(saved: dict[str, Any]) -> dict[str, Any]:
    """The keys of the published config.json."""
    config = dict(saved)
    rates = {"sliding_attention": 0} | config.pop("compress_rates")
    layers, kinds = config.pop("layer_types"), config.pop("mlp_layer_types")
    rope = config.pop("rope_parameters")["compress"]
    config.pop("partial_rotary_factor", None)
    guessing = config["num_nextn_predict_layers"]  # their layers have no groups
    scaling = ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow")
    return config | {
        "compress_ratios": [rates[kind] for kind in layers] + [0] * guessing,
        "compress_rope_theta": rope["rope_theta"],
        "num_hash_layers": kinds.count("hash_moe"),
        "rope_scaling": {"type": "yarn"} | {key: rope[key] for key in scaling if key in rope},
        "topk_method": "noaux_tc",
        "expert_dtype": "fp4",
        "quantization_config": QUANTIZATION,
    }
