"""Graphs of an op or two, as tensor_ops_cpp.Executor takes them, and what goes into them."""

import numpy as np

X4 = [("x", 4, True), ("y", 4, True)]
ADD = [("add", ["x", "x"], "y", [], {})]
Q8 = [("q", 64, True), ("y", 32, True)]
TAKE = {"offset": 32, "quantized": True}
GRAPH = {"buffers": X4, "weights": [], "ops": ADD, "max_tokens": 4}
LINEAR = {
    "buffers": [("x", 32, True), ("y", 4, True)],
    "weights": ["w"],
    "ops": [("linear", ["x"], "y", ["w"], {})],
    "max_tokens": 4,
}
ATTENTION = {
    "buffers": [("q", 8, True), ("k", 4, True), ("v", 4, True), ("y", 8, True)],
    "weights": [],
    "ops": [
        ("kv_append", ["k", "v"], None, [], {"n_kv_heads": 1, "head_dim": 4}),
        ("attention", ["q"], "y", [], {"n_heads": 2, "n_kv_heads": 1, "head_dim": 4}),
    ],
    "max_tokens": 4,
}
X_ATTENTION = ATTENTION["buffers"]


def ones(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


def matrix(cpp, n, k):
    """Ones, so that a product is a sum."""
    return cpp.PackedMatrix(ones(n, k), "f32", (n, k))
