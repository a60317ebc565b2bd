"""Gemma 3 (arXiv:2503.19786): Gemma 2 with normalised heads of Q and K in place of capped scores.

Five of six layers have a window; their rope turns faster than that of the sixth.
"""

from airllm.graph.builder import GraphBuilder
from airllm.graph.graph import Activations, Graph
from airllm.models.config import ModelConfig
from airllm.models.gemma2 import attention, feed_forward
from airllm.models.gemma2 import embed as embed
from airllm.models.gemma2 import head as head


def layer(c: ModelConfig, activations: Activations, window: int) -> Graph:
    g = GraphBuilder("layer", activations=activations)
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
    a = attention(g, c, q, window)  # [n, q_width]
    a = g.linear(a, g.weight("attn_output", hidden, q_width))  # [n, hidden]
    a = g.rms_norm(a, g.weight("post_attention_norm", hidden), eps, out=a)
    x = g.add(x, a, out=x)  # [n, hidden]

    feed_forward(g, c, x)
    return g.build()
