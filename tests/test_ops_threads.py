"""Operations on several threads: the pool's size changes no result, several callers do not disturb
each other, and a forked child can go on."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from arrays import normal
from extension import require_cpp
from python_lock import lets_others_run
from subprocess_python import run_python


@pytest.fixture
def cpp():
    """The extension; its number of threads is put back afterwards."""
    extension = require_cpp()
    before = extension.get_num_threads()
    yield extension
    extension.set_num_threads(before)


def work(ops):
    """The results of every operation that is spread over threads."""
    x, gate = normal((70, 320)), normal((70, 320), seed=1)
    w = ops.PackedMatrix(ops.quantize(normal((130, 320), seed=2), "q4_1"), "q4_1", (130, 320))
    q, kv = normal((70, 6, 32), seed=3), normal((2, 90, 32), seed=4)
    long = normal((2, 5000, 32), seed=7)  # its positions are divided, too
    return {
        "silu": ops.silu(x),
        "swiglu": ops.swiglu(gate, x),
        "rms_norm": ops.rms_norm(x, gate[0]),
        "softmax": ops.softmax(x),
        "rope": ops.rope(q, np.arange(70, dtype=np.int32)),
        "matmul": ops.matmul(x, normal((320, 150), seed=5)),
        "matmul_one_row": ops.matmul(x[:1], normal((320, 3000), seed=8)),
        "linear_float": ops.linear(x, normal((130, 320), seed=6)),
        **{f"linear_{kind}": ops.linear(x, w, activations=kind) for kind in ("q8", "q16", "f32")},
        "linear_one_token": ops.linear(x[:1], w),
        "attention": ops.attention(q, kv, kv),
        "attention_long": ops.attention(q[:1], long, long),
        "dequantize": w.dequantize(),
    }


def check_same(actual, expected):
    for name, result in actual.items():
        np.testing.assert_array_equal(result, expected[name], err_msg=name)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 1024])
def test_the_number_of_threads_is_what_was_set(cpp, n):
    cpp.set_num_threads(n)
    assert cpp.get_num_threads() == n


@pytest.mark.parametrize("n", [2, 3, 5])
def test_the_number_of_threads_changes_no_bit_of_a_result(cpp, n):
    cpp.set_num_threads(1)
    expected = work(cpp)
    cpp.set_num_threads(n)
    check_same(work(cpp), expected)


def test_more_threads_than_rows_are_no_problem(cpp):
    cpp.set_num_threads(16)
    x = normal((1, 5))
    np.testing.assert_array_equal(cpp.softmax(x), cpp.softmax(np.concatenate([x] * 40))[:1])


def test_several_python_threads_may_call_at_once(cpp):
    expected = work(cpp)
    with ThreadPoolExecutor(4) as pool:
        for result in pool.map(lambda _: work(cpp), range(8)):
            check_same(result, expected)


@pytest.mark.parametrize(
    "call",
    [
        lambda ops, w, x: ops.PackedMatrix(x, "f32", x.shape),
        lambda ops, w, x: w.dequantize(),
        lambda ops, w, x: ops.linear(x[:500], w),
        lambda ops, w, x: ops.matmul(x, x[:500].reshape(800, 500)),
        lambda ops, w, x: ops.softmax(x),
    ],
    ids=["pack", "dequantize", "linear", "matmul", "softmax"],
)
def test_other_python_threads_run_during_a_call(cpp, call):
    def any_call_lets_others_run(rows):
        x = normal((rows, 800))
        w = cpp.PackedMatrix(x, "f32", x.shape)
        return any(lets_others_run(lambda: call(cpp, w, x)) for _ in range(20))

    # Where all cores are busy, Linux lets a woken thread wait for 3 ms and more: then longer calls.
    assert any(any_call_lets_others_run(rows) for rows in (500, 4000, 32_000))


def test_the_environment_sets_the_number_of_threads():
    require_cpp()
    result = run_python(
        "import tensor_ops_cpp as ops; print(ops.get_num_threads(), ops.cpu_budget()['env'])",
        TENSOR_OPS_NUM_THREADS="3",
    )
    assert result.stdout.split() == ["3", "3"], result.stderr


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", "99999999999"])
def test_a_number_of_threads_that_is_none_is_an_error_that_names_the_variable(value):
    require_cpp()
    result = run_python(
        "import tensor_ops_cpp as ops; ops.get_num_threads()", TENSOR_OPS_NUM_THREADS=value
    )
    assert result.returncode == 1
    assert f"TENSOR_OPS_NUM_THREADS is '{value}'" in result.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_can_go_on():
    require_cpp()
    # A child has none of its parent's threads; waiting for them would hang it: hence the alarm.
    result = run_python(
        "import os, signal, numpy as np, tensor_ops_cpp as ops\n"
        "ops.set_num_threads(3)\n"
        "x = np.ones((300, 300), np.float32)\n"
        "before = ops.matmul(x, x)\n"
        "child = os.fork()\n"
        "signal.alarm(20)\n"
        "same = bool((ops.matmul(x, x) == before).all())\n"
        "if child == 0:\n"
        "    os._exit(0 if same else 1)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), same)\n"
    )
    assert result.returncode != -signal.SIGALRM
    assert result.stdout.split() == ["0", "True"], result.stderr
