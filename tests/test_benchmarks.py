"""The benchmark scripts on tiny shapes: each runs, and says what it promises to say."""

import json
import math
import shutil
import stat
import sys
from pathlib import Path

import benchmark_scripts
import family_models
import pytest
from benchmark_scripts import json_of, run
from extension import require_cpp

from airllm.formats.gguf import GGUFFile
from airllm.layer_engine import LayerWiseInferenceEngine

QUICK = ("--quick", "--seconds", "0.005", "--threads", "1")
LIMITS = {"read", "copy", "multiply_add", "dot"}


@pytest.fixture(autouse=True, scope="module")
def _extension():
    require_cpp()


@pytest.fixture(scope="module")
def compiler():
    """What the limits are built with."""
    if not any(shutil.which(name) for name in ("g++", "clang++")):
        pytest.skip("no C++ compiler")


@pytest.fixture(scope="module")
def compared(compiler):
    words = "call,rms_norm,matmul,linear Q4_0,linear F16,decode,prefill"
    return json_of("compare_ops.py", *QUICK, "--only", words)


# ---- compare_ops ---------------------------------------------------------------------------------


def test_compare_ops_says_what_was_measured_and_on_what(compared):
    machine = compared["machine"]
    assert machine["cpu"]
    assert machine["cores"] >= 1
    assert machine["extension_file"].endswith((".so", ".pyd", ".dylib"))


def test_compare_ops_probes_every_limit(compared):
    (limits,) = compared["limits"]
    assert limits["threads"] == 1
    assert limits["isa"] == require_cpp().available_isas()[-1]
    assert all(limits[name] > 1e8 for name in LIMITS)


def test_compare_ops_has_all_that_was_asked_for(compared):
    names = {(row["op"], row["shape"].split()[0]) for row in compared["results"]}
    assert {("silu", "1"), ("rms_norm", "1"), ("matmul f32", "4"), ("linear Q4_0", "1")} <= names
    assert {("linear F16", "1"), ("decode", "1"), ("causal prefill", "32")} <= names
    assert not any(op == "softmax" for op, _ in names)


def test_each_row_has_times_and_errors(compared):
    for row in compared["results"]:
        assert row["failure"] is None
        assert 0 < row["seconds_best"] <= row["seconds_median"]
        assert row["gflops"] > 0
        assert row["isa"] in row["errors"]
        assert all(error < 0.01 for error in row["errors"].values())


def test_ratios_are_times_over_ours_and_numpy_is_always_there(compared):
    for row in compared["results"]:
        for ratio in row["ratios"].values():
            expected = ratio["other_seconds"] / row["seconds_best"]
            assert math.isclose(ratio["best"], expected, rel_tol=1e-9)
        # NumPy has no fast way to multiply by float16.
        assert ("numpy" in row["ratios"]) == (not row["shape"].endswith("F16 cache"))


def test_checks_compare_the_value_with_the_bar(compared):
    checks = [check for row in compared["results"] for check in row["checks"]]
    measured = [c for c in checks if c["value"] is not None and c["least"] is not None]
    assert measured
    for check in measured:
        assert check["passed"] == (check["value"] >= check["least"])


def test_a_matrix_that_is_read_once_is_compared_with_the_read_bandwidth(compared):
    row = next(row for row in compared["results"] if row["op"] == "linear Q4_0")
    assert LIMITS & set(row["ratios"]) == {"read"}
    assert [check["of"] for check in row["checks"]] == ["read"]


def test_the_table_goes_between_the_markers_of_a_readme(compiler, tmp_path):
    readme = tmp_path / "README.md"
    begin, end = "<!-- performance:begin -->", "<!-- performance:end -->"
    readme.write_text(f"before\n{begin}\nold\n{end}\nafter\n", encoding="utf-8")
    run("compare_ops.py", *QUICK, "--only", "silu 1 x 256", "--markdown", readme)
    text = readme.read_text(encoding="utf-8")
    assert text.startswith(f"before\n{begin}\nMeasured on: ")
    assert text.endswith(f"{end}\nafter\n")
    assert "| silu | 1 x 256 | 1 |" in text
    assert "old" not in text


