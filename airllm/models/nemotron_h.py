"""Nemotron-H and Nemotron 3 (arXiv:2504.03624, arXiv:2512.20848): each layer is one of Mamba-2,
attention without rotation, a network with squared ReLU, and a mixture of such networks."""

import numpy as np

from airllm.formats.hf_config import Names
from airllm.graph.builder import GraphBuilder
from airllm.graph.graph import Activations, Buffer, Graph
from airllm.models import blocks
from airllm.models.config import LayerConfig, Mixer, ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family
from airllm.models.hugging_face import HFReader, HuggingFace
from airllm.models.mamba2 import CHANGED, MIXER_NAMES, MIXERS, mamba2, read_mamba2, time_steps
from airllm.models.qwen2 import BIASES
from airllm.util.metadata import Metadata

_NAMES: Names = {
    "embeddings": "token_embd",
    "norm_f": "output_norm",
    "norm": "attn_norm",
    **{f"mixer.{name}": slot for name, slot in MIXER_NAMES.items()},
    "mixer.q_proj": "attn_q",
    "mixer.k_proj": "attn_k",
    "mixer.v_proj": "attn_v",
    "mixer.o_proj": "attn_output",
    "mixer.up_proj": "ffn_up",
    "mixer.down_proj": "ffn_down",
    "mixer.gate": "ffn_gate_inp",
    "mixer.gate.e_score_correction_bias": "exp_probs_b.bias",
    "mixer.experts.*.up_proj": "ffn_up_exps",
    "mixer.experts.*.down_proj": "ffn_down_exps",
    "mixer.experts.up_proj": "ffn_up_exps",
    "mixer.experts.down_proj": "ffn_down_exps",
    "mixer.shared_experts.up_proj": "ffn_up_shexp",
    "mixer.shared_experts.down_proj": "ffn_down_shexp",
    "mixer.fc1_latent_proj": "ffn_latent_down",
    "mixer.fc2_latent_proj": "ffn_latent_up",
}
# What a layer is, by its letter in older files, and by its name in newer ones.
_LETTERS = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}
_MIXERS: dict[str, Mixer] = {**MIXERS, "mlp": "none", "moe": "none"}


def configure(r: ConfigReader) -> ModelConfig:
    has_experts = r.architecture == "nemotron_h_moe"
    kv_heads = r.kv_heads(differ=True, low=0)
    widths = r.of_layers("feed_forward_length")
    r.leave_out_heads()
    kv_heads, widths = kv_heads[: r.n_layers], widths[: r.n_layers]
    r.require_alike("attention.head_count_kv", kv_heads)
    r.require_alike("feed_forward_length", widths)
    r.ignore_rope()
    mixers: list[Mixer] = [
        "none" if width else "attention" if heads else "mamba2"
        for heads, width in zip(kv_heads, widths, strict=True)
    ]
    rms, other = "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"
    shared = 0
    if has_experts:
        r.ignore("expert_shared_count")  # their widths are summed up
        shared = r.integer("expert_shared_feed_forward_length", 0)
    eps_key = rms if r.has(rms) else other
    r.ignore(other)  # files that have both have it for the layers that are left out
    return r.config(
        layers=[
            LayerConfig(rotates=False, has_experts=has_experts and mixer == "none", mixer=mixer)
            for mixer in mixers
        ],
        eps_key=eps_key,
        kv_heads=kv_heads,
        intermediate_size=max(widths),
        biases=r.optional_biases(
            *(*BIASES, "attn_output", "ffn_up", "ffn_down", "ssm_in", "ssm_out")
        ),
        mamba2=read_mamba2(r) if "mamba2" in mixers else None,
        shared_expert_size=shared,
        expert_hidden_size=r.integer("moe_latent_size", 0),
        **(r.experts(gating="sigmoid") if has_experts else {}),
    )


def layer(c: ModelConfig, activations: Activations, layer: LayerConfig) -> Graph:
    g = GraphBuilder("layer", activations=activations)
    x = g.external("residual", c.hidden_size)  # [n, hidden]
    h = blocks.norm(g, c, x, "attn_norm")
    if layer.mixer == "mamba2":
        part = mamba2(g, c, layer, h)
    elif layer.mixer == "attention":
        part = blocks.attention(g, c, layer, h)
    else:
        part = _experts(g, c, h) if layer.has_experts else blocks.mlp(g, c, h, "relu_squared")
    blocks.add(g, c, x, part)
    return g.build()


