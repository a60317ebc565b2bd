"""DBRX (Databricks, March 2024): LayerNorm without biases, one matrix for Q, K and V, which are cut
off at a limit, and experts in every layer."""

from collections.abc import Mapping
from functools import partial

from airllm.formats.hf_config import Names, Slots
from airllm.models import blocks
from airllm.models.config import LayerConfig, ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family
from airllm.models.hugging_face import HFReader, HuggingFace
from airllm.models.mpt import LIMIT, qkv_limit
from airllm.models.starcoder2 import EPS
from airllm.util.metadata import Metadata

_SECOND_NORM = "attn_output_norm"  # before the experts


def configure(r: ConfigReader) -> ModelConfig:
    return r.config(
        layers=[LayerConfig(has_experts=True)] * r.n_layers,
        eps_key=EPS,
        layer_norms=True,
        qkv_limit=r.cap(LIMIT),
        **r.experts(shared_out=False),
    )


# ---- Hugging Face --------------------------------------------------------------------------------


def _values(config: HFReader) -> dict[str, object]:
    config.expect("moe_normalize_expert_weights", 1, 1.0)
    return {**config.experts(size="intermediate_size"), **qkv_limit(config)}


def _names(config: HFReader) -> Names:
    """The matrices of all experts lie below each other, those of the second product as [k, n]."""
    n = config.integer("num_experts", low=1, high=2**12)
    attention, experts = "norm_attn_norm", "ffn.experts.mlp"
    return {
        "wte": "token_embd",
        "norm_f": "output_norm",
        f"{attention}.norm_1": "attn_norm",
        f"{attention}.attn.Wqkv": "attn_qkv",
        f"{attention}.attn.out_proj": "attn_output",
        f"{attention}.norm_2": _SECOND_NORM,
        "ffn.router.layer": "ffn_gate_inp",
        f"{experts}.w1": Slots(("ffn_gate_exps",), matrices=n),
        f"{experts}.v1": Slots(("ffn_up_exps",), matrices=n),
        f"{experts}.w2": Slots(("ffn_down_exps",), matrices=n, transposed=True),
    }


def _defaults(config: Metadata) -> Mapping[str, object]:
    """What the parts of config.json have by other names than other families, and the defaults of
    the configuration classes."""

    def part(key: str) -> Metadata:
        found = config.get(key) or {}
        if not isinstance(found, dict):
            raise config.fault(f"{key} is no object")
        return Metadata(config.source, found)

    attention, network = part("attn_config"), part("ffn_config")
    act = network.get("ffn_act_fn") or {"name": "silu"}
    own = {
        "hidden_size": config.integer("d_model", 2048, low=1),
        "num_attention_heads": config.integer("n_heads", 16, low=1),
        "num_hidden_layers": config.integer("n_layers", 24, low=1),
        "max_position_embeddings": config.integer("max_seq_len", 2048, low=1),
        "num_key_value_heads": attention.integer("kv_n_heads", 1),
        "rope_theta": attention.number("rope_theta", 10000.0),
        "clip_qkv": attention.get("clip_qkv"),
        "hidden_act": act.get("name") if isinstance(act, dict) else act,
        "intermediate_size": network.integer("ffn_hidden_size", 3584),
        "num_experts": network.integer("moe_num_experts", 4),
        "num_experts_per_tok": network.integer("moe_top_k", 1),
        "moe_normalize_expert_weights": network.get("moe_normalize_expert_weights", 1),
        "layer_norm_epsilon": 1e-5,  # always
    }
    return {key: value for key, value in own.items() if value is not None}


FAMILY = Family(
    ("dbrx",),
    (
        HuggingFace(
            "dbrx",
            "dbrx",
            _values,
            _names,
            norm_eps=("layer_norm_epsilon", EPS),
            defaults=_defaults,
        ),
    ),
    configure,
    partial(blocks.layer, fused=True, before=("attn_norm", _SECOND_NORM)),
)
