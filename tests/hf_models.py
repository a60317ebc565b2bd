"""Tiny random models of Hugging Face `transformers`, and the same models as GGUF files.

The names of tensors and keys, the order of Llama's Q and K and the 1 in Gemma's norms are those of
llama.cpp's converter. Nothing is downloaded.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hf_case import AFTER, CONTEXT, VOCAB, Case
from hf_older import in_order, numbers_of_layers

from airllm.formats.gguf_writer import GGUFWriter, TensorInfo
from airllm.numpy_ops import quantize

try:
    import torch
    import transformers
    from safetensors.torch import load_file, save_file

    _why_not = ""
except ImportError as error:
    _why_not = f"`pip install .[test-hf]` brings what this needs ({error})"


def require_hf() -> None:
    """Skip the test where torch or transformers is missing; with AIRLLM_REQUIRE_HF=1, fail it."""
    if _why_not and os.environ.get("AIRLLM_REQUIRE_HF") == "1":
        pytest.fail(_why_not)
    if _why_not:
        pytest.skip(_why_not)


def build(case: Case) -> Any:
    """The model, float32, with weights of a size that keeps activations about 1."""
    sizes = {
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": case.arch.startswith("gemma"),
    }
    # That are part of a model that sees pictures.
    texts = (
        "Gemma3",
        "Gemma3n",
        "Gemma4",
        "Llama4",
        "MiniMaxM3VL",
        "Qwen3_5",
        "Qwen3_5Moe",
        "Qwen4Exp",
    )
    part = "Text" if case.family in texts and not case.sees else ""
    config_class = f"{case.family}{part}Config"
    values = sizes | case.config
    if case.sees:
        vision = {"depth": 1, "hidden_size": 16, "embed_dim": 16, "intermediate_size": 16}
        vision |= {"num_heads": 2, "patch_size": 2, "num_position_embeddings": 4}
        vision |= {"out_hidden_size": 64, "deepstack_visual_indexes": [0]}
        if case.family == "Gemma4Unified":
            vision = {"mm_embed_dim": 16, "mm_posemb_size": 4, "patch_size": 2}
            vision |= {"output_proj_dims": 64}
        elif case.gemma:
            vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
            vision |= {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}
        elif case.arch in ("glm4", "glm4moe"):
            vision["image_size"] = 8
        elif case.arch == "exaone4":
            vision |= {"num_key_value_heads": 2, "fullatt_block_indexes": [0]}
        elif case.arch == "step35":
            vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
            vision |= {"image_size": 8, "patch_size": 2}
        elif case.arch == "minimax-m3":
            vision = {"hidden_size": 24, "intermediate_size": 16, "num_hidden_layers": 1}
            vision |= {"num_attention_heads": 2, "image_size": 8, "patch_size": 2}
        elif case.arch == "muse-glimmer":
            vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
            vision |= {"num_attention_heads": 2, "pos_emb_height": 4, "pos_emb_width": 4}
        elif case.arch in ("hunyuan_vl", "hy_v4"):
            vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
            vision |= {"num_attention_heads": 2, "out_hidden_size": 64, "max_image_size": 64}
        elif case.arch == "llama4":
            vision = {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 1}
            vision |= {"num_attention_heads": 2, "image_size": 8, "patch_size": 2}
            vision |= {"vision_output_dim": 16, "projector_input_dim": 16}
            vision |= {"projector_output_dim": 16}
        values = {"text_config": values, "vision_config": vision, "tie_word_embeddings": case.gemma}
        if case.arch == "muse-glimmer":
            values |= {"out_hidden_size": 64, "projector_hidden_size": 16}
    config = getattr(transformers, config_class)(**values)
    config.get_text_config().allow_global_per_layer_attribute_access = True
    config._attn_implementation = "eager"  # the one that caps scores
    task = "ConditionalGeneration" if case.sees else "CausalLM"
    family = "MiniMaxM3Sparse" if case.sees and case.arch == "minimax-m3" else case.family
    name = _CLASSES.get(family, f"{family}For{task}")
    model = getattr(transformers, name)(config).float().eval()
    random = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if re.search(r"(norm(_\d)?|\bln_\w+)\.weight$", name):
                centre = 0.0 if case.adds_one(name) else 1.0
                weight.uniform_(centre - 0.5, centre + 0.5, generator=random)
                if case.arch in ("gemma3n", "gemma4") and name.endswith("q_norm.weight"):
                    weight *= len(weight) ** -0.5  # nothing else makes its scores small
            else:
                spread = 0.5 if weight.ndim == 1 else weight.shape[-1] ** -0.5
                spread *= _SPREADS.get(".".join(name.split(".")[-3:]), 1.0)
                weight.normal_(0.0, spread, generator=random)
                if name.endswith("dt_proj.bias"):
                    weight -= 3.0  # short steps and a long memory, as trained models have
                if name.endswith("router.scale"):
                    weight *= weight.shape[-1] ** 0.5  # or all experts would be nearly equal
                elif name.endswith("per_expert_scale"):
                    weight.uniform_(0.5, 1.5, generator=random)
        for name, buffer in model.named_buffers():
            if name.endswith(("e_score_correction_bias", "expert_bias")):
                buffer.uniform_(-0.3, 0.3, generator=random)
            elif name.endswith("tid2eid"):  # different experts of each token
                chosen = torch.rand(len(buffer), case.n_experts, generator=random)
                buffer.copy_(chosen.argsort(dim=1)[:, : buffer.shape[1]])
            elif name.endswith("layer_scalar"):
                buffer.uniform_(0.5, 1.5, generator=random)
    return model


def logits(model: Any, tokens: list[int]) -> np.ndarray:
    """float32 [n_tokens, vocab]"""
    if type(model).__name__ == "Llama4ForConditionalGeneration":
        model = model.language_model  # a call of the whole fails without a picture
    with torch.no_grad():
        return np.asarray(model(torch.tensor([tokens])).logits[0])


def write_gguf(path: Path, case: Case, model: Any, type: str = "f32") -> Path:
    """type: of the matrices; vectors are f32."""
    tensors = {name: (_type(name, values, type), values) for name, values in _tensors(case, model)}
    infos = [TensorInfo(name, kind, values.shape) for name, (kind, values) in tensors.items()]
    metadata = _metadata(case, model.config.get_text_config()) | numbers_of_layers(case, model)
    with GGUFWriter(path, metadata, infos) as writer:
        for name, (kind, values) in tensors.items():
            stored = values.astype(np.int32) if kind == "i32" else values
            writer.write(name, stored if kind in ("f32", "i32") else quantize(values, kind))
    return path


def _type(name: str, values: np.ndarray, type: str) -> str:
    if values.dtype.kind == "i":
        return "i32"
    return type if values.ndim > 1 and not name.endswith(_EXACT) else "f32"


def write_folder(folder: Path, case: Case, model: Any, n_shards: int = 1) -> Path:
    """As save_pretrained writes it, and a tokeniser of as many tokens, whatever they are."""
    n_bytes = sum(weight.nbytes for weight in model.state_dict().values())
    model.save_pretrained(folder, max_shard_size=n_bytes // n_shards + 1)
    assert len(list(folder.glob("*.safetensors"))) >= n_shards
    config = json.loads((folder / "config.json").read_text())
    left_out = {key for key, value in case.extra.items() if value is None}
    config = {key: value for key, value in (config | case.extra).items() if key not in left_out}
    (folder / "config.json").write_text(json.dumps(config))
    for old, new in case.renamed:
        _rename(folder, old, new)
    if case.arch == "qwen3vlmoe":
        _store_experts_by_columns(folder)
    tokenizer = {
        "added_tokens": [],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False},
        "model": {"type": "BPE", "vocab": {f"t{id}": id for id in range(VOCAB)}, "merges": []},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


def _rename(folder: Path, old: str, new: str) -> None:
    """Replace a part of tensors' names."""
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        named = {name.replace(old, new): values for name, values in tensors.items()}
        save_file(named, path)
    for path in folder.glob("*.index.json"):
        path.write_text(path.read_text().replace(old, new))


