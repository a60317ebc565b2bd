"""linear against float64, for plain, half and packed weights, within the bounds of kernels.h."""

import numpy as np
import pytest
import reference
import reference_blocks
from arrays import normal, placed, watched
from bounds import SMALLEST_NORMAL, TINY, U, check
from file_rows import (
    LARGE_BLOCKS,
    QUANTIZED,
    TYPES,
    columns,
    decoded,
    drawn_rows,
    file_rows,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_blocks import set_scales

from airllm import numpy_ops


def check_exact(actual, x, values, magnitudes=None):
    """|error| <= (k + 8) u sum |x w|: the products of float32 x with exact weights."""
    k = x.shape[-1]
    with np.errstate(invalid="ignore"):
        total = reference.linear(np.abs(x), np.abs(values) if magnitudes is None else magnitudes)
        total = np.nan_to_num(total, nan=0.0, posinf=0.0)
    check(actual, reference.linear(x, values), (k + 8) * (U * total + TINY), "linear")


# Activations are rounded to whole multiples of d = max|x| / LEVELS in each block of 32.
LEVELS = {"q8": 127, "q16": 32512}


def check_rounded(actual, x, rows, activations):
    """x may be off by half of d, besides what check_exact allows."""
    k = x.shape[-1]
    blocks = np.abs(x.astype(np.float64)).reshape(*x.shape[:-1], k // 32, 32)
    d = blocks.max(axis=-1, keepdims=True, initial=0.0) / LEVELS[activations]
    rounding = np.broadcast_to(0.501 * d, blocks.shape).reshape(x.shape)
    bound = reference.linear(rounding, np.abs(rows.values))
    bound += (k + 8) * (U * reference.linear(np.abs(x) + rounding, rows.magnitudes) + TINY)
    check(actual, reference.linear(x, rows.values), bound, f"linear {activations}")


# ---- float32 and float16 weights -----------------------------------------------------------------


@pytest.fixture(scope="module", params=[np.float32, np.float16], ids=["float32", "float16"])
def plain(request):
    """Weights as an array: shape, seed -> [n, k] of the dtype."""
    return lambda shape, seed=0: normal(shape, seed).astype(request.param)


def test_plain_weights_of_every_number_of_rows(ops, plain):
    for n in [*range(1, 71), 127]:
        x, w = normal((3, 33), seed=n), plain((n, 33), seed=n + 1)
        check_exact(ops.linear(placed(x), placed(w, offset=5)), x, w)


def test_plain_weights_of_every_depth(ops, plain):
    for k in [*range(1, 71), 127, 4097]:
        x, w = normal((2, k), seed=k), plain((19, k), seed=k + 1)
        check_exact(ops.linear(placed(x), placed(w)), x, w)


def test_plain_weights_for_every_number_of_tokens(ops, plain):
    for m in [*range(1, 40), 127]:
        x, w = normal((m, 20), seed=m), plain((35, 20), seed=m + 1)
        check_exact(ops.linear(placed(x), placed(w)), x, w)


def test_plain_weights_of_sizes_beyond_one_block_of_any_kernel(ops, plain):
    x, w = normal((70, 515)), plain((270, 515), seed=1)
    check_exact(ops.linear(x, w), x, w)


@settings(max_examples=40)
@given(
    leading=st.lists(st.integers(0, 4), max_size=3),
    k=st.integers(0, 80),
    n=st.integers(0, 80),
    offset=st.integers(0, 15),
)
def test_plain_weights_of_any_shape_at_any_start(ops, plain, leading, k, n, offset):
    x, w = normal((*leading, k), seed=k), plain((n, k), seed=n)
    check_exact(ops.linear(placed(x, offset), placed(w, 15 - offset)), x, w)


def test_plain_weights_write_nothing_around_out(ops, plain):
    for n in range(1, 71):
        x, w = normal((3, 9), seed=n), plain((n, 9), seed=n)
        with watched((3, n), offset=n % 16) as out:
            assert ops.linear(x, w, out=out) is out
        check_exact(out, x, w)


def test_whole_numbers_come_out_exactly(ops, plain):
    random = np.random.default_rng(0)
    x = random.integers(-50, 50, (5, 130)).astype(np.float32)
    w = random.integers(-50, 50, (45, 130)).astype(plain((1, 1)).dtype)
    np.testing.assert_array_equal(ops.linear(x, w), reference.linear(x, w))


def test_nan_and_infinity_reach_their_outputs_alone(ops, plain):
    x, w = normal((4, 30)), np.abs(plain((20, 30), seed=1))
    x[1, 29] = np.nan
    x[2, 3] = np.inf
    w[19, 4] = np.nan
    check_exact(ops.linear(x, w), x, w)


def test_denormal_and_largest_halves_are_read_exactly(ops):
    w = np.array([[6e-8, -6e-8, 6.1e-5, -6.1e-5, 65504.0, -65504.0]], np.float16)
    np.testing.assert_array_equal(
        ops.linear(np.eye(6, dtype=np.float32), w)[:, 0], w[0].astype(np.float32)
    )


def test_activations_do_not_matter_to_plain_weights(ops, plain):
    x, w = normal((2, 64)), plain((10, 64), seed=1)
    exact = ops.linear(x, w, activations="f32")
    for activations in ("auto", "q8", "q16"):
        np.testing.assert_array_equal(ops.linear(x, w, activations=activations), exact)


# ---- packed weights ------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=TYPES)
def type(request):
    return request.param


def packed(ops, rows, type):
    return ops.PackedMatrix(rows.data, type, rows.values.shape)


def check_packed(ops, x, rows, type):
    result = ops.linear(x, packed(ops, rows, type), activations="f32")
    check_exact(result, x, rows.values, rows.magnitudes)


def test_a_packed_matrix_knows_its_type_shape_and_bytes(backend, type):
    k = columns(type, 2)
    rows = file_rows(5, k, type)
    w = packed(backend, rows, type)
    assert (w.type, w.shape) == (type, (5, k))
    assert w.nbytes >= rows.data.size  # padding is allowed


def test_dequantize_gives_back_the_exact_weights(ops, type):
    for n in [1, 2, 7, 15, 16, 17, 33, 64, 65]:
        rows = file_rows(n, columns(type, 3), type, seed=n)
        result = packed(ops, rows, type).dequantize()
        assert result.dtype == np.float32
        np.testing.assert_array_equal(result, rows.values)


def test_packed_weights_with_f32_activations_are_exact(ops, type):
    k = columns(type, 3)
    for n in [1, 2, 8, 15, 16, 17, 31, 33, 64, 65, 100]:
        check_packed(ops, placed(normal((3, k), seed=n)), file_rows(n, k, type, seed=n), type)


def test_packed_weights_of_every_number_of_blocks(ops, type):
    for n_blocks in [1, 2, 3, 5, 9, 16, 33]:
        k = columns(type, n_blocks)
        check_packed(ops, normal((2, k), seed=k), file_rows(20, k, type, seed=k), type)


def test_packed_weights_for_every_number_of_tokens(ops, type):
    k = columns(type, 2)
    rows = file_rows(35, k, type)
    for m in [*range(1, 36), 70]:
        check_packed(ops, normal((m, k), seed=m), rows, type)


def test_a_row_of_packed_weights_is_the_same_among_any_number_of_rows(ops, type):
    if ops is numpy_ops:
        pytest.skip("BLAS takes the sums of several rows in another order")
    k = columns(type, 19)
    w = packed(ops, file_rows(75, k, type), type)
    x = normal((65, k), seed=3)
    for activations in ("f32", "q16", "q8"):
        alone = [ops.linear(row, w, activations=activations) for row in x]
        for n in (2, 3, 4, 5, 8, 12, 13, 31, 65):
            together = ops.linear(x[:n], w, activations=activations)
            np.testing.assert_array_equal(together, alone[:n])


@pytest.mark.parametrize("type", ["f32", "f16", "bf16"])
def test_packed_floats_need_no_multiple_of_32(ops, type):
    for k in [1, 7, 33, 45]:
        check_packed(ops, normal((2, k), seed=k), file_rows(11, k, type, seed=k), type)


@pytest.mark.parametrize("type", LARGE_BLOCKS)
def test_large_blocks_need_a_multiple_of_their_size(backend, type):
    size = reference_blocks.block_size(type)
    for kind in ("PackedMatrix", "RawRows"):
        message = rf"{kind}: shape is \(1, 288\); .* a multiple of {size}, the block of {type}"
        with pytest.raises(ValueError, match=message):
            getattr(backend, kind)(b"", type, (1, 288))


def test_packed_weights_take_any_leading_shape(ops, type):
    k = columns(type, 1)
    rows = file_rows(6, k, type)
    for leading in [(), (0,), (2, 3), (1, 1, 4), (2, 0)]:
        check_packed(ops, normal((*leading, k)), rows, type)


def test_packed_weights_write_nothing_around_out(ops, type):
    k = columns(type, 2)
    for n in [1, 3, 16, 17, 33]:
        w = packed(ops, file_rows(n, k, type), type)
        for activations in ("q8", "q16", "f32"):
            x = normal((5, k), seed=n)
            with watched((5, n), offset=n % 16) as out:
                assert ops.linear(x, w, activations=activations, out=out) is out
            np.testing.assert_array_equal(out, ops.linear(x, w, activations=activations))


def test_bytes_at_an_odd_address_are_read_as_well(ops, type):
    rows = file_rows(9, columns(type, 1), type)
    for offset in range(1, 16):
        w = ops.PackedMatrix(placed(rows.data, offset), type, rows.values.shape)
        np.testing.assert_array_equal(w.dequantize(), rows.values)


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview], ids=lambda wrap: wrap.__name__)
def test_data_may_be_anything_bytes_like(backend, wrap):
    rows = file_rows(3, 32, "q8_0")
    w = backend.PackedMatrix(wrap(rows.data.tobytes()), "q8_0", (3, 32))
    np.testing.assert_array_equal(w.dequantize(), rows.values)


