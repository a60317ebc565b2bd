"""Number formats, bit for bit against reference.py: a file must mean the same to everyone."""

import functools
import hashlib
import re

import numpy as np
import pytest
import reference
import reference_blocks
from arrays import normal, placed
from bounds import TINY
from file_rows import QUANTIZED, columns
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from reference_blocks import set_scales

# The types with evenly spaced values that `quantize` makes, with the least and the greatest quant,
# each at its distance from zero.
LIMITS = {"q8_0": (-127, 127), "q4_0": (-8, 7), "q4_1": (0, 15), "q5_0": (-16, 15), "q5_1": (0, 31)}


@pytest.fixture(scope="module", params=reference_blocks.WRITTEN)
def type(request):
    return request.param


@pytest.fixture(scope="module", params=QUANTIZED)
def any_type(request):
    return request.param


def check_quantize(ops, x, type):
    actual, expected = ops.quantize(x, type), reference_blocks.quantize(x, type)
    assert actual.dtype == np.uint8
    for packed in (actual, expected):
        # A scale or minimum of zero may have either sign.
        blocks = packed.reshape(-1, reference_blocks.block_bytes(type))
        for at in reference_blocks.LAYOUTS[type][2]:
            zero = (blocks[:, at] == 0) & (blocks[:, at + 1] == 0x80)
            blocks[zero, at + 1] = 0
    np.testing.assert_array_equal(actual, expected)


def test_quantize_gives_ggmls_bytes(ops, type):
    for n in [32, 64, 96, 160, 1056]:
        for offset in (0, 1, 7):
            x = normal((3, n), seed=n)
            check_quantize(ops, placed(x, offset), type)


def test_quantize_of_constant_blocks(ops, type):
    for value in [0.0, -0.0, 1.0, -1.0, 0.1, 1000.0]:
        check_quantize(ops, np.full((1, 32), value, np.float32), type)


@pytest.mark.parametrize("type", LIMITS)
def test_quantize_rounds_ties_as_ggml_does(ops, type):
    # The scale is 1 (q8_0: 127 / 127; q4_0: -8 / -8; q4_1: 15 / 15...), so the halves are ties.
    lowest, highest = LIMITS[type]
    for first in (lowest, highest - 15.5):
        x = np.linspace(first, first + 15.5, 32, dtype=np.float32)
        x[0], x[-1] = lowest, highest
        check_quantize(ops, np.concatenate([x, x[::-1]])[np.newaxis], type)


@pytest.mark.parametrize(
    ("type", "values", "largest"),
    [("iq4_nl", reference_blocks.IQ4, -127), ("mxfp4", reference_blocks.E2M1, 6)],
)
def test_quantize_between_two_values_of_a_look_up_rounds_as_ggml_does(ops, type, values, largest):
    # The scale is 1 in each block, so that the middles are ties.
    exact = np.unique(np.array(values, np.float32))
    middles = (exact[1:] + exact[:-1]) / 2
    for x in (middles, np.nextafter(middles, np.inf), np.nextafter(middles, -np.inf)):
        block = np.zeros((1, 32), np.float32)
        block[0, : len(x)], block[0, -1] = x, largest
        check_quantize(ops, block, type)


def test_quantize_where_several_values_have_the_largest_magnitude(ops, type):
    # q4_0 and q5_0 take their scale's sign from the first of them.
    for first in (1.0, -1.0):
        for place in (0, 5, 31):
            x = normal((1, 32), scale=0.1)
            x[0, place] = first
            x[0, (place + 7) % 32] = -first
            check_quantize(ops, x, type)


@pytest.mark.parametrize("scale", [1e-45, 1e-42, 1e-38, 1e-30, 1e-7, 1e4])
def test_quantize_of_values_at_the_ends_of_the_scales_range(ops, type, scale):
    check_quantize(ops, normal((4, 32), scale=scale), type)


