"""The forward pass against the float64 reference: every tensor type, however tokens are fed."""

import threading

import numpy as np
import pytest
import reference_model
from extension import EVERY_BACKEND, forced_isa, require_cpp
from family_models import write_family_model
from file_rows import QUANTIZED
from tiny_model import Sizes, write_tiny_model
from traced_memory import traced_memory

from airllm.formats.ggml_types import SUPPORTED_TYPES
from airllm.formats.gguf import FormatError
from airllm.layer_engine import LayerWiseInferenceEngine
from airllm.numpy_ops import dequantize
from airllm.weights.layer_weights import layers_at_once

# Norm of the logits' error over the norm of the logits, for 3 layers; measured: a third of each.
EXACT = 1e-5  # float32 arithmetic, f32 cache
F16_CACHE = 6e-3  # keys and values rounded to 11 bits
# Against a reference that rounds activations to 8 bits too, of what that rounding costs. What is
# left: values so near to a half that they round the other way (more of them in MXFP4, whose values
# are small multiples of powers of two), and Q4_1's offsets, which need not meet rounded
# activations. Measured: up to an eighth.
Q8_ACTIVATIONS = 0.2

# Keys and values rounded to 8 bits of the largest of 32, where f16 keeps 11 of each: 16 to 20 times
# as much. Against the same engine with an f32 cache; measured: half.
Q8_CACHE = 8e-2

HEADS_OF_32 = Sizes(head_dim=32, rope_dims=32)

TOKENS = np.random.default_rng(1).integers(0, 268, 70).tolist()
OTHER_TOKENS = np.random.default_rng(2).integers(0, 268, 70).tolist()


@pytest.fixture(params=EVERY_BACKEND)
def backend(request):
    """The name of each backend; C++ on one ISA after the other."""
    if request.param == "numpy":
        yield "numpy"
        return
    with forced_isa(request.param.removeprefix("cpp-")):
        yield "cpp"


@pytest.fixture
def engine_for(backend):
    """Opens a tiny model; exact, with batches of 32, unless told otherwise."""
    engines = []

    def open_engine(model, **settings):
        exact = {"kv_type": "f32", "activations": "f32", "batch_size": 32}
        engine = LayerWiseInferenceEngine(model.path, backend=backend, **(exact | settings))
        engines.append(engine)
        return engine

    yield open_engine
    for engine in engines:
        engine.close()


def assert_close(logits, expected, bound):
    error = np.linalg.norm(logits - expected) / np.linalg.norm(expected)
    assert error <= bound, f"relative error {error:.2e}, allowed {bound:.0e}"


# ---- the same logits as the reference ------------------------------------------------------------


@pytest.mark.parametrize("type", SUPPORTED_TYPES)
def test_logits_are_the_references_for_every_tensor_type(tmp_path, engine_for, type):
    model = write_tiny_model(tmp_path, type)
    expected = reference_model.forward(model.tensors, model.sizes, TOKENS)
    logits = engine_for(model).forward(TOKENS, last_only=False)
    assert logits.dtype == np.float32
    assert_close(logits, expected, EXACT)


@pytest.mark.parametrize("type", QUANTIZED)
def test_8_bit_activations_cost_their_rounding_and_no_more(tmp_path, engine_for, backend, type):
    model = write_tiny_model(tmp_path, type)
    engine, shares = engine_for(model, activations="q8"), []
    # One value of the first tokens that rounds the other way reaches all logits: of two texts, that
    # is in neither but by a fault.
    for tokens in (TOKENS, OTHER_TOKENS):
        exact = reference_model.forward(model.tensors, model.sizes, tokens)
        engine.reset()
        logits = engine.forward(tokens, last_only=False)
        if backend == "numpy":  # it may round, and does not
            assert_close(logits, exact, EXACT)
            continue
        rounded = reference_model.forward(model.tensors, model.sizes, tokens, activations="q8")
        shares.append(np.linalg.norm(logits - rounded) / np.linalg.norm(rounded - exact))
    assert min(shares, default=0) <= Q8_ACTIVATIONS, f"shares of the rounding's cost: {shares}"


@pytest.mark.parametrize("type", ["f32", "f16", "bf16"])
def test_8_bit_activations_are_for_quantised_weights_only(tmp_path, engine_for, type):
    model = write_tiny_model(tmp_path, type)
    expected = reference_model.forward(model.tensors, model.sizes, TOKENS)
    logits = engine_for(model, activations="q8").forward(TOKENS, last_only=False)
    assert_close(logits, expected, EXACT)


