"""linear against float64, for plain, half and packed weights, within the bounds of kernels.h."""

import numpy as np
import pytest
import reference
from arrays import normal, placed, watched
from bounds import SMALLEST_NORMAL, TINY, U, check
from hypothesis import given, settings
from hypothesis import strategies as st

QUANTIZED = ["q8_0", "q4_0", "q4_1"]
PACKED = ["f32", "f16", "bf16", *QUANTIZED]


def file_rows(n, k, type, seed=0):
    """A random weight matrix: its bytes as a file has them, and its exact values [n, k]."""
    w = normal((n, k), seed=seed)
    if type == "f32":
        return w.view(np.uint8).reshape(n, 4 * k), w.astype(np.float64)
    if type in ("f16", "bf16"):
        encode, decode = {
            "f16": (reference.encode_float16, reference.decode_float16),
            "bf16": (reference.encode_bfloat16, reference.decode_bfloat16),
        }[type]
        bits = np.array([encode(float(v)) for v in w.reshape(-1)], np.uint16)
        values = np.array([decode(int(b)) for b in bits], np.float64)
        return bits.view(np.uint8).reshape(n, 2 * k), values.reshape(n, k)
    # Random codes and scales rather than quantised numbers: every code occurs, cheaply.
    random = np.random.default_rng(seed)
    size = reference.BLOCK_BYTES[type]
    blocks = random.integers(0, 256, (n * k // 32, size), dtype=np.uint8)
    n_halves = 2 if type == "q4_1" else 1
    halves = random.normal(0.0, 0.1, (len(blocks), n_halves)).astype(np.float16)
    blocks[:, : 2 * n_halves] = halves.view(np.uint8)
    rows = blocks.reshape(n, k // 32 * size)
    return rows, reference.dequantize(rows, type)


def offset_part(rows, values, type):
    """q4_1 sums d * q and m apart: |d q| + |m| is what its error is measured by."""
    if type != "q4_1":
        return np.abs(values)
    m = rows.reshape(-1, 20)[:, 2:4].copy().view(np.float16).astype(np.float64)
    m = np.abs(np.repeat(m, 32, axis=1)).reshape(values.shape)
    return np.abs(values) + 2 * m  # |d q| <= |d q + m| + |m|


def check_exact(actual, x, values, size=None):
    """|error| <= (k + 8) u sum |x w|: the products of float32 x with exact weights."""
    k = x.shape[-1]
    with np.errstate(invalid="ignore"):
        total = reference.linear(np.abs(x), np.abs(values) if size is None else size)
        total = np.nan_to_num(total, nan=0.0, posinf=0.0)
    check(actual, reference.linear(x, values), (k + 8) * (U * total + TINY), "linear")


# Activations are rounded to whole multiples of d = max|x| / LEVELS in each block of 32.
LEVELS = {"q8": 127, "q16": 32512}


def check_rounded(actual, x, values, size, activations):
    """x may be off by half of d, besides what check_exact allows."""
    k = x.shape[-1]
    blocks = np.abs(x.astype(np.float64)).reshape(*x.shape[:-1], k // 32, 32)
    d = blocks.max(axis=-1, keepdims=True, initial=0.0) / LEVELS[activations]
    rounding = np.broadcast_to(0.501 * d, blocks.shape).reshape(x.shape)
    bound = reference.linear(rounding, np.abs(values))
    bound += (k + 8) * (U * reference.linear(np.abs(x) + rounding, size) + TINY)
    check(actual, reference.linear(x, values), bound, f"linear {activations}")


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


@pytest.fixture(scope="module", params=PACKED)
def type(request):
    return request.param


def test_a_packed_matrix_knows_its_type_shape_and_bytes(backend, type):
    rows, _ = file_rows(5, 64, type)
    w = backend.PackedMatrix(rows, type, (5, 64))
    assert (w.type, w.shape) == (type, (5, 64))
    assert w.nbytes >= rows.size  # padding is allowed


def test_dequantize_gives_back_the_exact_weights(ops, type):
    for n in [1, 2, 7, 15, 16, 17, 33, 64, 65]:
        rows, values = file_rows(n, 96, type, seed=n)
        result = ops.PackedMatrix(rows, type, (n, 96)).dequantize()
        assert result.dtype == np.float32
        np.testing.assert_array_equal(result, values)


def test_packed_weights_with_f32_activations_are_exact(ops, type):
    for n in [1, 2, 8, 15, 16, 17, 31, 33, 64, 65, 100]:
        x = normal((3, 96), seed=n)
        rows, values = file_rows(n, 96, type, seed=n)
        w = ops.PackedMatrix(rows, type, (n, 96))
        result = ops.linear(placed(x), w, activations="f32")
        check_exact(result, x, values, offset_part(rows, values, type))


def test_packed_weights_of_every_number_of_blocks(ops, type):
    for k in [32, 64, 96, 160, 288, 512, 1056]:
        x = normal((2, k), seed=k)
        rows, values = file_rows(20, k, type, seed=k)
        w = ops.PackedMatrix(rows, type, (20, k))
        result = ops.linear(x, w, activations="f32")
        check_exact(result, x, values, offset_part(rows, values, type))


def test_packed_weights_for_every_number_of_tokens(ops, type):
    rows, values = file_rows(35, 64, type)
    w = ops.PackedMatrix(rows, type, (35, 64))
    for m in [*range(1, 36), 70]:
        x = normal((m, 64), seed=m)
        result = ops.linear(x, w, activations="f32")
        check_exact(result, x, values, offset_part(rows, values, type))


@pytest.mark.parametrize("type", ["f32", "f16", "bf16"])
def test_packed_floats_need_no_multiple_of_32(ops, type):
    for k in [1, 7, 33, 45]:
        x = normal((2, k), seed=k)
        rows, values = file_rows(11, k, type, seed=k)
        check_exact(ops.linear(x, ops.PackedMatrix(rows, type, (11, k))), x, values)


def test_packed_weights_take_any_leading_shape(ops, type):
    rows, values = file_rows(6, 32, type)
    w = ops.PackedMatrix(rows, type, (6, 32))
    for leading in [(), (0,), (2, 3), (1, 1, 4), (2, 0)]:
        x = normal((*leading, 32))
        result = ops.linear(x, w, activations="f32")
        check_exact(result, x, values, offset_part(rows, values, type))


def test_packed_weights_write_nothing_around_out(ops, type):
    for n in [1, 3, 16, 17, 33]:
        rows, _ = file_rows(n, 64, type)
        w = ops.PackedMatrix(rows, type, (n, 64))
        for activations in ("q8", "q16", "f32"):
            x = normal((5, 64), seed=n)
            with watched((5, n), offset=n % 16) as out:
                assert ops.linear(x, w, activations=activations, out=out) is out
            np.testing.assert_array_equal(out, ops.linear(x, w, activations=activations))


def test_bytes_at_an_odd_address_are_read_as_well(ops, type):
    rows, values = file_rows(9, 32, type)
    for offset in range(1, 16):
        w = ops.PackedMatrix(placed(rows, offset), type, (9, 32))
        np.testing.assert_array_equal(w.dequantize(), values)


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview], ids=lambda wrap: wrap.__name__)
def test_data_may_be_anything_bytes_like(backend, wrap):
    rows, values = file_rows(3, 32, "q8_0")
    w = backend.PackedMatrix(wrap(rows.tobytes()), "q8_0", (3, 32))
    np.testing.assert_array_equal(w.dequantize(), values)


def test_data_may_be_a_read_only_array_of_another_dtype(backend):
    w = normal((4, 10)).astype(np.float16)
    w.flags.writeable = False
    packed = backend.PackedMatrix(w, "f16", (4, 10))
    np.testing.assert_array_equal(packed.dequantize(), w.astype(np.float32))


def test_a_matrix_outlives_the_array_it_was_made_from(backend, type):
    rows, values = file_rows(40, 64, type)
    w = backend.PackedMatrix(rows.copy(), type, (40, 64))
    np.full(rows.shape, 255, np.uint8)  # takes the memory if it was given back
    np.testing.assert_array_equal(w.dequantize(), values)


@pytest.mark.parametrize("shape", [(0, 64), (3, 0), (0, 0)])
def test_an_empty_matrix(ops, type, shape):
    w = ops.PackedMatrix(b"", type, shape)
    assert w.dequantize().shape == shape
    for activations in ("q8", "q16", "f32"):
        result = ops.linear(normal((2, shape[1])), w, activations=activations)
        np.testing.assert_array_equal(result, np.zeros((2, shape[0]), np.float32))


def test_raw_rows_take_the_same_arguments(backend, type):
    rows, _ = file_rows(5, 64, type)
    raw = backend.RawRows(rows, type, (5, 64))
    assert (raw.type, raw.shape) == (type, (5, 64))


# ---- quantised weights meet rounded activations --------------------------------------------------


@pytest.fixture(scope="module", params=QUANTIZED)
def quantized(request):
    return request.param


@pytest.fixture(scope="module", params=LEVELS)
def activations(request):
    return request.param


@pytest.mark.parametrize(("activations", "percent"), [("q8", 1.0), ("q16", 0.01)])
def test_rounding_keeps_the_result_within_a_share_of_its_norm(ops, quantized, activations, percent):
    for n, k in [(64, 32), (100, 96), (48, 576), (32, 1536)]:
        x = normal((4, k), seed=n)
        rows, values = file_rows(n, k, quantized, seed=n)
        exact = reference.linear(x, values)
        result = ops.linear(x, ops.PackedMatrix(rows, quantized, (n, k)), activations=activations)
        assert np.linalg.norm(result - exact) < percent / 100 * np.linalg.norm(exact)


def test_the_result_is_off_by_the_rounding_of_the_activations_alone(ops, quantized, activations):
    for n, k, m in [(1, 32, 1), (16, 64, 2), (17, 288, 3), (65, 96, 7), (33, 1056, 5)]:
        x = normal((m, k), seed=n)
        rows, values = file_rows(n, k, quantized, seed=n)
        result = ops.linear(x, ops.PackedMatrix(rows, quantized, (n, k)), activations=activations)
        check_rounded(result, x, values, offset_part(rows, values, quantized), activations)


def test_rounded_activations_for_every_number_of_tokens(ops, quantized, activations):
    rows, values = file_rows(35, 64, quantized)
    w = ops.PackedMatrix(rows, quantized, (35, 64))
    for m in [*range(1, 36), 70]:
        x = normal((m, 64), seed=m)
        result = ops.linear(placed(x), w, activations=activations)
        check_rounded(result, x, values, offset_part(rows, values, quantized), activations)


def test_the_largest_codes_do_not_overflow(ops, quantized, activations):
    # The largest codes of both factors in every place, and of either sign.
    for byte in (0x80, 0x7F, 0xFF, 0x00):
        rows, _ = file_rows(16, 512, quantized)
        blocks = rows.reshape(-1, reference.BLOCK_BYTES[quantized])
        blocks[:, 4 if quantized == "q4_1" else 2 :] = byte
        values = reference.dequantize(rows, quantized)
        w = ops.PackedMatrix(rows, quantized, (16, 512))
        for x in (np.ones((3, 512), np.float32), -np.ones((3, 512), np.float32)):
            result = ops.linear(x, w, activations=activations)
            check_rounded(result, x, values, offset_part(rows, values, quantized), activations)


def test_blocks_of_very_different_size_are_rounded_apart(ops, quantized, activations):
    x = normal((2, 128)) * np.repeat([1e-6, 1e6, 1.0, 0.0], 32).astype(np.float32)
    rows, values = file_rows(20, 128, quantized)
    result = ops.linear(x, ops.PackedMatrix(rows, quantized, (20, 128)), activations=activations)
    check_rounded(result, x, values, offset_part(rows, values, quantized), activations)


def test_activations_of_zero_give_zeros(ops, quantized, activations):
    rows, _ = file_rows(20, 64, quantized)
    w = ops.PackedMatrix(rows, quantized, (20, 64))
    zeros = np.zeros((2, 64), np.float32)
    np.testing.assert_array_equal(ops.linear(zeros, w, activations=activations), 0.0)


@pytest.mark.parametrize("scale", [1e-44, 1e-38, 1e-30, 1e30])
def test_tiny_and_huge_activations_give_finite_results(ops, quantized, activations, scale):
    x = normal((2, 64), scale=scale)
    rows, values = file_rows(20, 64, quantized)
    w = ops.PackedMatrix(rows, quantized, (20, 64))
    result = ops.linear(x, w, activations=activations)
    assert np.isfinite(result).all()
    exact = reference.linear(x, values)
    # A block whose d is no normal number may count as zeros: |x| < LEVELS * SMALLEST_NORMAL.
    lost = LEVELS[activations] * SMALLEST_NORMAL * np.abs(values).sum(axis=1)
    assert (np.abs(result - exact) <= 0.01 * np.linalg.norm(exact) + lost).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("activations", ["q8", "q16", "f32"])
def test_bad_activations_spoil_their_own_row_alone(ops, quantized, activations, bad):
    rows, _ = file_rows(20, 64, quantized)
    w = ops.PackedMatrix(rows, quantized, (20, 64))
    for m in (1, 5, 9):
        for at in (0, 31, 63):
            x = normal((m, 64))
            good = ops.linear(x, w, activations=activations)
            x[m // 2, at] = bad
            result = ops.linear(x, w, activations=activations)
            assert not np.isfinite(result[m // 2]).any()
            others = np.arange(m) != m // 2
            np.testing.assert_array_equal(result[others], good[others])


def test_auto_is_the_default_and_takes_16_bits_for_up_to_64_rows(ops, quantized):
    rows, _ = file_rows(20, 64, quantized)
    w = ops.PackedMatrix(rows, quantized, (20, 64))
    for m, activations in [(1, "q16"), (64, "q16"), (65, "q8")]:
        x = normal((m, 64))
        result = ops.linear(x, w)
        np.testing.assert_array_equal(result, ops.linear(x, w, activations="auto"))
        np.testing.assert_array_equal(result, ops.linear(x, w, activations=activations))
