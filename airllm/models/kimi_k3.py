"""Kimi K3: a Kimi Linear whose layers see the residuals of earlier layers, and whose experts see a
narrower token. Gates and values of its activation are capped smoothly, and latent attention has a
gate. It is read from GGUF files only."""

from dataclasses import replace
from functools import partial

from airllm.graph.builder import GraphBuilder
from airllm.graph.graph import Activations, Buffer, Graph
from airllm.graph.ops.streams import MOST_EARLIER
from airllm.models import blocks, deepseek2, kimi_linear
from airllm.models.config import LayerConfig, ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family

_kda = partial(kimi_linear.kda, gate=kimi_linear.matrix("ssm_g"))


def configure(r: ConfigReader) -> ModelConfig:
    c = kimi_linear.configure(r)
    block = r.integer("attn_res.block_size", low=-(-c.n_layers // MOST_EARLIER))
    layers = [
        replace(layer, n_earlier=-(-index // block), keeps_residual=index % block == 0)
        for index, layer in enumerate(c.layers)
    ]
    names = r.file.tensors
    gated = any(name.endswith(".attn_gate.weight") for name in names)
    latent, net = c.latent, c.delta_net
    assert latent is not None
    assert net is not None
    caps = r.cap("activation.situ_beta"), r.cap("activation.situ_linear_beta")
    if not caps[0]:
        raise r.fault("activation.situ_beta", caps[0], "expected at least 0.001")
    return replace(
        c,
        layers=tuple(layers),
        latent=replace(latent, gate="values" if gated else ""),
        delta_net=replace(net, decay_bound=kimi_linear.decay_bound(r)),
        residual_block=block,
        activation_caps=caps,
        expert_hidden_size=r.integer("expert_latent_length", 0),
        # No residual is kept before the first layer.
        idle_tensors=frozenset(["blk.0.attn_res_score.weight"]),
        experts_normed=any(name.endswith(".ffn_routed_norm.weight") for name in names),
    )


def _earlier(g: GraphBuilder, c: ModelConfig) -> Buffer:
    """The residuals that layers keep, side by side: [n, kept * hidden]."""
    n_kept = -(-c.n_layers // c.residual_block)
    return g.external("earlier", n_kept * c.hidden_size)


def _seen(g: GraphBuilder, c: ModelConfig, x: Buffer, n_earlier: int, slot: str) -> Buffer:
    """What a part of a layer sees of the residual x and of the earlier ones."""
    if n_earlier == 0:
        return x
    score = g.weight(slot, c.hidden_size)
    return g.residual_attention(x, _earlier(g, c), score, n_earlier, c.norm_eps)


def layer(c: ModelConfig, activations: Activations, layer: LayerConfig) -> Graph:
    g = GraphBuilder("layer", activations=activations)
    x = g.external("residual", c.hidden_size)  # [n, hidden]
    h = blocks.norm(g, c, _seen(g, c, x, layer.n_earlier, "attn_res_score"), "attn_norm")
    n_earlier = layer.n_earlier + layer.keeps_residual
    if layer.keeps_residual:
        g.put_columns(x, layer.n_earlier * c.hidden_size, out=_earlier(g, c))
    mixer = _kda if layer.mixer == "delta_net" else deepseek2.attention
    y = mixer(g, c, layer, h)
    begins = layer.keeps_residual
    x = g.take_columns(y, 0, c.hidden_size, out=x) if begins else g.add(x, y, out=x)
    h = blocks.norm(g, c, _seen(g, c, x, n_earlier, "ffn_res_score"), "ffn_norm")
    y = _experts(g, c, h) if layer.has_experts else _network(g, c, h, c.intermediate_size)
    g.add(x, y, out=x)
    return g.build()


def head(c: ModelConfig, activations: Activations) -> Graph:
    g = GraphBuilder("head", activations=activations)
    x = g.external("residual", c.hidden_size)  # [n, hidden]
    logits = g.external("logits", c.vocab_size)  # [n, vocab]
    n_earlier = -(-c.n_layers // c.residual_block)
    h = blocks.norm(g, c, _seen(g, c, x, n_earlier, "output_res_score"), "output_norm")
    output = "token_embd" if c.tied_embeddings else "output"
    g.linear(h, g.weight(output, c.vocab_size, c.hidden_size), out=logits)
    return g.build()


def _activation(g: GraphBuilder, c: ModelConfig, gate: Buffer, up: Buffer) -> Buffer:
    of_gate, of_up = c.activation_caps
    share = g.sigmoid(gate)
    gate = g.softcap(gate, of_gate, out=gate)
    if of_up:
        up = g.softcap(up, of_up, out=up)
    return g.multiply(g.multiply(gate, share, out=gate), up, out=gate)


def _network(g: GraphBuilder, c: ModelConfig, h: Buffer, width: int, suffix: str = "") -> Buffer:
    gate = blocks.linear(g, c, h, f"ffn_gate{suffix}", width)
    up = blocks.linear(g, c, h, f"ffn_up{suffix}", width)
    act = _activation(g, c, gate, up)
    return blocks.linear(g, c, act, f"ffn_down{suffix}", c.hidden_size)


def _experts(g: GraphBuilder, c: ModelConfig, h: Buffer) -> Buffer:
    """Experts, which may see a projection of the token to fewer values, and those that all tokens
    use."""
    n, ffn, seen = c.n_experts, c.expert_size, c.expert_hidden_size
    route = blocks.route(g, c, h)
    x = blocks.linear(g, c, h, "ffn_routed_down", seen) if seen else h
    gate = g.expert_linear(x, route, g.weight("ffn_gate_exps", n, ffn, x.width))
    up = g.expert_linear(x, route, g.weight("ffn_up_exps", n, ffn, x.width))
    act = _activation(g, c, gate, up)
    down = g.expert_linear(act, route, g.weight("ffn_down_exps", n, x.width, ffn))
    y = g.expert_sum(down, route)  # [n, hidden or fewer]
    if c.experts_normed:
        y = blocks.norm(g, c, y, "ffn_routed_norm", out=y)
    if seen:
        y = blocks.linear(g, c, y, "ffn_routed_up", c.hidden_size)
    if not c.shared_expert_size:
        return y
    return g.add(y, _network(g, c, h, c.shared_expert_size, "_shexp"), out=y)


FAMILY = Family(("kimi-k3",), (), configure, layer, head=head)