def test_logits_with_an_f16_cache_are_close_to_the_references(tmp_path, engine_for):
    model = write_tiny_model(tmp_path)
    expected = reference_model.forward(model.tensors, model.sizes, TOKENS)
    logits = engine_for(model, kv_type="f16").forward(TOKENS, last_only=False)
    assert_close(logits, expected, F16_CACHE)


def test_logits_with_a_q8_0_cache_are_close_to_those_with_an_f32_one(tmp_path, engine_for):
    model = write_tiny_model(tmp_path, sizes=HEADS_OF_32)
    exact = engine_for(model).forward(TOKENS, last_only=False)
    engine = engine_for(model, kv_type="q8_0")
    logits = [engine.forward(TOKENS[:40], last_only=False)]  # in two batches
    logits += [engine.forward([token], last_only=False) for token in TOKENS[40:]]
    assert_close(np.concatenate(logits), exact, Q8_CACHE)


def test_both_backends_keep_the_same_q8_0_blocks(tmp_path):
    require_cpp()
    model = write_tiny_model(tmp_path, sizes=HEADS_OF_32)
    caches = []
    for backend in ("numpy", "cpp"):
        with LayerWiseInferenceEngine(
            model.path, backend=backend, kv_type="q8_0", activations="f32"
        ) as engine:
            engine.forward(TOKENS)
            state = engine._model.decoder.state
            rows = state.heads_rows(state.layout.layers[0].keys, 0, 70)
            blocks = np.stack([np.concatenate(of_head) for of_head in rows])
            caches.append(dequantize(blocks.reshape(4, 70, 34), "q8_0"))  # 2 heads, K and V
    scale = np.abs(caches[0]).max(axis=-1, keepdims=True) / 127
    steps = np.abs(caches[0] - caches[1]) / scale
    assert steps.max() < 1.1  # a value so near to a half that it rounds the other way
    assert (steps < 0.1).mean() > 0.999


@pytest.mark.parametrize(
    "sizes",
    [
        Sizes(n_heads=4, n_kv_heads=4),
        Sizes(n_heads=4, n_kv_heads=1),
        Sizes(n_heads=3, n_kv_heads=3, head_dim=24, rope_dims=24),
        Sizes(n_heads=6, n_kv_heads=2, head_dim=32, rope_dims=20),
        Sizes(n_layers=1),
        Sizes(theta=500000.0, eps=1e-6),
    ],
    ids=["mha", "mqa", "q narrower", "q wider, part of rope", "one layer", "theta"],
)
def test_logits_are_the_references_for_every_shape_of_model(tmp_path, engine_for, sizes):
    model = write_tiny_model(tmp_path, sizes=sizes)
    expected = reference_model.forward(model.tensors, sizes, TOKENS)
    assert_close(engine_for(model).forward(TOKENS, last_only=False), expected, EXACT)


@pytest.mark.parametrize(
    ("type", "other"),
    [("q4_k", "q6_k"), ("q2_k", "q4_k"), ("q5_0", "q5_1"), ("iq4_xs", "q5_k"), ("mxfp4", "q8_0")],
    ids=lambda type: type,
)
def test_a_layers_matrices_may_be_of_different_types(tmp_path, engine_for, type, other):
    # As in Q4_K_M files: some of V and of the FFN's way back are Q6_K, the rest is Q4_K.
    types = {"attn_v": other, "ffn_down": other, "output": other}
    model = write_tiny_model(tmp_path, type, types=types)
    expected = reference_model.forward(model.tensors, model.sizes, TOKENS)
    assert_close(engine_for(model).forward(TOKENS, last_only=False), expected, EXACT)


@pytest.mark.parametrize("type", ["f32", "q8_0", "q6_k"])
def test_a_model_without_an_output_matrix_uses_its_embedding(tmp_path, engine_for, type):
    model = write_tiny_model(tmp_path, type, tied=True)
    expected = reference_model.forward(model.tensors, model.sizes, TOKENS)
    engine = engine_for(model)
    assert engine.config.tied_embeddings
    assert_close(engine.forward(TOKENS, last_only=False), expected, EXACT)


def test_the_factors_of_rope_freqs_divide_the_frequencies(tmp_path, engine_for):
    factors = np.linspace(1.0, 8.0, 8).astype(np.float32)
    model = write_tiny_model(tmp_path, rope_factors=factors)
    expected = reference_model.forward(model.tensors, model.sizes, TOKENS, rope_factors=factors)
    assert_close(engine_for(model).forward(TOKENS, last_only=False), expected, EXACT)


