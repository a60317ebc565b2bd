"""Graphs: what the builder writes down, and that a graph which does not fit together is refused."""

from dataclasses import replace

import numpy as np
import pytest
from sequence_states import one_page_state

from airllm.backends.numpy_backend import NumpyBackend
from airllm.graph.builder import GraphBuilder
from airllm.graph.graph import Buffer, Graph, GraphError, Op, Weight


def builder_with_x(width: int = 64) -> tuple[GraphBuilder, Buffer]:
    g = GraphBuilder("test")
    return g, g.external("x", width)


def small_graph() -> Graph:
    """x += linear(rms_norm(x))"""
    g, x = builder_with_x()
    h = g.rms_norm(x, g.weight("norm", 64), 1e-5)
    g.add(x, g.linear(h, g.weight("w", 64, 64)), out=x)
    return g.build()


# ---- what a graph is -----------------------------------------------------------------------------


def test_a_graph_lists_its_ops_in_order_with_named_buffers_and_weights():
    graph = small_graph()
    assert [(op.kind, op.inputs, op.output, op.weights) for op in graph.ops] == [
        ("rms_norm", ("x",), "norm", ("norm",)),
        ("linear", ("norm",), "w", ("w",)),
        ("add", ("x", "w"), "x", ()),
    ]
    assert graph.buffers == (Buffer("x", 64, external=True), Buffer("norm", 64), Buffer("w", 64))
    assert graph.weights == (Weight("norm", (64,)), Weight("w", (64, 64)))


def test_weights_have_the_role_of_the_ops_that_use_them():
    g = GraphBuilder("test")
    tokens = g.external("tokens", 1, "int32")
    x = g.embed(tokens, g.weight("table", 100, 64))
    g.linear(g.rms_norm(x, g.weight("norm", 64), 1e-5), g.weight("w", 32, 64))
    assert g.build().roles == {"table": "rows", "norm": "vector", "w": "matrix"}


def test_an_op_takes_the_width_of_its_output_from_its_weight():
    g, x = builder_with_x(64)
    assert g.linear(x, g.weight("w", 96, 64)).width == 96


def test_buffers_of_the_same_op_get_different_names():
    g, x = builder_with_x()
    assert [g.add(x, x).name for _ in range(3)] == ["add", "add.2", "add.3"]


def test_every_linear_has_the_activations_of_its_graph():
    g = GraphBuilder("test", activations="f32")
    g.linear(g.external("x", 64), g.weight("w", 64, 64))
    assert g.build().ops[0].attrs == {"activations": "f32"}


def test_row_bytes_counts_internal_buffers_only():
    assert small_graph().row_bytes == 4 * (64 + 64)


# ---- what the builder refuses, at the line that is wrong -----------------------------------------


def test_linear_refuses_an_input_of_another_width_and_names_both():
    g, x = builder_with_x(64)
    with pytest.raises(
        GraphError, match=r"linear -> 'w': input 'x' has width 64, expected 65.*'w'"
    ):
        g.linear(x, g.weight("w", 32, 65))


def test_rms_norm_refuses_a_weight_of_another_length():
    g, x = builder_with_x(64)
    with pytest.raises(GraphError, match=r"rms_norm.*'x' has width 64, expected 63.*'norm'"):
        g.rms_norm(x, g.weight("norm", 63), 1e-5)


def test_rms_norm_refuses_a_matrix():
    g, x = builder_with_x(64)
    with pytest.raises(GraphError, match=r"weight 'w' is \[64, 64\], expected 1 axes \(vector\)"):
        g.rms_norm(x, g.weight("w", 64, 64), 1e-5)


def test_add_and_swiglu_refuse_inputs_of_different_widths():
    g, x = builder_with_x(64)
    y = g.external("y", 32)
    with pytest.raises(GraphError, match=r"add.*'y' has width 32, expected 64"):
        g.add(x, y)
    with pytest.raises(GraphError, match=r"swiglu.*'y' has width 32, expected 64"):
        g.swiglu(x, y)


