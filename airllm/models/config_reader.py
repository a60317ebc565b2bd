"""Reads a model's configuration from a file: what several families of models have in common."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from airllm.formats.hf_config import ROPE_INTERLEAVED
from airllm.formats.model_file import ModelFile
from airllm.graph.ops.recurrent import MOST_TAPS
from airllm.graph.vocabulary import Gating
from airllm.models.architecture_keys import MAX_WIDTH, ArchitectureKeys
from airllm.models.config import LayerConfig, ModelConfig, Router

__all__ = ["MAX_CONTEXT", "MAX_HEADS", "MAX_HEAD_DIM", "MAX_TAPS", "MAX_WIDTH", "ConfigReader"]

# These limits are far above every known model (the longest contexts are 10 million tokens, the
# widest layers about 100,000), so that later arithmetic cannot overflow. check_tensors in
# airllm.weights.layer_weights checks that the file's tensors have the sizes the graphs need.
MAX_CONTEXT = 2**24
MAX_HEADS = 2**12
MAX_HEAD_DIM = 576  # the attention kernels'
MAX_TAPS = MOST_TAPS  # the kernels of short convolutions'
_MAX_EXPERTS = 2**12

# llama.cpp's numbers; 0: as the family does.
_GATING: dict[int, Gating] = {1: "softmax", 2: "sigmoid", 4: "sqrtsoftplus"}


class ConfigReader(ArchitectureKeys):
    """Reads what the families of models have in common, from the keys of one file."""

    def __init__(self, file: ModelFile) -> None:
        super().__init__(file.metadata)
        self.file = file
        self.left_out = range(0)

    def ignore_rope(self) -> None:
        """No layer rotates, whatever the file says of rotation."""
        self.ignore_all("rope.")

    def unrotated_layers(self) -> list[LayerConfig]:
        """The layers of a model that knows positions otherwise than by rotation."""
        self.ignore_rope()
        return [LayerConfig(rotates=False)] * self.n_layers

    def leave_out_heads(self) -> None:
        """The last layers are next-token heads, and no layers of the model. A file has all of them
        or none."""
        name = "nextn_predict_layers"
        n_heads = self.integer(name, 0)
        if n_heads >= self.n_layers:
            raise self.fault("block_count", self.n_layers, f"expected more than {n_heads}")
        self.n_layers -= n_heads
        self.left_out = range(self.n_layers, self.n_layers + n_heads)
        needed = [f"blk.{index}.nextn.eh_proj.weight" for index in self.left_out]
        missing = [each for each in needed if each not in self.file.tensors]
        if 0 < len(missing) < n_heads:
            raise self.fault(name, n_heads, f"tensor {missing[0]} is missing")

    # ---- what several families have ------------------------------------------------------------

    def windows(self, default: int = 0, period: int = 0) -> tuple[int, ...]:
        """The window of each layer; 0 where a layer sees all positions.

        default: the window where the file says none. period: likewise; every such layer, the last
        of its period, sees all positions; 0: every layer has the window. The file's pattern is such
        a period, or an array that says for each layer whether it has the window.
        """
        window = self.integer("attention.sliding_window", default, high=MAX_CONTEXT)
        name = "attention.sliding_window_pattern"
        pattern = self.metadata.get(self.key(name))
        if isinstance(pattern, np.ndarray):
            self.ignore(name)
            if pattern.size != self.n_layers:
                raise self.metadata.fault(
                    f"{self.key(name)} has {pattern.size} entries; expected {self.n_layers}, one "
                    "for each layer"
                )
            return tuple(window if local else 0 for local in pattern.tolist())
        period = self.integer(name, period)
        return tuple(
            0 if period and index % period == period - 1 else window
            for index in range(self.n_layers)
        )

    def optional_biases(self, *slots: str) -> frozenset[str]:
        """Those of the slots that have a bias, in any layer or beside them. Layers that have the
        slot and no bias are then refused."""
        names = self.file.tensors
        layers = range(self.n_layers)
        return frozenset(
            slot
            for slot in slots
            if f"{slot}.bias" in names or any(f"blk.{i}.{slot}.bias" in names for i in layers)
        )

    def experts(self, *, shared_out: bool = True, **own: Any) -> dict[str, Any]:
        """The fields of ModelConfig for a mixture of experts. own: what the router does where the
        file does not say, as Router has it. shared_out: where the file does not say how wide an
        expert is, feed_forward_length is that of all of a token's experts together."""
        n_experts = self.integer("expert_count", low=1, high=_MAX_EXPERTS)
        n_used = self.integer("expert_used_count", low=1, high=n_experts)
        usual = Router(**own)
        gating = self.integer("expert_gating_func", 0)
        if gating != 0 and gating not in _GATING:
            wanted = ", ".join(f"{number} ({name})" for number, name in _GATING.items())
            raise self.fault("expert_gating_func", gating, f"expected {wanted}")
        n_groups = self.integer("expert_group_count", 1, high=n_experts) or 1
        n_groups_used = self.integer("expert_group_used_count", n_groups, high=n_groups) or n_groups
        size = n_experts // n_groups
        too_small = n_groups_used < n_groups and size < 2  # the two best of a group are added
        if n_experts % n_groups or size * n_groups_used < n_used or too_small:
            raise self.fault(
                "expert_group_count", n_groups, f"expected groups that {n_experts} experts fit"
            )
        bias = usual.bias_slot.removesuffix(".")
        router = Router(
            gating=_GATING.get(gating, usual.gating),
            normalized=self.flag("expert_weights_norm", usual.normalized),
            scale=self.positive("expert_weights_scale", usual.scale),
            biased=any(name.endswith(f".{bias}") for name in self.file.tensors),
            bias_slot=usual.bias_slot,
            n_groups=n_groups,
            n_groups_used=n_groups_used,
        )
        named = "expert_feed_forward_length"
        default = 0
        if not self.has(named):
            default = self.integer("feed_forward_length", 0) // (n_used if shared_out else 1)
        size = self.integer(named, default, low=1)
        return {
            "n_experts": n_experts,
            "n_experts_used": n_used,
            "expert_size": size,
            "router": router,
        }

    # ---- the whole -----------------------------------------------------------------------------

    def config(
        self,
        *,
        layers: Sequence[LayerConfig] | None = None,
        eps_key: str = "attention.layer_norm_rms_epsilon",
        head_dim: int | None = None,
        rope_interleaved: bool = False,
        scaled_by: float | None = None,
        kv_heads: Sequence[int] | None = None,
        n_heads: int | None = None,
        rope_dims: int | None = None,
        most_context: int = MAX_CONTEXT,
        **own: Any,
    ) -> ModelConfig:
        """The configuration: the keys that all families have, and a family's `own` fields.

        layers: as many equal ones unless given. kv_heads: of each layer, if a family's layers may
        differ in it. n_heads: of the layers that have attention, if others have none. rope_dims: if
        the family has read it. eps_key: of the norms' epsilon. head_dim: of the keys, if the family
        has read it. rope_interleaved: as the family's GGUF files are. scaled_by: scores are divided
        by its root unless the file says otherwise; head_dim unless given. most_context: the longest
        context that is implemented, whatever the model was trained for. FormatError names the file,
        the key and its value.
        """
        hidden_size = self.integer("embedding_length", low=1)
        n_heads = n_heads or self.integer("attention.head_count", low=1, high=MAX_HEADS)
        n_kv_heads = max(kv_heads or self.kv_heads()) or n_heads  # no layer has attention
        head_dim = head_dim or self._head_dim(hidden_size, n_heads)
        eps = self.number(eps_key)
        if not 0.0 < eps < 1.0:
            raise self.fault(eps_key, eps, "expected it between 0 and 1")
        self.require_true("attention.causal")
        if rope_dims is None:
            rope_dims = self.integer("rope.dimension_count", head_dim, low=2, high=head_dim)
            if rope_dims % 2:
                raise self.fault("rope.dimension_count", rope_dims, "expected it even")
        if "intermediate_size" not in own:
            own["intermediate_size"] = own.get("expert_size") or self.feed_forward_length()
        return ModelConfig(
            architecture=self.architecture,
            name=self.metadata.text("general.name", self.file.path.stem),
            vocab_size=self._vocab_size(),
            hidden_size=hidden_size,
            n_layers=self.n_layers,
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            head_dim=head_dim,
            norm_eps=eps,
            context_length=min(
                self.integer("context_length", low=1, high=MAX_CONTEXT), most_context
            ),
            rope_dims=rope_dims,
            tied_embeddings="output.weight" not in self.file.tensors,
            layers=tuple(layers or [LayerConfig()] * self.n_layers),
            attention_scale=self._attention_scale(scaled_by or head_dim),
            rope_interleaved=self.metadata.flag(ROPE_INTERLEAVED, rope_interleaved),
            left_out=self.left_out,
            **own,
        )

    def kv_heads(self, *, differ: bool = False, low: int = 1) -> tuple[int, ...]:
        """The number of heads of keys and values in each layer. differ: whether the family allows
        an array. low: 0 if the family has layers without attention."""
        name = "attention.head_count_kv"
        n_heads = self.integer("attention.head_count", low=1, high=MAX_HEADS)
        if differ:
            found = self.of_layers(name, n_heads, low=low, high=MAX_HEADS)
        else:
            found = (self.integer(name, n_heads, low=1, high=MAX_HEADS),)
        for n_kv_heads in found:
            if n_kv_heads and n_heads % n_kv_heads:
                wanted = f"expected a divisor of {self.key('attention.head_count')}, {n_heads}"
                raise self.fault(name, n_kv_heads, wanted)
        return found

    def feed_forward_length(self) -> int:
        return self.integer("feed_forward_length", low=1)

    def _head_dim(self, hidden_size: int, n_heads: int) -> int:
        default = hidden_size // n_heads
        heads = f"{self.key('attention.head_count')} is {n_heads}"
        if not self.has("attention.key_length") and hidden_size % n_heads:
            raise self.metadata.fault(
                f"{heads}; expected a divisor of {self.key('embedding_length')}, {hidden_size}"
            )
        if not self.has("attention.key_length") and default > MAX_HEAD_DIM:
            raise self.metadata.fault(
                f"{heads}: heads of {default} dimensions; expected at most {MAX_HEAD_DIM}"
            )
        head_dim = self.integer("attention.key_length", default, low=1, high=MAX_HEAD_DIM)
        value_dim = self.integer("attention.value_length", head_dim)
        if value_dim != head_dim:
            raise self.fault(
                "attention.value_length", value_dim, f"expected {head_dim}, the keys' length"
            )
        return head_dim

    def _attention_scale(self, dims: float) -> float:
        """One over the square root of `dims`, unless the file says otherwise."""
        scale = self.number("attention.scale", 0.0) or dims**-0.5
        if scale < 0.0:
            raise self.fault("attention.scale", scale, "expected it above 0")
        return scale

    def _vocab_size(self) -> int:
        """The rows of the embedding, which metadata and vocabulary must agree with."""
        embedding = self.file.tensors.get("token_embd.weight")
        if embedding is None:
            raise self.metadata.fault("tensor token_embd.weight is missing")
        rows = embedding.shape[0]
        said = self.integer("vocab_size", rows, high=2**31)
        if said != rows:
            raise self.fault("vocab_size", said, f"expected {rows}, the rows of token_embd.weight")
        if "tokenizer.ggml.tokens" in self.metadata:
            n_tokens = len(self.metadata.texts("tokenizer.ggml.tokens"))
            if n_tokens != rows:
                raise self.metadata.fault(
                    f"tokenizer.ggml.tokens has {n_tokens} entries; expected {rows}, the rows of "
                    f"token_embd.weight"
                )
        return rows