def test_linear_rope_scaling_divides_positions(tmp_path, engine_for):
    scaling = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    model = write_tiny_model(tmp_path, metadata=scaling)
    factors = np.full(8, 4.0)
    expected = reference_model.forward(model.tensors, model.sizes, TOKENS, rope_factors=factors)
    assert_close(engine_for(model).forward(TOKENS, last_only=False), expected, EXACT)


# ---- however the tokens are fed ------------------------------------------------------------------


@pytest.mark.parametrize(
    "cuts",
    [list(range(1, 70)), [1], [69], [31, 32, 33], [40, 41, 42]],
    ids=["token by token", "first alone", "last alone", "around a batch", "prompt, then tokens"],
)
def test_logits_do_not_depend_on_how_tokens_are_fed(tmp_path, engine_for, cuts):
    model = write_tiny_model(tmp_path)
    expected = reference_model.forward(model.tensors, model.sizes, TOKENS)
    engine = engine_for(model)
    parts = [TOKENS[start:end] for start, end in zip([0, *cuts], [*cuts, 70], strict=True)]
    logits = np.concatenate([engine.forward(part, last_only=False) for part in parts])
    assert engine.position == 70
    assert_close(logits, expected, EXACT)


def test_only_the_last_rows_logits_come_unless_all_are_asked_for(tmp_path, engine_for):
    engine = engine_for(write_tiny_model(tmp_path))
    every = engine.forward(TOKENS, last_only=False)
    engine.reset()
    last = engine.forward(TOKENS)
    assert every.shape == (70, 268)
    assert last.shape == (268,)
    np.testing.assert_allclose(last, every[-1], rtol=1e-4, atol=1e-5)


def test_logits_stay_the_callers_after_the_next_forward(tmp_path, engine_for):
    engine = engine_for(write_tiny_model(tmp_path))
    first = engine.forward([1, 2, 3])
    before = first.copy()
    engine.forward([4])
    np.testing.assert_array_equal(first, before)


def test_reset_forgets_all_tokens(tmp_path, engine_for):
    engine = engine_for(write_tiny_model(tmp_path))
    first = engine.forward(TOKENS)
    engine.reset()
    assert engine.position == 0
    np.testing.assert_array_equal(engine.forward(TOKENS), first)


def test_the_context_can_be_filled_to_its_last_token(tmp_path, engine_for):
    model = write_tiny_model(tmp_path)
    engine = engine_for(model, context=70)
    expected = reference_model.forward(model.tensors, model.sizes, TOKENS)
    assert_close(engine.forward(TOKENS), expected[-1], EXACT)
    with pytest.raises(ValueError, match=r"1 tokens do not fit: 70 of the context's 70 are used"):
        engine.forward([1])
    assert engine.position == 70


def test_decoding_allocates_nothing_that_grows_with_the_model(tmp_path):
    require_cpp()  # NumPy widens weights as it goes: it allocates blocks of 1 MB, again and again
    sizes = Sizes(hidden=256, ffn=512, n_layers=6)
    model = write_tiny_model(tmp_path, sizes=sizes)
    with LayerWiseInferenceEngine(model.path, backend="cpp") as engine:
        engine.forward(TOKENS)
        with traced_memory() as traced:
            for token in range(10):
                engine.forward([token])
    assert traced.peak < 16 * 1024  # the logits, 1 kB, the rope table, and Python's small objects


# ---- what is refused -----------------------------------------------------------------------------


@pytest.fixture
def engine(tmp_path):
    with LayerWiseInferenceEngine(write_tiny_model(tmp_path).path, backend="numpy") as engine:
        yield engine


@pytest.mark.parametrize("token", [-1, 268, 2**40])
def test_a_token_outside_the_vocabulary_is_refused(engine, token):
    with pytest.raises(ValueError, match=f"token {token} is not in the vocabulary; .* 0 to 267"):
        engine.forward([1, token])
    assert engine.position == 0


def test_no_tokens_and_tokens_that_are_not_integers_are_refused(engine):
    with pytest.raises(ValueError, match=r"expected \[n\], n at least 1"):
        engine.forward([])
    with pytest.raises(TypeError, match="tokens are float64; expected integers"):
        engine.forward([1.5])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backend": "cuda"}, "backend is 'cuda'; expected 'auto', 'cpp' or 'numpy'"),
        ({"kv_type": "q8"}, "kv_type is 'q8'; expected 'f32' or 'f16' or 'q8_0'"),
        ({"activations": "q4"}, "activations is 'q4'; expected 'auto' or 'q8' or 'q16' or 'f32'"),
        ({"batch_size": 0}, "batch_size is 0; expected at least 1"),
        ({"context": 0}, "context is 0; expected at least 1"),
        ({"context": 97}, "context is 97; tiny allows at most 96 tokens"),
        ({"kv_type": "q8_0"}, "keeps blocks of 32 values, and this model's heads have 16"),
        ({"threads": 0}, "threads is 0; expected at least 1"),
        ({"decode_threads": 0}, "decode_threads is 0; expected at least 1"),
    ],
)
def test_an_argument_that_makes_no_sense_is_refused_by_name(tmp_path, settings, message):
    model = write_tiny_model(tmp_path)
    with pytest.raises(ValueError, match=message):
        LayerWiseInferenceEngine(model.path, **({"backend": "numpy"} | settings))