def test_data_may_be_a_read_only_array_of_another_dtype(backend):
    w = normal((4, 10)).astype(np.float16)
    w.flags.writeable = False
    packed = backend.PackedMatrix(w, "f16", (4, 10))
    np.testing.assert_array_equal(packed.dequantize(), w.astype(np.float32))


def test_a_matrix_outlives_the_array_it_was_made_from(backend, type):
    rows = file_rows(40, columns(type, 2), type)
    w = backend.PackedMatrix(rows.data.copy(), type, rows.values.shape)
    np.full(rows.data.shape, 255, np.uint8)  # takes the memory if it was given back
    np.testing.assert_array_equal(w.dequantize(), rows.values)


def test_an_empty_matrix(ops, type):
    k = columns(type, 2)
    for shape in [(0, k), (3, 0), (0, 0)]:
        w = ops.PackedMatrix(b"", type, shape)
        assert w.dequantize().shape == shape
        for activations in ("q8", "q16", "f32"):
            result = ops.linear(normal((2, shape[1])), w, activations=activations)
            np.testing.assert_array_equal(result, np.zeros((2, shape[0]), np.float32))


def test_raw_rows_take_the_same_arguments(backend, type):
    rows = file_rows(5, columns(type, 2), type)
    raw = backend.RawRows(rows.data, type, rows.values.shape)
    assert (raw.type, raw.shape) == (type, rows.values.shape)


