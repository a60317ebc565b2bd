"""The C++ executor among threads and forks, and where the interpreter ends.

What may end the process is tried in a process of its own.
"""

import threading
import weakref

import numpy as np
import pytest
from executor_graphs import GRAPH, X4, matrix, ones
from extension import require_cpp
from subprocess_python import run_python
from tiny_model import write_tiny_model


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


USES = {
    "Executor.run": "executor.run(bound, buffers, 64)",
    "matmul": "tensor_ops_cpp.matmul(x, x)",
    "linear": "tensor_ops_cpp.linear(x, packed)",
    "attention": "tensor_ops_cpp.attention(heads, keys, keys)",
    "quantize": "tensor_ops_cpp.quantize(x, 'q8_0')",
    "PackedMatrix": "tensor_ops_cpp.PackedMatrix(x, 'f32', x.shape)",
    "dequantize": "packed.dequantize()",
    "Stream.take": "stream.take(); stream.release()",
}


@pytest.mark.parametrize("use", USES)
def test_the_interpreter_can_end_while_a_thread_computes(use):
    """A daemon thread that comes back from C++ finds no interpreter; that must not abort."""
    require_cpp()
    done = run_python(
        PRODUCT + "x = np.ones((256, 256), np.float32)\n"
        "heads, keys = np.ones((64, 4, 64), np.float32), np.ones((1, 64, 64), np.float32)\n"
        "packed = tensor_ops_cpp.PackedMatrix(x, 'f32', x.shape)\n"
        "memory, file = tensor_ops_cpp.Memory(64), os.open(sys.executable, os.O_RDONLY)\n"
        "section = [(0, 0, 64, [(memory, 0)])]\n"
        "stream = tensor_ops_cpp.Stream([(file, 'file')], [section])\n"
        "def use():\n"
        "    while True:\n"
        "        started.set()\n"
        f"        {USES[use]}\n"
        "threading.Thread(target=use, daemon=True).start()\n"
        "started.wait()\n"
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_interpreter_can_end_while_an_engine_generates(tmp_path):
    require_cpp()
    model = write_tiny_model(tmp_path)
    done = run_python(
        "import threading\n"
        "from airllm.layer_engine import LayerWiseInferenceEngine\n"
        f"engine = LayerWiseInferenceEngine({str(model.path)!r}, backend='cpp')\n"
        "started = threading.Event()\n"
        "def use():\n"
        "    while True:\n"
        "        engine.generate('hello world', max_new_tokens=8)\n"
        "        started.set()\n"
        "threading.Thread(target=use, daemon=True).start()\n"
        "started.wait()\n"
    )
    assert (done.returncode, done.stderr) == (0, "")


# ---- what other threads do to the arguments ------------------------------------------------------


def test_an_array_that_is_taken_out_of_the_dict_meanwhile_stays_until_the_run_ends(cpp):
    class Key:
        """Equal to "y"; whoever compares it takes x out of the dict."""

        def __hash__(self):
            return hash("y")

        def __eq__(self, other):
            buffers.pop("x", None)
            alive.append(x_before() is not None)
            return other == "y"

    executor, bound = wide_product(cpp)
    x, y, alive = ones(64, 512), ones(64, 2048), []
    buffers, x_before = {"x": x, Key(): y}, weakref.ref(x)
    del x
    executor.run(bound, buffers, 64)
    assert alive == [True]
    assert x_before() is None
    assert (y == 512).all()


def test_an_array_may_change_its_shape_while_a_later_argument_is_read(cpp):
    """What an argument's __float__ does to another argument: nothing is read beside the array."""

    class Eps:
        def __float__(self):
            x.shape = (1, 8)
            return 1e-6

    x, weight = ones(2, 4), ones(4)
    np.testing.assert_allclose(cpp.rms_norm(x, weight, Eps()), ones(2, 4), rtol=1e-5)


class Fresh:
    """A sequence that makes each item anew and keeps none."""

    def __init__(self, *items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        item = self.items[i]
        return tuple(np.copy(x) if isinstance(x, np.ndarray) else x for x in item)


def test_a_sequence_that_keeps_none_of_its_items_is_read_as_any_other(cpp):
    executor = cpp.Executor(Fresh(*X4), [], Fresh(*GRAPH["ops"]), 4)
    y = ones(1, 4)
    executor.run(executor.bind({}), {"x": ones(1, 4), "y": y}, 1)
    assert (y == 2).all()
    state = cpp.SequenceState([(16, 64)], Fresh(*[(None, 0, 0, None)] * 3))
    executor.run_layers([executor.bind({})] * 3, {"x": ones(1, 4), "y": y}, [(1, 0, state)])
    assert (y == 2).all()


def test_a_state_is_the_one_that_its_tuple_holds(cpp):
    """A subclass's __getitem__ may give another object, which nothing keeps alive in the run."""

    class Other(tuple):
        def __getitem__(self, i):
            return other if i == 2 else super().__getitem__(i)

    keys = (0, 0, 64, "f32", 1, 1, 1)  # 16 keys, and 16 values behind them
    own, other = (cpp.SequenceState([(16, 128)], [(keys, 0, 0, None)]) for _ in range(2))
    page = np.zeros(128, np.uint8)
    own.set_page(0, 0, page)
    other.set_page(0, 0, np.zeros(128, np.uint8))
    append = ("kv_append", ["x", "x"], None, [], {"n_kv_heads": 1, "head_dim": 1})
    executor = cpp.Executor([("x", 1, True)], [], [append], 1)
    executor.run_layers([executor.bind({})], {"x": ones(1, 1)}, [Other((1, 0, own))])
    assert page.view(np.float32)[[0, 16]].tolist() == [1, 1]


EMBED = {
    "buffers": [("ids", 1, True), ("x", 1, True), ("seen", 1, True), ("y", 32, True)],
    "weights": ["w"],
    "ops": [("add", ["x", "x"], "seen", [], {}), ("embed", ["ids"], "y", ["w"], {})],
    "max_tokens": 4,
}


def test_token_ids_count_as_they_were_when_they_were_checked(cpp):
    """An earlier op writes a float32 of 4 billion over them."""
    executor = cpp.Executor(**EMBED)
    rows = np.arange(3 * 32, dtype=np.float32).reshape(3, 32)
    bound = executor.bind({"w": cpp.RawRows(rows, "f32", (3, 32))})
    ids = np.array([2, 0, 1], np.int32)
    seen, y = ids.view(np.float32).reshape(3, 1), ones(3, 32)
    executor.run(bound, {"ids": ids, "x": ones(3, 1), "seen": seen, "y": y}, 3)
    np.testing.assert_array_equal(y, rows[[2, 0, 1]])
    assert (seen == 2).all()


def test_buffers_that_overlap_in_part_are_refused_if_one_is_written(cpp):
    executor = cpp.Executor(**GRAPH)
    both = ones(3, 4)
    with pytest.raises(ValueError, match="buffers 'x' and 'y' overlap, and 'y' is written"):
        executor.run(executor.bind({}), {"x": both[:2], "y": both[1:]}, 2)
    assert (both == 1).all()


@pytest.mark.parametrize(
    "change",
    [
        lambda state, page, memory: state.set_page(0, 0, page),
        lambda state, page, memory: state.keep_pages(0, 0, 1),
        lambda state, page, memory: state.set_recurrent(memory),
    ],
    ids=["set_page", "keep_pages", "set_recurrent"],
)
def test_a_state_does_not_change_during_a_run(cpp, change):
    """An op calls no Python, so the run is a long one on another thread."""
    width = 2048
    graph = {
        "buffers": [("x", width, True), ("y", width, True)],
        "weights": [],
        "ops": [("gelu", ["x"], "y", [], {})] * 2000,
        "max_tokens": 64,
    }
    executor = cpp.Executor(**graph)
    state = cpp.SequenceState([(16, 64)], [(None, 0, 2, None)])
    page, memory = np.zeros(64, np.uint8), np.zeros(2, np.float32)
    state.set_page(0, 0, page)
    state.set_recurrent(memory)
    buffers = {"x": ones(64, width), "y": ones(64, width)}
    run = threading.Thread(
        target=lambda: executor.run_layers([executor.bind({})], buffers, [(64, 0, state)])
    )
    refused = False
    run.start()
    while run.is_alive() and not refused:
        try:
            change(state, page, memory)
        except RuntimeError as error:
            refused = "a run uses it" in str(error)
    run.join()
    assert refused
    change(state, page, memory)
