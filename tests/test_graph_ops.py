"""The ops that no array function has, by themselves: both backends against float64."""

import numpy as np
import pytest
import reference
from one_op import EXACT, assert_close, backend_named, random, run
from sequence_states import paged_state

from airllm.graph.builder import GraphBuilder
from airllm.graph.graph import Buffer, GraphError, Weight

N_EXPERTS, N_USED, N, K = 5, 2, 48, 64


@pytest.fixture(params=["numpy", "cpp"])
def backend(request):
    return backend_named(request.param)


@pytest.mark.parametrize("n_tokens", [1, 7])
def test_bias_adds_the_same_to_each_row(backend, n_tokens):
    x, bias = random(n_tokens, 37), random(37, seed=1)
    out = run(backend, lambda g, x, w: g.bias(x, w), {"x": x}, {"b": bias})
    np.testing.assert_array_equal(out, x + bias)


@pytest.mark.parametrize("n_tokens", [1, 7])
def test_head_norm_normalises_each_head_by_itself(backend, n_tokens):
    x, weight = random(n_tokens, 3 * 24), random(24, seed=1)
    out = run(backend, lambda g, x, w: g.head_norm(x, w, 3, 1e-5), {"x": x}, {"w": weight})
    heads = x.astype(np.float64).reshape(n_tokens, 3, 24)
    expected = heads / np.sqrt((heads**2).mean(axis=-1, keepdims=True) + 1e-5) * weight
    assert_close(out, expected.reshape(x.shape))


@pytest.mark.parametrize("n_tokens", [1, 7])
def test_head_norm_without_a_weight_has_one_of_ones(backend, n_tokens):
    x = random(n_tokens, 3 * 24)
    without = run(backend, lambda g, x: g.head_norm(x, None, 3, 1e-5), {"x": x}, {})
    ones = {"w": np.ones(24, np.float32)}
    np.testing.assert_array_equal(
        without, run(backend, lambda g, x, w: g.head_norm(x, w, 3, 1e-5), {"x": x}, ones)
    )


def test_head_norms_of_several_widths_need_no_weights(backend):
    x = random(2, 48)

    def build(g, x):
        return g.head_norm(g.head_norm(x, None, 6, 1e-5), None, 2, 1e-5)

    heads = x.astype(np.float64)
    for n_heads in (6, 2):
        heads = heads.reshape(2, n_heads, -1)
        heads = heads / np.sqrt((heads**2).mean(axis=-1, keepdims=True) + 1e-5)
    assert_close(run(backend, build, {"x": x}, {}), heads.reshape(2, 48))


@pytest.mark.parametrize("n_tokens", [1, 7])
@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize(("n_heads", "offset"), [(3, 14), (1, 16), (5, 1)])
@pytest.mark.parametrize("interleaved", [True, False])
def test_rope_turns_dimensions_behind_others(
    backend, n_tokens, in_place, n_heads, offset, interleaved
):
    x, angles = random(n_tokens, n_heads * 24), random(n_tokens, 4, seed=1)
    table = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)

    def build(g, x, table):
        copied = g.scale(x)
        return g.rope(
            copied,
            table,
            n_heads,
            24,
            interleaved=interleaved,
            offset=offset,
            out=copied if in_place else None,
        )

    out = run(backend, build, {"x": x, "table": table}, {})
    expected = x.astype(np.float64).reshape(n_tokens, n_heads, 24).copy()
    pairs = [(2 * j, 2 * j + 1) if interleaved else (j, j + 4) for j in range(4)]
    for j, (first, second) in enumerate(pairs):
        a, b = (expected[:, :, offset + each].copy() for each in (first, second))
        cos, sin = (f(angles[:, j].astype(np.float64))[:, np.newaxis] for f in (np.cos, np.sin))
        expected[:, :, offset + first] = a * cos - b * sin
        expected[:, :, offset + second] = b * cos + a * sin
    assert_close(out, expected.reshape(x.shape))


