"""MiniMax M3 (text), in contexts in which a token sees all positions. In longer ones most layers
choose blocks of positions by an index of their own, which is not implemented: the limit is as many
positions as the chosen blocks have, 2,048. Dense layers come before the experts, which a sigmoid
with a bias chooses beside a shared one. The activation is gpt-oss's, half of each head rotates.
"""

from functools import partial

from airllm.formats.hf_config import Names
from airllm.models import blocks
from airllm.models.config import LayerConfig, ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family
from airllm.models.gpt_oss import GATE_LIMIT
from airllm.models.hugging_face import SPARSE_NAMES, HFReader, HuggingFace

_HEADS, _KEYS, _CHOSEN, _BLOCK, _LOCAL = (
    f"attention.indexer.{name}"
    for name in ("head_count", "key_length", "top_k", "block_size", "local_blocks")
)
# config.json's names of these, and the names in its sparse_attention_config.
_SPARSE = {
    _HEADS: ("index_n_heads", "sparse_num_index_heads"),
    _KEYS: ("index_head_dim", "sparse_index_dim"),
    _CHOSEN: ("index_topk_blocks", "sparse_topk_blocks"),
    _BLOCK: ("index_block_size", "sparse_block_size"),
    _LOCAL: ("index_local_blocks", "sparse_local_block"),
}
_INDEX = ("q_proj", "k_proj", "q_norm", "k_norm")

NAMES: Names = {
    **SPARSE_NAMES,
    "block_sparse_moe.e_score_correction_bias": "exp_probs_b.bias",
    **{
        f"block_sparse_moe.shared_experts.{part}_proj": f"ffn_{part}_shexp"
        for part in ("gate", "up", "down")
    },
    **{f"self_attn.index_{name}": f"indexer.{name}" for name in _INDEX},
}


def configure(r: ConfigReader) -> ModelConfig:
    r.ignore(_HEADS, _KEYS, _LOCAL)
    limit = r.integer(_CHOSEN, low=1) * r.integer(_BLOCK, low=1)
    dense = r.integer("leading_dense_block_count", 0, high=r.n_layers)
    mixture = r.experts(gating="sigmoid")
    return r.config(
        layers=[LayerConfig(has_experts=index >= dense) for index in range(r.n_layers)],
        most_context=limit,
        gate_limit=GATE_LIMIT,
        intermediate_size=r.feed_forward_length(),
        shared_expert_size=r.integer("expert_shared_count", low=1) * mixture["expert_size"],
        idle_tensors=frozenset(
            f"blk.{index}.indexer.{name}.weight" for index in range(r.n_layers) for name in _INDEX
        ),
        **mixture,
    )


def _values(config: HFReader) -> dict[str, object]:
    config.expect("swiglu_limit", None, GATE_LIMIT)
    config.expect("swiglu_alpha", None, 1.702)
    config.expect("scoring_func", None, "sigmoid")
    config.expect("use_qk_norm", None, True)
    config.expect("qk_norm_type", None, "per_head")
    config.expect("use_gemma_norm", None, True)
    config.expect("use_routing_bias", None, True)
    config.ignore("layer_types", "sparse_attention_config")  # within the limit all layers see all
    n_layers = config.integer("num_hidden_layers", low=1, high=2**12)
    size = config.integer("intermediate_size", low=1)
    shared = config.integer("shared_intermediate_size", size)
    if not shared or shared % size:
        raise config.fault(f"shared_intermediate_size is {shared}; expected a multiple of {size}")
    config.expect("n_shared_experts", None, shared // size)
    sparse = config.get("sparse_attention_config")
    inner = HFReader(config.source, sparse if isinstance(sparse, dict) else {})
    return {
        **config.experts(size="intermediate_size"),
        "expert_gating_func": 2,
        "expert_weights_norm": True,
        "expert_weights_scale": config.number("routed_scaling_factor"),
        "expert_shared_count": shared // size,
        "leading_dense_block_count": _dense_layers(config, n_layers),
        "feed_forward_length": config.integer("dense_intermediate_size"),
        "rope.dimension_count": config.integer("rotary_dim"),
        **{
            key: inner.integer(older, config.integer(newer), low=1)
            for key, (newer, older) in _SPARSE.items()
        },
    }


def _dense_layers(config: HFReader, n_layers: int) -> int:
    """How many layers without experts come first. FormatError if others have none."""
    frequencies = config.get("moe_layer_freq", [1] * n_layers)
    kinds = config.get(
        "mlp_layer_types",
        ["sparse" if each else "dense" for each in frequencies]
        if isinstance(frequencies, list)
        else None,
    )
    dense = kinds.count("dense") if isinstance(kinds, list) else 0
    if kinds != ["dense"] * dense + ["sparse"] * (n_layers - dense):
        raise config.fault(
            f"mlp_layer_types, or moe_layer_freq, is no list of {n_layers} dense, then sparse "
            "layers"
        )
    return dense


FAMILY = Family(
    ("minimax-m3",),
    (
        HuggingFace(
            "minimax_m3_vl_text",
            "minimax-m3",
            _values,
            NAMES,
            activation=("silu", "swigluoai"),  # both stand for the latter
            pictures="minimax_m3_vl",
            plus_one=True,
            defaults={
                **{"num_attention_heads": 64, "num_key_value_heads": 4, "head_dim": 128},
                **{"vocab_size": 200064, "hidden_size": 6144, "intermediate_size": 3072},
                **{"num_hidden_layers": 60, "max_position_embeddings": 524288},
                **{"rms_norm_eps": 1e-6, "rope_theta": 5e6, "num_experts_per_tok": 4},
                **{"num_local_experts": 128, "dense_intermediate_size": 12288},
                **{"shared_intermediate_size": 3072, "routed_scaling_factor": 2.0},
                **{"rotary_dim": 64, "index_n_heads": 4, "index_head_dim": 128},
                **{"index_block_size": 128, "index_topk_blocks": 16, "index_local_blocks": 1},
            },
        ),
    ),
    configure,
    partial(blocks.layer, normed="heads"),
)