# ---- quantised weights meet rounded activations --------------------------------------------------


@pytest.fixture(scope="module", params=QUANTIZED)
def quantized(request):
    return request.param


@pytest.fixture(scope="module", params=LEVELS)
def activations(request):
    return request.param


@pytest.mark.parametrize(("activations", "percent"), [("q8", 1.0), ("q16", 0.01)])
def test_rounding_keeps_the_result_within_a_share_of_its_norm(ops, quantized, activations, percent):
    for n, n_blocks in [(64, 1), (100, 3), (48, 18), (32, 48)]:
        k = columns(quantized, n_blocks)
        x, rows = normal((4, k), seed=n), file_rows(n, k, quantized, seed=n)
        exact = reference.linear(x, rows.values)
        result = ops.linear(x, packed(ops, rows, quantized), activations=activations)
        assert np.linalg.norm(result - exact) < percent / 100 * np.linalg.norm(exact)


def test_the_result_is_off_by_the_rounding_of_the_activations_alone(ops, quantized, activations):
    for n, n_blocks, m in [(1, 1, 1), (16, 2, 2), (17, 9, 3), (65, 3, 7), (33, 33, 5)]:
        k = columns(quantized, n_blocks)
        x, rows = normal((m, k), seed=n), file_rows(n, k, quantized, seed=n)
        result = ops.linear(x, packed(ops, rows, quantized), activations=activations)
        check_rounded(result, x, rows, activations)


