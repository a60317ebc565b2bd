"""Folders of DeepSeek V4, as its makers publish them and as transformers writes them; and the
tables of GGUF files that have the experts of each token."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from airllm.formats.ggml_types import INTEGERS
from airllm.formats.hf_config import Names, Slots
from airllm.formats.model_file import Made, ModelParts, Tensor
from airllm.graph.ops.sparse import MOST_IN_GROUP
from airllm.models.hugging_face import HFReader
from airllm.util.metadata import Metadata

__all__ = ["OF_IMAGES", "SELECTED", "TABLE", "THETA", "defaults", "names", "renewed", "values"]

# Groups of so many positions overlap, and an index selects among them; others do neither.
SELECTED = 4
TABLE = "ffn_gate_tid2eid"  # of a layer: the experts of each token of the vocabulary
THETA = "attention.compress_rope_freq_base"  # of layers with groups
OF_IMAGES = "exp_probs_b_vl.bias"  # for the choice of an image's experts

_HYPER = "fn", "base", "scale"
_KINDS: Mapping[str, str | None] = {  # of layers, and the older key of the positions of a group
    "sliding_attention": None,
    "compressed_sparse_attention": "compress_rate_csa",
    "heavily_compressed_attention": "compress_rate_hca",
}
_DEFAULTS: Mapping[str, object] = {
    **{"num_key_value_heads": 1, "head_dim": 512, "q_lora_rank": 1024, "n_shared_experts": 1},
    **{"routed_scaling_factor": 1.5, "partial_rotary_factor": 0.125, "swiglu_limit": 10.0},
    **{"sliding_window": 128, "o_groups": 8, "o_lora_rank": 1024, "compress_rope_theta": 160000.0},
    **{"index_n_heads": 64, "index_head_dim": 128, "index_topk": 512, "rope_theta": 10000.0},
    **{"hc_mult": 4, "hc_sinkhorn_iters": 20, "hc_eps": 1e-6, "rms_norm_eps": 1e-6},
    **{"n_routed_experts": 256, "num_experts_per_tok": 6, "moe_intermediate_size": 2048},
}


def renewed(file: ModelParts) -> ModelParts:
    """GGUF's tables of integers as float32, which has them all. FormatError for another type, whose
    numbers may be no integers."""
    end = f".{TABLE}.weight"
    tables = [tensor for name, tensor in file.tensors.items() if name.endswith(end)]
    for table in tables:
        if table.type != INTEGERS:
            raise file.metadata.fault(
                f"tensor {table.name} is {table.type}; expected {INTEGERS}, numbers of experts"
            )
    if not tables:
        return file
    n_experts = file.metadata.integer("deepseek4.expert_count", low=1, high=2**12)
    floats = {table.name: replace(table, type="f32", extents=()) for table in tables}
    made = {
        table.name: Made(_Integers(file, table, n_experts).rows, table.extents) for table in tables
    }
    return file.remade(file.metadata, {**file.tensors, **floats}.values(), made)


@dataclass(frozen=True)
class _Integers:
    """A table of numbers of experts. n_experts: how many there are."""

    file: ModelParts
    table: Tensor
    n_experts: int

    def rows(self, first: int, end: int) -> NDArray[np.uint8]:
        """Rows of the table as float32: uint8 [end - first, row_bytes]. FormatError for a number
        that is no expert's."""
        name, memory = self.table.name, np.empty((end - first) * self.table.row_bytes, np.uint8)
        numbers = self.file.read(name, memory, (first, end)).view("<i4")
        if numbers.size and not 0 <= numbers.min() <= numbers.max() < self.n_experts:
            raise self.file.metadata.fault(
                f"tensor {name} has numbers that are not from 0 to {self.n_experts - 1}"
            )
        return numbers.astype("<f4").view(np.uint8)


# ---- folders -------------------------------------------------------------------------------------


def names(config: HFReader) -> Names:
    """Of published folders, and of those that transformers writes."""
    compressor = {"wkv": "kv", "wgate": "gate", "ape": "ape", "norm": "norm"}
    n_experts = config.experts()["expert_count"]
    assert isinstance(n_experts, int)
    return {
        "embed": "token_embd",
        "head": "output",
        **{f"hc_head_{part}": f"output_hc_{part}" for part in _HYPER},
        **{f"hc_head.hc_{part}": f"output_hc_{part}" for part in _HYPER},
        **{f"hc_{half}_{part}": f"hc_{half}_{part}" for half in ("attn", "ffn") for part in _HYPER},
        **{f"{half}_norm": f"{half}_norm" for half in ("attn", "ffn")},
        "attn.attn_sink": "attn_sinks",
        "attn.wq_a": "attn_q_a",
        "attn.q_norm": "attn_q_a_norm",
        "attn.wq_b": "attn_q_b",
        "attn.wkv": "attn_kv",
        "attn.kv_norm": "attn_kv_a_norm",
        "attn.norm": "attn_kv_a_norm",
        "attn.wo_a": "attn_output_a",
        "attn.wo_b": "attn_output_b",
        **{f"attn.compressor.{own}": f"attn_compressor_{it}" for own, it in compressor.items()},
        **{
            f"attn.indexer.compressor.{own}": f"indexer_compressor_{it}"
            for own, it in compressor.items()
        },
        "attn.indexer.wq_b": "indexer.attn_q_b",
        "attn.indexer.weights_proj": "indexer.proj",
        "ffn.gate": "ffn_gate_inp",
        "ffn.gate.bias": "exp_probs_b.bias",
        "ffn.gate.bias_vl": OF_IMAGES,
        "ffn.gate.tid2eid": Slots((TABLE,), below=n_experts),
        **{
            f"ffn.{kind}.{own}": f"{slot}_{suffix}"
            for kind, suffix in (("experts.*", "exps"), ("shared_experts", "shexp"))
            for own, slot in (("w1", "ffn_gate"), ("w3", "ffn_up"), ("w2", "ffn_down"))
        },
    }