def test_a_missing_file_is_an_error_with_its_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.gguf"):
        LayerWiseInferenceEngine(tmp_path / "none.gguf")


def test_decode_threads_are_for_single_tokens_only(tmp_path, monkeypatch):
    require_cpp()
    model = write_tiny_model(tmp_path)
    with LayerWiseInferenceEngine(model.path, backend="cpp", decode_threads=1) as engine:
        asked = []
        decoder = engine._model.decoder
        for executor, method in (
            (decoder._embed, "run"),
            (decoder._layers[0], "run_layers"),
            (decoder._head, "run"),
        ):
            run = getattr(executor, method)

            def note(*arguments, threads=0, run=run):
                asked.append(threads)
                run(*arguments, threads=threads)

            monkeypatch.setattr(executor, method, note)
        engine.forward([1, 2, 3])
        prefill, asked[:] = asked.copy(), []
        engine.forward([4])
    assert prefill == [0] * 3  # embed, the layers, head: all threads
    assert asked == [1] * 3


def test_threads_on_numpy_are_a_warning_not_a_silence(tmp_path, caplog):
    LayerWiseInferenceEngine(write_tiny_model(tmp_path).path, backend="numpy", threads=1).close()
    assert "OPENBLAS_NUM_THREADS" in caplog.text


def test_decode_threads_on_numpy_are_a_warning_not_a_silence(tmp_path, caplog):
    model = write_tiny_model(tmp_path)
    LayerWiseInferenceEngine(model.path, backend="numpy", decode_threads=1).close()
    assert "decode_threads=1 changes nothing" in caplog.text


# ---- context, memory, life ----------------------------------------------------------------------


def test_the_context_is_the_models_up_to_4096_which_the_log_has_in_its_details(tmp_path, caplog):
    caplog.set_level("DEBUG", "airllm")
    for allowed, expected in ((96, 96), (8192, 4096)):
        model = write_tiny_model(tmp_path, metadata={"llama.context_length": allowed})
        with LayerWiseInferenceEngine(model.path, backend="numpy") as engine:
            assert engine.context == expected
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
        ("DEBUG", "context of 4096 tokens; the model allows 8192")
    ]


def test_a_long_context_takes_memory_only_as_it_fills(tmp_path):
    model = write_tiny_model(tmp_path, metadata={"llama.context_length": 2**20})
    with LayerWiseInferenceEngine(model.path, backend="numpy", context=2**20) as engine:
        page_bytes = 3 * 2 * 2 * 64 * 16 * 2  # layers, K and V, KV heads, tokens, dims, f16
        before = engine.memory_usage()["resident"]
        engine.forward([1, 2, 3])
        usage = engine.memory_usage()
    assert usage["kv_cache"] == page_bytes
    assert usage["resident"] - before < 2 * 2**20


def test_memory_usage_counts_weights_and_buffers(engine):
    usage = engine.memory_usage()
    assert usage["weights"] == sum(
        tensor.nbytes for tensor in engine._model.planned.file.tensors.values()
    )
    assert usage["buffers"] > 0
    assert usage["resident"] > usage["weights"]


def test_loading_reports_each_layer(tmp_path):
    calls = []
    LayerWiseInferenceEngine(
        write_tiny_model(tmp_path).path,
        backend="numpy",
        on_progress=lambda done, total: calls.append((done, total)),
    ).close()
    assert calls == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("n_layers", "n_bytes", "wanted"), [(30, 60 << 20, 30), (32, 4 << 30, 2), (80, 40 << 30, 1)]
)
def test_a_call_takes_layers_of_a_quarter_of_a_gigabyte_so_that_ctrl_c_is_soon_noticed(
    n_layers, n_bytes, wanted
):
    assert min(n_layers, layers_at_once(n_layers, n_bytes)) == wanted


