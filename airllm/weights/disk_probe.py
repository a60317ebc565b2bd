"""Measures how fast the disk reads a model's file: it streams for a fraction of a second."""

import itertools
import time
from collections.abc import Iterator

from airllm.backends import Backend
from airllm.formats.model_file import ModelFile
from airllm.weights.residency import READ_BYTES, READ_DEPTH

SECTION_BYTES = READ_DEPTH * READ_BYTES
PROBE_SECONDS = 0.3


def disk_bytes_per_second(
    gguf: ModelFile, backend: Backend, seconds: float = PROBE_SECONDS
) -> float:
    """Reads from the file's end backwards, because the page cache most often holds its beginning.
    OSError if the file cannot be read."""
    memory = backend.memory(2 * SECTION_BYTES)
    targets = [(memory, 0), (memory, SECTION_BYTES)]
    files = [(part.descriptor, str(part.path)) for part in gguf.parts]
    sections = [[(file, at, n, targets)] for file, at, n in itertools.islice(_pieces(gguf), 1024)]
    stream = backend.stream(files, sections, endless=False)
    start, n_bytes = time.perf_counter(), 0
    try:
        for _, _, n, _ in (section[0] for section in sections):
            stream.take()
            stream.release()
            n_bytes += n
            if time.perf_counter() - start > seconds:
                break
        return n_bytes / (time.perf_counter() - start)
    finally:
        stream.close()


def _pieces(gguf: ModelFile) -> Iterator[tuple[int, int, int]]:
    """File, offset and bytes of the pieces to read, from the end of the last file backwards."""
    for file, part in reversed(list(enumerate(gguf.parts))):
        for at in range(max(part.size - SECTION_BYTES, 0), -1, -SECTION_BYTES):
            yield file, at, min(SECTION_BYTES, part.size - at)
