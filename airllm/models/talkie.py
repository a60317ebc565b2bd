"""Talkie 13B: a Llama whose norms have no weights. Heads of queries and keys are normalised behind
their rotation, and each head of queries has a factor. Each layer adds the embedding, which is
normalised, times a factor. Matrices behind attention and of the network have scales beside them."""

from airllm.graph.builder import GraphBuilder
from airllm.graph.graph import Activations, Buffer, Graph
from airllm.models import blocks
from airllm.models.config import LayerConfig, ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family


def configure(r: ConfigReader) -> ModelConfig:
    return r.config(logit_scale=r.positive("logit_scale", 1.0))


def _normed(g: GraphBuilder, c: ModelConfig, x: Buffer, *, n: int = 1) -> Buffer:
    """Each of n equal parts of x."""
    return g.head_norm(x, None, n, c.norm_eps)


def embed(c: ModelConfig, activations: Activations) -> Graph:
    g = GraphBuilder("embed", activations=activations)
    tokens = g.external("tokens", 1, "int32")  # [n]
    x = g.external("residual", c.hidden_size)  # [n, hidden]
    g.embed(tokens, g.weight("token_embd", c.vocab_size, c.hidden_size), out=x)
    g.head_norm(x, None, 1, c.norm_eps, out=x)
    g.take_columns(x, 0, c.hidden_size, out=g.external("embedding", c.hidden_size))
    return g.build()


def layer(c: ModelConfig, activations: Activations, layer: LayerConfig) -> Graph:
    g = GraphBuilder("layer", activations=activations)
    x = g.external("residual", c.hidden_size)  # [n, hidden]
    x = g.add(x, _attention(g, c, layer, _normed(g, c, x)), out=x)
    x = g.add(x, blocks.glu_mlp(g, c, _normed(g, c, x)), out=x)
    embedding = g.external("embedding", c.hidden_size)  # [n, hidden]
    g.add(x, g.scale(embedding, weight=g.weight("layer_output_scale", 1)), out=x)
    return g.build()


def _attention(g: GraphBuilder, c: ModelConfig, layer: LayerConfig, h: Buffer) -> Buffer:
    q = blocks.linear(g, c, h, "attn_q", c.q_width)  # [n, q_width]
    k = blocks.linear(g, c, h, "attn_k", c.kv_width)  # [n, kv_width]
    v = blocks.linear(g, c, h, "attn_v", c.v_width)  # [n, v_width]
    table = g.external("rope", c.rope_dims)  # [n, rope_dims]
    q = g.rope(q, table, c.n_heads, c.head_dim, interleaved=c.rope_interleaved, out=q)
    k = g.rope(k, table, c.n_kv_heads, c.head_dim, interleaved=c.rope_interleaved, out=k)
    q, k = _normed(g, c, q, n=c.n_heads), _normed(g, c, k, n=c.n_kv_heads)
    q = blocks.scaled_parts(g, q, g.weight("attn_q_norm", c.n_heads), c.n_heads)
    g.kv_append(k, v, c.n_kv_heads, c.head_dim)
    a = blocks.attend_to_all(g, c, layer, q)  # [n, q_width]
    return blocks.linear(g, c, a, "attn_output", c.hidden_size)


def head(c: ModelConfig, activations: Activations) -> Graph:
    g = GraphBuilder("head", activations=activations)
    h = _normed(g, c, g.external("residual", c.hidden_size))  # [n, hidden]
    blocks.vocabulary_logits(g, c, h)
    return g.build()


FAMILY = Family(("talkie",), (), configure, layer, embed, head)