@settings(max_examples=50)
@given(
    x=hnp.arrays(
        np.float32,
        st.tuples(st.integers(0, 3), st.sampled_from([0, 32, 64])),
        elements=st.floats(-60000, 60000, width=32, allow_subnormal=True),
    )
)
def test_quantize_of_any_finite_numbers(ops, type, x):
    check_quantize(ops, x, type)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_does_not_come_back_finite(ops, type, bad):
    check_lost(ops, type, bad)


@pytest.mark.parametrize("type", [type for type in reference_blocks.WRITTEN if type != "mxfp4"])
def test_what_a_float16_scale_cannot_hold_does_not_come_back_finite(ops, type):
    check_lost(ops, type, 1e38)


def check_lost(ops, type, bad):
    """The block that holds `bad`, and no other, gives what is not finite in its place."""
    for place in (0, 13, 31):
        x = normal((1, 96))
        x[0, 32 + place] = bad
        values = ops.dequantize(ops.quantize(x, type), type)
        assert not np.isfinite(values[0, 32 + place])
        assert np.isfinite(values[0, :32]).all()
        assert np.isfinite(values[0, 64:]).all()


K_TYPES = ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k")  # see test_ops_quantize_k.py


@pytest.mark.parametrize(
    "type", [t for t in QUANTIZED if t not in (*reference_blocks.WRITTEN, *K_TYPES)]
)
def test_other_blocks_are_read_and_never_made(backend, type):
    says = f'quantize: type is "{type}"; expected "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q2_k"'
    with pytest.raises(ValueError, match=re.escape(says)):
        backend.quantize(normal((1, 256)), type)


def test_dequantize_is_exact_for_every_byte(ops, any_type):
    random = np.random.default_rng(0)
    size = reference_blocks.block_bytes(any_type)
    data = random.integers(0, 256, (64, 3 * size), dtype=np.uint8)
    reference_blocks.make_finite(data.reshape(-1, size), any_type)
    expected = dequantized(data.tobytes(), any_type)
    for offset in (0, 1, 13):
        result = ops.dequantize(placed(data, offset), any_type)
        np.testing.assert_array_equal(result.reshape(-1), expected)


def test_dequantize_gives_the_bits_of_a_float32_product(ops, any_type):
    # A product that is zero has the sign that IEEE 754 gives it.
    blocks = np.zeros((2, reference_blocks.block_bytes(any_type)), np.uint8)
    set_scales(blocks, any_type, np.array([[1.0, 1.0], [-1.0, 1.0]]))
    expected = dequantized(blocks.tobytes(), any_type).astype(np.float32)
    result = ops.dequantize(blocks, any_type).reshape(-1)
    np.testing.assert_array_equal(np.signbit(result), np.signbit(expected))


