"""Linear attention by the gated delta rule (arXiv:2412.06464), with a short convolution before it
and a gated norm behind it."""

from airllm.formats.hf_config import HEADS_TILED
from airllm.graph.builder import GraphBuilder
from airllm.graph.graph import Buffer
from airllm.models import blocks
from airllm.models.config import DeltaNet, LayerConfig, ModelConfig
from airllm.models.config_reader import MAX_HEADS, MAX_TAPS, ConfigReader

__all__ = ["L2_EPS", "MOST_KEY_DIM", "delta_net", "delta_net_of", "recurrent_layers"]

L2_EPS = 1e-6  # of the norms of queries and keys; no file says it
MOST_KEY_DIM = 256  # the kernels'


def delta_net_of(r: ConfigReader, *, tiled: bool) -> DeltaNet:
    """As the file's keys say. tiled: whether GGUF files of this architecture are."""
    n_kv_heads = r.integer("ssm.group_count", low=1, high=MAX_HEADS)
    n_heads = r.integer("ssm.time_step_rank", low=1, high=MAX_HEADS)
    if n_heads % n_kv_heads:
        raise r.fault(
            "ssm.time_step_rank",
            n_heads,
            f"expected a multiple of {r.key('ssm.group_count')}, {n_kv_heads}",
        )
    width = r.integer("ssm.inner_size", low=1)
    if width % n_heads:
        raise r.fault(
            "ssm.inner_size",
            width,
            f"expected a multiple of {r.key('ssm.time_step_rank')}, {n_heads}",
        )
    return DeltaNet(
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        key_dim=r.integer("ssm.state_size", low=1, high=MOST_KEY_DIM),
        value_dim=width // n_heads,
        taps=r.integer("ssm.conv_kernel", low=1, high=MAX_TAPS),
        tiled=r.metadata.flag(HEADS_TILED, tiled),
    )


def recurrent_layers(r: ConfigReader) -> list[bool]:
    """For each layer: whether its attention is linear. Where the file has no list, that is so for
    all but the last of each full_attention_interval layers."""
    interval = r.integer("full_attention_interval", 4, low=1)
    listed = r.flags("attention.recurrent_layers", r.n_layers + len(r.left_out))
    if listed is not None:
        return listed[: r.n_layers]
    return [(index + 1) % interval != 0 for index in range(r.n_layers)]


def delta_net(g: GraphBuilder, c: ModelConfig, layer: LayerConfig, h: Buffer) -> Buffer:
    """h: [n, hidden] -> [n, hidden]"""
    d = c.delta_net
    assert d is not None
    width = 2 * d.key_width + d.value_width
    qkv = blocks.linear(g, c, h, "attn_qkv", width)  # [n, width]
    z = blocks.linear(g, c, h, "attn_gate", d.value_width)  # [n, value_width]
    if c.architecture == "qwen3next":  # each head of keys has its betas, and then its alphas
        shared = d.n_heads // d.n_kv_heads
        both = blocks.linear(g, c, h, "ssm_ba", 2 * d.n_heads)
        beta, alpha = (
            g.take_head_columns(both, d.n_kv_heads, first, shared) for first in (0, shared)
        )
    else:
        beta = blocks.linear(g, c, h, "ssm_beta", d.n_heads)  # [n, n_heads]
        alpha = blocks.linear(g, c, h, "ssm_alpha", d.n_heads)  # [n, n_heads]
    qkv = g.conv(qkv, g.weight("ssm_conv1d", width, d.taps), silu=True, out=qkv)
    q = g.take_columns(qkv, 0, d.key_width)
    k = g.take_columns(qkv, d.key_width, d.key_width)
    v = g.take_columns(qkv, 2 * d.key_width, d.value_width)
    q = g.l2_norm(q, d.n_kv_heads, L2_EPS, out=q)
    k = g.l2_norm(k, d.n_kv_heads, L2_EPS, out=k)
    a, bias = g.weight("ssm_a", d.n_heads), g.weight("ssm_dt.bias", d.n_heads)
    y = g.delta_rule(
        q,
        k,
        v,
        g.log_decay(alpha, a, bias, out=alpha),
        g.sigmoid(beta, out=beta),
        d.n_heads,
        d.n_kv_heads,
        scale=d.key_dim**-0.5,
        tiled=d.tiled,
    )  # [n, value_width]
    y = g.head_norm(y, g.weight("ssm_norm", d.value_dim), d.n_heads, c.norm_eps, out=y)
    sigmoid = d.gate == "sigmoid"
    y = g.multiply(y, g.sigmoid(z, out=z), out=y) if sigmoid else g.swiglu(z, y, out=y)
    return blocks.linear(g, c, y, "ssm_out", c.hidden_size)
