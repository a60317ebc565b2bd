"""The parameter grids of FlashAttention-3's own tests, hopper/test_flash_attn.py, by their names.

A point of a grid is one value for each parameter. What those tests choose inside a point (d_v, a
chunk, num_splits, pack_gqa) is drawn here by the point's number. There are 6 heads, as there; but 2
sequences, 3 with a cache, where they have 2 to 60. Lengths above 320 are shortened (`shorter`),
unless AIRLLM_ATTENTION_LENGTHS=1 leaves them as they are.
"""

import functools
import itertools
import math
import os

import numpy as np

YES_NO = (False, True)
MHA_GQA_MQA = ("mha", "gqa", "mqa")
TYPES = ("bf16", "f16", "e4m3")
DIMS = (64, 96, 128, 192, 256)
SPLITS = (1, 2, 3, 5, 17, 32, 55, 97, 133)

_FORWARD = {"dtype": TYPES, "heads": MHA_GQA_MQA, "has_qv": YES_NO, "softcap": (0.0, 15.0),
            "local": YES_NO, "causal": YES_NO}  # fmt: skip
_SHARED = ((64, 128), (256, 256), (113, 203), (128, 217), (113, 211), (108, 256), (256, 512),
           (640, 128), (512, 256), (1024, 1024), (1023, 1024), (1024, 1023),
           (4096, 4096))  # fmt: skip
GRIDS = {
    "test_flash_attn_output": {
        **_FORWARD,
        "d": DIMS,
        "lengths": (*_SHARED, (1, 1), (128, 192), (239, 1), (799, 3), (113, 128), (384, 256),
                    (4224, 4224)),
    },
    "test_flash_attn_varlen_output": {
        **_FORWARD,
        "add_unused_qkv": YES_NO,
        "d": DIMS,
        "lengths": (*_SHARED, (1, 1), (1, 3), (2, 1), (511, 1), (3, 513), (128, 128), (307, 256),
                    (1024, 1024), (2048, 2048)),
    },
    "test_flash_attn_kvcache": {
        "dtype": ("bf16", "e4m3"),
        "heads": MHA_GQA_MQA,
        "new_kv": YES_NO,
        "mask": ("full", "causal", "local"),
        "seqlen_new_eq_seqlen_q": YES_NO,
        "rotary_interleaved": YES_NO,
        "rotary_fraction": (0.0, 0.5, 1.0),
        "page_size": (None, 1, 4, 128),
        "has_leftpad": YES_NO,
        "has_batch_idx": YES_NO,
        "varlen_q": YES_NO,
        "d": (128,),
        "lengths": ((1, 128), (1, 339), (3, 1024), (64, 800), (64, 256), (3, 799), (64, 2048),
                    (16, 20000), (128, 128), (256, 512), (2048, 3577)),
    },
    "test_flash_attn_race_condition": {
        "dtype": ("bf16",),
        "causal": YES_NO,
        "d": (32, 40, 59, 64, 80, 96, 111, 128, 160, 192, 224, 256),
        "lengths": ((1, 239), (239, 1), (3, 799), (799, 3), (1024, 128), (97, 97), (128, 128),
                    (200, 200), (256, 256), (257, 257), (384, 384), (512, 512), (768, 768),
                    (1024, 1024), (2048, 2048)),
    },
    "test_flash_attn_combine": {
        "dtype": ("f32", "f16", "bf16"),
        "d": (64, 96, 128, 192, 256, 512),
        "seqlen": (1, 2, 3, 32, 64, 256, 113, 108, 640, 1024),
        "num_splits": SPLITS,
    },
}  # fmt: skip


def is_skipped(name, p):
    """Whether FlashAttention-3's test skips the point itself."""
    if name in ("test_flash_attn_output", "test_flash_attn_varlen_output"):
        return p["has_qv"] and (p["d"] != 64 or p["dtype"] == "e4m3")
    if name == "test_flash_attn_kvcache":
        s_q, s_k = p["lengths"]
        return (
            (p["page_size"] and s_k % p["page_size"] != 0)
            or (s_q > s_k and p["new_kv"])
            or (not p["new_kv"] and p["rotary_fraction"] > 0)
        )
    return False


def refusal(name, p):
    """The error's words where the library refuses the point, or None."""
    if name == "test_flash_attn_kvcache" and p["dtype"] == "e4m3" and p["rotary_fraction"] > 0:
        return "rotary_cos with e4m3: what is rotated would be rounded again"
    return None