def test_rounded_activations_for_every_number_of_tokens(ops, quantized, activations):
    k = columns(quantized, 2)
    rows = file_rows(35, k, quantized)
    w = packed(ops, rows, quantized)
    for m in [*range(1, 36), 70]:
        x = normal((m, k), seed=m)
        check_rounded(ops.linear(placed(x), w, activations=activations), x, rows, activations)


def test_the_largest_codes_do_not_overflow(ops, quantized, activations):
    # The largest codes of both factors in every place, and of either sign.
    for byte in (0x80, 0x7F, 0xFF, 0x00):
        blocks = np.full((16, reference_blocks.block_bytes(quantized)), byte, np.uint8)
        set_scales(blocks, quantized, normal((16, 2), scale=0.1))
        rows = drawn_rows(16, 512, quantized, decoded(blocks, quantized))
        w = packed(ops, rows, quantized)
        for x in (np.ones((3, 512), np.float32), -np.ones((3, 512), np.float32)):
            check_rounded(ops.linear(x, w, activations=activations), x, rows, activations)


def test_blocks_of_very_different_size_are_rounded_apart(ops, quantized, activations):
    # Blocks of activations: they are of 32 whatever the weights' are.
    k = columns(quantized, 4)
    scales = np.resize([1e-6, 1e6, 1.0, 0.0], k // 32)
    x = normal((2, k)) * np.repeat(scales, 32).astype(np.float32)
    rows = file_rows(20, k, quantized)
    result = ops.linear(x, packed(ops, rows, quantized), activations=activations)
    check_rounded(result, x, rows, activations)


def test_activations_of_zero_give_zeros(ops, quantized, activations):
    k = columns(quantized, 2)
    w = packed(ops, file_rows(20, k, quantized), quantized)
    zeros = np.zeros((2, k), np.float32)
    np.testing.assert_array_equal(ops.linear(zeros, w, activations=activations), 0.0)


@pytest.mark.parametrize("scale", [1e-44, 1e-38, 1e-30, 1e30])
def test_tiny_and_huge_activations_give_finite_results(ops, quantized, activations, scale):
    k = columns(quantized, 2)
    x, rows = normal((2, k), scale=scale), file_rows(20, k, quantized)
    result = ops.linear(x, packed(ops, rows, quantized), activations=activations)
    assert np.isfinite(result).all()
    exact = reference.linear(x, rows.values)
    # A block whose d is no normal number may count as zeros: |x| < LEVELS * SMALLEST_NORMAL.
    lost = LEVELS[activations] * SMALLEST_NORMAL * np.abs(rows.values).sum(axis=1)
    assert (np.abs(result - exact) <= 0.01 * np.linalg.norm(exact) + lost).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("activations", ["q8", "q16", "f32"])
def test_bad_activations_spoil_their_own_row_alone(ops, quantized, activations, bad):
    k = columns(quantized, 2)
    w = packed(ops, file_rows(20, k, quantized), quantized)
    for m in (1, 5, 9):
        for at in (0, 31, k - 1):
            x = normal((m, k))
            good = ops.linear(x, w, activations=activations)
            x[m // 2, at] = bad
            result = ops.linear(x, w, activations=activations)
            assert not np.isfinite(result[m // 2]).any()
            others = np.arange(m) != m // 2
            np.testing.assert_array_equal(result[others], good[others])


def test_auto_is_the_default_and_takes_16_bits_for_up_to_64_rows(ops, quantized):
    k = columns(quantized, 2)
    w = packed(ops, file_rows(20, k, quantized), quantized)
    for m, activations in [(1, "q16"), (64, "q16"), (65, "q8")]:
        x = normal((m, k))
        result = ops.linear(x, w)
        np.testing.assert_array_equal(result, ops.linear(x, w, activations="auto"))
        np.testing.assert_array_equal(result, ops.linear(x, w, activations=activations))
