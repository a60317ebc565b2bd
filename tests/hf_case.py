"""What a tiny model that is compared with Hugging Face `transformers` is described by."""

from dataclasses import dataclass, field
from typing import Any

VOCAB, CONTEXT = 160, 128

# What cases of several files have.
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
SECTIONS = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [6, 5, 5]}
AFTER = {
    "post_attention_layernorm": "post_attention_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
GRANITE = {
    **{"attention_multiplier": 0.3, "embedding_multiplier": 2.0, "residual_multiplier": 0.5},
    "logits_scaling": 4.0,
}
GRANITE_KEYS = {
    **{"attention.scale": 0.3, "embedding_scale": 2.0, "residual_scale": 0.5, "logit_scale": 4.0}
}
SHARED_NAMES = {
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
}
SHARED = {
    **{"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 64},
    "shared_expert_intermediate_size": 64,
}
DELTA_NETS = ("qwen35", "qwen35moe", "qwen3next", "qwen4exp")


@dataclass(frozen=True)
class Case:
    """A model: the family's name in transformers, arguments of its config, and what GGUF says."""

    family: str  # "Qwen2": Qwen2Config, Qwen2ForCausalLM
    arch: str
    config: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)  # keys without the arch in front
    names: dict[str, str] = field(default_factory=dict)  # of tensors, beyond _NAMES
    reordered: bool = False  # the rows of Q and K, as llama.cpp's converter does it
    # What config.json of real models says, too. None: what it does not say.
    extra: dict[str, Any] = field(default_factory=dict)
    # Parts of tensors' names in transformers' folder, and what real models have in their place.
    renamed: tuple[tuple[str, str], ...] = ()
    lost: str = ""  # what llama.cpp's converter does not write, so that its files compute less
    sees: bool = False  # its config is the text_config of a model that sees pictures

    @property
    def n_experts(self) -> int:
        keys = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
        return next((self._sizes[key] for key in keys if key in self._sizes), 0)

    @property
    def n_experts_used(self) -> int:
        keys = ("top_k_experts", "num_experts_per_tok", "moe_k", "moe_topk", "moe_top_k")
        return int(next(self._sizes[key] for key in keys if key in self._sizes))

    @property
    def _sizes(self) -> dict[str, Any]:
        """DBRX has them in a part."""
        return self.config | self.config.get("ffn_config", {})

    @property
    def gemma(self) -> bool:
        return self.arch.startswith("gemma")

    def adds_one(self, norm: str) -> bool:
        """Likewise, of the norm with that name."""
        muse = self.arch == "muse-glimmer"
        whole = "language_model.norm.weight" if muse else "linear_attn.norm.weight"
        return self.plus_one and not norm.endswith(whole)

    @property
    def plus_one(self) -> bool:
        """Whether norms multiply by 1 + weight, and GGUF has the sum."""
        return self.arch in (
            "gemma",
            "gemma2",
            "gemma3",
            "minimax-m3",
            "muse-glimmer",
            "muse-glimmer",
            "nemotron",
            "step35",
            *DELTA_NETS,
        )
