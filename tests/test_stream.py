"""The extension's stream from Python: where bytes go, what is refused, and what Ctrl-C does.

What the disk may do wrong is in tests/cpp/test_stream.cpp.
"""

import ctypes
import errno
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from python_lock import lets_others_run
from subprocess_python import run_python

from airllm.backends.plain_stream import PlainStream


@pytest.fixture
def content() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, 3_000_000, np.uint8)


@pytest.fixture
def descriptor(tmp_path: Path, content: np.ndarray) -> Any:
    path = tmp_path / "file"
    path.write_bytes(content.tobytes())
    number = os.open(path, os.O_RDWR)
    yield number
    os.close(number)


def opened(stream_class: type, descriptor: int, memory: Any, **options: Any) -> Any:
    """Three sections of a million bytes, in turn in the two halves of `memory`."""
    places = [(memory, 0), (memory, 1_000_000)]
    sections = [[(0, at, 1_000_000, places)] for at in (0, 1_000_000, 2_000_000)]
    return stream_class([(descriptor, "the file")], sections, **options)


@pytest.mark.parametrize("options", [{}, {"io": "threads"}, {"direct": False}, {"depth": 1}])
def test_bytes_come_in_order_into_the_slots(
    cpp: ModuleType, descriptor: int, content: np.ndarray, options: dict[str, Any]
) -> None:
    memory = cpp.Memory(2_000_000)
    stream, shown = (
        opened(cpp.Stream, descriptor, memory, **options),
        np.frombuffer(memory, np.uint8),
    )
    for turn in range(7):
        section, slot = stream.take()
        assert (section, slot) == (turn % 3, turn % 2)
        found = shown[slot * 1_000_000 :][:1_000_000]
        np.testing.assert_array_equal(found, content[section * 1_000_000 :][:1_000_000])
        stream.release()
    stats = stream.stats()
    assert stats["bytes_taken"] == 7_000_000
    assert stats["io"] == "threads" if options.get("io") else stats["io"] in ("io_uring", "threads")
    assert stats["direct"] in ((False,) if options.get("direct") is False else (True, False))
    stream.close()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="io_uring is Linux's")
def test_io_uring_reads_where_the_kernel_grants_it(cpp: ModuleType, descriptor: int) -> None:
    parameters = np.zeros(30, np.uint32)  # struct io_uring_params: features is number 5
    ring = ctypes.CDLL(None).syscall(425, 11, parameters.ctypes.data_as(ctypes.c_void_p))
    if ring < 0 or parameters[5] & 0b1001 != 0b1001:
        pytest.skip("no io_uring as of Linux 5.6")
    os.close(ring)
    assert opened(cpp.Stream, descriptor, cpp.Memory(2_000_000)).stats()["io"] == "io_uring"


def test_the_plain_stream_gives_the_same_bytes_errors_and_statistics(
    cpp: ModuleType, descriptor: int, content: np.ndarray
) -> None:
    memory = np.zeros(2_000_000, np.uint8)
    stream = opened(PlainStream, descriptor, memory)
    for turn in range(4):
        section, slot = stream.take()
        assert (section, slot) == (turn % 3, turn % 2)
        found = memory[slot * 1_000_000 :][:1_000_000]
        np.testing.assert_array_equal(found, content[section * 1_000_000 :][:1_000_000])
        stream.release()
    other = opened(cpp.Stream, descriptor, cpp.Memory(2_000_000))
    assert stream.stats().keys() == other.stats().keys()