def _store_experts_by_columns(folder: Path) -> None:
    """As published folders have them, and llama.cpp's converter takes them."""
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        for name, values in tensors.items():
            if "mlp.experts." in name:
                tensors[name] = values.transpose(1, 2).contiguous()
        save_file(tensors, path)


def _metadata(case: Case, config: Any) -> dict[str, object]:
    entries: dict[str, object] = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": getattr(config, "intermediate_size", 0),
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": getattr(config, "num_key_value_heads", 0),
    }
    if "attention.layer_norm_epsilon" in case.metadata:
        pass
    elif hasattr(config, "layer_norm_eps"):
        entries["attention.layer_norm_epsilon"] = config.layer_norm_eps
    else:
        names = ("rms_norm_eps", "norm_eps", "layer_norm_epsilon")
        eps = next(getattr(config, name) for name in names if hasattr(config, name))
        entries["attention.layer_norm_rms_epsilon"] = eps
    if "head_dim" in case.config:
        entries["attention.key_length"] = entries["attention.value_length"] = config.head_dim
    rope = _rope(config)
    if "rope_theta" in rope:
        entries["rope.freq_base"] = float(rope["rope_theta"])
    if case.n_experts:
        entries |= {
            "expert_count": case.n_experts,
            "expert_used_count": case.n_experts_used,
            "expert_feed_forward_length": getattr(config, "moe_intermediate_size", None)
            or config.intermediate_size,
        }
    entries |= case.metadata
    return {
        "general.architecture": case.arch,
        **{f"{case.arch}.{key}": value for key, value in entries.items()},
    }