@pytest.mark.parametrize(
    ("option", "message"),
    [("--markdown", "has no <!-- performance:begin -->"), ("--json", "there is no folder")],
)
def test_a_file_that_cannot_take_the_results_is_refused_before_they_are_measured(
    tmp_path, option, message
):
    readme = tmp_path / "README.md"
    readme.write_text("no markers", encoding="utf-8")
    path = readme if option == "--markdown" else tmp_path / "missing" / "results.json"
    result = run("compare_ops.py", *QUICK, option, path, expect=2)
    assert message in result.stderr
    assert result.stdout == ""


def test_words_that_name_nothing_are_an_error(compiler):
    result = run("compare_ops.py", *QUICK, "--only", "nonsense", expect=1)
    assert "nothing is named like nonsense" in result.stderr


def test_an_isa_that_cannot_run_here_is_an_error():
    result = run("compare_ops.py", *QUICK, "--isa", "sse9", expect=2)
    assert "'sse9' cannot run here; possible: " in result.stderr


# ---- compare_attention ---------------------------------------------------------------------------


def test_compare_attention_has_a_row_for_each_kind_of_work_type_and_layout():
    shape = ("--prefill", "33", "--decode", "70", "--types", "f16")
    work = ("--quick", "--threads", "1", "--seconds", "0.005")
    rows = json_of("compare_attention.py", *shape, *work)["results"]
    shapes = [tuple(row["shape"].values()) for row in rows]
    decoding = [("decode", 70, "f16", layout) for layout in ("rows", "heads")]
    assert shapes == [("prefill", 33, "f16", "rows"), *decoding]
    assert all(row["ours"] > 0 and row["share"] > 0 for row in rows)


# ---- compare_pages -------------------------------------------------------------------------------


def test_compare_pages_has_a_ratio_for_each_size_of_pages_in_the_cache_and_out_of_it():
    shape = ("--types", "q8_0", "--head-dims", "64", "--kv-heads", "2", "--lengths", "100")
    work = ("--quick", "--rows", "64,128", "--threads", "1", "--seconds", "0.005")
    rows = json_of("compare_pages.py", *shape, *work)["results"]
    places = [(row["shape"]["cached"], row["page_rows"]) for row in rows]
    assert places == [(True, 64), (True, 128), (False, 64), (False, 128)]
    for row in rows:
        assert math.isclose(row["ratio"], row["best"] / row["contiguous"], rel_tol=1e-9)


# ---- profile_worker ------------------------------------------------------------------------------


def test_profile_worker_has_numpy_beside_every_isa(compiler):
    profile = json_of("profile_worker.py", *QUICK)
    isas = set(require_cpp().available_isas())
    assert set(profile["limits"]) == LIMITS
    names = {row["name"] for row in profile["results"]}
    assert {"rms_norm", "FFN down", "rope", "attention", "swiglu"} <= names
    assert {row["type"] for row in profile["results"]} == {"f32", "f16", "q8_0", "q4_0"}
    for row in profile["results"]:
        contenders = row["by_contender"]
        expected = isas if row["type"] == "f16" else isas | {"numpy"}
        assert set(contenders) == expected
        for measured in contenders.values():
            assert 0 < measured["best"] <= measured["median"]
            assert math.isclose(measured["gflops"], row["flops"] / measured["best"] / 1e9)


