"""The attention library against attention in float64, over the space of its arguments."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from extension import ISAS
from flash_library import (
    CAUSAL,
    INTERLEAVED,
    attend,
    default_scale,
    forward,
    rotate,
    stored,
    values,
    visible,
)
from hypothesis import given, settings
from hypothesis import strategies as st

KINDS = ("f32", "f16", "bf16", "e4m3")
# Of a number that is rounded to the type, and u of float32 sums.
ROUNDING = {"f32": 0.0, "f16": 2.0**-11, "bf16": 2.0**-8}
OUT_ERROR, LSE_ERROR = 1e-5, 1e-4


@st.composite
def calls(draw):
    """A call with every argument that FlashAttention-3 has, as far as they go together."""
    n = {name: draw(st.integers(0, 1_000_000)) for name in ("seed",)}
    rng = np.random.default_rng(n["seed"])

    def chance(percent):
        return draw(st.integers(0, 99)) < percent

    call = {
        "batch": draw(st.integers(1, 3)),
        "kv_heads": draw(st.sampled_from([1, 2, 3])),
        "group": draw(st.sampled_from([1, 2, 4, 5, 8])),
        "d": draw(st.sampled_from([8, 16, 20, 64, 80, 128, 256])),
        "causal": chance(50),
        "q_kind": draw(st.sampled_from(KINDS)),
        "kv_kind": draw(st.sampled_from(KINDS)),
        "out_kind": draw(st.sampled_from(list(ROUNDING))),
        "softcap": draw(st.sampled_from([0.0, 0.0, 3.0])),
        "scale": draw(st.sampled_from([None, 0.3])),
        "left": draw(st.sampled_from([-1, -1, 0, 7, 100])),
        "right": draw(st.sampled_from([-1, -1, 0, 5, 40])),
        "chunk": draw(st.sampled_from([0, 0, 0, 1, 13, 64])),
        "num_splits": draw(st.sampled_from([0, 0, 1, 3])),
        "sinks": chance(30),
        "seqused_q": chance(30),
        "varlen_q": chance(40),
        "layout": draw(st.sampled_from(["dense", "dense", "varlen", "pages", "pages", "rows"])),
        "page_size": draw(st.sampled_from([1, 3, 8, 16, 48, 64])),
        "heads_first": chance(40),
        "leftpad": chance(30),
        "interleaved": chance(50),
        "varlen_new": chance(30),
        "rotary_fraction": draw(st.sampled_from([0.5, 1.0])),
        "rng": rng,
    }
    call["d_v"] = draw(st.sampled_from([call["d"], call["d"], 16, 20, 96, 512]))
    call["s_q"] = draw(st.sampled_from([0, 1, 1, 2, 5, 33, 70]))
    call["s_k"] = draw(st.sampled_from([0, 1, 2, 15, 64, 100, 530, 1100]))
    call["appends"] = call["layout"] != "varlen" and chance(40)
    call["rotary"] = (
        call["appends"] and "e4m3" not in (call["q_kind"], call["kv_kind"]) and chance(60)
    )
    call["q_v"] = "e4m3" not in (call["q_kind"], call["kv_kind"]) and chance(25)
    call["q_v"] &= call["d"] + call["d_v"] <= 576
    call["seqused_k"] = call["appends"] or chance(50)
    return call


def lengths(rng, batch, most):
    return rng.integers(0, most + 1, batch)


def starts(counts):
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)


def heads_first(x):
    """The same array, in memory with its heads before the rows."""
    return np.ascontiguousarray(x.swapaxes(-3, -2)).swapaxes(-3, -2)


class Case:
    """The arrays of a call, and what its results must be. n_new, new_kind, q_size: of new keys
    and of queries, where the call says them. rotated_as: what rotated queries are rounded to."""

    def __init__(self, call):
        rng, c = call["rng"], call
        b, h_k, d, d_v = c["batch"], c["kv_heads"], c["d"], c["d_v"]
        heads = h_k * c["group"]
        normal = rng.standard_normal
        self.call = c
        f = self.fields = {
            "flags": CAUSAL * c["causal"] | INTERLEAVED * c["interleaved"],
            "window_left": c["left"],
            "window_right": c["right"],
            "attention_chunk": c["chunk"],
            "num_splits": c["num_splits"],
            "softcap": c["softcap"],
            "softmax_scale": c["scale"],
        }
        # Queries.
        counts = lengths(rng, b, c["s_q"]) if c["varlen_q"] else np.full(b, c["s_q"])
        rows = (int(counts.sum()),) if c["varlen_q"] else (b, c["s_q"])
        f["q"] = stored(c.get("q_size", 1) * normal((*rows, heads, d)), c["q_kind"])
        if c["q_v"]:
            f["q_v"] = stored(normal((*rows, heads, d_v)), c["q_kind"])
        out_type = {"f32": np.float32, "f16": np.float16, "bf16": np.uint16}[c["out_kind"]]
        self.out = f["out"] = np.full((*rows, heads, d_v), 77, out_type)
        self.lse = np.full((heads, *rows) if c["varlen_q"] else (b, heads, rows[1]), 77, np.float32)
        f["lse"] = self.lse
        if c["varlen_q"]:
            f |= {"cu_seqlens_q": starts(counts), "max_seqlen_q": c["s_q"], "batch": b}
        self.q_starts = starts(counts)
        self.n_q = [int(n) for n in counts]
        if c["seqused_q"]:
            self.n_q = [int(rng.integers(0, n + 1)) for n in counts]
            f["seqused_q"] = self.n_q
        # Keys and values.
        n_new = c.get("n_new", int(rng.integers(1, 6))) if c["appends"] else 0
        columns = -(-(c["s_k"] + n_new) // c["page_size"])
        capacity = columns * c["page_size"] if c["layout"] == "pages" else c["s_k"] + n_new
        if c["layout"] == "varlen":
            kv_counts = lengths(rng, b, c["s_k"])
            cache = (int(kv_counts.sum()),)
            f |= {"cu_seqlens_k": starts(kv_counts), "max_seqlen_k": c["s_k"]}
        elif c["layout"] == "pages":
            kv_counts = np.full(b, capacity)
            n_pages = b * columns + 2
            cache = (n_pages, c["page_size"])
            table = rng.permutation(n_pages)[: b * columns].reshape(b, columns)
            f["page_table"] = table
        else:
            kv_counts = np.full(b, capacity)
            cache = (b + 2 if c["layout"] == "rows" else b, capacity)
            if c["layout"] == "rows":
                f["kv_batch_idx"] = rng.permutation(b + 2)[:b]
        self.k = stored(normal((*cache, h_k, d)), c["kv_kind"])
        self.v = stored(normal((*cache, h_k, d_v)), c["kv_kind"])
        if c["heads_first"]:
            self.k, self.v = heads_first(self.k), heads_first(self.v)
        f |= {"k": self.k, "v": self.v}
        used = [int(n) for n in kv_counts]
        if c["seqused_k"]:
            used = [int(rng.integers(0, n - n_new + 1)) for n in used]
            f["seqused_k"] = used
        pads = [int(rng.integers(0, n + 1)) for n in used] if c["leftpad"] else [0] * b
        if c["leftpad"]:
            f["leftpad_k"] = pads
        # New keys, of a type of their own unless the cache is e4m3.
        positions = used
        if c["appends"]:
            kind = "e4m3" if c["kv_kind"] == "e4m3" else str(rng.choice(list(ROUNDING)))
            kind = c.get("new_kind", kind)
            new_counts = rng.integers(0, n_new + 1, b) if c["varlen_new"] else np.full(b, n_new)
            new_rows = (int(new_counts.sum()),) if c["varlen_new"] else (b, n_new)
            f["k_new"] = stored(normal((*new_rows, h_k, d)), kind)
            f["v_new"] = stored(normal((*new_rows, h_k, d_v)), kind)
            new_starts = starts(new_counts)
            if c["varlen_new"]:
                f["cu_seqlens_k_new"] = new_starts
        if c["rotary"]:
            pairs = int(d * c["rotary_fraction"]) // 2
            n_ro = capacity + max(80, c["s_q"])
            angles = rng.uniform(-3, 3, (n_ro, pairs))
            f["rotary_cos"] = stored(np.cos(angles), "f32")
            f["rotary_sin"] = stored(np.sin(angles), "f32")
            if rng.integers(2):
                positions = [int(n) for n in rng.integers(0, capacity + 1, b)]
                f["seqlens_rotary"] = positions

        # Scales and sinks.
        def scales(name, kind):
            if kind != "e4m3" or not rng.integers(2):
                return np.ones((b, h_k))
            f[name] = np.ascontiguousarray(rng.uniform(0.5, 2, (h_k, b)).astype(np.float32)).T
            return f[name].astype(np.float64)

        by = [scales(n, c[k]) for n, k in (("q_descale", "q_kind"), ("k_descale", "kv_kind"))]
        by_v = scales("v_descale", c["kv_kind"])
        sinks = None
        if c["sinks"]:
            sinks = f["sinks"] = normal(heads).astype(np.float32)
        # What the cache holds before, and the keys and values that it gets.
        self.before = [(cache, cache.copy()) for cache in (self.k, self.v)]
        self.sequences = []
        for i in range(b):
            new = ()
            if c["appends"]:
                rows_new = np.s_[new_starts[i] : new_starts[i + 1]] if c["varlen_new"] else i
                new = values(f["k_new"][rows_new]), values(f["v_new"][rows_new])
            if c["rotary"]:
                at = np.s_[positions[i] : positions[i] + len(new[0])]
                new = rotate(new[0], *self.tables(at), c["interleaved"]), new[1]
            self.sequences.append((used[i], pads[i], positions[i], new))
        self.n_new = [int(n) for n in new_counts] if c["appends"] else [0] * b
        self.by, self.by_v, self.sinks = by, by_v, sinks
        self.largest = max(1.0, float(np.abs(values(self.v)).max(initial=0)) * 2)

    def tables(self, at):
        return self.fields["rotary_cos"][at].astype(float), self.fields["rotary_sin"][at].astype(
            float
        )

    def places(self, i, n):
        """Indices of the first n rows of the cache that sequence i has."""
        rows = np.arange(n)
        f = self.fields
        if "cu_seqlens_k" in f:
            return (rows + f["cu_seqlens_k"][i],)
        if "page_table" in f:
            size = self.call["page_size"]
            return f["page_table"][i][rows // size], rows % size
        row = f["kv_batch_idx"][i] if "kv_batch_idx" in f else i
        return np.full(n, row), rows

    def queries(self, name, i):
        x, n = self.fields[name], self.n_q[i]
        if x.ndim == 3:
            return x[self.q_starts[i] : self.q_starts[i] + n]
        return x[i, :n]

    def results(self, i):
        """The call's out and lse of sequence i."""
        n, first = self.n_q[i], self.q_starts[i]
        if self.lse.ndim == 2:
            return self.queries("out", i), self.lse[:, first : first + n]
        return self.queries("out", i), self.lse[i, :, :n]

    def expected(self, i):
        """out and lse of sequence i in float64."""
        return attend(*self.attended(i), self.call["softcap"], self.sinks)

    def attended(self, i):
        """q, k, v, the scale, and which keys each query sees, of sequence i, with the keys that the
        cache holds by now."""
        c = self.call
        used, pad, position, _ = self.sequences[i]
        where = self.places(i, used + self.n_new[i])
        keys, vals = values(self.k[where])[pad:], values(self.v[where])[pad:]
        q = values(self.queries("q", i)) * np.repeat(self.by[0][i], c["group"])[:, None]
        if c["rotary"]:
            local = c["causal"] or c["left"] >= 0 or c["right"] >= 0 or c["chunk"]
            at = position + (np.arange(len(q)) if local else np.zeros(len(q), int))
            q = rotate(q, *self.tables(at), c["interleaved"])
            if "rotated_as" in c:
                q = values(stored(q, c["rotated_as"]))
        keys = keys * self.by[1][i][:, None]
        vals = vals * self.by_v[i][:, None]
        if c["q_v"]:
            q = np.concatenate([q, values(self.queries("q_v", i))], 2)
            keys = np.concatenate([keys, vals], 2)
        scale = c["scale"] or default_scale(q.shape[2])
        seen = visible(len(q), len(keys), c["causal"], c["left"], c["right"], c["chunk"])
        return q, keys, vals, scale, seen

    def check(self):
        self.check_cache()
        for i in range(self.call["batch"]):
            out, lse = self.expected(i)
            got, got_lse = self.results(i)
            error = np.abs(values(got) - out)
            bound = OUT_ERROR * self.largest + ROUNDING[self.call["out_kind"]] * np.abs(out) + 1e-7
            assert (error <= bound).all(), (i, error.max())
            np.testing.assert_array_equal(np.isneginf(got_lse), np.isneginf(lse))
            finite = np.isfinite(lse)
            np.testing.assert_allclose(got_lse[finite], lse[finite], rtol=0, atol=LSE_ERROR)

    def check_cache(self):
        """New keys and values are where they belong, rounded once; all others are as before."""
        step = ROUNDING.get(self.call["kv_kind"], 0.0)
        for i, (used, _, _, new) in enumerate(self.sequences):
            where = tuple(index[used:] for index in self.places(i, used + self.n_new[i]))
            for (cache, before), rows in zip(self.before, new, strict=False):
                kept = values(cache[where])
                assert (np.abs(kept - rows) <= 1e-6 + step * np.abs(rows) * 1.01).all()
                before[where] = cache[where]
        for cache, before in self.before:
            np.testing.assert_array_equal(cache, before)

    def unused(self):
        """Elements of out and lse that belong to no query in use."""
        used = np.zeros(self.fields["q"].shape[:-2], bool)
        for i, n in enumerate(self.n_q):
            if used.ndim == 1:
                used[self.q_starts[i] : self.q_starts[i] + n] = True
            else:
                used[i, :n] = True
        lse = self.lse if used.ndim == 1 else self.lse.swapaxes(1, 2)
        return self.out[~used], (lse[:, ~used] if used.ndim == 1 else lse[~used])


def check_examples(count):
    @settings(max_examples=count)
    @given(calls())
    def check(call):
        case = Case(call)
        forward(**case.fields)
        case.check()
        for untouched in case.unused():
            assert (untouched == 77).all()

    check()


def test_any_call_is_attention_in_float64():
    check_examples(250)


@pytest.mark.fuzz
def test_any_of_many_calls_is_attention_in_float64():
    check_examples(400)


@pytest.mark.isa
@pytest.mark.parametrize("isa", ISAS[:-1])
def test_any_call_is_attention_on_every_isa(isa):
    """In a process of its own, as the library chooses its kernels once."""
    code = "import conftest, flash_library, test_flash_attention as t; t.check_examples(60); "
    code += "print(flash_library.library().fa_build_info().decode())"
    environment = os.environ | {"TENSOR_OPS_ISA": isa}
    command = [sys.executable, "-c", code]
    result = subprocess.run(
        command, cwd=Path(__file__).parent, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith(f", in use {isa}\n")
