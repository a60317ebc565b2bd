"""The tiny models that are compared with Hugging Face `transformers`.

Each has its settings there, and what its GGUF file says."""

import math

from hf_case import AFTER, GRANITE, GRANITE_KEYS, LLAMA3_ROPE, SECTIONS, YARN, Case
from hf_expert_cases import EXPERT_CASES
from hf_gemma_cases import GEMMA_CASES
from hf_latent_cases import LATENT_CASES
from hf_plain_cases import PLAIN_CASES
from hf_scan_cases import SCAN_CASES

_LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.75,
    "original_max_position_embeddings": 32,
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
    "long_factor": [1.0, 1.5, 2.0, 3.0, 5.0, 8.0],
}
_FUSED = {"self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up"}

CASES = {
    "Llama 2": Case("Llama", "llama", reordered=True),
    "Llama 3.1": Case("Llama", "llama", {"rope_parameters": LLAMA3_ROPE}, reordered=True),
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
        {"rope_parameters": YARN},
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
    "Qwen2": Case("Qwen2", "qwen2"),
    "Qwen3": Case("Qwen3", "qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
    "Ministral 3": Case(
        "Ministral3",
        "mistral3",
        {
            "head_dim": 32,
            "rope_parameters": YARN
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
        {"rope_parameters": SECTIONS | {"mrope_section": [2, 3, 3]}},
        sees=True,
    ),
    "Qwen3-VL": Case(
        "Qwen3VL", "qwen3vl", {"head_dim": 32, "rope_parameters": SECTIONS}, sees=True
    ),
    "Granite 3": Case(
        "Granite",
        "granite",
        GRANITE,
        GRANITE_KEYS,
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
    "OLMo 2": Case("Olmo2", "olmo2", names=AFTER),
    "OLMo 3": Case(
        "Olmo3",
        "olmo2",
        {
            "num_hidden_layers": 5,
            "sliding_window": 20,
            "rope_parameters": {
                "full_attention": YARN,
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        },
        {"attention.sliding_window": 20, "rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}
        | {"rope.scaling.original_context_length": 32},
        names=AFTER,
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
    **EXPERT_CASES,
    **GEMMA_CASES,
    **LATENT_CASES,
    **PLAIN_CASES,
    **SCAN_CASES,
}