@pytest.mark.parametrize("type", ["f32", "f16", "q8_0", "q4_1", "q4_k", "mxfp4"])
@pytest.mark.parametrize("piece_bytes", [1 << 20, 5000])
def test_a_matrix_is_packed_on_the_way_as_it_is_from_memory(
    cpp: ModuleType, tmp_path: Path, type: str, piece_bytes: int
) -> None:
    n, k = 100, 512  # rows that end within a group
    data = np.random.default_rng(2).integers(0, 100, n * cpp_row_bytes(type, k), np.uint8)
    path = tmp_path / "matrix"
    path.write_bytes(b"before" + data.tobytes())
    expected = cpp.PackedMatrix(data, type, (n, k))
    assert cpp.packed_bytes(type, (n, k)) == expected.nbytes
    room = cpp.packed_room(cpp.Memory(expected.nbytes + 128), 128, type, (n, k))
    with path.open("rb") as file:
        stream = cpp.Stream(
            [(file.fileno(), "f")], [[(0, 6, data.nbytes, [room])]], piece_bytes=piece_bytes
        )
    stream.take()
    np.testing.assert_array_equal(room.dequantize(), expected.dequantize())


def cpp_row_bytes(type: str, k: int) -> int:
    from airllm.numpy_ops.quants import row_bytes

    return row_bytes(type, k)


@pytest.mark.parametrize("stream_class", ["cpp", "plain"])
def test_a_file_that_ends_before_its_range_names_file_and_offset(
    cpp: ModuleType, descriptor: int, stream_class: str
) -> None:
    os.ftruncate(descriptor, 1_500_000)
    memory = cpp.Memory(2_000_000) if stream_class == "cpp" else np.zeros(2_000_000, np.uint8)
    stream = opened(cpp.Stream if stream_class == "cpp" else PlainStream, descriptor, memory)
    stream.take()
    stream.release()
    with pytest.raises(OSError, match=r"the file ends at 1500000, before the end of .* offset 1"):
        stream.take()


@pytest.mark.parametrize("stream_class", ["cpp", "plain"])
def test_a_file_that_is_written_to_is_refused(
    cpp: ModuleType, descriptor: int, stream_class: str
) -> None:
    memory = cpp.Memory(2_000_000) if stream_class == "cpp" else np.zeros(2_000_000, np.uint8)
    stream = opened(cpp.Stream if stream_class == "cpp" else PlainStream, descriptor, memory)
    stream.take()
    stream.release()
    os.utime(descriptor, ns=(1, 1))
    with pytest.raises(OSError, match="changed while it was read") as refusal:
        stream.take()
    assert (refusal.value.errno, refusal.value.filename) == (errno.ESTALE, "the file")


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no /proc")
@pytest.mark.parametrize("io", ["auto", "threads"])
def test_an_input_output_error_is_an_oserror_with_file_and_offset(cpp: ModuleType, io: str) -> None:
    """Linux answers EIO to whoever reads a process's memory where it has none."""
    with Path("/proc/self/mem").open("rb") as file:
        target = [(cpp.Memory(4096), 0)]
        stream = cpp.Stream([(file.fileno(), "memory")], [[(0, 4096, 4096, target)]], io=io)
        with pytest.raises(OSError, match="4096 bytes at offset 4096") as failure:
            stream.take()
    assert (failure.value.errno, failure.value.filename) == (errno.EIO, "memory")


# The signal comes when take() has waited in vain: before, Python itself would see it.
STALLS = """
import os, signal, sys, threading, tensor_ops_cpp as t
signal.signal(signal.SIGINT, signal.default_int_handler)  # also where a shell ignores it
reading, writing = os.pipe()
stream = t.Stream([(reading, "pipe")], [[(0, 0, 4096, [(t.Memory(4096), 0)])]], direct=False)
if stream.stats()["io"] != "io_uring":
    sys.exit(77)

def interrupt():
    while stream.stats()["waited_for_disk_seconds"] == 0:
        pass
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=interrupt).start()
try:
    stream.take()
except KeyboardInterrupt:
    stream.close()
    print("interrupted")
"""


def test_ctrl_c_ends_the_wait_for_a_disk_that_stalls(cpp: ModuleType) -> None:
    """A pipe that nobody writes to is a disk that does not answer."""
    done = run_python(STALLS, timeout=30)  # measured: 0.3 s
    if done.returncode == 77:
        pytest.skip("no io_uring here, and without it pipes cannot be read at an offset")
    assert (done.returncode, done.stdout) == (0, "interrupted\n")