def test_embed_refuses_tokens_that_are_not_int32():
    g, x = builder_with_x(1)
    with pytest.raises(GraphError, match=r"embed.*'x' is float32, not int32"):
        g.embed(x, g.weight("table", 100, 64))


def test_token_ids_are_refused_where_numbers_are_expected():
    g = GraphBuilder("test")
    tokens = g.external("tokens", 1, "int32")
    with pytest.raises(GraphError, match="input 'tokens' is not float32"):
        g.add(tokens, tokens)


def test_rope_refuses_a_table_wider_than_a_head_or_odd():
    for width in (18, 15):
        g, x = builder_with_x(64)
        with pytest.raises(GraphError, match=f"table 'rope' has width {width}, expected an even"):
            g.rope(x, g.external("rope", width), 4, 16, interleaved=True)


def test_rope_refuses_heads_that_do_not_make_up_the_width():
    g, x = builder_with_x(64)
    with pytest.raises(GraphError, match=r"'x' has width 64, expected 48 \(3 heads of 16\)"):
        g.rope(x, g.external("rope", 16), 3, 16, interleaved=True)


def test_attention_refuses_query_heads_that_cannot_share_the_kv_heads():
    g, q = builder_with_x(48)
    k = g.external("k", 32)
    g.kv_append(k, k, 2, 16)
    with pytest.raises(GraphError, match="3 heads cannot share 2 KV heads evenly"):
        g.attention(q, 3, 2, 16, scale=0.25)


def test_kv_append_refuses_keys_of_another_width():
    g, x = builder_with_x(64)
    with pytest.raises(GraphError, match=r"kv_append: input 'x' has width 64, expected 32"):
        g.kv_append(x, x, 2, 16)


def test_head_norm_refuses_heads_that_do_not_make_up_the_width():
    g, x = builder_with_x(64)
    with pytest.raises(GraphError, match=r"head_norm.*'x' has width 64, expected 48 \(3 heads of"):
        g.head_norm(x, g.weight("norm", 16), 3, 1e-5)


def test_a_cap_or_a_window_that_makes_no_sense_is_refused():
    g, q = builder_with_x(64)
    g.kv_append(q, q, 4, 16)
    with pytest.raises(GraphError, match=r"cap is 0.0, expected a float of at least"):
        g.softcap(q, 0.0)
    with pytest.raises(GraphError, match=r"attention.*softcap is -1.0, expected a float"):
        g.attention(q, 4, 4, 16, scale=0.25, softcap=-1.0)
    with pytest.raises(GraphError, match=r"attention.*window is -1, expected 0 or more"):
        g.attention(q, 4, 4, 16, scale=0.25, window=-1)
    with pytest.raises(GraphError, match=r"attention.*chunked without a window"):
        g.attention(q, 4, 4, 16, scale=0.25, chunked=True)


def test_a_route_to_more_experts_than_there_are_is_refused():
    g, logits = builder_with_x(8)
    with pytest.raises(GraphError, match="n_used is 9, expected at most the 8 experts"):
        g.route(logits, 9, normalized=True)


def test_experts_refuse_an_input_that_is_neither_all_of_theirs_nor_one_for_each():
    g, x = builder_with_x(96)
    route = g.external("route", 4)  # two experts
    with pytest.raises(GraphError, match=r"'x' has width 96, expected 128 \(2 for weight 'w'"):
        g.expert_linear(x, route, g.weight("w", 5, 32, 64))
    with pytest.raises(GraphError, match=r"weight 'm' is \[64, 96\], expected 3 axes"):
        g.expert_linear(x, route, g.weight("m", 64, 96))


