"""Random models of the shapes that dllama runs, their slices for each node, and float64 logits.

Weights are kept as the bytes that a model file has, and as the float64 values of these bytes.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from airllm.cluster.wire import FloatType

EPSILON = 1e-5


@dataclass(frozen=True)
class Shape:
    arch: str  # "llama", "qwen3", "qwen3moe"
    quantized: bool  # Q40 weights and Q80 sync, else F32
    dim: int = 256
    hidden: int = 256  # of an expert with qwen3moe
    layers: int = 2
    heads: int = 8
    kv_heads: int = 8
    head_dim: int = 32
    vocab: int = 256
    length: int = 64
    experts: int = 0
    active: int = 0
    theta: float = 10000.0

    @property
    def q_dim(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv_dim(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def weight_type(self) -> FloatType:
        return FloatType.Q40 if self.quantized else FloatType.F32

    @property
    def sync_type(self) -> FloatType:
        return FloatType.Q80 if self.quantized else FloatType.F32

    @property
    def half_rope(self) -> bool:
        """Pairs are halves of a head, not neighbours."""
        return self.arch != "llama"

    @property
    def has_head_norms(self) -> bool:
        return self.arch != "llama"


@dataclass
class Matrix:
    """values: float64 [..., n, k]; rows: their bytes, uint8 [..., n, bytes of a row]."""

    values: np.ndarray
    rows: np.ndarray

    def by_output(self, n_nodes: int, node: int) -> bytes:
        n = self.rows.shape[-2] // n_nodes
        return self.rows[n * node : n * (node + 1)].tobytes()

    def by_input(self, n_nodes: int, node: int) -> bytes:
        width = self.rows.shape[-1] // n_nodes
        return self.rows[:, width * node : width * (node + 1)].tobytes()


class Model:
    def __init__(self, shape: Shape, seed: int = 0) -> None:
        self.shape = s = shape
        self._random = np.random.default_rng(seed)
        self.embedding = self._floats(s.vocab, s.dim)
        self.layers = [self._layer() for _ in range(s.layers)]
        self.final_norm = self._norm(s.dim)
        self.logits = self._matrix(s.vocab, s.dim)

    def _layer(self) -> dict:
        s = self.shape
        layer = {
            "q": self._matrix(s.q_dim, s.dim),
            "k": self._matrix(s.kv_dim, s.dim),
            "v": self._matrix(s.kv_dim, s.dim),
            "wo": self._matrix(s.dim, s.q_dim),
            "norm_0": self._norm(s.dim),
            "norm_1": self._norm(s.dim),
        }
        if s.has_head_norms:
            layer |= {"norm_q": self._norm(s.head_dim), "norm_k": self._norm(s.head_dim)}
        if s.experts:
            layer["gate"] = self._floats(s.experts, s.dim)
        for name, n, k in (
            ("w1", s.hidden, s.dim),
            ("w2", s.dim, s.hidden),
            ("w3", s.hidden, s.dim),
        ):
            layer[name] = [self._matrix(n, k) for _ in range(max(s.experts, 1))]
        return layer

    def _floats(self, n: int, k: int) -> Matrix:
        values = self._random.standard_normal((n, k)).astype(np.float32)
        return Matrix(values.astype(np.float64), values.view(np.uint8))

    def _norm(self, n: int) -> np.ndarray:
        return self._random.uniform(0.8, 1.2, n).astype(np.float32)

    def _matrix(self, n: int, k: int) -> Matrix:
        if not self.shape.quantized:
            matrix = self._floats(n, k)
            values = (matrix.values / np.sqrt(k)).astype(np.float32)
            return Matrix(values.astype(np.float64), values.view(np.uint8))
        # A nibble less 8 has a standard deviation of 4.6.
        blocks = np.empty((n, k // 32, 18), np.uint8)
        scales = self._random.uniform(0.8, 1.2, (n, k // 32)) / (4.6 * np.sqrt(k))
        halves = scales.astype(np.float16)
        blocks[..., :2] = halves[..., None].view(np.uint8)
        blocks[..., 2:] = self._random.integers(0, 256, (n, k // 32, 16), np.uint8)
        nibbles = np.concatenate([blocks[..., 2:] & 15, blocks[..., 2:] >> 4], axis=-1)
        values = (nibbles.astype(np.float64) - 8) * halves[..., None].astype(np.float64)
        return Matrix(values.reshape(n, k), blocks.reshape(n, -1))

    # ---- the reference ----

    def reference(self, tokens: list[int], n_nodes: int) -> np.ndarray:
        """Logits of every position, float64 [n, vocab], of a cluster of n_nodes whose arithmetic is
        exact apart from what is cast to Q80."""
        x = self.embedding.values[tokens]
        for layer in self.layers:
            x = x + self._attention(layer, self._rms(x, layer["norm_0"]), n_nodes)
            x = x + self._feed_forward(layer, self._rms(x, layer["norm_1"]), n_nodes)
        return self._q80(self._rms(x, self.final_norm)) @ self.logits.values.T

    def _attention(self, layer: dict, y: np.ndarray, n_nodes: int) -> np.ndarray:
        s, n = self.shape, len(y)
        y = self._q80(y)
        q = (y @ layer["q"].values.T).reshape(n, s.heads, s.head_dim)
        k = (y @ layer["k"].values.T).reshape(n, s.kv_heads, s.head_dim)
        v = (y @ layer["v"].values.T).reshape(n, s.kv_heads, s.head_dim)
        if s.has_head_norms:
            q, k = self._rms(q, layer["norm_q"]), self._rms(k, layer["norm_k"])
        q, k = self._rope(q), self._rope(k)
        z = np.empty_like(q)
        for head in range(s.heads):
            group = head // (s.heads // s.kv_heads)
            scores = q[:, head] @ k[:, group].T / np.sqrt(s.head_dim)
            scores[np.triu_indices(n, 1)] = -np.inf
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            z[:, head] = weights / weights.sum(axis=1, keepdims=True) @ v[:, group]
        return self._sum_of_slices(z.reshape(n, -1), layer["wo"].values, n_nodes)

    def _feed_forward(self, layer: dict, y: np.ndarray, n_nodes: int) -> np.ndarray:
        s = self.shape
        if not s.experts:
            return self._sum_of_slices(
                self._gated(layer, 0, self._q80(y)), layer["w2"][0].values, n_nodes
            )
        logits = y @ layer["gate"].values.T
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        out = np.zeros((n_nodes, *y.shape))
        width = s.hidden // n_nodes
        for row, share in enumerate(shares):
            chosen = np.argsort(-share)[: s.active]
            for expert in chosen:
                d = self._q80(self._gated(layer, expert, self._q80(y[row : row + 1])))
                w2 = layer["w2"][expert].values * share[expert] / share[chosen].sum()
                for node in range(n_nodes):
                    part = slice(node * width, (node + 1) * width)
                    out[node, row] += (d[:, part] @ w2[:, part].T)[0]
        return sum(self._q80(part) for part in out)

    def _gated(self, layer: dict, expert: int, y: np.ndarray) -> np.ndarray:
        gate, up = (y @ layer[name][expert].values.T for name in ("w1", "w3"))
        return gate / (1 + np.exp(-gate)) * up

    def _sum_of_slices(self, x: np.ndarray, weight: np.ndarray, n_nodes: int) -> np.ndarray:
        """Each node multiplies its columns, and what it gives is cast."""
        x, width = self._q80(x), x.shape[1] // n_nodes
        parts = (slice(node * width, (node + 1) * width) for node in range(n_nodes))
        return sum(self._q80(x[:, part] @ weight[:, part].T) for part in parts)

    def _rms(self, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + EPSILON) * weight

    def _rope(self, x: np.ndarray) -> np.ndarray:
        s = self.shape
        half = s.head_dim // 2
        turned = np.arange(len(x))[:, None] * s.theta ** -(np.arange(half) / half)
        turn = np.exp(1j * turned)[:, None, :]
        if s.half_rope:
            z = (x[..., :half] + 1j * x[..., half:]) * turn
            return np.concatenate([z.real, z.imag], axis=-1)
        z = (x[..., 0::2] + 1j * x[..., 1::2]) * turn
        return np.stack([z.real, z.imag], axis=-1).reshape(x.shape)

    def _q80(self, x: np.ndarray) -> np.ndarray:
        """As Q80 holds it, where the cluster casts to that."""
        if not self.shape.quantized:
            return x
        blocks = x.reshape(-1, 32)
        scale = np.abs(blocks).max(axis=1, keepdims=True) / 127
        q = np.rint(np.divide(blocks, scale, out=np.zeros_like(blocks), where=scale > 0))
        return (q * scale.astype(np.float16)).reshape(x.shape)

    @cached_property
    def tokens(self) -> list[int]:
        return self._random.integers(0, self.shape.vocab, self.shape.length).tolist()
