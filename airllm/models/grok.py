"""Grok 1 and 2 (xAI): a mixture of experts whose embeddings, scores and logits are multiplied by
constants, with norms before and behind each half of a layer. Scores are capped, and so are the
logits of experts, whose shares stay as they are: llama.cpp caps no logits of experts, and divides
shares by their sum. In Grok 2 all tokens use a network beside the experts.

From attention.temperature_length on, scores grow with the logarithm of the position behind their
cap. This is not implemented: such a model's context ends there.
"""

import math
from dataclasses import replace
from functools import partial

from airllm.formats.model_file import ModelParts
from airllm.graph.builder import GraphBuilder
from airllm.graph.graph import Buffer
from airllm.models import blocks
from airllm.models.config import LayerConfig, ModelConfig
from airllm.models.config_reader import MAX_CONTEXT, ConfigReader
from airllm.models.family import Family


def configure(r: ConfigReader) -> ModelConfig:
    """Older files leave out the constants, which are those of Grok 1."""
    beside = "blk.0.ffn_up.weight" in r.file.tensors
    longest = r.integer("attention.temperature_length", 0, high=MAX_CONTEXT) or MAX_CONTEXT
    return r.config(
        layers=[LayerConfig(has_experts=True)] * r.n_layers,
        scaled_by=r.positive("attention.output_scale", 128**-0.5) ** -2,
        embedding_scale=r.positive("embedding_scale", 78.38367176906169),
        logit_scale=r.positive("logit_scale", 3**-0.5),
        attention_softcap=r.cap("attn_logit_softcapping", 30.0),
        final_softcap=r.cap("final_logit_softcapping"),
        router_softcap=r.cap("router_logit_softcapping", 30.0),
        intermediate_size=r.feed_forward_length(),
        shared_expert_size=r.feed_forward_length() if beside else 0,
        most_context=longest,
        **r.experts(normalized=False, shared_out=False),
    )


def renewed(file: ModelParts) -> ModelParts:
    """Files of Grok 2 have another name of the norm behind the experts."""
    older, newer = ".post_ffw_norm.", ".layer_output_norm."
    if not any(older in name for name in file.tensors):
        return file
    named = [replace(each, name=each.name.replace(older, newer)) for each in file.tensors.values()]
    return file.remade(file.metadata, named, {})


def _feed_forward(g: GraphBuilder, c: ModelConfig, layer: LayerConfig, h: Buffer) -> Buffer:
    y = blocks.routed_experts(g, c, h, blocks.route(g, c, h), activation="gelu")
    if not c.shared_expert_size:
        return y
    beside = blocks.glu_mlp(g, c, h, activation="gelu")
    return g.scale(g.add(y, beside, out=y), math.sqrt(0.5), out=y)


FAMILY = Family(
    ("grok",),
    (),
    configure,
    partial(
        blocks.layer,
        after=("attn_output_norm", "layer_output_norm"),
        feed_forward=_feed_forward,
    ),
    renewed=renewed,
)