@pytest.mark.parametrize("width", [5, 700])
def test_geglu_is_gelu_of_the_gate_times_up(backend, width):
    gate, up = 3 * random(4, width), random(4, width, seed=1)
    out = run(backend, lambda g, gate, up: g.geglu(gate, up), {"gate": gate, "up": up}, {})
    z = gate.astype(np.float64)
    expected = z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3))) / 2 * up
    assert_close(out, expected)


@pytest.mark.parametrize("output", ["gate", "up"])
def test_geglu_may_overwrite_either_input(backend, output):
    gate, up = random(4, 300), random(4, 300, seed=1)

    def build(g: GraphBuilder, gate: Buffer, up: Buffer) -> Buffer:
        return g.geglu(gate, up, out={"gate": gate, "up": up}[output])

    apart = run(backend, lambda g, gate, up: g.geglu(gate, up), {"gate": gate, "up": up}, {})
    over = run(backend, build, {"gate": gate.copy(), "up": up.copy()}, {})
    np.testing.assert_array_equal(over, apart)


def test_softcap_bends_values_towards_the_cap(backend):
    x = np.array([[0.0, 1e-6, -0.5, 2.0, -40.0, 1e30, np.inf, -np.inf]], np.float32)
    out = run(backend, lambda g, x: g.softcap(x, 30.0), {"x": x}, {})
    expected = 30.0 * np.tanh(x.astype(np.float64) / 30.0)
    np.testing.assert_allclose(out, expected, rtol=EXACT)


# ---- experts -------------------------------------------------------------------------------------


def a_route(n_tokens: int, n_experts: int = N_EXPERTS) -> np.ndarray:
    """Experts and shares for each token, as `route` gives them."""
    rng = np.random.default_rng(2)
    experts = [rng.permutation(n_experts)[:N_USED] for _ in range(n_tokens)]
    return np.hstack([experts, rng.uniform(0.1, 1.0, (n_tokens, N_USED))]).astype(np.float32)


@pytest.mark.parametrize("n_tokens", [1, 2, 40])
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "each its own"])
def test_each_row_meets_the_matrices_of_its_experts(backend, n_tokens, shared):
    x, w = random(n_tokens, K if shared else N_USED * K), random(N_EXPERTS, N, K, seed=1)
    route = a_route(n_tokens)

    def build(g: GraphBuilder, x: Buffer, route: Buffer, w: Weight) -> Buffer:
        return g.expert_linear(x, route, w)

    out = run(backend, build, {"x": x, "route": route}, {"w": w}, max_tokens=50)
    inputs = np.broadcast_to(x.reshape(n_tokens, -1, K), (n_tokens, N_USED, K)).astype(np.float64)
    expected = [
        w[int(route[t, u])].astype(np.float64) @ inputs[t, u]
        for t in range(n_tokens)
        for u in range(N_USED)
    ]
    assert_close(out.reshape(-1, N), np.array(expected))


@pytest.mark.parametrize("n_tokens", [1, 6])
def test_experts_that_no_token_chose_are_not_touched(backend, n_tokens):
    x, w, route = random(n_tokens, K), random(N_EXPERTS, N, K, seed=1), a_route(n_tokens, 3)
    inputs = {"x": x, "route": route}
    clean = run(backend, lambda g, x, r, w: g.expert_linear(x, r, w), inputs, {"w": w})
    w[3:] = np.nan
    poisoned = run(backend, lambda g, x, r, w: g.expert_linear(x, r, w), inputs, {"w": w})
    np.testing.assert_array_equal(poisoned, clean)


@pytest.mark.parametrize("n_tokens", [1, 2, 64, 65, 150])
def test_each_head_meets_its_own_matrix(backend, n_tokens):
    x, w = random(n_tokens, 3 * K), random(3, N, K, seed=1)
    out = run(backend, lambda g, x, w: g.head_linear(x, w), {"x": x}, {"w": w}, max_tokens=160)
    heads = x.astype(np.float64).reshape(n_tokens, 3, K)
    assert_close(out, np.einsum("thk,hnk->thn", heads, w.astype(np.float64)).reshape(out.shape))