def _tensors(case: Case, model: Any) -> Iterator[tuple[str, np.ndarray]]:
    config = model.config.get_text_config()
    for name, parameter in model.state_dict().items():
        values = parameter.numpy()
        if any(part in name for part in _SIGHT):
            continue
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if ".act_fn." in name:
            continue  # metadata, see numbers_of_layers
        values = in_order(config, name, values)
        if case.arch == "bailingmoe2" and (head := _OF_THREE.fullmatch(name)):
            if head["part"] == "q":  # GGUF has one matrix for all
                of = [f"{head['before']}{part}_proj.weight" for part in "qkv"]
                joined = np.concatenate([model.state_dict()[each].numpy() for each in of])
                yield _gguf_name(case, f"{head['before']}qkv_proj.weight"), joined
            continue
        if ".mlp.experts." in name and case.arch == "gpt-oss":
            yield from _of_gpt_oss(name, values)
            continue
        if ".feed_forward.experts." in name and case.arch == "llama4":
            values = values.swapaxes(1, 2)  # [n_experts, n, k]
        if case.arch == "minimax-m3":
            name = name.replace(".mlp.gate_up_proj", ".dense_mlp.gate_up_proj")
        if both := _BOTH.fullmatch(name):  # [2 * n, k], or [n_experts, 2 * n, k]
            place = both["place"]
            suffix = _SLOTS[both["stem"]] if case.n_experts else ""
            for part, half in zip(("gate", "up"), np.split(values, 2, axis=-2), strict=True):
                yield f"blk.{place}.ffn_{part}{suffix}.weight", np.ascontiguousarray(half)
            continue
        if case.arch == "qwen4exp" and (".ple_embedding." in name or "index_qk_proj" in name):
            yield from _of_qwen4_exp(config, name, values)
            continue
        if name.endswith("self_attn.conv1d.weight"):
            for part, filters in zip("qkv", np.split(values.squeeze(1), 3), strict=True):
                place = name.split(".layers.")[1].split(".")[0]
                yield f"blk.{place}.ssm_conv1d_{part}.weight", filters[:, np.newaxis]
            continue
        if stack := _STREAMS.fullmatch(name):
            if stack["number"] == "0":
                others = range(1, config.altup_num_inputs)
                names = [f"{stack['before']}.{number - 1}.weight" for number in others]
                matrices = np.stack([model.state_dict()[each].numpy() for each in names])
                yield f"{_STREAM_SLOTS[stack['stem']]}.weight", matrices
            continue
        if name.endswith("kv_b_proj.weight") and case.arch != "minicpm3":
            yield from _of_latents(name, values.reshape(config.num_attention_heads, -1, 32))
            continue
        if ".linear_attn." in name:
            yield from _of_delta_net(case, config, name, values)
            continue
        if name.endswith(("conv.conv.weight", "conv1d.weight")):
            values = values.squeeze(1)  # [channels, 1, taps]
        if name.endswith(".A_log"):
            values = np.exp(values) if case.arch == "bailingmoe3" else -np.exp(values)
        if case.arch == "bailingmoe3" and len(values) == config.num_attention_heads:
            name = name.replace("self_attn.g_proj", "self_attn.gate_proj")  # of heads
        plain = ("jamba", "mamba", "glm5-next")
        if name.endswith((".A_log", ".D")) and case.arch not in plain:
            values = values.reshape(-1, 1)
        if name.endswith((".mamba.norm.weight", ".mixer.norm.weight")):
            values = values.reshape(case.metadata["ssm.group_count"], -1)
        if name.endswith(("shared_expert_gate.weight", "moe_statics.e_score_correction_bias")):
            values = values[0]  # GGUF has it as a vector
        if case.arch == "falcon-h1":
            values = values * _falcon_factor(config, name)
        norms = ("norm.weight", "norm_key.weight", "norm_query.weight", "norm_conv.weight")
        if case.adds_one(name) and name.endswith(norms):
            values = values + np.float32(1.0)
        if case.reordered and name.endswith(_REORDERED):
            values = _neighbours(values, _head_dim(config))
        yield _gguf_name(case, name), np.ascontiguousarray(values)
    rope = _rope(config)
    if rope.get("rope_type") == "llama3":
        plain = float(rope["rope_theta"])
        yield "rope_freqs.weight", _rope_factors(model.model.rotary_emb.inv_freq, plain)
    if "qk_scale_factor" in case.config:
        for layer in range(config.num_hidden_layers):
            for part, factor in (("q", config.qk_scale_factor), ("k", 1.0)):
                name = f"blk.{layer}.attn_{part}_norm.weight"
                yield name, np.full(config.head_dim, factor, np.float32)
    full = rope.get("full_attention", {})
    if full.get("rope_type") == "llama3":
        inv_freq = model.model.language_model.rotary_emb.full_attention_inv_freq
        factors = np.ones(config.head_dim // 2, np.float32)
        factors[: len(inv_freq)] = _rope_factors(inv_freq, full["rope_theta"])
        yield "rope_freqs.weight", factors
    if full.get("rope_type") == "proportional":
        factors = np.full(case.config["global_head_dim"] // 2, 1e30, np.float32)
        factors[: int(full["partial_rotary_factor"] * len(factors))] = 1.0
        yield "rope_freqs.weight", factors
    for length in ("short", "long"):
        if f"{length}_factor" in rope:
            factors = np.array(rope[f"{length}_factor"], np.float32)
            yield f"rope_factors_{length}.weight", factors


def _rope(config: Any) -> dict[str, Any]:
    return getattr(config, "rope_parameters", None) or {}  # Nemotron-H does not rotate


def _of_gpt_oss(name: str, values: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Its experts' matrices are [n_experts, k, n], and the rows of gate and up alternate."""
    place = name.split(".")[2]
    suffix = "bias" if name.endswith("bias") else "weight"
    columns = values if suffix == "bias" else values.swapaxes(1, 2)  # [n_experts, n, k]
    if "down_proj" in name:
        yield f"blk.{place}.ffn_down_exps.{suffix}", np.ascontiguousarray(columns)
        return
    for first, part in enumerate(("gate", "up")):
        yield f"blk.{place}.ffn_{part}_exps.{suffix}", np.ascontiguousarray(columns[:, first::2])


def _of_qwen4_exp(config: Any, name: str, values: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """The table of n-grams, whose constants are metadata; queries and keys of the index."""
    if name.endswith("ngram_embedding.weight"):
        yield "per_layer_token_embd.weight", values
    elif "index_qk_proj" in name:
        of_q = config.indexer_n_heads * config.indexer_head_dim
        for part, rows in zip("qk", np.split(values, [of_q]), strict=True):
            yield f"blk.{name.split('.')[2]}.indexer.{part}_proj.weight", rows


def _of_delta_net(
    case: Case, config: Any, name: str, values: np.ndarray
) -> Iterator[tuple[str, np.ndarray]]:
    """Qwen3-Next's matrices are [key heads, rows of q, k, v and z, hidden]. In files of Qwen3.5 the
    value heads that share keys lie as far apart as there are key heads."""
    layer, n_keys = f"blk.{name.split('.layers.')[1].split('.')[0]}", config.linear_num_key_heads
    slot = case.names.get("linear_attn." + name.split(".linear_attn.")[1].removesuffix(".weight"))
    d_k, width = config.linear_key_head_dim, config.linear_value_head_dim * 3

    def tiled(rows: np.ndarray, head_dim: int) -> np.ndarray:
        heads = rows.reshape(n_keys, -1, head_dim, *rows.shape[1:])
        return heads.swapaxes(0, 1).reshape(rows.shape)

    if slot is None:  # in_proj_qkvz
        heads = values.reshape(n_keys, -1, values.shape[1])
        *qkv, z = np.split(heads, [d_k, 2 * d_k, 2 * d_k + width], axis=1)
        flat = [part.reshape(-1, values.shape[1]) for part in qkv]
        yield f"{layer}.attn_qkv.weight", np.concatenate(flat)
        yield f"{layer}.attn_gate.weight", z.reshape(-1, values.shape[1])
        return
    if slot == "ssm_conv1d":
        values = values[:, 0]
    if slot == "ssm_a":
        values = -np.exp(values)
    if case.arch != "qwen3next" and slot != "ssm_norm":
        head_dim = 1 if slot.startswith(("ssm_a", "ssm_beta", "ssm_dt")) else width // 3
        if slot == "ssm_out":
            values = tiled(np.ascontiguousarray(values.T), head_dim).T
        else:
            first = 2 * n_keys * d_k if slot in ("attn_qkv", "ssm_conv1d") else 0
            values = np.concatenate([values[:first], tiled(values[first:], head_dim)])
    bare = slot == "ssm_a" or slot.endswith(".bias")
    yield f"{layer}.{slot}{'' if bare else '.weight'}", np.ascontiguousarray(values)


def _falcon_factor(config: Any, name: str) -> np.ndarray | float:
    """What a tensor of Falcon-H1 is multiplied by, as llama.cpp's converter does it."""
    gate, down = config.mlp_multipliers
    of_input = config.attention_in_multiplier
    if name.endswith("mamba.in_proj.weight"):
        inner, bc = config.mamba_d_ssm, config.mamba_n_groups * config.mamba_d_state
        factors = np.array(config.ssm_multipliers, np.float32) * config.ssm_in_multiplier
        sizes = [inner, inner, bc, bc, config.mamba_n_heads]
        return np.repeat(factors, sizes)[:, np.newaxis]
    found = {
        "embed_tokens": config.embedding_multiplier,
        "lm_head": config.lm_head_multiplier,
        "q_proj": of_input,
        "k_proj": of_input * config.key_multiplier,
        "v_proj": of_input,
        "o_proj": config.attention_out_multiplier,
        "out_proj": config.ssm_out_multiplier,
        "gate_proj": gate,
        "down_proj": down,
    }
    return np.float32(found.get(name.split(".")[-2], 1.0))


def _of_latents(name: str, heads: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """heads: [n_heads, 32 rows for keys and then those for values, rank]"""
    layer = f"blk.{name.split('.layers.')[1].split('.')[0]}"
    yield f"{layer}.attn_k_b.weight", np.ascontiguousarray(heads[:, :32].swapaxes(1, 2))
    yield f"{layer}.attn_v_b.weight", np.ascontiguousarray(heads[:, 32:])


def _head_dim(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _neighbours(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """Rows of each head in the order 0, d/2, 1, d/2 + 1, ...: rope's pairs become neighbours."""
    halves = rows.reshape(-1, 2, head_dim // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def _rope_factors(inv_freq: Any, theta: float) -> np.ndarray:
    """What Llama 3's scaling divides each frequency by."""
    plain = theta ** -(np.arange(len(inv_freq)) / len(inv_freq))
    return (plain / inv_freq.double().numpy()).astype(np.float32)


_CLASSES = {
    **{"GPT2": "GPT2LMHeadModel", "Exaone": "LlamaForCausalLM"},
    **{"SarvamMLA": "DeepseekV3ForCausalLM", "SarvamMoE": "Glm4MoeForCausalLM"},
}
_OF_THREE = re.compile(r"(?P<before>.*\.self_attn\.)(?P<part>[qkv])_proj\.weight")
_SIGHT = (
    ".visual.",
    "vision_adapter.",
    "vision_projection.",
    "vision_tower.",
    "vision_model.",
    "embed_vision.",
    "multi_modal_projector.",
    ".vit.",
)
_REORDERED = tuple(f"{part}_proj.{kind}" for part in "qk" for kind in ("weight", "bias"))
_EXACT = (
    *(".bias", "coef.weight", "conv.weight", "conv1d.weight", "ssm_norm.weight", "ssm_a", "ssm_d"),
    *(f"conv1d_{part}.weight" for part in "qkv"),
    *("_ape.weight", "_fn.weight", "position_embd.weight"),
)
_NAMES = {
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "mlp.experts.down_proj": "ffn_down_exps",
    "block_sparse_moe.experts.down_proj": "ffn_down_exps",
}
_BOTH = re.compile(
    r"(language_model\.)?model\.(language_model\.)?layers\.(?P<place>\d+)\.(?P<stem>.*experts|shared_mlp|dense_mlp)"
    r"\.(gate_up_proj|input_linear)(\.weight)?"
)
# A gated norm makes much of what is nearly nothing, its rounding errors too: transformers' own two
# ways of computing linear attention differ by 9e-6 then. With these spreads queries and keys have
# much in common, as in trained models.
_SPREADS = {
    **{"linear_attn.conv1d.weight": 6.0, "linear_attn.out_proj.weight": 0.15},
    "self_attn.conv1d.weight": 6.0,  # Kimi Linear
}
_STREAMS = re.compile(r"(?P<before>.*(?P<stem>altup_\w+))\.(?P<number>\d+)\.weight")
_STREAM_SLOTS = {
    "altup_projections": "altup_proj",
    "altup_unembed_projections": "altup_unembd_proj",
}
_SLOTS = {
    "mlp.experts": "_exps",
    "experts": "_exps",
    "block_sparse_moe.experts": "_exps",
    "shared_mlp": "_shexp",
    "mlp.shared_experts": "_shexp",
    "dense_mlp": "",
    "feed_forward.experts": "_exps",
}
_GEMMA_NAMES = AFTER | {"pre_feedforward_layernorm": "ffn_norm"}


def _gguf_name(case: Case, name: str) -> str:
    """ "model.layers.3.self_attn.q_proj.bias" -> "blk.3.attn_q.bias" """
    suffix = "bias" if name.endswith("bias") else "weight"
    stem = name.removesuffix(f".{suffix}")
    for prefix in (
        *("language_model.", "model.", "language_model.", "transformer.", "gpt_neox.", "backbone."),
    ):
        stem = stem.removeprefix(prefix)
    names = _NAMES | (_GEMMA_NAMES if case.gemma else {}) | case.names
    layer = ""
    if stem.startswith(("layers.", "h.", "blocks.")):
        _, index, stem = stem.split(".", 2)
        layer = f"blk.{index}."
    slot = names[stem]
    bare = slot.endswith((".", ".bias", ".scale")) or slot in ("ssm_a", "ssm_d")
    return f"{layer}{slot}".removesuffix(".") if bare else f"{layer}{slot}.{suffix}"
