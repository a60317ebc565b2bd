"""Perplexity of a real model on a real text, against what llama.cpp's llama-perplexity says."""

import json
import os
from pathlib import Path

import pytest
from extension import require_cpp

from airllm.cli import main
from airllm.hub import find_model

# The licence text of Debian's base-files, SmolLM2-135M-Instruct.Q4_1, context 512: 14 chunks.
TEXT = Path("/usr/share/common-licenses/GPL-3")
TEXT_BYTES = 35_149
LLAMA_CPP = 18.39


def test_perplexity_on_the_gpl_is_within_half_a_percent_of_llama_cpps(
    capsys: pytest.CaptureFixture[str],
) -> None:
    require_cpp()
    model = find_model(os.environ.get("AIRLLM_TEST_MODEL") or "smollm2-135m")
    if model is None:
        pytest.skip("no real model here: run `airllm pull smollm2-135m`, or set AIRLLM_TEST_MODEL")
    if not TEXT.exists() or TEXT.stat().st_size != TEXT_BYTES:
        pytest.skip(f"{TEXT} is not that of Debian's base-files, {TEXT_BYTES} bytes")
    assert (
        main(["perplexity", "-m", str(model), "-f", str(TEXT), "--backend", "cpp", "--json"]) == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert found["chunks"] == 14
    assert found["perplexity"] == pytest.approx(LLAMA_CPP, rel=0.005)