def test_profile_worker_draws_a_picture(compiler, tmp_path):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "profile.png"
    result = run("profile_worker.py", *QUICK, "--only", "silu,FFN down", "--plot", picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "FFN down" in result.stdout


# ---- run_cpp -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one_isa(compiler):
    """The kernels of one ISA are all that is compiled for the test."""
    if not Path("/usr/include/benchmark/benchmark.h").exists():
        pytest.skip("Google Benchmark is not installed (Debian: libbenchmark-dev)")
    isas = require_cpp().available_isas()
    return next((isa for isa in ("avx2", "neon") if isa in isas), isas[-1])


def test_run_cpp_times_kernels_and_probes_limits(one_isa, tmp_path):
    output = tmp_path / "results.json"
    quick = ("--repetitions", "2", "--min-time", "0.001", "--json", output)
    pattern = "silu/1x4096.*threads:1|limit/fma.*threads:1"
    result = run("run_cpp.py", "--filter", pattern, *quick, TENSOR_OPS_ISA=one_isa)
    assert "silu/1x4096" in result.stdout
    assert f"fma at most, {one_isa}" in result.stdout
    entries = json.loads(output.read_text(encoding="utf-8"))["benchmarks"]
    times = [e["real_time"] for e in entries if e["run_type"] == "iteration" and "rate" not in e]
    assert len(times) == 2
    assert all(time > 0 for time in times)


def test_run_cpp_lists_its_benchmarks(one_isa):
    names = run("run_cpp.py", "--list", TENSOR_OPS_ISA=one_isa).stdout.split()
    for start in ("limit/read/", "rms_norm/128x4096/", "linear_q6_k/1x4096x4096/"):
        assert any(name.startswith(f"{start}{one_isa}") for name in names)


# ---- models, and llama.cpp -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    sizes = "--hidden-size 64 --ffn 96 --layers 2 --heads 4 --kv-heads 2 --vocab 300 --context 64"
    run("make_model.py", path, *sizes.split(), "--type", "q8_0")
    return path


def test_a_made_model_has_the_shape_that_was_asked_for_and_runs(tiny_model):
    with GGUFFile.open(tiny_model) as gguf:
        assert gguf.tensors["blk.1.ffn_down.weight"].shape == (64, 96)
        assert gguf.tensors["blk.1.attn_k.weight"].type == "q8_0"
    with LayerWiseInferenceEngine(tiny_model) as engine:
        logits = engine.forward(engine.tokenize("a b"))
        assert logits.shape == (300,)
        assert 0.1 < logits.std() < 10  # neither vanished nor exploded


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--hidden-size", "100", "--heads", "3"), "heads must divide the hidden size"),
        (("--type", "q4_k", "--ffn", "96"), "multiples of 256 for q4_k"),
        (("--vocab", "5"), "at least 260 tokens"),
        (("--like", "gemma4", "--next-head"), "gemma4 models have no next-token head"),
    ],
)
def test_a_model_that_cannot_be_is_refused(tmp_path, arguments, message):
    result = run("make_model.py", tmp_path / "model.gguf", *arguments, expect=1)
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_compare_guesses_has_a_row_for_each_probability(tmp_path):
    tokens = [*"abcdĠ", "ab", *(f"t{id}" for id in range(6, family_models.VOCAB))]
    tokenizer = {"model": "gpt2", "pre": "gpt-2", "tokens": tokens, "merges": ["a b"]}
    entries = {f"tokenizer.ggml.{key}": value for key, value in tokenizer.items()}
    model = family_models.write_family_model(tmp_path, "qwen35", **entries)
    options = ("--tokens", "40", "--rounds", "1", "--right", "0,1")
    report = json_of("compare_guesses.py", "--model", model, *options)
    never, always = report["results"]
    assert never["tokens_per_pass"] == 1.0
    assert always["tokens_per_pass"] > 3.5
    no_head = family_models.write_family_model(tmp_path, "llama")
    said = run("compare_guesses.py", "--model", no_head, expect=1).stderr
    assert "has no next-token head" in said


# ---- cluster_node --------------------------------------------------------------------------------


def test_cluster_node_reports_shares_of_bandwidth_and_of_python(compiler):
    report = json_of("cluster_node.py", "--quick")
    assert report["slice_bytes"] > 0
    assert 0 < report["python_share"] < 1
    own = sum(report[f"{part}_seconds_best"] for part in ("compute", "sends", "python"))
    share = report["slice_bytes"] / own / report["read_bytes_per_second"]
    assert math.isclose(report["share_of_read"], share)