def test_other_python_threads_run_while_a_stream_closes(cpp: ModuleType, descriptor: int) -> None:
    """Closing waits for the reads that are under way."""
    memory = cpp.Memory(2_000_000)

    def closing_lets_others_run() -> bool:
        return lets_others_run(opened(cpp.Stream, descriptor, memory).close)

    assert any(closing_lets_others_run() for _ in range(200))


@pytest.mark.parametrize("call", ["release", "stats", "close"])
def test_a_child_of_fork_is_told_to_open_its_own(
    cpp: ModuleType, descriptor: int, call: str
) -> None:
    """It would wait for ever where a thread that it does not have holds a lock.

    A close says nothing, and the parent's stream goes on.
    """
    stream = opened(cpp.Stream, descriptor, cpp.Memory(2_000_000))
    stream.take()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            getattr(stream, call)()
        except RuntimeError as error:
            os.write(writing, str(error).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as said:
        assert (b"before fork()" in said.read()) == (call != "close")
    assert os.waitpid(child, 0)[1] == 0
    for expected in ((1, 1), (2, 0), (0, 1)):
        stream.release()
        assert stream.take() == expected


def test_arguments_that_do_not_fit_together_are_refused(cpp: ModuleType, descriptor: int) -> None:
    memory = cpp.Memory(1000)
    room = cpp.packed_room(cpp.Memory(4096), 0, "f32", (1, 4))

    def refused(error: type[Exception], words: str, *ranges: Any, **options: Any) -> None:
        with pytest.raises(error, match=words):
            cpp.Stream([(descriptor, "file")], [list(ranges)], **options)

    refused(ValueError, "does not fit at 1 of a Memory of 1000", (0, 0, 1000, [(memory, 1)]))
    refused(ValueError, "does not fit at 1001 of a Memory of 1000", (0, 0, 10, [(memory, 1001)]))
    refused(ValueError, "a range has 15 bytes", (0, 0, 15, [room]))
    refused(ValueError, "a range makes no sense", (1, 0, 10, [(memory, 0)]))
    refused(ValueError, 'Stream: io is "fast"', (0, 0, 10, [(memory, 0)]), io="fast")
    refused(ValueError, "depth", (0, 0, 10, [(memory, 0)]), depth=0)
    refused(TypeError, "not as expected", (0, 0, 10, [memory]))
    cpp.Stream([(descriptor, "file")], [[(0, 0, 0, [(memory, 1000)]), (0, 0, 1000, [(memory, 0)])]])
    with pytest.raises(OSError, match="file"):
        cpp.Stream([(-1, "file")], [[(0, 0, 10, [(memory, 0)])]])
    for shape in ((-1, 4), (4, 2**31)):
        with pytest.raises(ValueError, match="packed_bytes: shape is out of range"):
            cpp.packed_bytes("f32", shape)
    assert cpp.packed_bytes("f32", (0, 2**31 - 1)) == 0
    with pytest.raises(ValueError, match="does not fit at 64 of 128 bytes"):
        cpp.packed_room(cpp.Memory(128), 64, "f32", (32, 4))
    with pytest.raises(ValueError, match="does not fit at 32 of 4096 bytes"):
        cpp.packed_room(cpp.Memory(4096), 32, "f32", (1, 4))  # vectors are loaded aligned


def test_a_closed_stream_and_a_section_that_is_held_are_said_so(
    cpp: ModuleType, descriptor: int
) -> None:
    stream = opened(cpp.Stream, descriptor, cpp.Memory(2_000_000), endless=False)
    stream.take()
    with pytest.raises(RuntimeError, match="not released"):
        stream.take()
    stream.close()
    stream.release()
    with pytest.raises(RuntimeError, match="closed"):
        stream.take()
