"""BitNet b1.58 3B (arXiv:2402.17764): a Llama with weights of -1, 0 and 1 times a matrix's scale,
and with a norm before the last matrix of each half of a layer."""

from functools import partial

from airllm.graph.builder import GraphBuilder
from airllm.graph.graph import Buffer
from airllm.models import blocks
from airllm.models.config import LayerConfig, ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family


def configure(r: ConfigReader) -> ModelConfig:
    return r.config()


def _attend(g: GraphBuilder, c: ModelConfig, layer: LayerConfig, q: Buffer, h: Buffer) -> Buffer:
    a = blocks.attend_to_all(g, c, layer, q)  # [n, q_width]
    return blocks.norm(g, c, a, "attn_sub_norm", out=a)


def _feed_forward(g: GraphBuilder, c: ModelConfig, layer: LayerConfig, h: Buffer) -> Buffer:
    gate = g.linear(h, g.weight("ffn_gate", c.intermediate_size, c.hidden_size))
    up = g.linear(h, g.weight("ffn_up", c.intermediate_size, c.hidden_size))
    h = blocks.norm(g, c, g.swiglu(gate, up), "ffn_sub_norm")  # [n, intermediate]
    return g.linear(h, g.weight("ffn_down", c.hidden_size, c.intermediate_size))


layer = partial(blocks.layer, attend=_attend, feed_forward=_feed_forward)

FAMILY = Family(("bitnet",), (), configure, layer)
