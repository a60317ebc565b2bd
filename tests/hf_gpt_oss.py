"""Writes a tiny gpt-oss as a GGUF file, and as Hugging Face folders in MXFP4 and in floats."""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from family_models import CONTEXT, VOCAB, metadata_of, shapes
from gguf_writer import write_gguf
from hf_folder import NAMES, safetensors_bytes, stored, write_json
from hf_quantized import mxfp4, rounded_to

_NAMES = NAMES | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_gate_inp": "mlp.router",
}
CONFIG = {
    "architectures": ["GptOssForCausalLM"],
    "model_type": "gpt_oss",
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 32,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_local_experts": 6,
    "num_experts_per_tok": 2,
    "experts_per_token": 2,
    "max_position_embeddings": CONTEXT,
    "initial_context_length": 32,
    "sliding_window": 20,
    "layer_types": ["sliding_attention", "full_attention"] * 4,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "rope_scaling": {
        **{"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        **{"beta_fast": 32.0, "beta_slow": 1.0, "truncate": True},
    },
    "swiglu_limit": 7.0,
    "hidden_act": "silu",
    "attention_bias": True,
    "attention_dropout": 0.0,
    "router_aux_loss_coef": 0.9,
    "output_router_logits": False,
    "tie_word_embeddings": False,
}
QUANTIZATION = {
    "quant_method": "mxfp4",
    "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "lm_head"],
}


class Files(NamedTuple):
    gguf: Path  # all values as F32
    mxfp4: Path  # folders
    floats: Path


def write_gpt_oss(place: Path) -> Files:
    """One model in three forms; its experts' values are such as MXFP4 has."""
    random = np.random.default_rng(12)
    metadata = metadata_of("gpt-oss")
    values: dict[str, np.ndarray] = {}
    for name, shape in shapes("gpt-oss", metadata).items():
        if name.endswith("_exps.weight"):
            values[name] = mxfp4(shape[-1] ** -0.5 * random.standard_normal(shape)).values
        else:
            spread = 0.5 if len(shape) == 1 or "bias" in name else shape[-1] ** -0.5
            values[name] = (spread * random.standard_normal(shape)).astype(np.float32)
        if name.endswith("_exps.bias"):  # the folder in MXFP4 has them in BF16
            values[name] = rounded_to(values[name], "BF16")[1]
    specs = [(name, "f32", each.shape, each.astype(np.float32)) for name, each in values.items()]
    gguf = write_gguf(place / "model.gguf", metadata, specs)
    packed, floats = {}, {}
    for name, each in values.items():
        if "_exps." not in name:
            packed[_hf_name(name)] = floats[_hf_name(name)] = "F32", stored(each, "F32")
    for layer in range(8):
        stem, experts = f"blk.{layer}", f"model.layers.{layer}.mlp.experts"
        for kind in ("weight", "bias"):
            both = (values[f"{stem}.ffn_{part}_exps.{kind}"] for part in ("gate", "up"))
            together = np.stack(list(both), axis=2)  # rows (of a bias: values) alternate
            shape = (6, 64, 64) if kind == "weight" else (6, 64)
            down = values[f"{stem}.ffn_down_exps.{kind}"]
            for name, each in (("gate_up_proj", together.reshape(shape)), ("down_proj", down)):
                if kind == "bias":
                    packed[f"{experts}.{name}_bias"] = "BF16", stored(each, "BF16")
                    floats[f"{experts}.{name}_bias"] = "F32", stored(each, "F32")
                    continue
                for suffix, tensor in mxfp4(each).tensors.items():
                    packed[f"{experts}.{name}{suffix}"] = tensor
                turned = np.ascontiguousarray(each.swapaxes(1, 2))
                floats[f"{experts}.{name}"] = "F32", stored(turned, "F32")
    quantised = CONFIG | {"quantization_config": QUANTIZATION}
    return Files(
        gguf,
        _write(place / "mxfp4", quantised, packed),
        _write(place / "floats", CONFIG, floats),
    )


def _hf_name(name: str) -> str:
    layer, stem, suffix = re.fullmatch(r"(?:blk\.(\d+)\.)?(.*)\.(\w+)", name).groups()
    if stem == "attn_sinks":
        return f"model.layers.{layer}.self_attn.sinks"
    return f"{'' if layer is None else f'model.layers.{layer}.'}{_NAMES[stem]}.{suffix}"


def _write(folder: Path, config: dict, arrays: dict) -> Path:
    folder.mkdir()
    write_json(folder / "config.json", config)
    vocabulary = {f"t{id}": id for id in range(VOCAB)}
    tokenizer = {
        "added_tokens": [],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    }
    write_json(folder / "tokenizer.json", tokenizer)
    (folder / "model.safetensors").write_bytes(safetensors_bytes(arrays))
    return folder
