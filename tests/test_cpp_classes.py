"""Objects of the extension's classes that no __init__ has made: each use of them is an error.

X.__new__(X) and a subclass that forgets super().__init__() give such objects. All classes of the
module are tried, with all that they define, in a process that must not end.
"""

import threading

import numpy as np
import pytest
from executor_graphs import GRAPH, matrix, ones
from extension import require_cpp
from subprocess_python import run_python

# What every object has, and what is there to make one.
EVERY_CLASS = """
import inspect
import tensor_ops_cpp

classes = [c for c in vars(tensor_ops_cpp).values() if inspect.isclass(c)]
HARMLESS = {"__init__", "__new__", "__doc__", "__module__", "__qualname__", "__annotations__"}

def refused(use):
    try:
        use()
    except TypeError as error:
        return "was never initialised" in str(error)
    return False
"""

USES = (
    EVERY_CLASS
    + """
for c in classes:
    for name, attribute in vars(c).items():
        if name in HARMLESS or "_pybind11_" in name:
            continue
        unmade = c.__new__(c)
        if isinstance(attribute, property):
            print(c.__name__, name, refused(lambda: getattr(unmade, name)))
            continue
        for n in range(9):  # one of these numbers of arguments is right
            try:
                getattr(unmade, name)(*[unmade] * n)
            except TypeError as error:
                if "was never initialised" in str(error):
                    print(c.__name__, name, True)
                    break
        else:
            print(c.__name__, name, False)
"""
)


def lines_of(code):
    """What the code prints; it must end by itself, and well."""
    done = run_python(code)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout[-2000:]
    return done.stdout.splitlines()


def test_no_member_of_a_class_takes_an_object_that_was_never_initialised():
    require_cpp()
    uses = dict(line.rsplit(maxsplit=1) for line in lines_of(USES))
    assert {use for use, refused in uses.items() if refused != "True"} == set()
    members = {"Executor run", "Executor nbytes", "Stream take", "PackedMatrix shape"}
    assert members | {"RawRows __repr__", "BoundWeights nbytes", "Memory nbytes"} <= uses.keys()


# Every place for an argument, of every function of the module and every method of whole objects.
ARGUMENTS = (
    EVERY_CLASS
    + """
import numpy as np

x = np.zeros((4, 4), np.float32)
whole = {
    "PackedMatrix": tensor_ops_cpp.PackedMatrix(x, "f32", (4, 4)),
    "RawRows": tensor_ops_cpp.RawRows(x, "f32", (4, 4)),
    "Memory": tensor_ops_cpp.Memory(64),
    "SequenceState": tensor_ops_cpp.SequenceState([], []),
    "Executor": tensor_ops_cpp.Executor([("x", 4, True)], ["w"], [], 4),
}
whole["BoundWeights"] = tensor_ops_cpp.Executor([], [], [], 4).bind({})
usual = [x, {}, (), 4, "f32"]
functions = [f for f in vars(tensor_ops_cpp).values() if inspect.isroutine(f)]
functions += [getattr(o, n) for o in whole.values() for n in dir(o) if not n.startswith("_")]
functions += [c for c in classes]
unmade = [c.__new__(c) for c in classes]
for function in filter(callable, functions):
    for bad in [*unmade, *([u] for u in unmade), *({"w": u, "x": u} for u in unmade)]:
        for n in range(1, 5):
            for place in range(n):
                for filling in usual:
                    arguments = [filling] * n
                    arguments[place] = bad
                    try:
                        function(*arguments)
                    except (TypeError, ValueError, RuntimeError, BufferError, MemoryError):
                        pass
print("alive")
"""
)


def test_no_function_takes_an_object_that_was_never_initialised_for_an_argument():
    require_cpp()
    assert lines_of(ARGUMENTS) == ["alive"]


NAMED = [
    ("linear", lambda cpp, m: cpp.linear(ones(1, 4), m)),
    ("linear_many", lambda cpp, m: cpp.linear_many(ones(1, 4), [m])),
    ("bind", lambda cpp, m: cpp.Executor(**GRAPH | {"weights": ["w"]}).bind({"w": m})),
    ("experts", lambda cpp, m: cpp.Executor(**GRAPH | {"weights": ["w"]}).bind({"w": [m]})),
    ("Stream", lambda cpp, m: cpp.Stream([], [[(0, 0, 4, [m])]])),
]


@pytest.mark.parametrize(("name", "call"), NAMED, ids=[name for name, _ in NAMED])
def test_the_error_names_the_class_and_the_way_out(cpp, name, call):
    unmade = cpp.PackedMatrix.__new__(cpp.PackedMatrix)
    with pytest.raises(TypeError, match=r"PackedMatrix: the object was never init.*Call the class"):
        call(cpp, unmade)


def test_memory_that_was_never_initialised_is_no_buffer(cpp):
    with pytest.raises((TypeError, BufferError)):
        memoryview(cpp.Memory.__new__(cpp.Memory))


def test_a_subclass_works_once_it_has_called_the_init_of_the_class(cpp):
    class Named(cpp.PackedMatrix):
        def __init__(self, name):
            self.name = name
            with pytest.raises(TypeError, match="Named: the object was never initialised"):
                _ = self.shape
            super().__init__(ones(2, 3), "f32", (2, 3))

    assert Named("a").shape == (2, 3)
    np.testing.assert_array_equal(cpp.linear(ones(1, 3), Named("b")), [[3, 3]])


def test_a_class_that_pretends_to_be_another_is_no_object_of_it(cpp):
    class Pretender:
        @property
        def __class__(self):
            return cpp.PackedMatrix

    with pytest.raises(TypeError):
        cpp.linear(ones(1, 4), Pretender())
    with pytest.raises(TypeError):
        cpp.linear_many(ones(1, 4), [Pretender()])


# ---- __init__ twice ------------------------------------------------------------------------------


def test_a_second_init_changes_nothing(cpp):
    w = matrix(cpp, 2, 4)
    w.__init__(ones(8, 8), "f32", (8, 8))
    assert w.shape == (2, 4)
    np.testing.assert_array_equal(w.dequantize(), ones(2, 4))


def test_an_init_in_the_middle_of_an_init_makes_one_object(cpp):
    class Rows:
        """A sequence that makes the executor for which it is read."""

        def __len__(self):
            return 2

        def __getitem__(self, i):
            if i == 0:
                executor.__init__(**GRAPH)
            return GRAPH["buffers"][i]

    executor = cpp.Executor.__new__(cpp.Executor)
    executor.__init__(**GRAPH | {"buffers": Rows()})
    y = np.zeros((1, 4), np.float32)
    executor.run(executor.bind({}), {"x": ones(1, 4), "y": y}, 1)
    assert (y == 2).all()


def test_inits_of_several_threads_make_one_object(cpp):
    data = ones(512, 1024)
    for _ in range(5):
        w = cpp.PackedMatrix.__new__(cpp.PackedMatrix)
        ready = threading.Barrier(4)

        def init(w=w, ready=ready):
            ready.wait()
            w.__init__(data, "f32", data.shape)

        threads = [threading.Thread(target=init) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert w.shape == data.shape
        assert (w.dequantize() == 1).all()
        del w
