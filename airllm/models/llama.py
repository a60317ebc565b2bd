"""Llama (arXiv:2302.13971, arXiv:2407.21783), and models of its shape: SmolLM2, TinyLlama, and
Mistral (arXiv:2310.06825), whose layers attend to a window.

The converter to GGUF reorders the rows of Q and K of this architecture, so that rope rotates
neighbouring dimensions (`interleaved`). In Hugging Face's files it rotates j with j + head_dim / 2.
"""

from airllm.graph.builder import GraphBuilder
from airllm.graph.graph import Activations, Buffer, Graph
from airllm.models.config import ModelConfig


def embed(c: ModelConfig) -> Graph:
    g = GraphBuilder("embed")
    tokens = g.external("tokens", 1, "int32")  # [n]
    x = g.external("residual", c.hidden_size)  # [n, hidden]
    g.embed(tokens, g.weight("token_embd", c.vocab_size, c.hidden_size), out=x)
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
    q = g.rope(q, table, c.n_heads, c.head_dim, interleaved=c.rope_interleaved, out=q)
    k = g.rope(k, table, c.n_kv_heads, c.head_dim, interleaved=c.rope_interleaved, out=k)
    g.kv_append(k, v, c.n_kv_heads, c.head_dim)
    a = g.attention(
        q, c.n_heads, c.n_kv_heads, c.head_dim, scale=c.attention_scale, window=window
    )  # [n, q_width]
    x = g.add(x, g.linear(a, g.weight("attn_output", hidden, q_width)), out=x)  # [n, hidden]

    feed_forward(g, c, x)
    return g.build()


def feed_forward(g: GraphBuilder, c: ModelConfig, x: Buffer) -> None:
    """The second half of a layer, SwiGLU (arXiv:2002.05202). x: the residual, [n, hidden]."""
    hidden, ffn = c.hidden_size, c.intermediate_size
    h = g.rms_norm(x, g.weight("ffn_norm", hidden), c.rms_norm_eps)  # [n, hidden]
    gate = g.linear(h, g.weight("ffn_gate", ffn, hidden))  # [n, ffn]
    up = g.linear(h, g.weight("ffn_up", ffn, hidden))  # [n, ffn]
    h = g.swiglu(gate, up)  # [n, ffn]
    g.add(x, g.linear(h, g.weight("ffn_down", hidden, ffn)), out=x)  # [n, hidden]


def head(c: ModelConfig, activations: Activations) -> Graph:
    g = GraphBuilder("head", activations=activations)
    output = "token_embd" if c.tied_embeddings else "output"
    x = g.external("residual", c.hidden_size)  # [n, hidden]
    logits = g.external("logits", c.vocab_size)  # [n, vocab]
    h = g.rms_norm(x, g.weight("output_norm", c.hidden_size), c.rms_norm_eps)  # [n, hidden]
    g.linear(h, g.weight(output, c.vocab_size, c.hidden_size), out=logits)
    return g.build()