@pytest.mark.parametrize("n_tokens", [1, 40])
@pytest.mark.parametrize(("offset", "width"), [(0, 37), (0, 4), (33, 4)])
def test_columns_are_taken_of_each_head(backend, n_tokens, offset, width):
    x = random(n_tokens, 3 * 37)
    out = run(backend, lambda g, x: g.take_head_columns(x, 3, offset, width), {"x": x}, {})
    taken = x.reshape(n_tokens, 3, 37)[:, :, offset : offset + width]
    np.testing.assert_array_equal(out, taken.reshape(n_tokens, -1))


@pytest.mark.parametrize("n_tokens", [1, 40])
def test_heads_are_joined_side_by_side(backend, n_tokens):
    a, b = random(n_tokens, 3 * 37), random(n_tokens, 3 * 4, seed=1)
    out = run(backend, lambda g, a, b: g.join_heads(a, b, 3), {"a": a, "b": b}, {})
    heads = [part.reshape(n_tokens, 3, -1) for part in (a, b)]
    np.testing.assert_array_equal(out, np.concatenate(heads, axis=2).reshape(n_tokens, -1))


@pytest.mark.parametrize("n_tokens", [1, 40])
def test_what_experts_gave_is_summed_by_their_shares(backend, n_tokens):
    x, route = random(n_tokens, N_USED * N), a_route(n_tokens)
    out = run(backend, lambda g, x, r: g.expert_sum(x, r), {"x": x, "route": route}, {})
    parts = x.astype(np.float64).reshape(n_tokens, N_USED, N)
    assert_close(out, (parts * route[:, N_USED:, None]).sum(axis=1))


@pytest.mark.parametrize("n_tokens", [1, 40])
@pytest.mark.parametrize("in_place", [False, True])
def test_each_expert_adds_its_bias_to_what_it_gave(backend, n_tokens, in_place):
    x, biases, route = random(n_tokens, N_USED * N), random(N_EXPERTS, N, seed=1), a_route(n_tokens)

    def build(g: GraphBuilder, x: Buffer, route: Buffer, w: Weight) -> Buffer:
        return g.expert_bias(x, route, w, out=x if in_place else None)

    out = run(backend, build, {"x": x.copy(), "route": route}, {"b": biases})
    chosen = biases[route[:, :N_USED].astype(int)]
    np.testing.assert_array_equal(out, (x.reshape(chosen.shape) + chosen).reshape(x.shape))


@pytest.mark.parametrize("n_tokens", [1, 40])
@pytest.mark.parametrize("in_place", [False, True])
def test_what_each_expert_gave_is_scaled_by_its_factor(backend, n_tokens, in_place):
    x, factors, route = random(n_tokens, N_USED * N), random(N_EXPERTS, seed=1), a_route(n_tokens)

    def build(g: GraphBuilder, x: Buffer, route: Buffer, w: Weight) -> Buffer:
        return g.expert_scale(x, route, w, out=x if in_place else None)

    out = run(backend, build, {"x": x.copy(), "route": route}, {"s": factors})
    chosen = factors[route[:, :N_USED].astype(int)][:, :, None]
    np.testing.assert_array_equal(out, (x.reshape(*chosen.shape[:2], N) * chosen).reshape(x.shape))


@pytest.mark.parametrize("type", ["f16", "bf16"])
def test_biases_of_experts_may_be_of_half_precision(backend, type):
    halves = {"f16": np.float16, "bf16": np.uint16}[type]
    values = (np.arange(6, dtype=np.float32) - 2).reshape(2, 3)
    stored = (
        values.astype(halves) if type == "f16" else (values.view(np.uint32) >> 16).astype(halves)
    )
    weight = backend.weight("vectors", stored.view(np.uint8), type, (2, 3))
    np.testing.assert_array_equal(weight, values)
    assert weight.nbytes == 24


