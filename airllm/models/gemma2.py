"""Gemma 2 (arXiv:2408.00118): norms before and after each half of a layer, GELU, capped scores and
logits, and a window on every other layer.

Gemma's norms multiply by 1 + weight; GGUF files store the sum.
"""

from airllm.graph.builder import GraphBuilder
from airllm.graph.graph import Activations, Buffer, Graph
from airllm.models.config import ModelConfig


def embed(c: ModelConfig) -> Graph:
    g = GraphBuilder("embed")
    tokens = g.external("tokens", 1, "int32")  # [n]
    x = g.external("residual", c.hidden_size)  # [n, hidden]
    table = g.weight("token_embd", c.vocab_size, c.hidden_size)
    g.embed(tokens, table, scale=c.hidden_size**0.5, out=x)
    return g.build()


def layer(c: ModelConfig, activations: Activations, window: int) -> Graph:
    g = GraphBuilder("layer", activations=activations)
    hidden, q_width, kv_width = c.hidden_size, c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    x = g.external("residual", hidden)  # [n, hidden]
    table = g.external("rope", c.rope_dims)  # [n, rope_dims]

    h = g.rms_norm(x, g.weight("attn_norm", hidden), c.rms_norm_eps)  # [n, hidden]
    q = g.linear(h, g.weight("attn_q", q_width, hidden))  # [n, q_width]
    k = g.linear(h, g.weight("attn_k", kv_width, hidden))  # [n, kv_width]
    v = g.linear(h, g.weight("attn_v", kv_width, hidden))  # [n, kv_width]
    q = g.rope(q, table, c.n_heads, c.head_dim, interleaved=False, out=q)
    k = g.rope(k, table, c.n_kv_heads, c.head_dim, interleaved=False, out=k)
    g.kv_append(k, v, c.n_kv_heads, c.head_dim)
    a = attention(g, c, q, window)  # [n, q_width]
    a = g.linear(a, g.weight("attn_output", hidden, q_width))  # [n, hidden]
    a = g.rms_norm(a, g.weight("post_attention_norm", hidden), c.rms_norm_eps, out=a)
    x = g.add(x, a, out=x)  # [n, hidden]

    feed_forward(g, c, x)
    return g.build()


def attention(g: GraphBuilder, c: ModelConfig, q: Buffer, window: int) -> Buffer:
    return g.attention(
        q,
        c.n_heads,
        c.n_kv_heads,
        c.head_dim,
        scale=c.attention_scale,
        window=window,
        softcap=c.attention_softcap,
    )


def feed_forward(g: GraphBuilder, c: ModelConfig, x: Buffer) -> None:
    """The second half of a layer. x: the residual, [n, hidden]."""
    hidden, ffn = c.hidden_size, c.intermediate_size
    h = g.rms_norm(x, g.weight("ffn_norm", hidden), c.rms_norm_eps)  # [n, hidden]
    gate = g.linear(h, g.weight("ffn_gate", ffn, hidden))  # [n, ffn]
    up = g.linear(h, g.weight("ffn_up", ffn, hidden))  # [n, ffn]
    h = g.geglu(gate, up)  # [n, ffn]
    h = g.linear(h, g.weight("ffn_down", hidden, ffn))  # [n, hidden]
    h = g.rms_norm(h, g.weight("post_ffw_norm", hidden), c.rms_norm_eps, out=h)
    g.add(x, h, out=x)  # [n, hidden]


def head(c: ModelConfig, activations: Activations) -> Graph:
    g = GraphBuilder("head", activations=activations)
    output = "token_embd" if c.tied_embeddings else "output"
    x = g.external("residual", c.hidden_size)  # [n, hidden]
    logits = g.external("logits", c.vocab_size)  # [n, vocab]
    h = g.rms_norm(x, g.weight("output_norm", c.hidden_size), c.rms_norm_eps)  # [n, hidden]
    g.linear(h, g.weight(output, c.vocab_size, c.hidden_size), out=logits)
    if c.final_softcap:
        g.softcap(logits, c.final_softcap, out=logits)
    return g.build()
