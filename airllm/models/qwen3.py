"""Qwen3 (arXiv:2505.09388): Qwen2 with each head of Q and K normalised, in place of biases."""

from airllm.graph.builder import GraphBuilder
from airllm.graph.graph import Activations, Buffer, Graph
from airllm.models.config import ModelConfig
from airllm.models.llama import embed as embed
from airllm.models.llama import feed_forward
from airllm.models.llama import head as head


def layer(c: ModelConfig, activations: Activations, window: int) -> Graph:
    g = GraphBuilder("layer", activations=activations)
    x = attention(g, c, window)
    feed_forward(g, c, x)
    return g.build()


def attention(g: GraphBuilder, c: ModelConfig, window: int) -> Buffer:
    """The first half of a layer. Returns the residual, [n, hidden]."""
    hidden, q_width, kv_width = c.hidden_size, c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    eps = c.rms_norm_eps
    x = g.external("residual", hidden)  # [n, hidden]
    table = g.external("rope", c.rope_dims)  # [n, rope_dims]

    h = g.rms_norm(x, g.weight("attn_norm", hidden), eps)  # [n, hidden]
    q = g.linear(h, g.weight("attn_q", q_width, hidden))  # [n, q_width]
    k = g.linear(h, g.weight("attn_k", kv_width, hidden))  # [n, kv_width]
    v = g.linear(h, g.weight("attn_v", kv_width, hidden))  # [n, kv_width]
    q = g.head_norm(q, g.weight("attn_q_norm", c.head_dim), c.n_heads, eps, out=q)
    k = g.head_norm(k, g.weight("attn_k_norm", c.head_dim), c.n_kv_heads, eps, out=k)
    q = g.rope(q, table, c.n_heads, c.head_dim, interleaved=False, out=q)
    k = g.rope(k, table, c.n_kv_heads, c.head_dim, interleaved=False, out=k)
    g.kv_append(k, v, c.n_kv_heads, c.head_dim)
    a = g.attention(
        q, c.n_heads, c.n_kv_heads, c.head_dim, scale=c.attention_scale, window=window
    )  # [n, q_width]
    return g.add(x, g.linear(a, g.weight("attn_output", hidden, q_width)), out=x)  # [n, hidden]
