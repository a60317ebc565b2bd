"""Puts heads of linear attention in the order that GGUF files of Qwen3.5 have.

Several heads of values share the keys of one head. In folders these heads are neighbours; in GGUF
files they lie as far apart as there are heads of keys, so that the keys repeat as a whole.
"""

import numpy as np
import numpy.typing as npt

from airllm.formats.ggml_types import TYPES
from airllm.formats.hf_config import HEADS_TILED
from airllm.formats.mapped_file import quote
from airllm.formats.model_file import DerivedModel, ModelFile
from airllm.util.metadata import FormatError, Metadata

__all__ = ["tiled_heads"]

_KINDS = {kind.name: kind for kind in TYPES.values()}

Bytes = npt.NDArray[np.uint8]


def tiled_heads(model: ModelFile) -> ModelFile:
    """The model with heads as GGUF files have them; the model itself if they are."""
    return model if model.metadata.flag(HEADS_TILED, True) else _TiledHeads(model)


class _TiledHeads(DerivedModel):
    """A ModelFile whose tensors have the same shapes and types as those of another."""

    def __init__(self, model: ModelFile) -> None:
        entries = {key: value for key, value in model.metadata.items() if key != HEADS_TILED}
        super().__init__(model, Metadata(model.metadata.source, entries), model.tensors)
        architecture = self.metadata.text("general.architecture")
        n_keys, n_heads, width, key_dim = (
            self.metadata.integer(f"{architecture}.ssm.{name}", low=1)
            for name in ("group_count", "time_step_rank", "inner_size", "state_size")
        )
        self._heads = np.arange(n_heads).reshape(n_keys, -1).T.reshape(-1)
        values = (self._heads[:, None] * (width // n_heads) + np.arange(width // n_heads)).ravel()
        before = np.arange(2 * n_keys * key_dim)  # queries and keys
        mixed = np.concatenate([before, before.size + values])
        self._rows = {  # of the other model, by slot
            "attn_qkv.weight": mixed,
            "ssm_conv1d.weight": mixed,
            "attn_gate.weight": values,
            "ssm_alpha.weight": self._heads,
            "ssm_beta.weight": self._heads,
        }

    def read(self, name: str, memory: Bytes, rows: tuple[int, int] | None = None) -> Bytes:
        slot, tensor = name.split(".", 2)[-1], self.tensors[name]
        if "blk." in name and slot in self._rows:
            first, end = rows or (0, tensor.n_rows)
            wanted = self._rows[slot][first:end]
            at = 0
            for run in np.split(wanted, np.flatnonzero(np.diff(wanted) != 1) + 1):
                place = memory[at * tensor.row_bytes :]
                self._model.read(name, place, (int(run[0]), int(run[-1]) + 1))
                at += run.size
            return memory[: at * tensor.row_bytes].reshape(-1, tensor.row_bytes)
        raw = self._model.read(name, memory, rows)
        if slot in ("ssm_a", "ssm_dt.bias", "ssm_out.weight"):  # a head's columns
            n = self._heads.size
            if tensor.shape[-1] // n % _KINDS[tensor.type].block_size:
                raise FormatError(
                    f"{self.path}: tensor {quote(name)} is {tensor.type}, whose blocks are parts "
                    f"of several of {n} heads; they cannot be put in the order of GGUF files"
                )
            by_head = raw.reshape(*raw.shape[:-1], n, -1)
            raw[...] = by_head[..., self._heads, :].reshape(raw.shape)
        return raw
