"""Compares a token's attention over pages of keys and values with contiguous rows.

    python benchmarks/compare_pages.py                        every shape, on 1 and on all threads
    python benchmarks/compare_pages.py --types f16 --lengths 4000 --threads 1 --rows 64,256
    python benchmarks/compare_pages.py --markdown             a table for the documentation

Both run as in a model of 16 layers: through the executor, with pages of the pool that sequences
take theirs from. Contiguous rows are the same memory as a single page that has room for them all:
[layer][keys, values][KV head][position][head_dim]. Four query heads share a KV head. In the cache,
the layers have the same keys and values; elsewhere, layers and sequences follow each other, so that
no cache holds them. The results are compared with float64, and with each other bit by bit.

The two take turns at every call, which reads the keys and values of a layer, or of several short
ones: about a millisecond, so that other programs disturb only some of the calls. A ratio is the
time of pages over that of contiguous rows, each the sum of the shortest times of all calls; the
median is that of all ratios of neighbouring calls.
Exit status 1, with the shape, if a result is wrong.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from typing import Any

import numpy as np
from common import machine, options, process, table, verify
from common.extension import cpp
from common.limits import beyond_caches
from common.timing import Call
from numpy.typing import NDArray

from airllm.backends import load_backend
from airllm.graph.builder import GraphBuilder
from airllm.graph.graph import Graph
from airllm.graph.state import KeysValues, LayerState
from airllm.state.layout import KVType, StateLayout
from airllm.state.pages import PagePool
from airllm.state.table import PAGE_ROWS

Floats = NDArray[np.float32]

N_LAYERS, GROUP = 16, 4
TOLERANCE = 2e-5
QUICK_BYTES = 1 << 20
CALL_BYTES = 8 << 20
LEAST_ROUNDS = 3
COLUMNS = table.Columns(
    **{"type": -5, "head_dim": 8, "KV heads": 8, "positions": 9, "memory": -6, "threads": 7},
    **{"page": 5, "best": 8, "contiguous": 10, "ratio": 6, "median": 6},
)


@dataclass(frozen=True)
class Shape:
    """length: positions, the last of which is the query's."""

    type: KVType
    head_dim: int
    n_kv_heads: int
    length: int
    cached: bool

    @property
    def layer_bytes(self) -> int:
        return self.layout.layers[1].keys.k_offset * self.length // PAGE_ROWS  # type: ignore[union-attr]

    @property
    def layout(self) -> StateLayout:
        keys = KeysValues(self.n_kv_heads, self.head_dim, self.head_dim)
        return StateLayout([LayerState(keys)] * N_LAYERS, self.type)


@dataclass(frozen=True)
class Row:
    """page_rows: positions of a page. best, contiguous: seconds of a layer, in the best samples.
    median: of the ratios of neighbouring samples."""

    shape: Shape
    threads: int
    page_rows: int
    best: float
    contiguous: float
    ratio: float
    median: float

    def cells(self) -> list[str]:
        shape = self.shape
        return [
            *(shape.type, str(shape.head_dim), str(shape.n_kv_heads), str(shape.length)),
            *("cache" if shape.cached else "RAM", str(self.threads), str(self.page_rows)),
            *(table.duration(self.best), table.duration(self.contiguous)),
            *(f"{self.ratio:.3f}", f"{self.median:.3f}"),
        ]


