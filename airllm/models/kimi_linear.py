"""Kimi Linear (arXiv:2510.26692): Kimi Delta Attention in most layers, latent attention without
rotation in the others, and experts behind a dense layer.

Kimi Delta Attention is the gated delta rule (see delta_net) with a decay for each channel of the
keys. Decays and the gate behind it are products with matrices of low rank.
"""

from collections.abc import Callable, Mapping

import numpy as np

from airllm.formats.hf_config import Names
from airllm.graph.builder import GraphBuilder
from airllm.graph.graph import Activations, Buffer, Graph
from airllm.models import blocks, deepseek2
from airllm.models.config import DeltaNet, LayerConfig, ModelConfig
from airllm.models.config_reader import MAX_TAPS, ConfigReader
from airllm.models.delta_net import L2_EPS, MOST_KEY_DIM
from airllm.models.family import Family
from airllm.models.hugging_face import FULL, SPARSE_NAMES, HFReader, HuggingFace
from airllm.models.mamba2 import CHANGED
from airllm.models.qwen35 import LINEAR
from airllm.util.metadata import Metadata

_LEAST_DECAY = -1e4  # that of the known models is -5


def configure(r: ConfigReader) -> ModelConfig:
    latent, rope_dims = deepseek2.latent_of(r)
    r.ignore("attention.value_length")  # the latent says it
    r.ignore_rope()
    kv_heads = latent_heads(r)
    dense = r.integer("leading_dense_block_count", 0, high=r.n_layers)
    return r.config(
        head_dim=latent.rank + rope_dims,
        scaled_by=latent.unrotated + rope_dims,
        kv_heads=kv_heads,
        layers=[
            LayerConfig(
                rotates=False,
                has_experts=index >= dense,
                mixer="attention" if heads else "delta_net",
            )
            for index, heads in enumerate(kv_heads)
        ],
        intermediate_size=r.feed_forward_length(),
        latent=latent,
        delta_net=delta_net_of(r),
        **deepseek2.experts_of(r, dense, normalized=r.architecture == "kimi-linear"),
    )


def latent_heads(r: ConfigReader) -> tuple[int, ...]:
    """Of each layer: 1 if its attention has a latent, 0 if it is linear."""
    kv_heads = r.kv_heads(differ=True, low=0)
    if max(kv_heads) > 1:
        raise r.fault("attention.head_count_kv", max(kv_heads), "expected 0 or 1")
    return kv_heads


def delta_net_of(r: ConfigReader) -> DeltaNet:
    n_heads = r.integer("attention.head_count", low=1)
    head_dim = r.integer("kda.head_dim", low=1, high=MOST_KEY_DIM)
    return DeltaNet(
        n_heads=n_heads,
        n_kv_heads=n_heads,
        key_dim=head_dim,
        value_dim=head_dim,
        taps=r.integer("ssm.conv_kernel", low=1, high=MAX_TAPS),
        tiled=False,
    )


def decay_bound(r: ConfigReader) -> float:
    """Of the logarithms of decays; 0: they have none."""
    name = "kda.gate_lower_bound"
    bound = r.number(name, 0.0)
    if not _LEAST_DECAY <= bound <= 0.0:
        raise r.fault(name, bound, f"expected {_LEAST_DECAY:g} to 0, where 0 is none")
    return bound


def layer(c: ModelConfig, activations: Activations, layer: LayerConfig) -> Graph:
    mixer = kda if layer.mixer == "delta_net" else deepseek2.attention
    return blocks.layer(c, activations, layer, mixer=mixer)


# From a layer's normalised input, [n, hidden], to a value for each of the heads' values.
Part = Callable[[GraphBuilder, ModelConfig, Buffer], Buffer]


def matrix(slot: str) -> Part:
    """The product with one matrix."""

    def part(g: GraphBuilder, c: ModelConfig, h: Buffer) -> Buffer:
        assert c.delta_net is not None
        return blocks.linear(g, c, h, slot, c.delta_net.value_width)  # [n, width]

    return part