def test_heads_refuse_an_input_that_does_not_divide_into_them():
    g, x = builder_with_x(96)
    with pytest.raises(GraphError, match=r"'x' has width 96, expected 128 \(a row of 32 for each"):
        g.head_linear(x, g.weight("w", 4, 16, 32))
    with pytest.raises(GraphError, match="'x' has width 96, expected a multiple of 5, the heads"):
        g.take_head_columns(x, 5, 0, 4)
    with pytest.raises(GraphError, match="columns 20 to 30 of each head of 'x', which has 24"):
        g.take_head_columns(x, 4, 20, 10)
    with pytest.raises(GraphError, match="'x' has width 96, expected a multiple of 5, the heads"):
        g.join_heads(x, x, 5)


def test_an_output_buffer_of_another_width_is_refused():
    g, x = builder_with_x(64)
    with pytest.raises(GraphError, match=r"output 'y' is float32 of width 32, expected .* 64"):
        g.add(x, x, out=g.external("y", 32))


def test_linear_and_attention_cannot_write_over_their_input():
    g, x = builder_with_x(64)
    with pytest.raises(GraphError, match="linear -> 'x': cannot overwrite its input x"):
        g.linear(x, g.weight("w", 64, 64), out=x)


def test_rope_can_overwrite_its_input_but_not_its_table():
    g, x = builder_with_x(16)
    table = g.external("rope", 16)
    assert g.rope(x, table, 1, 16, interleaved=True, out=x) == x
    with pytest.raises(GraphError, match="rope -> 'rope': cannot overwrite its input table"):
        g.rope(x, table, 1, 16, interleaved=True, out=table)


def test_one_name_cannot_be_two_weights_or_two_external_buffers():
    g, _ = builder_with_x(64)
    g.weight("w", 64, 64)
    with pytest.raises(GraphError, match="weight 'w' has two shapes"):
        g.weight("w", 64, 32)
    with pytest.raises(GraphError, match="already a buffer 'x'"):
        g.external("x", 32)


def test_buffers_of_another_graph_are_refused():
    g, _ = builder_with_x(64)
    _, foreign = GraphBuilder("other"), Buffer("foreign", 64)
    with pytest.raises(GraphError, match="rms_norm: no buffer is named 'foreign'"):
        g.rms_norm(foreign, g.weight("norm", 64), 1e-5)


# ---- what a graph refuses, however it was made ---------------------------------------------------


def test_a_graph_refuses_to_read_what_nothing_wrote():
    graph = small_graph()
    with pytest.raises(GraphError, match="input 'norm' is read before it is written"):
        replace(graph, ops=graph.ops[1:])


def test_a_graph_refuses_buffers_and_weights_that_nothing_uses():
    graph = small_graph()
    with pytest.raises(GraphError, match="buffer 'idle' is never written"):
        replace(graph, buffers=(*graph.buffers, Buffer("idle", 4)))
    with pytest.raises(GraphError, match="weight 'idle' is never used"):
        replace(graph, weights=(*graph.weights, Weight("idle", (4,))))


def test_a_graph_refuses_two_buffers_of_one_name():
    graph = small_graph()
    with pytest.raises(GraphError, match="two buffers are named 'x'"):
        replace(graph, buffers=(*graph.buffers, Buffer("x", 64)))


def test_a_graph_refuses_an_op_that_it_does_not_know():
    graph = small_graph()
    with pytest.raises(GraphError, match="no op is named 'pool'; there are embed, rms_norm"):
        replace(graph, ops=(*graph.ops, Op("pool", ("x",), "x")))


def test_a_graph_refuses_an_op_with_missing_attributes():
    graph = small_graph()
    norm = replace(graph.ops[0], attrs={})
    with pytest.raises(GraphError, match=r"has attributes \[\], expected \['eps'\]"):
        replace(graph, ops=(norm, *graph.ops[1:]))


