"""The C++ executor among threads and forks, and where the interpreter ends.

What may end the process is tried in a process of its own.
"""

import threading

import numpy as np
import pytest
from executor_graphs import GRAPH, matrix, ones
from extension import require_cpp
from subprocess_python import run_python

# pybind11 allocates what was never initialised; CPython < 3.14 ends such threads by unwinding.
UNFIXED = pytest.mark.xfail(strict=True, reason="pybind11 and CPython end the process here")


def wide_product(cpp):
    """An executor whose run takes a millisecond or two, its weights, and its buffers."""
    executor = cpp.Executor(
        [("x", 512, True), ("y", 2048, True)], ["w"], [("linear", ["x"], "y", ["w"], {})], 64
    )
    return executor, executor.bind({"w": matrix(cpp, 2048, 512)})


def run_in_threads(work, n):
    """Runs `work` in n threads at once; what one of them raises is raised here."""
    errors = []

    def guarded():
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded) for _ in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_executors_of_several_threads_do_not_disturb_one_another(cpp):
    def work():
        executor, bound = wide_product(cpp)
        x, y = ones(64, 512), ones(64, 2048)
        for _ in range(20):
            y[:] = 0
            executor.run(bound, {"x": x, "y": y}, 64)
            assert (y == 512).all()

    run_in_threads(work, 4)


def test_an_executor_that_is_running_refuses_a_second_thread(cpp):
    executor, bound = wide_product(cpp)
    refused = []

    def work():
        x, y = ones(64, 512), ones(64, 2048)
        for _ in range(20):
            y[:] = 0
            try:
                executor.run(bound, {"x": x, "y": y}, 64)
            except RuntimeError as error:
                refused.append(str(error))
            else:
                assert (y == 512).all()

    run_in_threads(work, 4)
    assert set(refused) <= {
        "Executor.run: it runs on another thread already; use one executor for each thread"
    }


@pytest.mark.parametrize("threads", [0, 1, 3, 100, 2**31 - 1])
def test_any_number_of_threads_gives_the_same_result(cpp, threads):
    executor, bound = wide_product(cpp)
    y = np.zeros((64, 2048), np.float32)
    executor.run(bound, {"x": ones(64, 512), "y": y}, 64, threads=threads)
    assert (y == 512).all()


def test_a_negative_number_of_threads_is_refused(cpp):
    executor = cpp.Executor(**GRAPH)
    with pytest.raises(ValueError, match="threads is negative"):
        executor.run(executor.bind({}), {"x": ones(1, 4), "y": ones(1, 4)}, 1, threads=-1)


PRODUCT = """
import os, sys, threading, time, numpy as np, tensor_ops_cpp

def product():
    executor = tensor_ops_cpp.Executor(
        [("x", 512, True), ("y", 2048, True)], ["w"], [("linear", ["x"], "y", ["w"], {})], 64
    )
    w = np.ones((2048, 512), np.float32)
    bound = executor.bind({"w": tensor_ops_cpp.PackedMatrix(w, "f32", (2048, 512))})
    buffers = {"x": np.ones((64, 512), np.float32), "y": np.zeros((64, 2048), np.float32)}
    return executor, bound, buffers

executor, bound, buffers = product()
started = threading.Event()

def work(until):
    while not until():
        executor.run(bound, buffers, 64)
        started.set()
"""


def test_a_child_that_is_forked_in_the_middle_of_a_run_can_run_graphs_of_its_own():
    require_cpp()
    done = run_python(
        PRODUCT + "stop = []\n"
        "thread = threading.Thread(target=work, args=(lambda: stop,))\n"
        "thread.start()\n"
        "started.wait()\n"
        "for _ in range(5):\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        executor, bound, buffers = product()\n"
        "        executor.run(bound, buffers, 64)\n"
        "        os._exit(0 if (buffers['y'] == 512).all() else 1)\n"
        "    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
        "stop.append(True)\n"
        "thread.join()\n"
    )
    assert (done.returncode, done.stdout.split()) == (0, ["0"] * 5), done.stderr


@UNFIXED
@pytest.mark.parametrize(
    "use",
    [
        "executor.run(bound, {'x': x, 'y': x}, 128)",
        "tensor_ops_cpp.matmul(x, x)",
        "tensor_ops_cpp.linear(x, packed)",
    ],
)
def test_the_interpreter_can_end_while_a_thread_computes(use):
    """A daemon thread that comes back from C++ finds no interpreter; that must not abort."""
    require_cpp()
    done = run_python(
        "import threading, numpy as np, tensor_ops_cpp\n"
        "x = np.ones((128, 128), np.float32)\n"
        "packed = tensor_ops_cpp.PackedMatrix(x, 'f32', x.shape)\n"
        "executor = tensor_ops_cpp.Executor(\n"
        "    [('x', 128, True), ('y', 128, True)], [], [('add', ['x', 'x'], 'y', [], {})], 128)\n"
        "bound, started = executor.bind({}), threading.Event()\n"
        "def work():\n"
        "    while True:\n"
        f"        {use}\n"
        "        started.set()\n"
        "threading.Thread(target=work, daemon=True).start()\n"
        "started.wait()\n"
    )
    assert (done.returncode, done.stderr) == (0, "")


@UNFIXED
@pytest.mark.parametrize(
    "use", ["PackedMatrix.shape", "RawRows.shape", "Executor.nbytes", "PackedMatrix.__repr__()"]
)
def test_an_object_that_was_never_initialised_is_an_error(use):
    require_cpp()
    kind, attribute = use.split(".")
    done = run_python(
        f"import tensor_ops_cpp\nobject = tensor_ops_cpp.{kind}.__new__(tensor_ops_cpp.{kind})\n"
        f"try:\n    print(object.{attribute})\nexcept TypeError:\n    print('refused')\n"
    )
    assert (done.returncode, done.stdout) == (0, "refused\n")