def _low_rank(slot: str) -> Part:
    """The product with two matrices."""

    def part(g: GraphBuilder, c: ModelConfig, h: Buffer) -> Buffer:
        assert c.delta_net is not None
        x = blocks.linear(g, c, h, f"{slot}_a", c.delta_net.value_dim)
        return blocks.linear(g, c, x, f"{slot}_b", c.delta_net.value_width)  # [n, width]

    return part


def _log_decay(g: GraphBuilder, c: ModelConfig, h: Buffer) -> Buffer:
    d = c.delta_net
    assert d is not None
    x = _low_rank("ssm_f")(g, c, h)
    a, bias = g.weight("ssm_a", d.n_heads), g.weight("ssm_dt.bias", d.value_width)
    return g.log_decay(x, a, bias, bound=d.decay_bound, out=x)


_low_rank_gate = _low_rank("ssm_g")


def kda(
    g: GraphBuilder,
    c: ModelConfig,
    layer: LayerConfig,
    h: Buffer,
    *,
    log_decay: Part = _log_decay,
    gate: Part = _low_rank_gate,
) -> Buffer:
    """h: [n, hidden] -> [n, hidden]. log_decay: of each channel. gate: behind the norm."""
    d = c.delta_net
    assert d is not None

    def convolved(part: str) -> Buffer:
        x = matrix(f"attn_{part}")(g, c, h)
        return g.conv(x, g.weight(f"ssm_conv1d_{part}", x.width, d.taps), silu=True, out=x)

    q, k, v = (convolved(part) for part in "qkv")
    q = g.l2_norm(q, d.n_heads, L2_EPS, out=q)
    k = g.l2_norm(k, d.n_heads, L2_EPS, out=k)
    decay = log_decay(g, c, h)
    beta = blocks.linear(g, c, h, "ssm_beta", d.n_heads)
    beta = g.sigmoid(beta, out=beta)
    y = g.delta_rule(
        q, k, v, decay, beta, d.n_heads, d.n_heads, scale=d.key_dim**-0.5
    )  # [n, width]
    y = g.head_norm(y, g.weight("ssm_norm", d.value_dim), d.n_heads, c.norm_eps, out=y)
    factors = gate(g, c, h)
    y = g.multiply(y, g.sigmoid(factors, out=factors), out=y)
    return blocks.linear(g, c, y, "attn_output", c.hidden_size)


# ---- Hugging Face --------------------------------------------------------------------------------

# Its authors' names of keys that other folders have, too.
ALIASES = {
    "max_position_embeddings": "model_max_length",
    "norm_topk_prob": "moe_renormalize",
    "n_group": "num_expert_group",
    "num_experts_per_tok": "num_experts_per_token",
    "n_shared_experts": "num_shared_experts",
}
# transformers' names of the keys of linear_attn_config, in which its authors have them.
_LINEAR = {
    "linear_head_dim": "head_dim",
    "linear_num_heads": "num_heads",
    "linear_conv_kernel_dim": "short_conv_kernel_size",
}
MIXER_NAMES = {
    **{f"self_attn.{part}_conv1d": f"ssm_conv1d_{part}" for part in "qkv"},
    **{f"self_attn.{part}_proj": f"ssm_{part}" for part in ("f_a", "f_b", "g_a", "g_b")},
    "self_attn.b_proj": "ssm_beta",
    "self_attn.A_log": "ssm_a",
    "self_attn.dt_bias": "ssm_dt.bias",
    "self_attn.o_norm": "ssm_norm",
}
# Its authors' name of the experts' part of a layer. transformers writes it for dense layers, too.
_SPARSE = "block_sparse_moe"


def said_by_aliases(config: Metadata) -> dict[str, object]:
    """What a folder says by its authors' names, by the other ones."""
    return {name: config[alias] for name, alias in ALIASES.items() if alias in config}


