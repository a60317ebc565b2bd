"""Granite 3 and 4 (dense, and mixtures of experts): a Llama whose embeddings, residuals, scores and
logits are multiplied by constants of the file. Most layers of Granite 4 have Mamba-2 in place of
attention. MiniCPM is a Granite without experts."""

from typing import Any

from airllm.formats.hf_config import Names
from airllm.graph.graph import Activations, Graph
from airllm.models import blocks
from airllm.models.config import LayerConfig, Mixer, ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family
from airllm.models.hugging_face import HFReader, HuggingFace
from airllm.models.mamba2 import CHANGED, MIXER_NAMES, MIXERS, mamba2, read_mamba2, time_steps
from airllm.models.qwen2 import ALL_BIASES

_MULTIPLIERS = {
    "attention_multiplier": "attention.scale",
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "logits_scaling": "logit_scale",
}
NAMES: Names = {
    "block_sparse_moe.router.layer": "ffn_gate_inp",
    "block_sparse_moe.input_linear": ("ffn_gate_exps", "ffn_up_exps"),
    "block_sparse_moe.output_linear": "ffn_down_exps",
    "shared_mlp.input_linear": ("ffn_gate_shexp", "ffn_up_shexp"),
    "shared_mlp.output_linear": "ffn_down_shexp",
}
_DENSE_NAMES: Names = {
    "shared_mlp.input_linear": ("ffn_gate", "ffn_up"),
    "shared_mlp.output_linear": "ffn_down",
}


def configure(r: ConfigReader) -> ModelConfig:
    if r.architecture == "minicpm":
        return _minicpm(r)
    hybrid = r.architecture == "granitehybrid"
    has_experts = r.architecture == "granitemoe" or (hybrid and r.integer("expert_count", 0) > 0)
    mixture = r.experts(shared_out=False) if has_experts else {}
    if not has_experts:
        r.ignore("expert_used_count")
    shared = r.integer("expert_shared_feed_forward_length", 0)
    kv_heads = r.kv_heads(differ=hybrid, low=0 if hybrid else 1)
    mixers: list[Mixer] = ["attention"] * r.n_layers
    rotates = r.flag("rope.scaling.finetuned", True)  # as llama.cpp uses this key
    if hybrid:
        r.require_alike("attention.head_count_kv", kv_heads)
        mixers = ["attention" if heads else "mamba2" for heads in kv_heads]
        if not rotates or not any(kv_heads):
            r.ignore_rope()
    else:
        r.require_true("rope.scaling.finetuned")
    return r.config(
        layers=[
            LayerConfig(
                rotates=rotates and mixer == "attention", has_experts=has_experts, mixer=mixer
            )
            for mixer in mixers
        ],
        kv_heads=kv_heads,
        mamba2=read_mamba2(r) if "mamba2" in mixers else None,
        biases=r.optional_biases(*(*ALL_BIASES, "ssm_in", "ssm_out")),
        rope_interleaved=True,
        **constants(r),
        shared_expert_size=shared if has_experts or not hybrid else 0,
        **mixture,
    )


def constants(r: ConfigReader) -> dict[str, Any]:
    """The fields of ModelConfig for what embeddings, residuals and logits are multiplied by."""
    return {
        "embedding_scale": r.positive("embedding_scale", 1.0),
        "residual_scale": r.positive("residual_scale", 1.0),
        "logit_scale": 1.0 / r.positive("logit_scale", 1.0),
    }


def _minicpm(r: ConfigReader) -> ModelConfig:
    """Older files leave out the constants of the models of that time."""
    hidden = r.integer("embedding_length", low=1)
    r.ignore("rope.scaling.finetuned")
    return r.config(
        biases=r.optional_biases(*ALL_BIASES),
        rope_interleaved=True,
        embedding_scale=r.positive("embedding_scale", 12.0),
        residual_scale=r.positive("residual_scale", 1.4 / r.n_layers**0.5),
        logit_scale=1.0 / r.positive("logit_scale", 256.0 / hidden),
    )


def layer(c: ModelConfig, activations: Activations, layer: LayerConfig) -> Graph:
    return blocks.layer(c, activations, layer, mixer=mamba2 if layer.mixer == "mamba2" else None)


def multipliers(config: HFReader) -> dict[str, object]:
    return {key: config.number(name, 1.0) for name, key in _MULTIPLIERS.items()}


def _experts(config: HFReader) -> dict[str, object]:
    shared = config.integer("shared_intermediate_size", 0)
    return {
        **multipliers(config),
        **config.experts(size="intermediate_size"),
        **({"expert_shared_feed_forward_length": shared} if shared else {}),
    }


def _hybrid(config: HFReader) -> dict[str, object]:
    """Without experts, the network that all tokens use is the only one."""
    config.ignore("mamba_proj_bias", "mamba_conv_bias")  # the tensors show biases
    config.ignore("mamba_chunk_size")
    config.expect("position_embedding_type", None, "nope", "rope")
    mixers = config.mixers(MIXERS)
    hidden, n_heads = config.integer("hidden_size"), config.integer("mamba_n_heads", low=1)
    inner = config.integer("mamba_expand", 2) * hidden
    if config.get("mamba_d_head") not in (None, "auto", inner // n_heads) or inner % n_heads:
        raise config.fault(f"mamba_d_head times mamba_n_heads, {n_heads}, is not {inner}")
    values = {
        **multipliers(config),
        **config.heads_of(mixers),
        **time_steps(config),
        "ssm.conv_kernel": config.integer("mamba_d_conv", 4),
        "ssm.inner_size": inner,
        "ssm.state_size": config.integer("mamba_d_state", 256),
        "ssm.group_count": config.integer("mamba_n_groups", 1),
        "ssm.time_step_rank": n_heads,
        "rope.scaling.finetuned": config.get("position_embedding_type") == "rope",
    }
    if _has_experts(config):
        return values | _experts(config)
    config.ignore("num_experts_per_tok")
    return values | {"feed_forward_length": config.integer("shared_intermediate_size")}


def _has_experts(config: HFReader) -> bool:
    return config.integer("num_local_experts", 0) > 0


def _hybrid_names(config: HFReader) -> Names:
    mixer = {f"mamba.{name}": slot for name, slot in MIXER_NAMES.items()}
    return {**NAMES, **({} if _has_experts(config) else _DENSE_NAMES), **mixer}


FAMILY = Family(
    ("granite", "granitehybrid", "granitemoe", "minicpm"),
    (
        HuggingFace("granite", "granite", multipliers, gguf_interleaved=True),
        HuggingFace("granitemoe", "granitemoe", _experts, NAMES, gguf_interleaved=True),
        HuggingFace("granitemoeshared", "granitemoe", _experts, NAMES, gguf_interleaved=True),
        HuggingFace(
            "granitemoehybrid",
            "granitehybrid",
            _hybrid,
            _hybrid_names,
            changed=CHANGED,
            defaults={
                "shared_intermediate_size": 1024,
                "num_local_experts": 8,
                "num_experts_per_tok": 2,
                "mamba_n_heads": 128,
            },
            gguf_interleaved=True,
        ),
    ),
    configure,
    layer,
)