# SHA-256 of what gguf-py 0.19 makes of `blocks_of_every_kind`, as little-endian float32.
GGUF_PY = {
    "q8_0": "00343685b7eed5411cfd2c57b95f8b885758c7a1de90d5e794110024b1c4dcff",
    "q4_0": "c9c6905cebd0d5720ee8028caa976aa12f61abacdecf51f3fdda4b9e2e70b0af",
    "q4_1": "70a1d8319329f98ace04e77ed6c025fc30e9252976120f69f3af6b1be4b0bfff",
    "q5_0": "535fe19671185aece071e362ed78482f97f8955f22e9bef408dba4d0b30f3e35",
    "q5_1": "6ecb4f89bd02747ddf52dd3df18596c2bf4a9bc196d78d1e4959484008bf1f4a",
    "q2_k": "b451a81f88d139c2b9070964ec9fdaaf65cd8004c43ef9351cf4ef89cab16415",
    "q3_k": "4667cb83c588a69a3a0282bdc5ee3e2954ec6e3d2ccd9f15e92012a907583b0b",
    "q4_k": "77565eb78370c98d90ecbb8fb5c54cb9132d25cc1ea36fe25adcc087c6f06a9c",
    "q5_k": "0a00b8a67ec8a08f2b6d1247f22bc05a7051a02a1205c2187fe83902e2683b96",
    "q6_k": "d1b48ee9fc56bed9d81f862f0ee2485ed4ca4e64a0e18b8cc40675819f2f4dec",
    "iq4_nl": "b9bdefdb62dd93b53e600408ea83cc308ada2d2b7d8acb9735a1d07e1558692a",
    "iq4_xs": "0826a49414b5e1ca09390f51c9b70b2e534f7dacc29720545945cb0b4e9c6d79",
    "mxfp4": "da2648ce453150cd8c80d5e84cb2253e98dc9d29aed6df95d1e8f65382099961",
    "iq3_xxs": "542a60e369808a724060dc17d1b13a550f8c10a4e4f76839a12c6b20f56adabd",
    "iq3_s": "804fffbe7d095abd33f0537780bc14dcb069961e2ef543c24680b20400d43d1c",
    "iq2_xxs": "c760f16d83b3e2dd88fb75da788f2ee51a297bfb50434da133fbd0c9e463bff8",
    "iq2_xs": "3fe9d9eb9fcabebefcc17e0e78b2e137cee733d224d644118d819700539aa2d3",
    "iq2_s": "293e28676d386e0c62074f5feb22a6a8da24a7acddb4b5919a734050e644f722",
    "iq1_s": "ffcb522032c0b49674490a399663591ca9e19d7e84c76fd7e4769464dbd434a3",
    "iq1_m": "d0aabd6f484c16264acc3d04524f62449c81c3805ca3a2a51c505dd374c60882",
    "tq1_0": "a553b61c0ebd81f8d38f1b463d0e80db6b136c66493994f14272ff9a772eead4",
    "tq2_0": "424298398a1065f87059e7732f849fb480e6bea16bb82cd55d6de5f0d61f24ee",
    "nvfp4": "64e6f3b0fd9a5fdb3b69e88e2a1f167cee6be3795968c731f9816ecaf58821c6",
}


def blocks_of_every_kind(type):
    """4,096 blocks of random bytes, some with the smallest and the largest finite scales."""
    size = reference_blocks.block_bytes(type)
    data = np.frombuffer(hashlib.shake_128(type.encode()).digest(4096 * size), np.uint8)
    blocks = data.reshape(4096, size).copy()
    smallest, largest = 2.0**-24, 65504.0
    ends = [0.0, -0.0, smallest, -smallest, 1023 * smallest, 1024 * smallest, largest, -largest]
    for column in range(2):
        scales = np.ones((len(ends), 2))
        scales[:, column] = ends
        set_scales(blocks[column * len(ends) :][: len(ends)], type, scales)
    if type == "nvfp4":
        blocks[-64:, :4] = np.arange(256).reshape(64, 4)
    reference_blocks.make_finite(blocks, type)
    return blocks


def test_dequantize_gives_gguf_pys_bits(ops, any_type):
    values = ops.dequantize(blocks_of_every_kind(any_type), any_type)
    assert hashlib.sha256(values.astype("<f4").tobytes()).hexdigest() == GGUF_PY[any_type]


def test_packed_blocks_have_gguf_pys_bits(ops, any_type):
    blocks = blocks_of_every_kind(any_type)
    n_columns = 64 * reference_blocks.block_size(any_type)
    values = ops.PackedMatrix(blocks, any_type, (64, n_columns)).dequantize()
    assert hashlib.sha256(values.astype("<f4").tobytes()).hexdigest() == GGUF_PY[any_type]


def test_every_exponent_of_mxfp4_is_a_power_of_two(ops):
    blocks = np.zeros((256, 17), np.uint8)
    blocks[:, 0], blocks[:, 1:] = np.arange(256), np.arange(16) * 16 + np.arange(16)[::-1]
    expected = dequantized(blocks.tobytes(), "mxfp4").reshape(256, 32)
    np.testing.assert_array_equal(ops.dequantize(blocks, "mxfp4"), expected)
    matrix = ops.PackedMatrix(blocks, "mxfp4", (256, 32))
    np.testing.assert_array_equal(matrix.dequantize(), expected)
    # The first column alone, which is 2^(e - 127) * 0.5 for each code, reaches the outputs exactly.
    x = np.zeros((1, 32), np.float32)
    x[0, 1] = 1
    result = ops.linear(x, matrix, activations="f32")[0]
    finite = np.isfinite(expected).all(axis=1)
    np.testing.assert_array_equal(result[finite], expected[finite, 1])