def _defaults(config: Metadata) -> Mapping[str, object]:
    usual = {"n_shared_experts": 1, "norm_topk_prob": True, "v_head_dim": 128}
    usual |= {"first_k_dense_replace": 1}
    usual |= {"linear_head_dim": 128, "linear_num_heads": 32, "linear_conv_kernel_dim": 4}
    return usual | said_by_aliases(config)


def _values(config: HFReader) -> dict[str, object]:
    config.ignore(*ALIASES.values())
    config.expect("mla_use_nope", None, True)
    config.expect("moe_router_activation_func", None, "sigmoid")
    config.expect("use_grouped_topk", None, True)
    linear, listed = _linear_attention(config)
    n_heads = config.integer("num_attention_heads")
    if linear.integer("linear_num_heads") != n_heads:
        found = linear.integer("linear_num_heads")
        raise config.fault(
            f"linear attention has {found} heads; expected num_attention_heads, {n_heads}"
        )
    return {
        **deepseek2.latent_values(config),
        **config.expert_groups(),
        "expert_gating_func": 2,
        "attention.head_count_kv": np.array([each == FULL for each in listed], np.int32),
        "ssm.conv_kernel": linear.integer("linear_conv_kernel_dim"),
        "kda.head_dim": linear.integer("linear_head_dim"),
    }


def _linear_attention(config: HFReader) -> tuple[Metadata, list[str]]:
    """The sizes of linear attention, by transformers' names, and the type of each layer."""
    n_layers = config.integer("num_hidden_layers", low=1, high=2**12)
    sizes = {name: config[name] for name in _LINEAR}
    said = config.get("linear_attn_config")
    listed = None
    if said is not None:
        lists = {FULL: "full_attn_layers", LINEAR: "kda_layers"}
        known = {*_LINEAR.values(), *lists.values()}
        if not isinstance(said, dict) or set(said) - known:
            raise config.fault(f"linear_attn_config has other keys than {', '.join(sorted(known))}")
        sizes |= {name: said[key] for name, key in _LINEAR.items() if key in said}
        if "layer_types" not in config:
            listed = _listed(config, said, lists, n_layers)
    if listed is None:  # as transformers assumes
        listed = [FULL if index and index % 4 == 0 else LINEAR for index in range(n_layers)]
    return Metadata(config.source, sizes), config.layer_kinds((FULL, LINEAR), listed)


def _listed(
    config: HFReader, said: Mapping[str, object], lists: Mapping[str, str], n_layers: int
) -> list[str]:
    """The type of each layer. lists: the keys of the layers of a type, which count from 1."""
    numbers = [(number, kind) for kind, key in lists.items() for number in _list(said.get(key))]
    if sorted(str(number) for number, _ in numbers) != sorted(map(str, range(1, n_layers + 1))):
        raise config.fault(
            f"linear_attn_config does not have each of the layers 1 to {n_layers} in one of "
            f"{', '.join(lists.values())}"
        )
    kinds = {str(number): kind for number, kind in numbers}
    return [kinds[str(number)] for number in range(1, n_layers + 1)]


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _names(config: HFReader) -> Names:
    latent = deepseek2.names(config)
    mixture = {
        stem.replace("mlp.", f"{_SPARSE}.", 1): slots
        for stem, slots in latent.items()
        if stem.startswith(("mlp.shared_experts.", "mlp.gate."))
    }
    return {
        **latent,
        **mixture,
        **SPARSE_NAMES,
        **{f"{_SPARSE}.{part}_proj": f"ffn_{part}" for part in ("gate", "up", "down")},
        **MIXER_NAMES,
    }


FAMILY = Family(
    ("kimi-linear",),
    (
        HuggingFace(
            "kimi_linear",
            "kimi-linear",
            _values,
            _names,
            changed=CHANGED,
            columns=frozenset(["ssm_a"]),
            defaults=_defaults,
        ),
    ),
    configure,
    layer,
)
