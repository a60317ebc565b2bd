"""The tiny models that are compared with Hugging Face `transformers`.

Each has its settings there, and what its GGUF file says."""

import math
from dataclasses import dataclass, field
from typing import Any

VOCAB, CONTEXT = 160, 128


@dataclass(frozen=True)
class Case:
    """A model: the family's name in transformers, arguments of its config, and what GGUF says."""

    family: str  # "Qwen2": Qwen2Config, Qwen2ForCausalLM
    arch: str
    config: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)  # keys without the arch in front
    names: dict[str, str] = field(default_factory=dict)  # of tensors, beyond _NAMES
    reordered: bool = False  # the rows of Q and K, as llama.cpp's converter does it
    extra: dict[str, Any] = field(default_factory=dict)  # what config.json of real models says, too
    lost: str = ""  # what llama.cpp's converter does not write, so that its files compute less
    sees: bool = False  # its config is the text_config of a model that sees pictures

    @property
    def n_experts(self) -> int:
        keys = ("num_experts", "num_local_experts", "n_routed_experts")
        return next((self.config[key] for key in keys if key in self.config), 0)

    @property
    def gemma(self) -> bool:
        return self.arch.startswith("gemma")


_EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "head_dim": 32}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
_SECTIONS = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [6, 5, 5]}
_LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.75,
    "original_max_position_embeddings": 32,
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
    "long_factor": [1.0, 1.5, 2.0, 3.0, 5.0, 8.0],
}
AFTER = {
    "post_attention_layernorm": "post_attention_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_GLM = {
    **{"n_routed_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    **{"n_shared_experts": 2, "n_group": 2, "topk_group": 1, "routed_scaling_factor": 1.5},
    **{"head_dim": 32, "first_k_dense_replace": 1, "num_nextn_predict_layers": 0},
}
_GLM_KEYS = {
    **{"expert_gating_func": 2, "expert_weights_scale": 1.5, "expert_weights_norm": True},
    **{"expert_shared_count": 2, "leading_dense_block_count": 1, "rope.dimension_count": 16},
}
_GLM_NAMES = {
    "post_attention_layernorm": "post_attention_norm",
    "mlp.gate.e_score_correction_bias": "exp_probs_b.bias",
    "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
    "mlp.shared_experts.up_proj": "ffn_up_shexp",
    "mlp.shared_experts.down_proj": "ffn_down_shexp",
}
_GRANITE = {
    **{"attention_multiplier": 0.3, "embedding_multiplier": 2.0, "residual_multiplier": 0.5},
    "logits_scaling": 4.0,
}
_GRANITE_KEYS = {
    **{"attention.scale": 0.3, "embedding_scale": 2.0, "residual_scale": 0.5, "logit_scale": 4.0}
}
_FUSED = {"self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up"}
CASES = {
    "Llama 2": Case("Llama", "llama", reordered=True),
    "Llama 3.1": Case("Llama", "llama", {"rope_parameters": _LLAMA3_ROPE}, reordered=True),
    "SmolLM2": Case(
        "Llama", "llama", {"tie_word_embeddings": True, "num_key_value_heads": 4}, reordered=True
    ),
    "Llama, longer by linear scaling": Case(
        "Llama",
        "llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
        {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
        reordered=True,
    ),
    "Llama, longer by YaRN": Case(
        "Llama",
        "llama",
        {"rope_parameters": _YARN},
        {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}
        | {"rope.scaling.original_context_length": 32},
        reordered=True,
    ),
    "Mistral": Case(
        "Mistral",
        "llama",
        {"sliding_window": 20},
        {"attention.sliding_window": 20},
        reordered=True,
        lost="the window",
    ),
    "Mixtral": Case(
        "Mixtral",
        "llama",
        {"num_local_experts": 6, "num_experts_per_tok": 2},
        names={"mlp.gate": "ffn_gate_inp"},
        reordered=True,
    ),
    "Qwen2": Case("Qwen2", "qwen2"),
    "Qwen3": Case("Qwen3", "qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
    "Qwen3-MoE": Case("Qwen3Moe", "qwen3moe", _EXPERTS | {"norm_topk_prob": True}),
    "Qwen3-MoE, shares as they are": Case(
        "Qwen3Moe",
        "qwen3moe",
        _EXPERTS | {"norm_topk_prob": False},
        {"expert_weights_norm": False},
        lost="that shares stay as they are",
    ),
    "Ministral 3": Case(
        "Ministral3",
        "mistral3",
        {
            "head_dim": 32,
            "rope_parameters": _YARN
            | {"mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1},
        },
        {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}
        | {"rope.scaling.original_context_length": 32, "rope.scaling.yarn_log_multiplier": 1.0}
        | {"attention.temperature_scale": 0.1},
        reordered=True,
    ),
    "Qwen2-VL": Case(
        "Qwen2VL",
        "qwen2vl",
        {"rope_parameters": _SECTIONS | {"mrope_section": [2, 3, 3]}},
        sees=True,
    ),
    "Qwen3-VL": Case(
        "Qwen3VL", "qwen3vl", {"head_dim": 32, "rope_parameters": _SECTIONS}, sees=True
    ),
    "Qwen2-MoE": Case(
        "Qwen2Moe",
        "qwen2moe",
        {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
        | {"shared_expert_intermediate_size": 64},
        {"expert_shared_feed_forward_length": 64},
        names={
            "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
            "mlp.shared_expert.up_proj": "ffn_up_shexp",
            "mlp.shared_expert.down_proj": "ffn_down_shexp",
            "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
        },
    ),
    "GLM-4.5": Case(
        "Glm4Moe",
        "glm4moe",
        _GLM | {"num_hidden_layers": 4},
        _GLM_KEYS | {"expert_group_count": 2, "expert_group_used_count": 1},
        names=_GLM_NAMES,
    ),
    "GLM-4.5 with normalised heads and biases": Case(
        "Glm4Moe",
        "glm4moe",
        _GLM | {"use_qk_norm": True, "attention_bias": True, "n_group": 1, "topk_group": 1},
        _GLM_KEYS,
        names=_GLM_NAMES,
    ),
    "MiniMax-M2": Case(
        "MiniMaxM2",
        "minimax-m2",
        {"num_local_experts": 6, "num_experts_per_tok": 2, "head_dim": 32}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 5e6}}
        | {"partial_rotary_factor": 0.5},
        {"rope.dimension_count": 16, "expert_gating_func": 2},
        names={
            "mlp.e_score_correction_bias": "exp_probs_b.bias",
            "mlp.gate": "ffn_gate_inp",
        },
        extra={"rotary_dim": 16, "use_qk_norm": True, "scoring_func": "sigmoid"},
    ),
    "Granite 3": Case(
        "Granite",
        "granite",
        _GRANITE,
        _GRANITE_KEYS,
        reordered=True,
    ),
    "Granite 3 MoE": Case(
        "GraniteMoe",
        "granitemoe",
        _GRANITE | {"num_local_experts": 6, "num_experts_per_tok": 2},
        _GRANITE_KEYS,
        names={"block_sparse_moe.router": "ffn_gate_inp"},
        reordered=True,
    ),
    "Granite 3 MoE with a shared expert": Case(
        "GraniteMoeShared",
        "granitemoe",
        _GRANITE
        | {"num_local_experts": 6, "num_experts_per_tok": 2, "shared_intermediate_size": 64},
        _GRANITE_KEYS | {"expert_shared_feed_forward_length": 64},
        names={
            "block_sparse_moe.router": "ffn_gate_inp",
            "shared_mlp.output_linear": "ffn_down_shexp",
        },
        reordered=True,
    ),
    "Command R": Case(
        "Cohere",
        "command-r",
        {"logit_scale": 0.25, "tie_word_embeddings": True},
        {"logit_scale": 0.25, "rope.scaling.type": "none"},
    ),
    "Command R7B": Case(
        "Cohere2",
        "cohere2",
        {"logit_scale": 0.25, "sliding_window": 20, "num_hidden_layers": 5}
        | {"tie_word_embeddings": True},
        {"logit_scale": 0.25, "rope.scaling.type": "none", "attention.sliding_window": 20},
        extra={"rotary_pct": 1.0, "position_embedding_type": "rope_gptj"},
    ),
    "gpt-oss": Case(
        "GptOss",
        "gpt-oss",
        {
            "num_hidden_layers": 4,
            "num_local_experts": 6,
            "num_experts_per_tok": 2,
            "head_dim": 32,
            "sliding_window": 20,
            "swiglu_limit": 7.0,
            "rope_parameters": _YARN | {"truncate": True},
        },
        {"attention.sliding_window": 20, "rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}
        | {"rope.scaling.original_context_length": 32},
        names={
            "post_attention_layernorm": "post_attention_norm",
            "self_attn.sinks": "attn_sinks",
            "mlp.router": "ffn_gate_inp",
        },
    ),
    "OLMo 2": Case("Olmo2", "olmo2", names=AFTER),
    "OLMo 3": Case(
        "Olmo3",
        "olmo2",
        {
            "num_hidden_layers": 5,
            "sliding_window": 20,
            "rope_parameters": {
                "full_attention": _YARN,
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        },
        {"attention.sliding_window": 20, "rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}
        | {"rope.scaling.original_context_length": 32},
        names=AFTER,
    ),
    "OLMoE": Case(
        "Olmoe",
        "olmoe",
        {"num_experts": 6, "num_experts_per_tok": 2, "num_key_value_heads": 4},
    ),
    "Phi-3": Case(
        "Phi3",
        "phi3",
        {"sliding_window": 20, "pad_token_id": 0},
        {"attention.sliding_window": 20},
        names=_FUSED,
    ),
    "Phi-4 mini, longer by LongRoPE": Case(
        "Phi3",
        "phi3",
        {"rope_parameters": _LONG, "original_max_position_embeddings": 32, "pad_token_id": 0},
        {"rope.dimension_count": 12, "rope.scaling.original_context_length": 32}
        | {"rope.scaling.attn_factor": (1 + math.log(4) / math.log(32)) ** 0.5},
        names=_FUSED,
    ),
    "Seed-OSS": Case(
        "SeedOss",
        "seed_oss",
        {"head_dim": 32, "attention_out_bias": False},
        names={"post_attention_layernorm": "post_attention_norm"},
    ),
    "SmolLM3": Case(
        "SmolLM3",
        "smollm3",
        {"num_hidden_layers": 5, "tie_word_embeddings": True, "pad_token_id": 0},
        reordered=True,
    ),
    "Gemma 2": Case(
        "Gemma2",
        "gemma2",
        {
            "num_hidden_layers": 4,
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "sliding_window": 20,
            "attn_logit_softcapping": 2.0,  # low enough to bend these models' scores and logits
            "final_logit_softcapping": 1.5,
        },
        {"attention.sliding_window": 20}
        | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 1.5},
    ),
    "Gemma 3": Case(
        "Gemma3",
        "gemma3",
        {
            "num_hidden_layers": 7,
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "sliding_window": 20,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        },
        {"attention.sliding_window": 20, "rope.freq_base": 1e6}
        | {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0},
    ),
}