# ---- attention with sinks, and with biases by distance ----


def attended(backend, n_tokens, past, n_heads, n_kv_heads, sinks=None, page_rows=0, **options):
    """What the op gives, and the arguments of the reference, if there is only one page: page_rows
    is 0."""
    head_dim = 16
    q = random(n_tokens, n_heads * head_dim)
    new = [random(n_tokens, n_kv_heads * head_dim, seed=seed) for seed in (2, 3)]
    rows = max(16, 1 << (past + n_tokens - 1).bit_length())
    caches = random(1, 2, n_kv_heads, rows, head_dim, seed=4)
    g = GraphBuilder("attention")
    k, v = g.external("k", n_kv_heads * head_dim), g.external("v", n_kv_heads * head_dim)
    g.kv_append(k, v, n_kv_heads, head_dim)
    g.attention(
        g.external("q", n_heads * head_dim),
        n_heads,
        n_kv_heads,
        head_dim,
        scale=0.25,
        sinks=None if sinks is None else g.weight("sinks", n_heads),
        out=g.external("out", n_heads * head_dim),
        **options,
    )
    executor = backend.executor(g.build(), n_tokens)
    bound = {}
    if sinks is not None:
        bound["sinks"] = backend.weight("vector", sinks.view(np.uint8), "f32", (n_heads,))
    out = np.zeros_like(q)
    buffers = {"q": q, "k": new[0], "v": new[1], "out": out}
    state = paged_state(backend, caches, page_rows or rows)
    executor.run_layers([executor.bind(bound)], buffers, [(n_tokens, past, state)])
    heads = q.reshape(n_tokens, n_heads, head_dim)
    return out.reshape(heads.shape), (heads, *caches[0, :, :, : past + n_tokens], 0.25)


LENGTHS = [(1, 0), (1, 700), (5, 3), (70, 600)]  # tokens, and those before them


@pytest.mark.parametrize(("n_tokens", "past"), LENGTHS)
@pytest.mark.parametrize(
    "options",
    [{}, {"window": 4, "softcap": 20.0}, {"window": 4, "chunked": True}],
    ids=["plain", "window", "chunks"],
)
def test_sinks_take_their_share_of_attention(backend, n_tokens, past, options):
    sinks = 2 * random(4, seed=1)
    out, arguments = attended(backend, n_tokens, past, 4, 2, sinks, **options)
    expected, _ = reference.attention(*arguments, sinks=sinks, **options)
    assert_close(out, expected, 1e-5)


@pytest.mark.parametrize(("n_tokens", "past"), [*LENGTHS, (1, 3000)])
@pytest.mark.parametrize(("n_heads", "n_kv_heads"), [(4, 4), (6, 2), (71, 1)])
def test_scores_fall_with_the_distance(backend, n_tokens, past, n_heads, n_kv_heads):
    """The slopes are the paper's: of 2^m heads, and of others in its appendix's way."""
    out, arguments = attended(backend, n_tokens, past, n_heads, n_kv_heads, alibi=8.0)
    power = 1 << (n_heads.bit_length() - 1)
    slopes = [2.0 ** (-8.0 * (h + 1) / power) for h in range(power)]
    slopes += [2.0 ** (-8.0 * (h + 0.5) / power) for h in range(n_heads - power)]
    expected, _ = reference.attention(*arguments, slopes=slopes)
    assert_close(out, expected, 1e-5)


@pytest.mark.parametrize("past", [700, 1535, 9000])
@pytest.mark.parametrize("page_rows", [16, 64])
def test_pages_give_the_same_bits_as_one_page(backend, past, page_rows):
    """With 16 heads, 9,000 positions are divided into parts of 1,024."""
    expected, _ = attended(backend, 1, past, 16, 8)
    out, _ = attended(backend, 1, past, 16, 8, page_rows=page_rows)
    assert np.array_equal(out, expected)