def test_of_experts_only_those_that_a_token_uses_count_for_that(tmp_path):
    with LayerWiseInferenceEngine(write_family_model(tmp_path, "qwen3moe")) as engine:
        weights = engine._model.decoder.weights
        tensors = engine._model.planned.file.tensors.values()
        used, n_experts = engine.config.n_experts_used, engine.config.n_experts
        experts = sum(tensor.nbytes for tensor in tensors if "_exps." in tensor.name)
        read = weights.nbytes - experts + experts * used / n_experts
        assert experts > weights.nbytes / 4
        assert weights.layers_at_once == layers_at_once(8, round(read))


@pytest.mark.parametrize("last_only", [True, False])
def test_evaluation_reports_each_layer_of_each_batch(tmp_path, last_only):
    calls = []
    with LayerWiseInferenceEngine(
        write_tiny_model(tmp_path).path, backend="numpy", batch_size=4
    ) as engine:
        engine.forward(TOKENS[:9], last_only=last_only, on_progress=lambda *now: calls.append(now))
    assert calls == [(done, 9) for done in range(1, 10)]  # three batches through three layers


@pytest.mark.parametrize("call", ["forward", "embed"])
@pytest.mark.parametrize("name", ["numpy", "cpp"])
def test_a_file_that_changes_underneath_is_an_error_not_a_crash(tmp_path, name, call):
    if name == "cpp":
        require_cpp()
    model = write_tiny_model(tmp_path)
    with LayerWiseInferenceEngine(model.path, backend=name) as engine:
        engine.forward([1])
        with model.path.open("r+b") as file:
            file.truncate(4096)
        with pytest.raises(FormatError, match=r"tiny\.gguf: the file was changed while"):
            getattr(engine, call)([2])


def truncate_at(model, step):
    """A callback for the progress of loading or evaluation: another program writes the file."""

    def on_progress(done, total):
        if done == step:
            with model.path.open("r+b") as file:
                file.truncate(4096)

    return on_progress


@pytest.mark.parametrize("name", ["numpy", "cpp"])
@pytest.mark.parametrize("layer", [1, 3])
def test_a_file_that_changes_while_it_is_loaded_is_an_error_not_a_crash(tmp_path, name, layer):
    if name == "cpp":
        require_cpp()
    model = write_tiny_model(tmp_path)
    with pytest.raises(FormatError, match=r"tiny\.gguf: the file was changed while"):
        LayerWiseInferenceEngine(model.path, backend=name, on_progress=truncate_at(model, layer))


@pytest.mark.parametrize("layer", [1, 3])
def test_a_file_that_changes_while_numpy_reads_its_layers_is_an_error_not_a_crash(tmp_path, layer):
    model = write_tiny_model(tmp_path)
    with (
        LayerWiseInferenceEngine(model.path, backend="numpy") as engine,
        pytest.raises(FormatError, match=r"tiny\.gguf: the file was changed while"),
    ):
        engine.forward([1, 2], on_progress=truncate_at(model, layer))


def test_the_cpp_backend_needs_no_file_for_layers_that_it_has_packed(tmp_path):
    require_cpp()
    model = write_tiny_model(tmp_path)
    with LayerWiseInferenceEngine(model.path, backend="cpp") as engine:
        whole = engine.forward([1, 2])
        engine.reset()
        assert (engine.forward([1, 2], on_progress=truncate_at(model, 1)) == whole).all()


def test_a_file_that_is_deleted_underneath_does_no_harm(tmp_path):
    model = write_tiny_model(tmp_path)
    with LayerWiseInferenceEngine(model.path, backend="numpy") as engine:
        model.path.unlink()
        assert np.isfinite(engine.forward([1, 2])).all()


def test_a_closed_engine_says_so_and_closing_twice_is_fine(engine):
    engine.close()
    engine.close()
    with pytest.raises(RuntimeError, match="the engine is closed"):
        engine.forward([1])
    assert engine.memory_usage()["weights"] == 0


def test_a_second_thread_gets_an_error_and_the_first_goes_on(engine, monkeypatch):
    inside, go_on = threading.Event(), threading.Event()
    run_layers = engine._model.decoder._run_layers

    def wait_inside(*batch):
        inside.set()
        assert go_on.wait(10)
        run_layers(*batch)

    monkeypatch.setattr(engine._model.decoder, "_run_layers", wait_inside)
    first = threading.Thread(target=engine.forward, args=([1, 2, 3],))
    first.start()
    assert inside.wait(10)
    with pytest.raises(RuntimeError, match="the engine is busy"):
        engine.forward([1])
    go_on.set()
    first.join()
    assert engine.position == 3