def test_every_byte_of_nvfp4s_scales_is_a_number_of_e4m3(ops):
    blocks = np.zeros((256, 36), np.uint8)
    blocks[:, :4] = np.arange(256)[:, np.newaxis]
    blocks[:, 4:] = np.arange(32) % 16 * 16 + np.arange(32)[::-1] % 16
    expected = dequantized(blocks.tobytes(), "nvfp4").reshape(256, 64)
    assert np.unique(np.abs(expected[:, 0])).size > 100
    matrix = ops.PackedMatrix(blocks, "nvfp4", (256, 64))
    np.testing.assert_array_equal(matrix.dequantize(), expected)
    for column in range(0, 64, 9):
        x = np.zeros((1, 64), np.float32)
        x[0, column] = 1
        result = ops.linear(x, matrix, activations="f32")[0]
        np.testing.assert_array_equal(result, expected[:, column])


@functools.cache  # the same bytes for each backend
def dequantized(data, type):
    return reference_blocks.dequantize(np.frombuffer(data, np.uint8), type)


@pytest.mark.parametrize("type", LIMITS)
def test_dequantize_undoes_quantize_to_within_half_a_step(ops, type):
    x = normal((5, 320))
    blocks = x.reshape(-1, 32)
    least, greatest = LIMITS[type]
    if least == 0:
        step = (blocks.max(axis=1) - blocks.min(axis=1)) / greatest
    else:
        # q4_0 reaches -8 steps but +7 only, q5_0 -16 and +15: there the opposite end may lose a
        # whole step.
        step = np.abs(blocks).max(axis=1) / -least * (1 if least == -greatest else 2)
    error = np.abs(ops.dequantize(ops.quantize(x, type), type) - x).reshape(-1, 32)
    # And the float16 scale (and minimum) is off by 2^-11 of itself.
    allowed = step / 2 + np.abs(blocks).max(axis=1) * 2.0**-10
    assert (error <= allowed[:, np.newaxis]).all()


def test_values_that_iq4_nl_or_mxfp4_can_hold_come_back(ops):
    for type, values, largest in (
        ("iq4_nl", reference_blocks.IQ4, -127),
        ("mxfp4", reference_blocks.E2M1, 6),
    ):
        random = np.random.default_rng(0)
        x = random.choice(np.array(values, np.float32), (40, 32))
        x[:, 7] = largest
        x *= 2.0 ** random.integers(-8, 8, (40, 1)).astype(np.float32)
        np.testing.assert_array_equal(ops.dequantize(ops.quantize(x, type), type), x)


@pytest.mark.parametrize("leading", [(), (0,), (1,), (2, 3), (2, 0, 1)])
def test_leading_axes_are_kept(ops, type, leading):
    x = normal((*leading, 64))
    packed = ops.quantize(x, type)
    assert packed.dtype == np.uint8
    assert packed.shape == (*leading, 2 * reference_blocks.block_bytes(type))
    assert ops.dequantize(packed, type).shape == x.shape


@pytest.mark.parametrize("leading", [(), (0,), (1,), (2, 3), (2, 0, 1)])
def test_dequantize_keeps_leading_axes(ops, any_type, leading):
    data = np.zeros((*leading, 2 * reference_blocks.block_bytes(any_type)), np.uint8)
    assert ops.dequantize(data, any_type).shape == (*leading, columns(any_type, 2))


def test_rows_of_no_blocks(ops, type):
    packed = ops.quantize(np.zeros((3, 0), np.float32), type)
    assert packed.shape == (3, 0)
    assert ops.dequantize(packed, type).shape == (3, 0)


# ---- 16-bit floats -------------------------------------------------------------------------------