def _experts(g: GraphBuilder, c: ModelConfig, h: Buffer) -> Buffer:
    """Experts, which may see a projection of the token to fewer values, and the one that all tokens
    use."""
    n, ffn, seen = c.n_experts, c.expert_size, c.expert_hidden_size
    route = blocks.route(g, c, h)
    x = g.linear(h, g.weight("ffn_latent_down", seen, c.hidden_size)) if seen else h
    up = g.expert_linear(x, route, g.weight("ffn_up_exps", n, ffn, x.width))
    up = g.relu_squared(up, out=up)
    down = g.expert_linear(up, route, g.weight("ffn_down_exps", n, x.width, ffn))
    y = g.expert_sum(down, route)  # [n, hidden or fewer]
    if seen:
        y = g.linear(y, g.weight("ffn_latent_up", c.hidden_size, seen))
    if not c.shared_expert_size:
        return y
    shared = blocks.mlp(g, c, h, "relu_squared", width=c.shared_expert_size, suffix="_shexp")
    return g.add(y, shared, out=y)


def _values(config: HFReader) -> dict[str, object]:
    config.expect("mlp_hidden_act", None, "relu2")
    config.expect("mamba_hidden_act", None, "silu")
    config.ignore("use_bias", "use_conv_bias", "mamba_proj_bias")  # the tensors show biases
    config.ignore("mtp_layers_block_type", "mtp_hybrid_override_pattern")  # left out
    # Of training and of other implementations; inner_size is not `expand` times anything here.
    config.ignore("time_step_min", "time_step_max", "time_step_floor", "rescale_prenorm_residual")
    config.ignore("use_mamba_kernels", "mamba_ssm_cache_dtype", "moe_shared_expert_overlap")
    config.expect("sliding_window", None)
    config.ignore(
        "num_hidden_layers", "layer_types", "layers_block_type", "hybrid_override_pattern"
    )
    kinds = _kinds(config)
    inner = config.integer("mamba_num_heads", 128, low=1) * config.integer("mamba_head_dim", 64)
    values = {
        **config.heads_of([_MIXERS[kind] for kind in kinds]),
        **time_steps(config),
        "ssm.conv_kernel": config.integer("conv_kernel", 4),
        "ssm.inner_size": inner,
        "ssm.state_size": config.integer("ssm_state_size", 128),
        "ssm.group_count": config.integer("n_groups", 8),
        "ssm.time_step_rank": config.integer("mamba_num_heads", 128),
    }
    if "moe" not in kinds:
        config.ignore(*_OF_EXPERTS)
        return values | {"feed_forward_length": _widths(config, kinds, "intermediate_size")}
    if "mlp" in kinds:
        raise config.fault("has layers with experts and layers without; expected one kind")
    return {
        **values,
        **config.experts(),
        "feed_forward_length": _widths(config, kinds, "moe_intermediate_size"),
        "expert_shared_feed_forward_length": config.integer("moe_shared_expert_intermediate_size"),
        "expert_shared_count": config.integer("n_shared_experts", 1),
        "expert_weights_norm": config.flag("norm_topk_prob", True),
        "expert_weights_scale": config.number("routed_scaling_factor", 1.0),
        **config.expert_groups(),
        "moe_latent_size": config.integer("moe_latent_size", 0),
    }


_OF_EXPERTS = (
    *("n_routed_experts", "num_experts_per_tok", "moe_intermediate_size", "moe_latent_size"),
    *("moe_shared_expert_intermediate_size", "n_shared_experts", "norm_topk_prob"),
    *("routed_scaling_factor", "n_group", "topk_group"),
)


def _widths(config: HFReader, kinds: list[str], name: str) -> object:
    width = config.integer(name, low=1)
    return np.array([width * (_MIXERS[kind] == "none") for kind in kinds], np.int32)


def _kinds(config: Metadata) -> list[str]:
    """What each layer is, which has three names in files."""
    said = config.get("layers_block_type") or config.get("layer_types")
    if said is None:
        pattern = config.text("hybrid_override_pattern")
        said = [_LETTERS.get(letter, letter) for letter in pattern]
    if not isinstance(said, list) or not 0 < len(said) <= 2**12 or set(map(str, said)) - {*_MIXERS}:
        raise config.fault(f"layers_block_type is no list of {', '.join(_MIXERS)}")
    return list(map(str, said))


def _architecture(config: HFReader) -> str:
    return "nemotron_h_moe" if "moe" in _kinds(config) else "nemotron_h"


def _defaults(config: Metadata) -> dict[str, object]:
    """Files need not say how many layers there are."""
    return {
        "num_hidden_layers": len(_kinds(config)),
        "head_dim": config.get("attention_head_dim", 128),
        "intermediate_size": 21504,
        "layer_norm_epsilon": 1e-5,
    }


FAMILY = Family(
    ("nemotron_h", "nemotron_h_moe"),
    (
        HuggingFace(
            "nemotron_h",
            _architecture,
            _values,
            _NAMES,
            changed=CHANGED,
            defaults=_defaults,
            norm_eps=("layer_norm_epsilon", "attention.layer_norm_epsilon"),
        ),
    ),
    configure,
    layer,
)
