"""Random models in the shapes of today's families, of about 1 billion active weights and 3 in all.

Each is what the metadata of a GGUF file says; the tensors follow from the graphs of that family.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any, cast

import numpy as np

from airllm.formats.convert import written_shape
from airllm.formats.gguf_writer import TensorInfo
from airllm.formats.mixes import target_type
from airllm.formats.model_file import ModelFile, Tensor
from airllm.models import FAMILIES, load_model
from airllm.util.metadata import Metadata
from airllm.weights.layer_weights import next_places, places, tensor_name

__all__ = ["SHAPES", "metadata_of", "tensors_of"]

LAYERS = 16
VOCAB = 32000

_COMMON: dict[str, object] = {
    "block_count": LAYERS,
    "context_length": 8192,
    "vocab_size": VOCAB,
    "embedding_length": 2048,
    "feed_forward_length": 6144,
    "attention.head_count": 16,
    "attention.head_count_kv": 4,
    "attention.key_length": 128,
    "attention.value_length": 128,
    "attention.layer_norm_rms_epsilon": 1e-6,
    "rope.dimension_count": 128,
    "rope.freq_base": 1e6,
}
_EXPERTS = {"expert_count": 32, "expert_used_count": 6, "expert_feed_forward_length": 768}
_SIGMOID = {
    **{"expert_gating_func": 2, "expert_weights_norm": True, "expert_weights_scale": 1.5},
    **{"expert_shared_count": 1, "leading_dense_block_count": 1},
}
_DELTA_NET = {
    **{"ssm.conv_kernel": 4, "ssm.state_size": 128, "ssm.group_count": 16},
    **{"ssm.time_step_rank": 32, "ssm.inner_size": 4096, "full_attention_interval": 4},
    **{"attention.key_length": 256, "attention.value_length": 256, "rope.dimension_count": 64},
    **{"attention.head_count_kv": 2, "rope.dimension_sections": np.array([11, 11, 10, 0], "i4")},
}
_MAMBA2 = {
    **{"ssm.conv_kernel": 4, "ssm.inner_size": 4096, "ssm.state_size": 128},
    "ssm.time_step_rank": 64,
}


def _every(n: int, value: int) -> Any:
    """`value` for the last of each n layers, 0 for the others."""
    return np.array([value * ((index + 1) % n == 0) for index in range(LAYERS)], np.int32)


# The keys that are a family's own, without the architecture in front.
SHAPES: Mapping[str, Mapping[str, object]] = {
    "deepseek2": _EXPERTS
    | _SIGMOID
    | {"attention.q_lora_rank": 768, "attention.kv_lora_rank": 512, "rope.dimension_count": 64}
    | {"attention.key_length_mla": 192, "attention.value_length_mla": 128}
    | {"attention.key_length": 576, "attention.value_length": 512, "attention.head_count_kv": 1},
    "deepseek4": _EXPERTS
    | {"expert_gating_func": 4, "expert_weights_norm": True, "expert_weights_scale": 1.5}
    | {"expert_shared_count": 1, "hash_layer_count": 0, "rope.dimension_count": 64}
    | {"attention.key_length": 512, "attention.value_length": 512, "attention.head_count_kv": 1}
    | {"attention.q_lora_rank": 768, "attention.sliding_window": 128}
    | {"attention.output_group_count": 4, "attention.output_lora_rank": 512}
    | {"attention.compress_ratios": np.array([0, 0, *[4, 128] * 7], np.int32)}
    | {"attention.compress_rope_freq_base": 160000.0, "attention.indexer.head_count": 16}
    | {"attention.indexer.key_length": 128, "attention.indexer.top_k": 512}
    | {"hyper_connection.count": 4, "hyper_connection.sinkhorn_iterations": 20}
    | {"hyper_connection.epsilon": 1e-6, "swiglu_clamp_exp": np.full(LAYERS, 10.0, np.float32)}
    | {"swiglu_clamp_shexp": np.full(LAYERS, 10.0, np.float32)},
    "gemma4": _EXPERTS
    | {"feed_forward_length": 2048, "attention.sliding_window": 1024}
    | {"attention.sliding_window_pattern": _every(6, 1) == 0, "final_logit_softcapping": 30.0}
    | {"attention.head_count": 8, "attention.key_length": 512, "attention.value_length": 512}
    | {"attention.key_length_swa": 256, "attention.value_length_swa": 256}
    | {"rope.dimension_count": 512, "rope.dimension_count_swa": 256, "rope.freq_base_swa": 1e4}
    | {"embedding_length_per_layer_input": 0},
    "glm4moe": _EXPERTS | _SIGMOID | {"attention.head_count": 32, "rope.dimension_count": 64},
    "gpt-oss": _EXPERTS
    | {"attention.head_count": 32, "attention.head_count_kv": 8, "attention.sliding_window": 128}
    | {"attention.key_length": 64, "attention.value_length": 64, "rope.dimension_count": 64},
    "granitehybrid": _EXPERTS
    | _MAMBA2
    | {"ssm.group_count": 1, "expert_shared_feed_forward_length": 1024}
    | {"feed_forward_length": 768}  # llama.cpp takes an expert's width from it
    | {"attention.head_count_kv": _every(8, 4), "attention.scale": 0.01}
    | {"embedding_scale": 12.0, "residual_scale": 0.22, "logit_scale": 8.0}
    | {"rope.scaling.finetuned": False},
    "lfm2moe": _EXPERTS
    | {"expert_gating_func": 2, "leading_dense_block_count": 2, "shortconv.l_cache": 3}
    | {"attention.head_count_kv": _every(4, 4)},
    "minimax-m2": _EXPERTS
    | {"expert_gating_func": 2, "rope.dimension_count": 64, "feed_forward_length": 768},
    "minimax-m3": _EXPERTS
    | _SIGMOID
    | {"rope.dimension_count": 64, "attention.indexer.head_count": 4}
    | {"attention.indexer.key_length": 128, "attention.indexer.top_k": 16}
    | {"attention.indexer.block_size": 128, "attention.indexer.local_blocks": 1},
    "nemotron_h_moe": _EXPERTS
    | _MAMBA2
    | {"ssm.group_count": 8, "expert_shared_feed_forward_length": 3072}
    | {"block_count": 2 * LAYERS, "expert_feed_forward_length": 1152}
    | {"expert_weights_norm": True, "expert_weights_scale": 2.5}
    | {"attention.layer_norm_epsilon": 1e-6}
    | {"attention.head_count_kv": np.array([0, 0, 0, 0, 4, 0, 0, 0] * 4, np.int32)}
    | {"feed_forward_length": np.array([0, 1152, 0, 1152] * 8, np.int32)},
    "qwen35": _DELTA_NET,
    "qwen35moe": _EXPERTS | _DELTA_NET | {"expert_shared_feed_forward_length": 768},
    "qwen3moe": _EXPERTS,
    "qwen4exp": _EXPERTS
    | _DELTA_NET
    | {"expert_shared_feed_forward_length": 768}
    | {"hyper_connection.count": 4, "hyper_connection.low_rank": 96}
    | {"attention.indexer.head_count": 4, "attention.indexer.key_length": 128}
    | {"attention.indexer.top_k": 2048, "attention.compress_ratios": _every(4, 4)},
}
_MAMBA2_FAMILIES = ("granitehybrid", "nemotron_h_moe")
# Tensors that files of some families have beside others, one value for each of their rows. Graphs
# take them where they are.
_BESIDE = {
    "ffn_gate_inp": "exp_probs_b.bias",
    "ssm_conv1d": "ssm_conv1d.bias",
}
_HAVE = {
    "exp_probs_b.bias": (
        *("deepseek2", "deepseek4", "glm4moe", "lfm2moe", "minimax-m2", "minimax-m3"),
        "nemotron_h_moe",
    ),
    "ssm_conv1d.bias": _MAMBA2_FAMILIES,
}
_FACTORS = {"gemma4": {"rope_freqs.weight": (256,)}}


def metadata_of(
    architecture: str, *, vocab: int = VOCAB, next_head: bool = False
) -> dict[str, object]:
    """The entries of a file's header that say what the model is. next_head: whether it has a
    next-token head. ValueError if the family has none."""
    keys = _COMMON | dict(SHAPES[architecture]) | {"vocab_size": vocab}
    if next_head and FAMILIES[architecture].next_layer is None:
        raise ValueError(f"{architecture} models have no next-token head here")
    if next_head:
        keys |= {"block_count": LAYERS + 1, "nextn_predict_layers": 1}
    return {
        "general.architecture": architecture,
        **{f"{architecture}.{key}": value for key, value in keys.items()},
    }


def tensors_of(metadata: Mapping[str, object], type: str) -> Iterator[TensorInfo]:
    """The tensors that the graphs of such a model ask for. type: of its matrices.

    FormatError where the metadata contradicts itself."""
    architecture = str(metadata["general.architecture"])
    embedding = _embedding(metadata, architecture)
    shapes = {"token_embd.weight": embedding, "output.weight": embedding}
    shapes |= _FACTORS.get(architecture, {})
    if metadata.get(f"{architecture}.nextn_predict_layers"):
        n_hidden = embedding[1]
        shapes[f"blk.{LAYERS}.nextn.eh_proj.weight"] = n_hidden, 2 * n_hidden
    for _ in range(2):
        model = load_model(_described(metadata, shapes), with_next_head=True)
        for graph, index in (*places(model), *next_places(model)):
            for slot in graph.weights:
                shapes[tensor_name(slot.name, index)] = slot.shape
                beside = _BESIDE.get(slot.name, "")
                if architecture in _HAVE.get(beside, ()):
                    shapes[tensor_name(beside, index)] = slot.shape[:1]
    for hf in FAMILIES[architecture].hugging_face:
        columns = [name for name in shapes if name.split(".")[-1] in hf.columns]
        shapes |= {name: (*shapes[name], 1) for name in columns}
    file = _described(metadata, shapes)
    for name, tensor in file.tensors.items():
        kind = type if name == "output.weight" else target_type(tensor, type, tied=False)
        yield TensorInfo(name, kind, written_shape(file, tensor))


def _embedding(metadata: Mapping[str, object], architecture: str) -> tuple[int, ...]:
    keys = ("vocab_size", "embedding_length")
    return tuple(cast(int, metadata[f"{architecture}.{key}"]) for key in keys)


def _described(metadata: Mapping[str, object], shapes: Mapping[str, tuple[int, ...]]) -> ModelFile:
    """A file of which only the header is asked for."""
    tensors = {
        name: Tensor(name, "f32", shape, 4 * shape[-1], 4 * math.prod(shape), ())
        for name, shape in shapes.items()
    }
    file = SimpleNamespace(
        metadata=Metadata("a random model", dict(metadata)),
        tensors=MappingProxyType(tensors),
        path=Path("random.gguf"),
        data=lambda name: np.ones(shapes[name], np.float32).view(np.uint8),
    )
    return cast(ModelFile, file)