def test_biases_by_distance_count_within_a_window_and_against_sinks_too(backend):
    """A sink has no distance, so that the same number more for all positions is seen."""
    sinks = 2 * random(4, seed=1)
    out, arguments = attended(backend, 40, 30, 4, 2, sinks, alibi=3.0, window=9)
    slopes = [2.0 ** (-3.0 * (h + 1) / 4) for h in range(4)]
    expected, _ = reference.attention(*arguments, sinks=sinks, slopes=slopes, window=9)
    assert_close(out, expected, 1e-5)


def test_sinks_for_other_heads_are_refused():
    g = GraphBuilder("broken")
    g.kv_append(g.external("k", 32), g.external("v", 32), 2, 16)
    with pytest.raises(GraphError, match=r"weight 'sinks' is \[3\], expected \[4\], the heads"):
        g.attention(g.external("q", 64), 4, 2, 16, scale=1.0, sinks=g.weight("sinks", 3))


# ---- what a cluster's nodes pass on ----


def run_graph(backend, graph, buffers, n_tokens):
    executor = backend.executor(graph, n_tokens)
    executor.run(executor.bind({}), buffers, n_tokens)


def q8_0(x):
    """Blocks of Q8_0 by their definition: uint8 [n, width / 32 * 34]."""
    blocks = x.astype(np.float64).reshape(len(x), -1, 32)
    scale = np.abs(blocks).max(axis=-1, keepdims=True) / 127
    integers = np.rint(np.divide(blocks, scale, out=np.zeros_like(blocks), where=scale > 0))
    halves = scale.astype(np.float16).view(np.uint8)
    return np.concatenate([halves, integers.astype(np.int8).view(np.uint8)], axis=-1).reshape(
        len(x), -1
    )


def from_q8_0(blocks):
    parts = blocks.reshape(len(blocks), -1, 34)
    scale = np.ascontiguousarray(parts[..., :2]).view(np.float16).astype(np.float64)
    return (scale * parts[..., 2:].view(np.int8)).reshape(len(blocks), -1)


@pytest.mark.parametrize("n_tokens", [1, 5])
@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("silu", lambda z: z / (1 + np.exp(-z))),
        ("gelu", lambda z: z * (1 + np.tanh(0.7978845608028654 * (z + 0.044715 * z**3))) / 2),
    ],
)
def test_activations_by_themselves(backend, name, function, n_tokens):
    x = 3 * random(n_tokens, 700)
    out = run(backend, lambda g, x: getattr(g, name)(x), {"x": x}, {})
    assert_close(out, function(x.astype(np.float64)))


def test_multiply_is_elementwise(backend):
    a, b = random(3, 1100), random(3, 1100, seed=1)
    out = run(backend, lambda g, a, b: g.multiply(a, b), {"a": a, "b": b}, {})
    np.testing.assert_array_equal(out, a * b)


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e3])
def test_round_q8_is_what_blocks_hold(backend, scale):
    x = random(3, 1088) * np.float32(scale)
    x[1, 32:64] = 0
    out = run(backend, lambda g, x: g.round_q8(x), {"x": x}, {})
    np.testing.assert_array_equal(out, from_q8_0(q8_0(x)).astype(np.float32))