def points(name):
    """(number, point) for all of the grid that its test does not skip."""
    grid = GRIDS[name]
    for number, chosen in enumerate(itertools.product(*grid.values())):
        point = dict(zip(grid, chosen, strict=True))
        if not is_skipped(name, point):
            yield number, point


@functools.cache
def sample(name):
    """The points of a grid in random order, always the same; the first ones have each value."""
    every = list(points(name))
    new, others, seen = [], [], set()
    for i in np.random.default_rng(0).permutation(len(every)):
        (others if set(every[i][1].items()) <= seen else new).append(every[i])
        seen |= set(every[i][1].items())
    return [*new, *others]


def shorter(s_q, s_k):
    """Lengths of the same kind: which one is longer, and what they leave of 64, stay."""
    if os.environ.get("AIRLLM_ATTENTION_LENGTHS") == "1":
        return s_q, s_k
    both = max(0, (min(s_q, s_k) - 192) // 64 * 64)
    return tuple(n if n <= 320 else 256 + n % 64 for n in (s_q - both, s_k - both))


def heads(p):
    """(KV heads, query heads of each)."""
    h_k = {"mha": 6, "gqa": 3 if "new_kv" in p else 2, "mqa": 1}[p["heads"]]
    return h_k, 6 // h_k


def call_of(name, number, p):
    """The point as a call of test_flash_attention.py."""
    rng = np.random.default_rng(number)
    with_cache = name == "test_flash_attn_kvcache"
    s_q, s_k = shorter(*p["lengths"])
    h_k, group = heads(p)
    d, d_v = p["d"], p["d"]
    if p.get("has_qv"):
        d_v = int(rng.choice([256, 512]))
    elif p["dtype"] != "e4m3" and not with_cache:
        d_v = int(rng.choice([256, 512, d] if d <= 64 else [128, d] if 128 < d <= 192 else [d]))
    local = p["mask"] == "local" if with_cache else p["local"]
    causal = p["mask"] == "causal" if with_cache else p["causal"]
    left, right = (int(n) for n in (rng.integers(0, s_k, 2) if local else (-1, -1)))
    chunks = not with_cache or causal or local
    if name == "test_flash_attn_varlen_output" and s_q > s_k:
        chunks = False
    call = {
        "batch": 3 if with_cache else 2,
        "kv_heads": h_k, "group": group, "d": d, "d_v": d_v, "s_q": s_q, "s_k": s_k,
        "q_kind": p["dtype"], "kv_kind": p["dtype"], "new_kind": p["dtype"],
        "out_kind": "bf16" if p["dtype"] == "e4m3" else p["dtype"],
        "causal": causal, "left": left, "right": right,
        "chunk": int(rng.integers(1, 2 * s_k)) if chunks and rng.integers(2) else 0,
        "softcap": p.get("softcap", 0.0), "q_size": (p.get("softcap") or 4) / 4,
        "scale": None, "sinks": False,
        "q_v": p.get("has_qv", False), "num_splits": int(rng.choice([1, 3, 0])),
        "varlen_q": False, "seqused_q": False, "layout": "dense", "heads_first": False,
        "seqused_k": False, "leftpad": False, "appends": False, "rotary": False,
        "interleaved": False, "page_size": 1, "varlen_new": False, "rng": rng,
    }  # fmt: skip
    if name == "test_flash_attn_varlen_output":
        call |= {"varlen_q": True, "layout": "varlen"}
        call["seqused_q"] = call["seqused_k"] = p["add_unused_qkv"]
    if with_cache:
        call |= _of_cache(p, s_q, s_k, rng)
    return call


def _of_cache(p, s_q, s_k, rng):
    n_new = s_q if p["seqlen_new_eq_seqlen_q"] else int(rng.integers(1, s_q + 1))
    n_new = n_new if p["new_kv"] else 0
    layout = "pages" if p["page_size"] else "rows" if p["has_batch_idx"] else "dense"
    return {
        "layout": layout, "page_size": p["page_size"] or 1, "page_rows": p["has_batch_idx"],
        "s_k": max(0, s_k - n_new), "seqused_k": True, "leftpad": p["has_leftpad"],
        "appends": p["new_kv"], "n_new": n_new, "varlen_new": p["new_kv"] and p["varlen_q"],
        "rotary": p["rotary_fraction"] > 0, "interleaved": p["rotary_interleaved"],
        "rotary_fraction": math.floor(int(p["rotary_fraction"] * p["d"]) / 16) * 16 / p["d"],
        "varlen_q": p["varlen_q"],
    }  # fmt: skip