@pytest.fixture
def llama_bench(tmp_path):
    """A program that says what llama-bench says, at 50 tokens a second."""
    program = tmp_path / "llama-bench"
    program.write_text(f"#!{sys.executable}\nimport json\nprint(json.dumps([dict(avg_ts=50.0)]))\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program


def test_compare_llama_reports_the_ratio_to_llama_bench(compiler, tiny_model, llama_bench):
    sizes = ("--prompt-tokens", "8", "--generated-tokens", "4", "--rounds", "2", "--threads", "1")
    arguments = ("--model", tiny_model, "--llama-bench", llama_bench, *sizes)
    report = json_of("compare_llama.py", *arguments)
    assert [row["test"] for row in report["results"]] == ["pp8", "tg4"]
    for row in report["results"]:
        assert len(row["airllm"]) == len(row["llama_cpp"]) == 2
        assert row["llama_cpp"] == [50.0, 50.0]
        assert math.isclose(row["ratio"], max(row["airllm"]) / 50.0)
    assert report["results"][0]["share_of_read"] is None
    assert report["results"][1]["share_of_read"] > 0


def test_compare_llama_hands_options_and_depth_to_llama_bench(compiler, tiny_model, llama_bench):
    seen = llama_bench.with_name("seen")
    program = (
        llama_bench.read_text() + f"import sys\nopen({str(seen)!r}, 'w').write(str(sys.argv))\n"
    )
    llama_bench.write_text(program)
    sizes = ("--prompt-tokens", "0", "--generated-tokens", "4", "--rounds", "1", "--threads", "1")
    more = ("--llama-bench", llama_bench, "--llama-bench-options", "-rtr 1", "--depth", "8")
    report = json_of("compare_llama.py", "--model", tiny_model, *sizes, *more)
    assert [row["test"] for row in report["results"]] == ["tg4@8"]
    assert seen.read_text().endswith(
        "'-fa', '1', '-o', 'json', '-rtr', '1', '-p', '0', '-n', '4', '-d', '8']"
    )


def test_compare_llama_says_what_llama_bench_said_when_it_fails(tiny_model, llama_bench):
    llama_bench.write_text("#!/bin/sh\necho no such model >&2\nexit 3\n")
    sizes = ("--prompt-tokens", "8", "--generated-tokens", "4", "--threads", "1")
    arguments = ("--model", tiny_model, "--llama-bench", llama_bench, *sizes)
    result = run("compare_llama.py", *arguments, expect=1)
    assert "no such model" in result.stderr


def test_compare_llama_passes_on_what_is_wrong_with_a_model(tmp_path):
    model = tmp_path / "broken.gguf"
    model.write_bytes(b"GGUX")
    arguments = ("--model", model, "--llama-bench", "unused", "--threads", "1")
    result = run("compare_llama.py", *arguments, expect=1)
    assert "broken.gguf: not a GGUF file" in result.stderr
    assert "Traceback" not in result.stderr


def test_compare_families_wants_a_checkout_with_a_converter(tmp_path):
    result = run("compare_families.py", "--llama-cpp", str(tmp_path), expect=2)
    assert "no checkout of llama.cpp with a converter" in result.stderr


def test_compare_quantizers_wants_a_library(tmp_path):
    result = run("compare_quantizers.py", "--ggml", str(tmp_path / "none.so"), expect=2)
    assert "llama.cpp's library is not there" in result.stderr


def test_compare_llama_without_llama_cpp_says_how_to_get_it(tiny_model, tmp_path):
    # A package of that name that cannot be found: an empty finder in front of the installed one.
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u\nfind = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'llama_cpp' else find(name, *a)\n"
    )
    path = f"{tmp_path}:{benchmark_scripts.ROOT}"
    result = run("compare_llama.py", "--model", tiny_model, expect=1, PYTHONPATH=path)
    assert "pip install llama-cpp-python" in result.stderr