@pytest.mark.parametrize("n_tokens", [1, 5])
@pytest.mark.parametrize("n_parts", [1, 2, 3])
@pytest.mark.parametrize("quantized", [False, True])
def test_merge_add_adds_the_parts_in_order(backend, n_parts, n_tokens, quantized):
    x, parts = random(n_tokens, 1056), random(n_tokens, 1056 * n_parts, seed=1)
    g = GraphBuilder("merge")
    external = g.external("x", 1056)
    held = g.external("parts", 1056 * n_parts, "q8_0" if quantized else "float32")
    g.merge_add(external, held, out=external)
    values, out = (q8_0(parts), x.copy()) if quantized else (parts, x.copy())
    run_graph(backend, g.build(), {"x": out, "parts": values}, n_tokens)
    expected = x.copy()
    for part in np.split(from_q8_0(values) if quantized else parts, n_parts, axis=1):
        expected += part.astype(np.float32)
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("n_tokens", [1, 5])
@pytest.mark.parametrize("quantized", [False, True])
def test_columns_are_put_and_taken(backend, n_tokens, quantized):
    x = random(n_tokens, 640)
    g = GraphBuilder("columns")
    source, target = g.external("x", 640), g.external("out", 320)
    whole = g.external("whole", 1280, "q8_0" if quantized else "float32")
    g.put_columns(source, 320, out=whole)
    g.take_columns(whole, 640, 320, out=target)
    held = q8_0(np.ones((n_tokens, 1280))) if quantized else np.ones((n_tokens, 1280), np.float32)
    out = np.zeros((n_tokens, 320), np.float32)
    run_graph(backend, g.build(), {"x": x, "out": out, "whole": held}, n_tokens)
    values = from_q8_0(held) if quantized else held
    expected = np.ones((n_tokens, 1280))
    expected[:, 320:960] = from_q8_0(q8_0(x)) if quantized else x
    if quantized:
        expected[:, :320] = expected[:, 960:] = from_q8_0(q8_0(np.ones((1, 32))))[0, 0]
    np.testing.assert_array_equal(values, expected)
    np.testing.assert_array_equal(out, values[:, 640:960].astype(np.float32))


def columns_of_layers(backend, first_layer, n_layers, n_tokens=5):
    """`sum` after n_layers graphs that each add the layer's columns of x, [n_tokens, 4 * 20]."""
    g = GraphBuilder("layer")
    x, total = g.external("x", 80), g.external("sum", 20)
    g.add(total, g.layer_columns(x, 20), out=total)
    executor = backend.executor(g.build(), n_tokens)
    state = backend.sequence_state([], [(None, 0, 0, None)] * 9)
    values, out = random(n_tokens, 80), np.zeros((n_tokens, 20), np.float32)
    bound = [executor.bind({})] * n_layers
    executor.run_layers(bound, {"x": values, "sum": out}, [(n_tokens, 0, state)], first_layer)
    return values, out


def test_each_layer_takes_its_own_columns(backend):
    values, out = columns_of_layers(backend, 1, 2)
    np.testing.assert_array_equal(out, values[:, 20:40] + values[:, 40:60])


def test_a_layer_without_columns_is_refused(backend):
    with pytest.raises(ValueError, match="'x' has the columns of 4 layers, and none of layer 4"):
        columns_of_layers(backend, 3, 2)


def test_nan_and_infinity_do_not_pass_as_numbers(backend):
    x = random(1, 96)
    x[0, 3], x[0, 40] = np.nan, np.inf
    out = run(backend, lambda g, x: g.round_q8(x), {"x": x}, {})
    assert not np.isfinite(out[0, 3])
    assert not np.isfinite(out[0, 40])
    assert np.isfinite(out[0, 64:]).all()


BROKEN = {
    "columns 64 to 128": lambda g, x, q, y: g.take_columns(x, 64, 64),
    "offset is 16, expected a multiple of 32": lambda g, x, q, y: g.take_columns(q, 16, 32),
    "columns 32 to 128": lambda g, x, q, y: g.put_columns(x, 32, out=y),
    "input 'q' is not float32": lambda g, x, q, y: g.silu(q),
    "expected a multiple of 64": lambda g, x, q, y: g.merge_add(y, x),
    "multiple of 36": lambda g, x, q, y: g.layer_columns(x, 36),
    "width is 0, expected 1 or more": lambda g, x, q, y: g.layer_columns(x, 0),
    "writes a part of": lambda g, x, q, y: g.put_columns(x, 0, out=g.silu(x)),
}


@pytest.mark.parametrize("says", BROKEN)
def test_columns_that_do_not_fit_are_refused(says):
    g = GraphBuilder("broken")
    buffers = g.external("x", 96), g.external("q", 96, "q8_0"), g.external("y", 64)
    with pytest.raises(GraphError, match=says):
        BROKEN[says](g, *buffers)