# Around the ends of float16: its smallest normal and denormal numbers, half of that, its largest
# number and the first one that rounds to infinity; then the same end of bfloat16.
SPECIAL = np.array(
    [
        *(0.0, TINY, 2.0**-14, 2.0**-24, 2.0**-25, 2.0**-25 * 1.0001, 3 * 2.0**-25),
        *(65504.0, 65519.99, 65520.0, 3.3895e38, 3.4e38, np.inf),
    ],
    np.float32,
)


def every_neighbour(encode_range, decode):
    """float32 values on, halfway between and just beside the values of a 16-bit format."""
    values = np.array([decode(bits) for bits in encode_range], np.float64)
    middles = (values[1:] + values[:-1]) / 2
    exact = np.concatenate([values, middles]).astype(np.float32)
    return np.concatenate([exact, np.nextafter(exact, np.inf), np.nextafter(exact, -np.inf)])


def test_float16_rounds_to_nearest_ties_to_even(ops):
    x = np.concatenate([SPECIAL, every_neighbour(range(0, 0x7C00, 37), reference.decode_float16)])
    x = np.concatenate([x, -x]).astype(np.float32)
    expected = [reference.encode_float16(float(v)) for v in x]
    result = ops.float32_to_float16(x)
    assert result.dtype == np.float16
    np.testing.assert_array_equal(result.view(np.uint16), expected)


def test_bfloat16_rounds_to_nearest_ties_to_even(ops):
    x = np.concatenate([SPECIAL, every_neighbour(range(0, 0x7F80, 37), reference.decode_bfloat16)])
    x = np.concatenate([x, -x]).astype(np.float32)
    expected = [reference.encode_bfloat16(float(v)) for v in x]
    result = ops.float32_to_bfloat16(x)
    assert result.dtype == np.uint16
    np.testing.assert_array_equal(result, expected)


def test_every_float16_widens_to_its_value(ops):
    bits = np.arange(1 << 16, dtype=np.uint16)
    exact = np.array([reference.decode_float16(int(b)) for b in bits])
    result = ops.float16_to_float32(bits.view(np.float16))
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, exact)


def test_every_bfloat16_widens_to_its_value(ops):
    bits = np.arange(1 << 16, dtype=np.uint16)
    exact = np.array([reference.decode_bfloat16(int(b)) for b in bits])
    result = ops.bfloat16_to_float32(bits)
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, exact)


def test_nan_stays_nan_whatever_its_payload(ops):
    # Cutting off the lower half of 0x7F800001 would leave an infinity.
    nans = np.array([0x7FC00000, 0x7F800001, 0xFF800001, 0x7FFFFFFF, 0xFFFFFFFF], np.uint32)
    x = nans.view(np.float32)
    assert np.isnan(ops.float32_to_float16(x)).all()
    assert np.isnan(ops.bfloat16_to_float32(ops.float32_to_bfloat16(x))).all()


def test_conversions_of_every_size_at_any_start(ops):
    for n in [*range(71), 127]:
        x = normal(n, seed=n)
        halves = np.array([reference.encode_float16(float(v)) for v in x], np.uint16)
        brains = np.array([reference.encode_bfloat16(float(v)) for v in x], np.uint16)
        at = placed(x, n % 16)
        np.testing.assert_array_equal(ops.float32_to_float16(at).view(np.uint16), halves)
        np.testing.assert_array_equal(ops.float32_to_bfloat16(at), brains)
        half_at = placed(halves.view(np.float16), n % 7)
        np.testing.assert_array_equal(
            ops.float16_to_float32(half_at), halves.view(np.float16).astype(np.float32)
        )
        wide = (brains.astype(np.uint32) << 16).view(np.float32)
        np.testing.assert_array_equal(ops.bfloat16_to_float32(placed(brains, n % 7)), wide)


@pytest.mark.parametrize("shape", [(0,), (3, 0), (2, 3, 5)])
def test_conversions_keep_any_shape(ops, shape):
    x = normal(shape)
    half, brain = ops.float32_to_float16(x), ops.float32_to_bfloat16(x)
    assert half.shape == brain.shape == shape
    assert ops.float16_to_float32(half).shape == ops.bfloat16_to_float32(brain).shape == shape
