"""Quantised weights stand for the values that Hugging Face `transformers` makes of them."""

import numpy as np
import pytest
from hf_folder import safetensors_bytes
from hf_models import require_hf
from hf_quantized import E4M3, FORMATS, mxfp4

from airllm.formats.hf_fp8 import fp8
from airllm.formats.hf_packed import mxfp4 as read_mxfp4
from airllm.formats.hf_quantization import Quantization
from airllm.formats.hf_sources import Stored
from airllm.formats.mapped_file import MappedFile
from airllm.formats.numbers import decode
from airllm.formats.safetensors import read_table


@pytest.fixture
def stored(tmp_path):
    """Writes tensors to a file, and returns each by its name."""
    require_hf()

    def write(tensors):
        path = tmp_path / "model.safetensors"
        path.write_bytes(safetensors_bytes(tensors))
        file = MappedFile.open(path, hint="")
        return {entry.name: Stored(0, file, entry) for entry in read_table(file)}

    return write


def test_mxfp4_is_that_of_transformers_bit_for_bit(stored):
    import torch
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    random = np.random.default_rng(2)
    blocks = random.integers(0, 256, (3, 10, 4, 16), np.uint8)  # [experts, n, k / 32, 16]
    scales = random.integers(90, 160, (3, 10, 4), np.uint8)
    expected = convert_moe_packed_tensors(
        torch.from_numpy(blocks), torch.from_numpy(scales), dtype=torch.float32
    )  # [experts, k, n]
    files = stored({"w_blocks": ("U8", blocks), "w_scales": ("U8", scales)})
    source = read_mxfp4(files["w_blocks"], files["w_scales"], "w")
    found = decode(source.rows(0, 30), "mxfp4").reshape(source.shape)
    np.testing.assert_array_equal(found, expected.numpy().swapaxes(1, 2))


def test_fp8_is_that_of_transformers_bit_for_bit(stored):
    import torch
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    random = np.random.default_rng(3)
    codes = random.permutation(np.arange(256 * 256) % 256).astype(np.uint8).reshape(256, 256)
    codes[np.isnan(E4M3[codes])] = 0
    scales = random.uniform(1e-4, 1e-2, (2, 2)).astype(np.float32)
    expected = Fp8Dequantize(None)._dequantize_one(
        torch.from_numpy(codes).view(torch.float8_e4m3fn),
        torch.from_numpy(scales),
        output_dtype=torch.float32,
    )
    files = stored({"w.weight": ("F8_E4M3", codes), "w.weight_scale_inv": ("F32", scales)})
    quantization = Quantization("fp8", block=(128, 128), exact=True)
    source = fp8(files["w.weight"], files["w.weight_scale_inv"], quantization)
    found = decode(source.rows(0, 256), "f32")
    np.testing.assert_array_equal(found, expected.numpy())


def test_the_packers_of_these_tests_write_what_transformers_reads():
    require_hf()
    import torch
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    values = np.random.default_rng(4).standard_normal((2, 256, 128))
    tensors, expected, *_ = mxfp4(values)
    blocks, scales = (torch.from_numpy(tensors[name][1]) for name in ("_blocks", "_scales"))
    found = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32).numpy()
    np.testing.assert_array_equal(found.swapaxes(1, 2), expected)
    tensors, expected, *_ = FORMATS["FP8 in blocks"].module(values[0])
    codes, scales = (torch.from_numpy(tensors[n][1]) for n in (".weight", ".weight_scale_inv"))
    found = Fp8Dequantize(None)._dequantize_one(codes.view(torch.float8_e4m3fn), scales)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1.2e-7, atol=0)