def values(config: HFReader) -> dict[str, object]:
    config.expect("scoring_func", None, "sqrtsoftplus")
    config.expect("norm_topk_prob", None, True)
    config.ignore("topk_method", "num_nextn_predict_layers", "expert_dtype")
    config.ignore(*(key for key in config if key.startswith("dspark_")))  # of layers that guess
    head_dim = config.integer("head_dim", low=2)
    rope_dims = int(head_dim * config.number("partial_rotary_factor"))
    limit = config.number("swiglu_limit")
    n_layers = config.integer("num_hidden_layers", low=1, high=2**12)
    return {
        "attention.head_count_kv": config.integer("num_key_value_heads"),
        "attention.q_lora_rank": config.integer("q_lora_rank"),
        "attention.output_group_count": config.integer("o_groups"),
        "attention.output_lora_rank": config.integer("o_lora_rank"),
        "attention.sliding_window": config.integer("sliding_window"),
        "attention.compress_ratios": np.array(_compress_ratios(config, n_layers), np.int32),
        THETA: _compress_theta(config),
        "attention.indexer.head_count": config.integer("index_n_heads"),
        "attention.indexer.key_length": config.integer("index_head_dim"),
        "attention.indexer.top_k": config.integer("index_topk"),
        "hyper_connection.count": config.integer("hc_mult"),
        "hyper_connection.sinkhorn_iterations": config.integer("hc_sinkhorn_iters"),
        "hyper_connection.epsilon": config.number("hc_eps"),
        "hash_layer_count": _hash_layers(config, n_layers),
        "rope.dimension_count": config.integer("qk_rope_head_dim", rope_dims),
        "swiglu_clamp_exp": limit,
        "swiglu_clamp_shexp": limit,
        "expert_gating_func": 4,
        "expert_weights_norm": True,
        "expert_weights_scale": config.number("routed_scaling_factor"),
        "expert_shared_count": config.integer("n_shared_experts"),
        **config.experts(),
    }


def _compress_theta(config: HFReader) -> float:
    """FormatError for a rotation that changes the size of what it turns: none here does."""
    of_kinds = config.get("rope_parameters")
    found = of_kinds.get("compress", of_kinds) if isinstance(of_kinds, dict) else None
    of_groups = Metadata(config.source, found if isinstance(found, dict) else {})
    if of_groups.get("attention_factor") not in (None, 1.0):
        raise config.fault(f"attention_factor is {of_groups['attention_factor']!r:.40}; expected 1")
    usual = config.number("compress_rope_theta")
    nested = isinstance(of_kinds, dict) and "compress" in of_kinds
    return of_groups.number("rope_theta", usual) if nested else usual


def _compress_ratios(config: HFReader, n_layers: int) -> list[int]:
    """Published folders list them, perhaps with those of layers that guess, and others the kinds
    of the layers."""
    key, rates = "compress_ratios", config.get("compress_rates")
    listed = config.get(key)
    if not isinstance(rates, dict | None):
        raise config.fault("compress_rates is no object")
    of_kinds = dict(rates or {})
    usual = {"compressed_sparse_attention": SELECTED, "heavily_compressed_attention": 128}
    for kind, name in _KINDS.items():
        if name is not None:
            of_kinds[kind] = config.get(name, of_kinds.get(kind, usual[kind]))
    if of_kinds["compressed_sparse_attention"] != SELECTED:
        raise config.fault(f"the rate of compressed_sparse_attention is not {SELECTED}")
    heavy = of_kinds["heavily_compressed_attention"]
    if type(heavy) is not int or not SELECTED < heavy <= MOST_IN_GROUP:
        wanted = f"expected {SELECTED + 1} to {MOST_IN_GROUP}"
        raise config.fault(f"the rate of heavily_compressed_attention is {heavy!r:.40}; {wanted}")
    if config.get("layer_types") is None and listed is not None:
        if not isinstance(listed, list) or not all(type(each) is int for each in listed):
            raise config.fault(f"{key} is no list of integers")
        if len(listed) < n_layers or not set(listed) <= {0, SELECTED, heavy}:
            wanted = f"expected {n_layers} of 0, {SELECTED} and {heavy}"
            raise config.fault(f"{key} has {len(listed)} entries; {wanted}")
        return listed[:n_layers]
    config.ignore(key)
    if config.get("layer_types") is None:
        return [heavy if i < 2 or i % 2 else SELECTED for i in range(n_layers)]
    kinds = config.layer_kinds(list(_KINDS), heads=True)
    return [of_kinds[each] if _KINDS[each] else 0 for each in kinds]


def _hash_layers(config: HFReader, n_layers: int) -> int:
    """How many layers, the first ones, have a table of experts."""
    count = min(config.integer("num_hash_layers", 3), n_layers)
    if config.get("mlp_layer_types") is None:
        return count
    return config.first_layers("hash_moe", "moe", n_layers)


def defaults(config: Mapping[str, Any]) -> Mapping[str, object]:
    """The networks of all layers are experts: an expert's size stands for the other key."""
    size = config.get("moe_intermediate_size", _DEFAULTS["moe_intermediate_size"])
    return {**_DEFAULTS, "intermediate_size": size}