class Contexts:
    """Sequences with the same keys and values in all layers, in pages of page_rows positions."""

    def __init__(self, shape: Shape, kv: Floats, page_rows: int, n_layers: int, n: int) -> None:
        """kv: [2, length, n_kv_heads * head_dim]. n_layers: those that are used."""
        self.bound_layers, self._shape = n_layers, shape
        self._backend = load_backend("cpp")
        self._graph = _attention(shape)
        self._executor: Any = self._backend.executor(self._graph, 1)
        self._bound = [self._executor.bind({})] * n_layers
        layout, times = shape.layout, page_rows // PAGE_ROWS
        places = [layout.argument(layout.layers[0 if shape.cached else i]) for i in range(N_LAYERS)]
        layers = [_in_pages(keys, times) for (keys, *_) in places]
        tables = [(page_rows, times * layout.page_bytes[0])]
        pool = PagePool(self._backend.memory, [tables[0][1]])
        self._states = [self._backend.sequence_state(tables, layers) for _ in range(n)]
        for state in self._states:
            for index in range(-(-shape.length // page_rows)):
                state.set_page(0, index, pool.take(0).memory)
        graph = _append(shape)
        executor: Any = self._backend.executor(graph, shape.length)
        for state in self._states:
            buffers = dict(zip("kv", kv, strict=True))
            bound = [executor.bind({})] * n_layers
            executor.run_layers(bound, buffers, [(shape.length, 0, state)])

    def calls(self, q: Floats) -> list[Call]:
        """The attention of all layers of all sequences, in turn, some layers at a time."""
        buffers = {"q": q, "out": np.empty_like(q)}
        at_once = -(-CALL_BYTES // self._shape.layer_bytes)
        return [
            partial(self._run, buffers, self._bound[first : first + at_once], state, first)
            for state in self._states
            for first in range(0, self.bound_layers, at_once)
        ]

    def results(self, q: Floats) -> Iterator[Floats]:
        """Of each layer of each sequence."""
        for state, layer in product(self._states, range(self.bound_layers)):
            buffers = {"q": q, "out": np.empty_like(q)}
            self._run(buffers, self._bound[:1], state, layer)
            yield buffers["out"]

    def _run(self, buffers: dict[str, Floats], bound: list[Any], state: Any, first: int) -> None:
        self._executor.run_layers(bound, buffers, [(1, self._shape.length - 1, state)], first)


def _in_pages(keys: Any, times: int) -> Any:
    """A layer's argument, with pages that are `times` as long."""
    table_index, k_offset, v_offset, *rest = keys
    return (table_index, times * k_offset, times * v_offset, *rest), 0, 0, None


def _attention(shape: Shape) -> Graph:
    g = GraphBuilder("attention")
    n_heads = GROUP * shape.n_kv_heads
    q, out = (g.external(name, n_heads * shape.head_dim) for name in ("q", "out"))
    scale = shape.head_dim**-0.5
    g.attention(q, n_heads, shape.n_kv_heads, shape.head_dim, scale=scale, out=out)
    return g.build()


def _append(shape: Shape) -> Graph:
    g = GraphBuilder("append")
    k, v = (g.external(name, shape.n_kv_heads * shape.head_dim) for name in "kv")
    g.kv_append(k, v, shape.n_kv_heads, shape.head_dim)
    return g.build()


def _kept(type: KVType, x: Floats) -> NDArray[np.float64]:
    """The values as the cache keeps them."""
    if type == "f16":
        return x.astype(np.float16).astype(np.float64)
    if type == "q8_0":
        rows = x.reshape(-1, x.shape[-1])
        return cpp.dequantize(cpp.quantize(rows, type), type).reshape(x.shape).astype(np.float64)
    return x.astype(np.float64)


def _exact(shape: Shape, q: Floats, kv: Floats) -> NDArray[np.float64]:
    heads = shape.length, shape.n_kv_heads, shape.head_dim
    k, v = (_kept(shape.type, x).reshape(heads) for x in kv)
    queries = q.reshape(shape.n_kv_heads, GROUP, shape.head_dim).astype(np.float64)
    exact = np.empty(queries.shape)
    for head, query in enumerate(queries):
        scores = query @ k[:, head].T * shape.head_dim**-0.5
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        exact[head] = weights @ v[:, head] / weights.sum(axis=-1, keepdims=True)
    return exact.reshape(q.shape)


def compare(shape: Shape, page_rows: Sequence[int], seconds: float, nbytes: int) -> Iterator[Row]:
    """nbytes: of keys and values that are read before any of them are read again."""
    random = np.random.default_rng(0)
    width = shape.n_kv_heads * shape.head_dim
    q = random.standard_normal((1, GROUP * width), np.float32)
    kv = random.standard_normal((2, shape.length, width), np.float32)
    layers = N_LAYERS if shape.cached else min(N_LAYERS, -(-nbytes // shape.layer_bytes))
    n = 1 if shape.cached else -(-nbytes // (layers * shape.layer_bytes))
    whole = max(PAGE_ROWS, 1 << (shape.length - 1).bit_length())
    contexts = [Contexts(shape, kv, rows, layers, n) for rows in (whole, *page_rows)]
    first = next(contexts[0].results(q))
    verify.check("contiguous rows", first, _exact(shape, q, kv), TOLERANCE)
    for rows, context in zip((whole, *page_rows), contexts, strict=True):
        if not all(np.array_equal(first, result) for result in context.results(q)):
            raise verify.WrongResultError(f"pages of {rows} positions change the result")
    taken = _taken([context.calls(q) for context in contexts], seconds, shape.cached)
    contiguous, *others = taken.min(axis=0).sum(axis=1) / (layers * n)
    ratios = np.median(taken[:, 1:] / taken[:, :1], axis=(0, 2))
    for rows, best, median in zip(page_rows, others, ratios, strict=True):
        threads = cpp.get_num_threads()
        yield Row(shape, threads, rows, best, contiguous, best / contiguous, float(median))


def _taken(calls: Sequence[Sequence[Call]], seconds: float, cached: bool) -> NDArray[np.float64]:
    """The seconds of each call of each contender, in as many rounds as there is time for, but at
    least three: [rounds, contenders, calls]. cached: a call before each one brings its data in."""
    end, rounds = time.perf_counter() + seconds, []
    while time.perf_counter() < end or len(rounds) < LEAST_ROUNDS:
        taken = np.empty((len(calls), len(calls[0])))
        for index in np.ndindex(*taken.T.shape):
            call = calls[index[1]][index[0]]
            if cached:
                call()
            began = time.perf_counter()
            call()
            taken[index[::-1]] = time.perf_counter() - began
        rounds.append(taken)
    return np.array(rounds)


def measure(
    shapes: Sequence[Shape], page_rows: Sequence[int], seconds: float, nbytes: int
) -> Iterator[Row]:
    """Runs in a process of its own, whose environment has the number of threads."""
    for shape in shapes:
        try:
            yield from compare(shape, page_rows, seconds, nbytes)
        except verify.WrongResultError as error:
            raise process.FailedError(f"{shape}: {error}") from None


def main(arguments: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    nbytes = QUICK_BYTES if args.quick else beyond_caches()
    shapes = _shapes(args, nbytes)
    threads = args.threads or sorted({1, cpp.cpu_budget()["chosen"]})
    rows, quiet = list[Row](), args.json == "-" or args.markdown
    if not quiet:
        print(COLUMNS.line(COLUMNS.head), flush=True)
    work = shapes, args.rows, args.seconds, nbytes
    for row in (row for n in threads for row in process.iterate(measure, *work, threads=n)):
        rows.append(row)
        if not quiet:
            print(COLUMNS.line(row.cells()), flush=True)
    if args.markdown:
        print(_markdown(rows))
    if args.json:
        document = {"machine": machine.describe(), "results": [asdict(row) for row in rows]}
        options.write_json(args.json, document)
    return 0


def _shapes(args: Any, nbytes: int) -> list[Shape]:
    """Those that were asked for; in the cache only what fits there with room to spare."""
    asked = args.types, args.head_dims, args.kv_heads, args.lengths, args.memory
    shapes = [Shape(*four, memory == "cache") for *four, memory in product(*asked)]
    return [shape for shape in shapes if not shape.cached or 8 * shape.layer_bytes <= nbytes]


def _markdown(rows: Sequence[Row]) -> str:
    """The largest ratio of each type and length, over the widths and numbers of heads."""
    columns = sorted({(row.threads, not row.shape.cached) for row in rows})
    titles = [f"{table.in_threads(n)}, {'RAM' if ram else 'cache'}" for n, ram in columns]
    lines = []
    for type, length in dict.fromkeys((row.shape.type, row.shape.length) for row in rows):
        cells = []
        for n, ram in columns:
            place = type, length, n, not ram
            found = [
                row.ratio
                for row in rows
                if (row.shape.type, row.shape.length, row.threads, row.shape.cached) == place
            ]
            cells.append(f"{max(found):.2f}" if found else "")
        lines.append([f"{type.upper()}, {length:,} positions", *cells])
    return table.markdown(["keys and values", *titles], lines)


def _parser() -> options.Parser:
    parser = options.parser(__doc__)
    for flag, what, words in (
        ("--types", "of keys and values", ("f32", "f16", "q8_0")),
        ("--memory", "cache, RAM", ("cache", "RAM")),
    ):
        parser.add_argument(
            flag, type=partial(_among, words), default=words, metavar="NAME,...", help=what
        )
    for flag, what, numbers in (
        ("--head-dims", "of keys and values", (64, 128)),
        ("--kv-heads", "heads of keys and values", (2, 8)),
        ("--lengths", "positions", (500, 4000, 16000)),
        ("--rows", "positions of a page, powers of 2 from 64 on", (PAGE_ROWS,)),
        ("--threads", "default: 1 and all", None),
    ):
        parser.add_argument(flag, type=options.counts, default=numbers, metavar="N,...", help=what)
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="of timing for each row (default: %(default)s)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="less memory, to test that everything runs"
    )
    parser.add_argument("--markdown", action="store_true", help="a table for the documentation")
    options.add_json(parser)
    return parser


def _among(allowed: Sequence[str], text: str) -> tuple[str, ...]:
    words = options.words(text)
    unknown = [word for word in words if word not in allowed]
    if unknown or not words:
        raise argparse.ArgumentTypeError(f"{text!r}; expected some of {', '.join(allowed)}")
    return words


if __name__ == "__main__":
    process.run_script(main)
