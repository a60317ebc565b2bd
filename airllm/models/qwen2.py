"""Qwen2 and Qwen2.5 (arXiv:2407.10671, arXiv:2412.15115): a Llama with biases on Q, K and V.

Its GGUF files keep the rows of Q and K in the order of the checkpoint, so rope rotates dimension j
of a head with dimension j + head_dim / 2.
"""

from airllm.graph.builder import GraphBuilder
from airllm.graph.graph import Activations, Graph
from airllm.models.config import ModelConfig
from airllm.models.llama import embed as embed
from airllm.models.llama import feed_forward
from airllm.models.llama import head as head


def layer(c: ModelConfig, activations: Activations, window: int) -> Graph:
    g = GraphBuilder("layer", activations=activations)
    hidden, q_width, kv_width = c.hidden_size, c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    x = g.external("residual", hidden)  # [n, hidden]
    table = g.external("rope", c.rope_dims)  # [n, rope_dims]

    h = g.rms_norm(x, g.weight("attn_norm", hidden), c.rms_norm_eps)  # [n, hidden]
    q = g.linear(h, g.weight("attn_q", q_width, hidden))  # [n, q_width]
    k = g.linear(h, g.weight("attn_k", kv_width, hidden))  # [n, kv_width]
    v = g.linear(h, g.weight("attn_v", kv_width, hidden))  # [n, kv_width]
    q = g.bias(q, g.weight("attn_q.bias", q_width), out=q)
    k = g.bias(k, g.weight("attn_k.bias", kv_width), out=k)
    v = g.bias(v, g.weight("attn_v.bias", kv_width), out=v)
    q = g.rope(q, table, c.n_heads, c.head_dim, interleaved=False, out=q)
    k = g.rope(k, table, c.n_kv_heads, c.head_dim, interleaved=False, out=k)
    g.kv_append(k, v, c.n_kv_heads, c.head_dim)
    a = g.attention(
        q, c.n_heads, c.n_kv_heads, c.head_dim, scale=c.attention_scale, window=window
    )  # [n, q_width]
    x = g.add(x, g.linear(a, g.weight("attn_output", hidden, q_width)), out=x)  # [n, hidden]

    feed_forward(g, c, x)
    return g.build()
