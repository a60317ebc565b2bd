"""PLaMo 2 (Preferred Networks): Mamba-2 and attention in turn, with norms before and behind each
half of a layer. Time steps, B and C are made of what the convolution gives, and are normalised.
Heads of queries and keys are normalised, each with weights of its own.

The models have windows, and GGUF files do not say which layers have them. Contexts end where they
would begin to count.
"""

from airllm.graph.builder import GraphBuilder
from airllm.graph.graph import Activations, Buffer, Graph
from airllm.models import blocks
from airllm.models.config import LayerConfig, Mamba2, ModelConfig
from airllm.models.config_reader import MAX_HEADS, MAX_TAPS, ConfigReader
from airllm.models.family import Family
from airllm.models.mamba2 import MAX_STATE, convolved
from airllm.models.plamo3 import AFTER

WINDOW = 2048


def configure(r: ConfigReader) -> ModelConfig:
    """Layers without heads have Mamba-2."""
    name = "attention.head_count"
    heads, kv_heads = (r.of_layers(each, high=MAX_HEADS) for each in (name, f"{name}_kv"))
    r.require_alike(name, heads)
    r.require_alike(f"{name}_kv", kv_heads)
    n_heads, n_kv_heads = max(heads), max(kv_heads)
    which = [n > 0 for n in heads]
    if which != [n > 0 for n in kv_heads]:
        raise r.fault(
            f"{name}_kv", list(kv_heads), f"expected heads in the layers of {r.key(name)}"
        )
    if n_heads == 0 or n_heads % n_kv_heads:
        raise r.fault(name, n_heads, f"expected a multiple of {n_kv_heads}, of keys, above 0")
    return r.config(
        layers=[LayerConfig(mixer="attention" if attends else "mamba2") for attends in which],
        n_heads=n_heads,
        kv_heads=kv_heads,
        mamba2=_read_mamba2(r),
        most_context=WINDOW,
    )


def _read_mamba2(r: ConfigReader) -> Mamba2:
    """Files say 0 for its one group."""
    inner = r.integer("ssm.inner_size", low=1)
    n_heads = r.integer("ssm.time_step_rank", low=1, high=inner)
    if inner % n_heads:
        raise r.fault("ssm.time_step_rank", n_heads, f"expected a divisor of {inner}, inner_size")
    r.integer("ssm.group_count", 0, high=0)
    return Mamba2(
        inner_size=inner,
        n_heads=n_heads,
        state_size=r.integer("ssm.state_size", low=1, high=MAX_STATE),
        n_groups=1,
        taps=r.integer("ssm.conv_kernel", low=1, high=MAX_TAPS),
        conv_biased=False,
        dt_limits=(0.0, 3e38),
    )


def layer(c: ModelConfig, activations: Activations, layer: LayerConfig) -> Graph:
    mixer = _attention if layer.mixer == "attention" else _mamba2
    feed_forward = blocks.fused_glu_mlp
    return blocks.layer(c, activations, layer, mixer=mixer, after=AFTER, feed_forward=feed_forward)


def _attention(g: GraphBuilder, c: ModelConfig, layer: LayerConfig, h: Buffer) -> Buffer:
    q_width, kv_width = c.q_width, c.kv_width
    qkv = blocks.linear(g, c, h, "attn_qkv", q_width + 2 * kv_width)
    q = g.take_columns(qkv, 0, q_width)  # [n, q_width]
    k = g.take_columns(qkv, q_width, kv_width)  # [n, kv_width]
    v = g.take_columns(qkv, q_width + kv_width, kv_width)  # [n, kv_width]
    q = g.group_norm(q, g.weight("attn_q_norm", q_width), c.n_heads, c.norm_eps, out=q)
    k = g.group_norm(k, g.weight("attn_k_norm", kv_width), c.n_kv_heads, c.norm_eps, out=k)
    table = g.external("rope", c.rope_dims)  # [n, rope_dims]
    q = g.rope(q, table, c.n_heads, c.head_dim, interleaved=c.rope_interleaved, out=q)
    k = g.rope(k, table, c.n_kv_heads, c.head_dim, interleaved=c.rope_interleaved, out=k)
    g.kv_append(k, v, c.n_kv_heads, c.head_dim)
    a = blocks.attend_to_all(g, c, layer, q)  # [n, q_width]
    return blocks.linear(g, c, a, "attn_output", c.hidden_size)


def _mamba2(g: GraphBuilder, c: ModelConfig, layer: LayerConfig, h: Buffer) -> Buffer:
    m = c.mamba2
    assert m is not None
    inner, state, head_dim = m.inner_size, m.state_size, m.inner_size // m.n_heads
    dt_width = max(64, c.hidden_size // 16)
    both = blocks.linear(g, c, h, "ssm_in", 2 * inner)  # of each head a gate, then x
    gate = g.take_head_columns(both, m.n_heads, 0, head_dim)  # [n, inner]
    x = g.take_head_columns(both, m.n_heads, head_dim, head_dim)  # [n, inner]
    x = convolved(g, x, m.taps, biased=False)
    bcdt = blocks.linear(g, c, x, "ssm_x", 2 * state + dt_width)
    b, c_, dt = (
        blocks.norm(g, c, g.take_columns(bcdt, at, width), slot)
        for at, width, slot in (
            (0, state, "ssm_b_norm."),  # GGUF has them without a suffix
            (state, state, "ssm_c_norm."),
            (2 * state, dt_width, "ssm_dt_norm."),
        )
    )
    dt = blocks.linear(g, c, dt, "ssm_dt", m.n_heads)
    a, skip, bias = (g.weight(slot, m.n_heads) for slot in ("ssm_a", "ssm_d", "ssm_dt.bias"))
    y = g.ssm_scan(x, dt, b, c_, (a, skip, bias), n_groups=1)  # [n, inner]
    return blocks.linear(g, c, g.swiglu(gate, y, out=y), "ssm_out", c.hidden_size)


FAMILY = Family(("plamo2",), (), configure, layer)