def test_attention_has_the_heads_of_the_keys_that_its_graph_appends():
    def attend(append_heads: int | None) -> Graph:
        g, q = builder_with_x(64)
        k = g.external("k", 32)
        if append_heads is not None:
            g.kv_append(k, k, append_heads, 32 // append_heads)
        g.attention(q, 4, 2, 16, scale=0.25)
        return g.build()

    assert attend(2).ops[1].kind == "attention"
    assert attend(None).ops[0].kind == "attention"  # which reads another layer's keys
    with pytest.raises(GraphError, match=r"reads KV heads \(2, 16\), the cache has \(1, 32\)"):
        attend(1)


def test_one_weight_cannot_be_a_lookup_table_and_a_matrix_in_one_graph():
    g = GraphBuilder("test")
    table = g.weight("table", 100, 64)
    x = g.embed(g.external("tokens", 1, "int32"), table)
    g.linear(x, table)
    with pytest.raises(GraphError, match="weight 'table' is used as rows and as matrix"):
        g.build()


# ---- binding weights -----------------------------------------------------------------------------


def test_binding_refuses_a_missing_a_misshapen_and_an_unknown_weight():
    executor = NumpyBackend().executor(small_graph(), 4)
    norm, w = np.ones(64, np.float32), np.ones((64, 64), np.float32)
    with pytest.raises(GraphError, match="graph 'test': weight 'w' is not bound"):
        executor.bind({"norm": norm})
    with pytest.raises(GraphError, match=r"weight 'w' has shape \[64, 32\], expected \[64, 64\]"):
        executor.bind({"norm": norm, "w": w[:, :32]})
    with pytest.raises(GraphError, match="no weight is named bias"):
        executor.bind({"norm": norm, "w": w, "bias": norm})


def test_a_graph_runs_with_one_layers_weights_and_then_anothers():
    g, x = builder_with_x(2)
    g.linear(x, g.weight("w", 2, 2), out=g.external("y", 2))
    executor = NumpyBackend().executor(g.build(), 4)
    rows = np.array([[1.0, 2.0]], np.float32)
    y = np.empty((1, 2), np.float32)
    for factor in (1.0, 3.0):
        executor.run(
            executor.bind({"w": factor * np.eye(2, dtype=np.float32)}), {"x": rows, "y": y}, 1
        )
        np.testing.assert_array_equal(y, factor * rows)


def test_running_refuses_external_buffers_of_another_shape_or_dtype():
    executor = NumpyBackend().executor(small_graph(), 4)
    bound = executor.bind({"norm": np.ones(64, np.float32), "w": np.ones((64, 64), np.float32)})
    with pytest.raises(ValueError, match=r"buffer 'x' is float32 \[2, 32\]; expected .* \[2, 64\]"):
        executor.run(bound, {"x": np.zeros((2, 32), np.float32)}, 2)
    with pytest.raises(ValueError, match="buffer 'x' is float64"):
        executor.run(bound, {"x": np.zeros((2, 64))}, 2)
    with pytest.raises(ValueError, match="n_tokens is 5; expected 0 to 4"):
        executor.run(bound, {"x": np.zeros((5, 64), np.float32)}, 5)
    with pytest.raises(ValueError, match="buffers are y; expected x"):
        executor.run(bound, {"y": np.zeros((2, 64), np.float32)}, 2)


def test_appending_beyond_the_pages_is_refused():
    g = GraphBuilder("test")
    k = g.external("k", 32)
    g.kv_append(k, k, 2, 16)
    backend = NumpyBackend()
    executor = backend.executor(g.build(), 4)
    cache = np.zeros((1, 2, 2, 16, 16), np.float16)
    state = one_page_state(backend, cache)
    rows = {"k": np.ones((2, 32), np.float32)}
    executor.run_layers([executor.bind({})], rows, [(2, 14, state)])
    assert (cache[..., :14, :] == 0).all()
    assert (cache[..., 14:, :] == 1).all()
    with pytest.raises(ValueError, match="the KV cache has no room for positions from 16 on"):
        executor.run_layers([executor.bind({})], rows, [(2, 15, state)])
