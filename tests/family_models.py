"""A tiny random model of every architecture, made of its own graphs' slots.

Its numbers mean nothing and have no reference here (tests/test_hf_models.py has that): the tests
that use it compare one way of computing them with another.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import cast

import numpy as np
from gguf_writer import TensorSpec, write_gguf
from variants import variant

from airllm.formats.model_file import ModelFile
from airllm.models import load_model
from airllm.util.metadata import Metadata
from airllm.weights.layer_weights import next_places, places, tensor_name

VOCAB, CONTEXT = 160, 128

_COMMON: dict[str, object] = {
    "block_count": 8,
    "context_length": CONTEXT,
    "embedding_length": 64,
    "feed_forward_length": 96,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": 1e-6,
}
_EXPERTS = {"expert_count": 6, "expert_used_count": 2, "expert_feed_forward_length": 32}
_DELTA = {"ssm.conv_kernel": 4, "ssm.state_size": 12, "ssm.inner_size": 60} | {
    **{"ssm.group_count": 2, "ssm.time_step_rank": 6, "rope.dimension_count": 8},
    "attention.layer_norm_rms_epsilon": 1e-3,
}
_YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0} | {
    "rope.scaling.original_context_length": 32
}
_INDEX = {"attention.indexer.head_count": 8, "attention.indexer.key_length": 24} | {
    "attention.indexer.top_k": 12
}
_LAYER_NORM = {"attention.layer_norm_rms_epsilon": None, "attention.layer_norm_epsilon": 1e-5}
_GRANITE = {"embedding_scale": 2.0, "residual_scale": 0.5, "logit_scale": 4.0}
_MAMBA = {"ssm.conv_kernel": 4, "ssm.inner_size": 128, "ssm.state_size": 16} | {
    **{"ssm.time_step_rank": 12, "attention.layer_norm_rms_epsilon": 1e-3},
}
_MAMBA2 = {
    **{"ssm.conv_kernel": 4, "ssm.inner_size": 128, "ssm.state_size": 16, "ssm.group_count": 2},
    "ssm.time_step_rank": 8,
}
_SIGHT = {
    **{"attn_qkv": (192, 64), "attn_output": (64, 64)},
    **{"gate": (96, 64), "up": (96, 64), "down": (64, 96)},
}
_TURNS = (("", 4), ("_kv", 2))
_HEADS, _WIDTHS = (0, 0, 2, 0, 0, 0, 0, 2) * 2, (0, 96, 0, 96, 0, 0, 96, 0) * 2
_ONE_PART = {
    "block_count": 16,
    "attention.head_count_kv": np.array(_HEADS, np.int32),
    "feed_forward_length": np.array(_WIDTHS, np.int32),
}
_SHORT_CONV = {
    "attention.head_count_kv": np.array([0, 0, 2, 0, 0, 2, 0, 2], np.int32),
    "shortconv.l_cache": 3,
}
_TABLES_OF_HEADS = "embed_tokens", "shared_head_head"  # which most files leave out
# Of linear attention, see hf_models.
_SPREADS = {"ssm_conv1d": 6.0, "ssm_out": 0.15}


@dataclass(frozen=True)
class Own:
    """metadata: keys without the architecture in front. tensors: optional tensors, by name."""

    metadata: dict[str, object] = field(default_factory=dict)
    tensors: dict[str, tuple[int, ...]] = field(default_factory=dict)


_SHARED = {"leading_dense_block_count": 2, "expert_shared_count": 2, "expert_weights_scale": 1.5}
_QKV = (("q", 64), ("k", 32), ("v", 32))  # and their widths
_ALL_BIASED = {f"blk.{i}.exp_probs_b.bias": (6,) for i in range(2, 8)}

# What is each architecture's own.
ARCHITECTURES = {
    "afmoe": Own(_EXPERTS | _SHARED | {"attention.sliding_window": 20}, _ALL_BIASED),
    "apertus": Own(
        {f"xielu.alpha_{sign}": np.linspace(-0.5, 0.7, 8, dtype=np.float32) for sign in "pn"}
        | {"xielu.beta": np.full(8, 0.5, np.float32), "xielu.eps": np.full(8, -1e-6, np.float32)}
    ),
    "arcee": Own(_YARN),
    "baichuan": Own(),
    "arctic": Own(_EXPERTS | {"expert_feed_forward_length": None}),
    "bailingmoe": Own(_EXPERTS | {"expert_shared_count": 2, "expert_weights_norm": True}),
    "bailingmoe2": Own(
        _EXPERTS
        | _SHARED
        | {"block_count": 9, "nextn_predict_layers": 1, "rope.dimension_count": 8}
        | {"expert_group_count": 3, "expert_group_used_count": 2, "expert_weights_norm": True}
        | {"expert_gating_func": 2, "expert_shared_feed_forward_length": 24},
        _ALL_BIASED | {"blk.8.nextn.eh_proj.weight": (64, 128)},
    ),
    "bailingmoe3": Own(
        _EXPERTS
        | _SHARED
        | {"expert_group_count": 3, "expert_group_used_count": 2, "expert_weights_norm": True}
        | {"expert_gating_func": 2, "expert_shared_feed_forward_length": 24, "block_count": 9}
        | {"attention.head_count_kv": np.array([0, 1, 1, 0, 1, 0, 1, 1, 1], np.int32)}
        | {"attention.kv_lora_rank": 24, "attention.q_lora_rank": 20, "rope.dimension_count": 8}
        | {"attention.key_length_mla": 20, "attention.value_length_mla": 9}
        | {"kda.head_dim": 12, "kda.safe_gate": True, "kda.gate_lower_bound": -5.0}
        | {"ssm.conv_kernel": 4, "attention.layer_norm_rms_epsilon": 1e-3}
        | {"swiglu_clamp_exp": np.array([0, 0, 0, 0.5, 0, 0, 0.4, 0.2, 0], np.float32)}
        | {"swiglu_clamp_shexp": np.array([0.5, 0, 0, 0, 0, 0, 0, 0.1, 0], np.float32)}
        | {"nextn_predict_layers": 1},
        _ALL_BIASED | {"blk.8.nextn.eh_proj.weight": (64, 128)},
    ),
    "bitnet": Own(),
    "bloom": Own(_LAYER_NORM | {"attention.head_count_kv": 4}),
    "chatglm": Own(
        {"rope.dimension_count": 8}, {f"blk.{i}.attn_qkv.bias": (128,) for i in range(8)}
    ),
    "codeshell": Own(_LAYER_NORM),
    "cogvlm": Own(
        {"attention.head_count_kv": None},
        {f"blk.{i}.vis_{part}.weight": shape for i in range(8) for part, shape in _SIGHT.items()},
    ),
    "cohere2": Own(_LAYER_NORM | {"attention.sliding_window": 20, "logit_scale": 0.5}),
    "cohere2moe": Own(
        _LAYER_NORM
        | _EXPERTS
        | {"block_count": 9, "nextn_predict_layers": 1, "leading_dense_block_count": 2}
        | {"attention.sliding_window": 20, "logit_scale": 0.5, "expert_shared_count": 2},
        {"blk.8.nextn.eh_proj.weight": (64, 128)},
    ),
    "command-r": Own(_LAYER_NORM | {"logit_scale": 0.5}),
    "dbrx": Own(
        _LAYER_NORM | _EXPERTS | {"expert_feed_forward_length": None, "attention.clamp_kqv": 1.0}
    ),
    "deci": Own(
        {"attention.head_count": np.array([4, 0, 4, 4, 0, 4, 4, 4], np.int32)}
        | {"attention.head_count_kv": np.array([2, 0, 1, 4, 0, 2, 2, 1], np.int32)}
        | {"feed_forward_length": np.array([96, 64, 32, 96, 128, 64, 64, 96], np.int32)}
        | {"attention.key_length": 16, "attention.value_length": 16}
    ),
    "deepseek": Own(_EXPERTS | _SHARED),
    "deepseek2": Own(
        _EXPERTS
        | _YARN
        | {"block_count": 9, "nextn_predict_layers": 1, "leading_dense_block_count": 2}
        | {"expert_shared_count": 2, "expert_group_count": 3, "expert_group_used_count": 2}
        | {"expert_weights_scale": 1.5, "expert_weights_norm": True, "attention.head_count_kv": 1}
        | {"attention.kv_lora_rank": 24, "attention.q_lora_rank": 20, "rope.dimension_count": 8}
        | {"attention.key_length_mla": 20, "attention.value_length_mla": 9}
        | {"rope.scaling.yarn_log_multiplier": 0.0707},
        {f"blk.{i}.exp_probs_b.bias": (6,) for i in range(2, 8)}
        | {"blk.8.nextn.eh_proj.weight": (64, 128)},
    ),
    "deepseek32": Own(
        _EXPERTS
        | _YARN
        | {"block_count": 9, "nextn_predict_layers": 1, "leading_dense_block_count": 2}
        | {"expert_shared_count": 2, "expert_weights_scale": 1.5, "attention.head_count_kv": 1}
        | {"attention.kv_lora_rank": 24, "attention.q_lora_rank": 20, "rope.dimension_count": 8}
        | {"attention.key_length_mla": 20, "attention.value_length_mla": 9}
        | {"rope.scaling.yarn_log_multiplier": 0.1}
        | _INDEX,
        {f"blk.{i}.exp_probs_b.bias": (6,) for i in range(2, 8)}
        | {"blk.8.nextn.eh_proj.weight": (64, 128)},
    ),
    "deepseek4": Own(
        _EXPERTS
        | _YARN
        | {"block_count": 7, "expert_shared_count": 2, "expert_weights_scale": 1.5}
        | {"attention.head_count_kv": 1, "attention.key_length": 24, "rope.dimension_count": 8}
        | {"attention.q_lora_rank": 20, "attention.sliding_window": 20, "hash_layer_count": 2}
        | {"attention.output_group_count": 2, "attention.output_lora_rank": 18}
        | {"attention.compress_ratios": np.array([0, 4, 12, 4, 12, 12, 4, 0], np.int32)}
        | {"attention.compress_rope_freq_base": 160000.0, "expert_gating_func": 4}
        | {"hyper_connection.count": 3, "hyper_connection.sinkhorn_iterations": 7}
        | {"hyper_connection.epsilon": 1e-6, "swiglu_clamp_exp": np.full(8, 1.5, np.float32)}
        | {"expert_weights_norm": True}
        | _INDEX
        | {"attention.indexer.top_k": 5},
        {f"blk.{i}.exp_probs_b.bias": (6,) for i in range(2, 7)},
    ),
    "dots1": Own(_EXPERTS | _SHARED | {"expert_weights_norm": True}, _ALL_BIASED),
    "ernie4_5": Own(),
    "ernie4_5-moe": Own(
        _EXPERTS
        | {"leading_dense_block_count": 2, "interleave_moe_layer_step": 2}
        | {"expert_shared_count": 2, "expert_shared_feed_forward_length": 64},
        {f"blk.{i}.exp_probs_b.bias": (6,) for i in (3, 5, 7)},
    ),
    "exaone": Own(),
    "exaone-moe": Own(
        _EXPERTS | _SHARED | {"attention.sliding_window": 20, "expert_gating_func": 2},
        _ALL_BIASED,
    ),
    "exaone4": Own({"attention.sliding_window": 20}),
    "falcon": Own(
        _LAYER_NORM | {"attention.head_count_kv": 1},
        {f"blk.{i}.attn_norm_2.bias": (64,) for i in range(8)},
    ),
    "falcon-h1": Own(
        _MAMBA2
        | {f"factor.{slot}": 0.5 for slot in ("token_embd", "attn_k", "attn_v", "attn_output")}
        | {f"factor.{slot}": 2.0 for slot in ("output", "attn_q", "ssm_out", "ffn_gate")}
        | {"factor.ffn_down": 0.7, "factor.ssm_in": np.array([0.7, 1.4, 1.2, 0.8, 0.9], "f4")},
        {f"blk.{i}.ssm_conv1d.bias": (192,) for i in range(8)}
        | {f"blk.{i}.ssm_norm.weight": (128,) for i in range(8)},
    ),
    "gemma": Own(),
    "gemma2": Own({"attention.sliding_window": 20}),
    "gemma3": Own({"attention.sliding_window": 20}),
    "gemma3n": Own(
        {"attention.sliding_window": 20, "attention.sliding_window_pattern": np.arange(8) % 3 > 0}
        | {"attention.shared_kv_layers": 3, "embedding_length_per_layer_input": 8}
        | {"feed_forward_length": np.array(5 * [96] + 3 * [64], np.int32), "altup.num_inputs": 3}
        | {"activation_sparsity_scale": np.array([1.6, 0.5, *6 * [-np.inf]], np.float32)},
        {f"blk.{i}.laurel_l.weight": (12, 64) for i in range(8)}
        | {f"blk.6.attn_{name}.weight": (32, 64) for name in "kv"},
    ),
    "gemma4": Own(
        {"attention.sliding_window": 20, "attention.key_length": 32, "attention.key_length_swa": 16}
        | {"attention.sliding_window_pattern": np.array([True, False] * 4)}
        | {"attention.shared_kv_layers": 3, "final_logit_softcapping": 2.0}
        | {"attention.head_count_kv": np.array([2, 1] * 4, np.int32)}
        | {"feed_forward_length": np.array(5 * [96] + 3 * [64], np.int32)}
        | {"embedding_length_per_layer_input": 8}
        | _EXPERTS,
        {"rope_freqs.weight": (16,), "blk.1.attn_v.weight": (32, 64)}
        | {f"blk.{i}.layer_output_scale.weight": (1,) for i in range(8)}
        | {f"blk.{i}.attn_{name}.weight": (32, 64) for i in (6,) for name in "kv"},
    ),
    "glm-dsa": Own(
        _EXPERTS
        | {"block_count": 9, "nextn_predict_layers": 1, "leading_dense_block_count": 2}
        | {"expert_shared_count": 1, "expert_weights_scale": 2.5, "attention.head_count_kv": 1}
        | {"attention.kv_lora_rank": 24, "attention.q_lora_rank": 20, "rope.dimension_count": 8}
        | {"attention.key_length_mla": 20, "attention.value_length_mla": 9}
        | {"attention.indexer.types": np.array([1, 1, 0, 0, 1, 0, 1, 0], bool)}
        | _INDEX,
        {f"blk.{i}.exp_probs_b.bias": (6,) for i in range(2, 8)}
        | {"blk.2.indexer.proj.weight": (8, 64), "blk.8.nextn.eh_proj.weight": (64, 128)},
    ),
    "glm4": Own(
        {"rope.dimension_count": 8},
        {f"blk.{i}.attn_{name}.bias": (width,) for i in range(8) for name, width in _QKV},
    ),
    "glm4moe": Own(
        _EXPERTS
        | {"block_count": 9, "nextn_predict_layers": 1, "leading_dense_block_count": 2}
        | {"expert_shared_count": 2, "expert_group_count": 2, "expert_group_used_count": 1}
        | {"rope.dimension_count": 8, "expert_weights_scale": 1.5},
        {f"blk.{i}.exp_probs_b.bias": (6,) for i in range(2, 8)}
        | {f"blk.{i}.attn_{name}_norm.weight": (16,) for i in range(8) for name in "qk"}
        | {f"blk.8.nextn.{slot}.weight": (VOCAB, 64) for slot in _TABLES_OF_HEADS}
        | {"blk.8.nextn.eh_proj.weight": (64, 128)},
    ),
    "glm5-next": Own(
        _EXPERTS
        | {"block_count": 9, "nextn_predict_layers": 1, "leading_dense_block_count": 2}
        | {"expert_shared_count": 1, "expert_weights_scale": 2.5, "rope.dimension_count": 0}
        | {"attention.head_count_kv": np.array([0, 1, 1, 0, 1, 1, 0, 1, 1], np.int32)}
        | {"attention.kv_lora_rank": 24, "attention.q_lora_rank": 20}
        | {"attention.key_length_mla": 20, "attention.value_length_mla": 9}
        | {"kda.head_dim": 12, "kda.gate_lower_bound": -5.0, "ssm.conv_kernel": 4}
        | {"hyper_connection.count": 3, "hyper_connection.sinkhorn_iterations": 5}
        | {"hyper_connection.epsilon": 1e-4, "attention.layer_norm_rms_epsilon": 1e-3}
        | {"swiglu_clamp_exp": np.full(9, 0.5, np.float32)}
        | {"attention.indexer.types": np.array([0, 1, 0, 0, 1, 1, 0, 0], bool)}
        | {"attention.indexer.kpool": 4, "attention.indexer.kpool_select_tail": True}
        | _INDEX,
        _ALL_BIASED | {"blk.8.nextn.eh_proj.weight": (64, 128)},
    ),
    "gpt-oss": Own(_EXPERTS | _YARN | {"attention.sliding_window": 20}),
    "gpt2": Own(_LAYER_NORM | {"attention.head_count_kv": None}),
    "gptj": Own(_LAYER_NORM | {"rope.dimension_count": 8}, {"output.bias": (VOCAB,)}),
    "gptneox": Own(
        _LAYER_NORM | {"rope.dimension_count": 4, "use_parallel_residual": False},
        {f"blk.{i}.attn_qkv.bias": (128,) for i in range(8)},
    ),
    "granite": Own(_GRANITE),
    "granite_swa": Own(
        _GRANITE
        | _EXPERTS
        | {"attention.sliding_window": 20, "attention.rope_pattern": np.arange(8) % 4 > 0}
    ),
    "granitehybrid": Own(
        _GRANITE
        | _EXPERTS
        | {"expert_shared_feed_forward_length": 48, "rope.scaling.finetuned": False}
        | {"attention.head_count_kv": np.array([0, 2, 0, 0, 2, 0, 0, 2], np.int32)}
        | _MAMBA2,
        {f"blk.{i}.ssm_conv1d.bias": (192,) for i in (0, 2, 3, 5, 6)},
    ),
    "granitemoe": Own(_GRANITE | _EXPERTS | {"expert_shared_feed_forward_length": 48}),
    "grok": Own(
        _EXPERTS
        | {"embedding_scale": 2.0, "logit_scale": 0.5, "attn_logit_softcapping": 1.0}
        | {"router_logit_softcapping": 1.5, "attention.output_scale": 0.3}
        | {"final_logit_softcapping": 2.0},
        {f"blk.{i}.ffn_up.weight": (96, 64) for i in range(8)},
    ),
    "grovemoe": Own(
        _EXPERTS
        | {"experts_per_group": 2, "expert_group_scale": 0.5}
        | {"expert_chunk_feed_forward_length": 16}
    ),
    "hunyuan-dense": Own(),
    "hunyuan-moe": Own(_EXPERTS | {"expert_shared_feed_forward_length": 48}),
    "hunyuan_vl": Own(
        {"rope.dimension_sections": np.array([2, 2, 2, 2], np.int32), "rope.scaling.alpha": 50.0}
    ),
    "hy_v3": Own(
        _EXPERTS
        | {"block_count": 9, "nextn_predict_layers": 1}
        | {"expert_shared_feed_forward_length": 32, "expert_weights_scale": 1.5},
        {f"blk.{i}.exp_probs_b": (6,) for i in range(1, 9)}
        | {f"blk.{i}.ffn_gate_inp.weight": (6, 64) for i in range(1, 9)}
        | {"blk.8.nextn.eh_proj.weight": (64, 128)},
    ),
    "internlm2": Own(),
    "hy_v4": Own(
        _EXPERTS
        | {"leading_dense_block_count": 2, "expert_shared_count": 2, "expert_weights_scale": 1.5}
        | {"attention.head_count_kv": 1, "attention.kv_lora_rank": 24, "attention.q_lora_rank": 20}
        | {"rope.dimension_count": 8, "attention.key_length_mla": 20}
        | {"attention.value_length_mla": 9, "hyper_connection.count": 3}
        | {"hyper_connection.epsilon": 1e-4, "hyper_connection.magnitude": 1.5}
        | {"swiglu_clamp_exp": np.full(8, 0.5, np.float32)}
        | {"attention.indexer.types": np.array([1, 1, 0, 0, 1, 0, 1, 0], bool)}
        | _INDEX,
        _ALL_BIASED,
    ),
    "jais": Own(_LAYER_NORM | {"attention.head_count_kv": 4, "attention.max_alibi_bias": 5.0}),
    "jais2": Own(_LAYER_NORM, {f"blk.{i}.ffn_up.bias": (96,) for i in range(8)}),
    "jamba": Own(
        _EXPERTS
        | _MAMBA
        | {"block_count": 6, "attention.head_count_kv": np.array([0, 2, 0, 0, 2, 0], np.int32)},
        {f"blk.{i}.ffn_gate_inp.weight": (6, 64) for i in (1, 3, 5)}
        | {f"blk.{i}.ssm_conv1d.bias": (128,) for i in (0, 2, 3, 5)},
    ),
    "kimi-k3": Own(
        _EXPERTS
        | {"block_count": 5, "leading_dense_block_count": 1, "expert_shared_count": 2}
        | {"expert_weights_scale": 1.5, "expert_weights_norm": True, "expert_latent_length": 32}
        | {"expert_gating_func": 2, "attention.head_count_kv": np.array([0, 0, 1, 0, 1], np.int32)}
        | {"attention.kv_lora_rank": 24, "attention.q_lora_rank": 20, "rope.dimension_count": 8}
        | {"attention.key_length_mla": 20, "attention.value_length_mla": 9}
        | {"kda.head_dim": 12, "kda.gate_lower_bound": -5.0, "ssm.conv_kernel": 4}
        | {"attn_res.block_size": 2, "activation.situ_beta": 2.0}
        | {"activation.situ_linear_beta": 3.0, "attention.layer_norm_rms_epsilon": 1e-3},
        {f"blk.{i}.exp_probs_b.bias": (6,) for i in range(1, 5)}
        | {f"blk.{i}.ffn_routed_norm.weight": (32,) for i in range(1, 5)}
        | {f"blk.{i}.attn_gate.weight": (36, 64) for i in (2, 4)}
        | {"blk.0.attn_res_score.weight": (64,)},
    ),
    "kimi-linear": Own(
        _EXPERTS
        | {"leading_dense_block_count": 2, "expert_shared_count": 2, "expert_weights_scale": 1.5}
        | {"expert_group_count": 3, "expert_group_used_count": 2, "expert_gating_func": 2}
        | {"attention.head_count_kv": np.array([0, 0, 1, 0, 0, 0, 1, 1], np.int32)}
        | {"attention.kv_lora_rank": 24, "attention.q_lora_rank": 20, "rope.dimension_count": 8}
        | {"attention.key_length_mla": 20, "attention.value_length_mla": 9}
        | {"attention.value_length": 16, "kda.head_dim": 12, "ssm.conv_kernel": 4}
        | {"attention.layer_norm_rms_epsilon": 1e-3},
        {f"blk.{i}.exp_probs_b.bias": (6,) for i in range(2, 8)},
    ),
    "laguna": Own(
        _EXPERTS
        | _YARN
        | {"attention.key_length": 16, "attention.sliding_window": 20, "rope.dimension_count": 8}
        | {"attention.head_count": np.array([4, 6, 6, 6, 4, 6, 6, 6], np.int32)}
        | {"rope.dimension_count_swa": 16, "rope.freq_base_swa": 1000.0}
        | {"leading_dense_block_count": 2, "expert_shared_feed_forward_length": 48}
        | {"expert_weights_scale": 1.5, "expert_weights_norm": True},
        _ALL_BIASED,
    ),
    "lfm2": Own(_SHORT_CONV),
    "lfm2moe": Own(
        _SHORT_CONV | _EXPERTS | {"leading_dense_block_count": 2, "expert_gating_func": 2},
        {f"blk.{i}.exp_probs_b.bias": (6,) for i in range(2, 8)},
    ),
    "llama": Own(),
    "llama4": Own(
        _EXPERTS
        | {"expert_used_count": 1, "interleave_moe_layer_step": 2, "attention.sliding_window": 20}
        | {"attention.temperature_length": 16}
    ),
    "minicpm": Own({"embedding_scale": 3.0, "residual_scale": 0.5, "logit_scale": 2.0}),
    "minicpm3": Own(
        {"attention.head_count_kv": 1, "attention.kv_lora_rank": 24, "attention.q_lora_rank": 20}
        | {"rope.dimension_count": 8, "attention.key_length_mla": 20}
        | {"attention.value_length_mla": 16, "embedding_scale": 3.0, "logit_scale": 2.0}
    ),
    "mamba": Own(
        _MAMBA
        | {"ssm.dt_b_c_rms": False}
        | {"attention.head_count": 0, "attention.head_count_kv": 0, "feed_forward_length": 0}
    ),
    "mamba2": Own(
        _MAMBA2
        | {"block_count": 12}
        | {"attention.head_count": 0, "attention.head_count_kv": 0, "feed_forward_length": 0},
        {f"blk.{i}.ssm_conv1d.bias": (192,) for i in range(12)},
    ),
    "mellum": Own(
        _EXPERTS | _YARN | {"attention.sliding_window": 20, "rope.freq_base_swa": 1000.0}
    ),
    "mimo2": Own(
        _EXPERTS
        | {"block_count": 9, "nextn_predict_layers": 1, "rope.dimension_count": 8}
        | {"attention.key_length": 24, "attention.value_length": 17, "attention.value_scale": 0.7}
        | {"attention.sliding_window": 20, "rope.freq_base": 5e6, "rope.freq_base_swa": 1e4}
        | {"attention.sliding_window_pattern": np.array([0, 1, 1, 1, 1, 0, 1, 1, 1], bool)}
        | {"attention.head_count_kv": np.array([1, 2, 2, 2, 2, 1, 2, 2, 2], np.int32)},
        {f"blk.{i}.exp_probs_b.bias": (6,) for i in range(1, 8)}
        | {f"blk.{i}.ffn_gate_inp.weight": (6, 64) for i in range(1, 8)}
        | {f"blk.{i}.attn_sinks.weight": (4,) for i in (1, 2, 3, 4, 6, 7, 8)}
        | {"blk.8.nextn.eh_proj.weight": (64, 128), "blk.8.layer_output_norm.weight": (64,)},
    ),
    "minimax-m2": Own(
        _EXPERTS | {"rope.dimension_count": 8},
        {f"blk.{i}.exp_probs_b.bias": (6,) for i in range(8)},
    ),
    "minimax-m3": Own(
        _EXPERTS
        | {"rope.dimension_count": 8, "expert_weights_scale": 2.0, "expert_shared_count": 2}
        | {"leading_dense_block_count": 2, "attention.indexer.top_k": 3}
        | {"attention.indexer.block_size": 10, "attention.indexer.local_blocks": 1}
        | {"attention.indexer.head_count": 2, "attention.indexer.key_length": 16},
        {f"blk.{i}.exp_probs_b.bias": (6,) for i in range(2, 8)},
    ),
    "mistral3": Own(_YARN | {"attention.temperature_scale": 0.1}),
    "mistral4": Own(
        _EXPERTS
        | _YARN
        | {"expert_shared_count": 1, "attention.head_count_kv": 1, "attention.q_lora_rank": 20}
        | {"attention.kv_lora_rank": 24, "rope.dimension_count": 8}
        | {"attention.key_length_mla": 20, "attention.value_length_mla": 9}
        | {"rope.scaling.yarn_log_multiplier": 0.1, "attention.temperature_scale": 0.1}
    ),
    "mpt": Own(_LAYER_NORM | {"attention.head_count_kv": 2, "attention.max_alibi_bias": 6.0}),
    "muse-glimmer": Own(
        {"attention.sliding_window": 20, "logit_scale": 0.5, "final_logit_softcapping": 2.0}
    ),
    "nanbeige": Own({"num_loops": 2}),
    "nemotron": Own(_LAYER_NORM | {"rope.dimension_count": 8}),
    "nemotron_h": Own(_MAMBA2 | _ONE_PART),
    "nemotron_h_moe": Own(
        _MAMBA2
        | _EXPERTS
        | {"block_count": 17, "nextn_predict_layers": 1, "expert_shared_feed_forward_length": 48}
        | {"moe_latent_size": 32, "expert_group_count": 2, "expert_group_used_count": 1}
        | {"attention.head_count_kv": np.array([*_HEADS, 2], np.int32)}
        | {"feed_forward_length": np.array([*_WIDTHS, 96], np.int32)},
        {f"blk.{i}.exp_probs_b.bias": (6,) for i, width in enumerate(_WIDTHS) if width}
        | {f"blk.{i}.ssm_conv1d.bias": (192,) for i in (0, 4, 5, 8, 12, 13)}
        | {"blk.16.nextn.eh_proj.weight": (64, 128)},
    ),
    "olmo": Own(_LAYER_NORM | {"attention.clamp_kqv": 1.0}),
    "olmo2": Own(_YARN | {"attention.sliding_window": 20}),
    "olmoe": Own(_EXPERTS),
    "orion": Own(_LAYER_NORM, {f"blk.{i}.ffn_norm.bias": (64,) for i in range(8)}),
    "phi2": Own(_LAYER_NORM | {"rope.dimension_count": 8}),
    "maincoder": Own(),
    "maple": Own(
        _EXPERTS
        | {"attention.sliding_window": 20, "rope.freq_base_swa": 10000.0}
        | {"attention.sliding_window_pattern": np.arange(8) % 4 > 0}
        | {"swiglu_clamp_exp": np.full(8, 0.5, np.float32)}
    ),
    "openelm": Own(
        {"attention.head_count": np.array([2, 2, 4, 4, 4, 6, 6, 6], np.int32)}
        | {"attention.head_count_kv": np.array([1, 1, 2, 2, 2, 3, 3, 3], np.int32)}
        | {"feed_forward_length": np.array([32, 32, 64, 64, 96, 96, 128, 128], np.int32)}
        | {"attention.key_length": 16, "attention.value_length": 16}
    ),
    "paddleocr": Own({"rope.dimension_sections": np.array([3, 3, 2, 0], np.int32)}),
    "pangu-embedded": Own(
        tensors={
            f"blk.{i}.attn_{part}.bias": (width,)
            for i in range(8)
            for part, width in (*_QKV, ("output", 64))
        }
    ),
    "phimoe": Own(_EXPERTS | {"expert_feed_forward_length": None}),
    "plamo2": Own(
        _MAMBA2
        | {"ssm.group_count": 0, "attention.key_length": 16, "attention.value_length": 16}
        | {f"attention.head_count{kind}": np.array([0, n] * 4, np.int32) for kind, n in _TURNS}
    ),
    "plamo3": Own(
        {"attention.key_length": 16, "attention.value_length": 16}
        | {"attention.sliding_window": 20, "rope.freq_base_swa": 1000.0}
        | {"attention.sliding_window_pattern": np.arange(8) % 4 > 0}
    ),
    "plm": Own(
        {"attention.head_count_kv": 1, "attention.kv_lora_rank": 24, "rope.dimension_count": 8}
        | {"attention.key_length_mla": 20, "attention.value_length_mla": 16}
    ),
    "phi3": Own(
        {"rope.dimension_count": 8, "rope.scaling.original_context_length": 32},
        {"rope_factors_short.weight": (4,), "rope_factors_long.weight": (4,)},
    ),
    "plamo": Own(),
    "qwen": Own({"attention.head_count_kv": 4}),
    "qwen2": Own(),
    "qwen2moe": Own(_EXPERTS | {"expert_shared_feed_forward_length": 48}),
    "qwen2vl": Own(),
    "qwen3": Own(),
    "qwen3moe": Own(_EXPERTS),
    "qwen35": Own(
        _DELTA
        | {"block_count": 9, "nextn_predict_layers": 1, "full_attention_interval": 3}
        | {"rope.dimension_sections": np.array([2, 1, 1, 0], np.int32)},
        {"blk.8.nextn.eh_proj.weight": (64, 128)},
    ),
    "qwen35moe": Own(
        _DELTA
        | _EXPERTS
        | {"block_count": 9, "nextn_predict_layers": 1, "expert_shared_feed_forward_length": 48}
        | {"attention.recurrent_layers": np.array([1, 0, 1, 1, 1, 0, 1, 1, 0], bool)},
        {"blk.8.nextn.eh_proj.weight": (64, 128)},
    ),
    "qwen3next": Own(
        _DELTA
        | _EXPERTS
        | {"block_count": 9, "nextn_predict_layers": 1, "expert_shared_feed_forward_length": 48},
        {"blk.8.nextn.eh_proj.weight": (64, 128), "blk.8.nextn.shared_head_norm.weight": (64,)},
    ),
    "qwen4exp": Own(
        _DELTA
        | _EXPERTS
        | {"expert_shared_feed_forward_length": 48, "full_attention_interval": 3}
        | {"hyper_connection.count": 3, "hyper_connection.low_rank": 20}
        | {"attention.indexer.head_count": 3, "attention.indexer.key_length": 24}
        | {"attention.indexer.top_k": 20}
        | {"attention.compress_ratios": np.array([0, 0, 5, 0, 0, 5, 0, 0], np.int32)}
        | {"ple.layers": np.array([3], np.int32), "ple.ngram_size": 3, "ple.heads_per_ngram": 2}
        | {"ple.conv_kernel": 4, "ple.eos_token_id": 7, "embedding_length_per_layer_input": 6}
        | {"ple.layer_multipliers": np.array([2**40 + 15, 2**41 + 77, 2**42 + 1], np.uint64)}
        | {"ple.head_vocab_sizes": np.array([11, 13, 17, 19], np.uint64)}
        | {"ple.head_offsets": np.array([0, 11, 24, 41], np.uint64)},
        {"per_layer_token_embd.weight": (64, 6)},
    ),
    "qwen3vl": Own(),
    "qwen3vlmoe": Own(_EXPERTS),
    "refact": Own({"attention.head_count_kv": 1}),
    "seed_oss": Own(tensors={f"blk.{i}.attn_q.bias": (64,) for i in range(8)}),
    "smallthinker": Own(_EXPERTS | {"attention.sliding_window": 20, "expert_gating_func": 2}),
    "smollm3": Own(),
    "stablelm": Own(_LAYER_NORM | {"rope.dimension_count": 4}),
    "spark2_5": Own(
        {"attention.key_length": 16, "attention.sliding_window": 20, "rope.dimension_count": 8}
        | {"attention.sliding_window_pattern": np.arange(8) % 4 > 0}
        | {"rope.dimension_count_swa": 16, "rope.freq_base_swa": 1000.0}
    ),
    "starcoder": Own(_LAYER_NORM | {"attention.head_count_kv": 1}),
    "starcoder2": Own(_LAYER_NORM | {"attention.sliding_window": 20}),
    "step35": Own(
        _EXPERTS
        | {"block_count": 9, "nextn_predict_layers": 1, "attention.key_length": 16}
        | {"attention.sliding_window": 20, "expert_weights_scale": 1.5}
        | {"attention.sliding_window_pattern": np.arange(9) % 4 > 0}
        | {"attention.head_count": np.array([4, 6, 6, 6, 4, 6, 6, 6, 4], np.int32)}
        | {"attention.head_count_kv": np.array([2, 1, 2, 1, 2, 1, 2, 1, 2], np.int32)}
        | {"swiglu_clamp_exp": np.array([0, 0, 0, 0, 0, 0, 0.4, 0.2, 0], np.float32)}
        | {"swiglu_clamp_shexp": np.array([0.5, 0, 0, 0, 0, 0, 0, 0.1, 0], np.float32)}
        | {"expert_shared_feed_forward_length": 48, "rope.freq_base_swa": 1000.0},
        {f"blk.{i}.exp_probs_b.bias": (6,) for i in range(2, 8)}
        | {f"blk.{i}.ffn_gate_inp.weight": (6, 64) for i in range(2, 8)}
        | {"rope_freqs.weight": (8,), "blk.8.nextn.eh_proj.weight": (64, 128)},
    ),
    "talkie": Own({"logit_scale": 0.5}),
    "xverse": Own(),
}

# Each has a layer, an op or a state that no other one here has. The default run takes them; the
# others, which put together the same parts, are variants.
DISTINCT = {
    *("llama", "gemma2", "gemma3n", "gemma4", "gpt-oss", "llama4", "cohere2", "phi3", "olmo2"),
    *("deepseek2", "deepseek32", "deepseek4", "glm-dsa", "glm4moe", "bailingmoe2", "minimax-m3"),
    *("qwen35", "qwen35moe", "qwen4exp", "kimi-linear", "kimi-k3", "granitehybrid", "falcon-h1"),
    *("nemotron_h_moe", "lfm2moe", "jamba", "mamba", "deci", "bloom", "gpt2", "apertus", "step35"),
    *("laguna", "mimo2", "hy_v4", "glm5-next", "nanbeige"),
}
EVERY_ARCHITECTURE = [each if each in DISTINCT else variant(each) for each in ARCHITECTURES]


def metadata_of(architecture: str) -> dict[str, object]:
    own = _COMMON | ARCHITECTURES[architecture].metadata
    own = {key: value for key, value in own.items() if value is not None}
    return {
        "general.architecture": architecture,
        "general.name": "tiny",
        **{whole_key(architecture, key): value for key, value in own.items()},
    }


def whole_key(architecture: str, key: str) -> str:
    return key if key.startswith("xielu.") else f"{architecture}.{key}"


def write_family_model(
    folder: Path,
    architecture: str,
    changed: Callable[[str, np.ndarray], np.ndarray] = lambda name, values: values,
    beside: Mapping[str, np.ndarray] = MappingProxyType({}),
    **metadata: object,
) -> Path:
    """Write `folder`/ARCHITECTURE.gguf. metadata: what to change; None leaves a key out. changed:
    what a tensor's values become, by its name. beside: tensors that no graph asks for, as f32.

    Matrices are f32 with a spread that keeps activations about 1; vectors are 0.5 to 1.5, but those
    whose exponential is a decay -1.5 to -0.5."""
    entries = metadata_of(architecture) | metadata
    entries = {key: value for key, value in entries.items() if value is not None}
    of_model, of_head = np.random.default_rng(11), np.random.default_rng(12)
    specs: list[TensorSpec] = []
    for name, shape in shapes(architecture, entries).items():
        random = of_head if name.startswith(_head(architecture, entries)) else of_model
        if len(shape) == 1 or name.endswith("ssm_a"):
            values = random.uniform(0.5, 1.5, shape)
            if architecture in ("gemma3n", "gemma4") and name.endswith("attn_q_norm.weight"):
                values *= len(values) ** -0.5  # nothing else makes its scores small
            values = -values if name.endswith("ssm_a") else values  # memory fades
            if architecture in ("jamba", "mamba") and name.endswith("ssm_dt.bias"):
                values -= 3.0  # short steps, as trained models have
            if architecture in ("plamo2", "plamo3") and ".post_" in name:
                values *= 0.2  # as its training begins
            if name.endswith("res_score.weight"):
                values = 0.2 * (values - 1.0)  # or one of the residuals would be all that counts
        else:
            values = shape[-1] ** -0.5 * random.standard_normal(shape)
            if architecture == "plamo2" and name.startswith("token_embd"):
                values *= 8.0  # as large as in trained models, beside what layers add
        if architecture.startswith(("qwen3", "qwen4", "kimi", "bailingmoe3", "glm5")):
            values *= next((s for slot, s in _SPREADS.items() if slot in name), 1.0)
        if name.endswith("ffn_gate_tid2eid.weight"):  # different experts of each token
            numbers = random.random((shape[0], 6)).argsort(axis=1)[:, : shape[1]].astype(np.int32)
            specs.append((name, "i32", shape, numbers))
            continue
        specs.append((name, "f32", shape, changed(name, values).astype(np.float32)))
    further = [
        (name, "f32", values.shape, values.astype(np.float32)) for name, values in beside.items()
    ]
    return write_gguf(folder / f"{architecture}.gguf", entries, [*specs, *further])


def _head(architecture: str, entries: dict[str, object]) -> str:
    """What the names of a next-token head's tensors begin with."""
    n_layers = cast(int, entries[f"{architecture}.block_count"])
    return f"blk.{n_layers - 1}." if f"{architecture}.nextn_predict_layers" in entries else "none"


def shapes(architecture: str, entries: dict[str, object]) -> dict[str, tuple[int, ...]]:
    """Of all tensors that the model's graphs ask for, and of the optional ones."""
    found: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (VOCAB, 64),
        "output.weight": (VOCAB, 64),
        **ARCHITECTURES[architecture].tensors,
    }
    model = load_model(described(entries, found), with_next_head=True)
    for graph, index in (*places(model), *next_places(model)):
        found |= {tensor_name(slot.name, index): slot.shape for slot in graph.weights}
    return found


def described(entries: dict[str, object], shapes: dict[str, tuple[int, ...]]) -> ModelFile:
    """A file of which only the header is asked for; its factors of frequencies are 1."""
    file = SimpleNamespace(
        metadata=Metadata("tiny", entries),
        tensors={
            name: SimpleNamespace(name=name, shape=shape, type="f32")
            for name, shape in shapes.items()
        },
        path=Path("tiny.gguf"),
        data=lambda name: np.ones(shapes[name], np.float32).view(np.uint8),
    )
    return cast(ModelFile, file)
