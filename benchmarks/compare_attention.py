"""Compares attention through airllm.flash_attention with PyTorch's scaled_dot_product_attention.

    python benchmarks/compare_attention.py                every shape, on 1 and on all threads
    python benchmarks/compare_attention.py --prefill 512 --decode 8192 --types f16 --threads 1
    python benchmarks/compare_attention.py --markdown             a table for the documentation

Shapes are those of Llama 3 8B: 32 query heads, 8 KV heads, 128 elements. A prompt's attention is
causal, without a cache; decoding is one query over a cache, which comes from memory: calls cycle
through caches that no CPU cache holds. The layout "rows" is flash-attn's own, in which the heads of
a row lie side by side; in "heads", the rows of each head lie together, and flash-attn's arguments
are views. PyTorch has the heads' rows together in both, which it likes best. Of several ways to ask
it the fastest competes; `gqa` is the ratio to the plain way, with enable_gqa=True.

Results are compared with float64 first. The two take turns; ratios are those of the best samples.
share: of the read bandwidth for decoding, of the FMA peak for a prompt, each probed in this run.
Exit status 1 if a result is wrong.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from common import limits, machine, options, process, table, timing, verify
from common.extension import cpp
from common.timing import Call, Sampler
from numpy.typing import NDArray

from airllm import flash_attention

N_HEADS, N_KV_HEADS, HEAD_DIM = 32, 8, 128
GROUP = N_HEADS // N_KV_HEADS
DTYPES = {"f32": np.float32, "f16": np.float16}
# f16: of the result, which is rounded to it; PyTorch rounds the weights too.
TOLERANCE = {"f32": 2e-5, "f16": 5e-3}
CHECKED_QUERIES = 16
QUICK_BYTES = 1 << 20
COLUMNS = table.Columns(
    **{"work": -7, "positions": 9, "type": -4, "layout": -6, "threads": 7},
    **{"ours": 8, "torch": 8, "ratio": 6, "median": 6, "gqa": 6, "share": 6},
)

Array = NDArray[Any]
Layout = Literal["rows", "heads"]


@dataclass(frozen=True)
class Shape:
    work: Literal["prefill", "decode"]
    n: int
    type: str
    layout: Layout

    @property
    def kv_bytes(self) -> int:
        return 2 * self.n * N_KV_HEADS * HEAD_DIM * np.dtype(DTYPES[self.type]).itemsize

    @property
    def flops(self) -> float:
        """Of a prompt."""
        return 4.0 * N_HEADS * HEAD_DIM * self.n * (self.n + 1) / 2


@dataclass(frozen=True)
class Row:
    """ours, torch: seconds of the best sample; torch is None where it is not installed. median: of
    the ratios of neighbouring samples. gqa: the ratio to PyTorch with enable_gqa=True."""

    shape: Shape
    threads: int
    ours: float
    torch: float | None
    ratio: float | None
    median: float | None
    gqa: float | None
    share: float

    def cells(self) -> list[str]:
        shape, torch = self.shape, "-" if self.torch is None else table.duration(self.torch)
        ratios = ("-" if x is None else f"{x:.2f}" for x in (self.ratio, self.median, self.gqa))
        return [
            *(shape.work, str(shape.n), shape.type, shape.layout, str(self.threads)),
            *(table.duration(self.ours), torch, *ratios, f"{self.share:.0%}"),
        ]


def compare(shape: Shape, seconds: float, nbytes: int, limit: limits.Limits) -> Row:
    """nbytes: of caches that are read before any of them is read again."""
    random = np.random.default_rng(shape.n)
    dtype = DTYPES[shape.type]
    n_q = shape.n if shape.work == "prefill" else 1
    q = random.standard_normal((1, n_q, N_HEADS, HEAD_DIM), np.float32).astype(dtype)
    n_caches = 1 if shape.work == "prefill" else -(-nbytes // shape.kv_bytes)
    first = [_cache(random, shape) for _ in range(2)]
    caches = [first, *([x.copy() for x in first] for _ in range(n_caches - 1))]
    ours = [partial(_ours, shape, q, *(_flash(x, shape.layout) for x in kv)) for kv in caches]
    exact, chosen = _exact(q, *(_flash(x, shape.layout) for x in first))
    verify.check("airllm", ours[0]()[0, chosen].astype(np.float32), exact, TOLERANCE[shape.type])
    samplers = {"ours": Sampler(ours)}
    torch_calls = _torch_forms(shape, q, caches)
    if torch_calls:
        for form in torch_calls:
            result = form[0]().transpose(1, 2).reshape(q.shape).float().numpy()
            verify.check("torch", result[0, chosen], exact, TOLERANCE[shape.type])
        gqa, *others = map(Sampler, torch_calls)
        samplers |= {"gqa": gqa, "torch": min((gqa, *others), key=lambda each: each.seconds)}
    name: limits.Name = "read" if shape.work == "decode" else "multiply_add"
    work = shape.kv_bytes if shape.work == "decode" else shape.flops
    for _ in range(5):
        limit.rate(name)
    taken = timing.interleave(samplers, seconds, settle=limit.threads > 1)
    mine, theirs = taken["ours"], taken.get("torch")
    return Row(
        shape,
        limit.threads,
        mine.best,
        theirs and theirs.best,
        theirs and timing.ratio(theirs, mine),
        theirs and timing.median_ratio(theirs, mine),
        theirs and timing.ratio(taken["gqa"], mine),
        work / limit.best[name] / mine.best,
    )


def _cache(random: np.random.Generator, shape: Shape) -> Array:
    """[n][h_k][d] or [h_k][n][d]."""
    sizes = (shape.n, N_KV_HEADS) if shape.layout == "rows" else (N_KV_HEADS, shape.n)
    return random.standard_normal((*sizes, HEAD_DIM), np.float32).astype(DTYPES[shape.type])


def _flash(x: Array, layout: Layout) -> Array:
    """As flash-attn takes it, (1, n, h_k, d)."""
    return (x if layout == "rows" else x.swapaxes(0, 1))[None]


def _ours(shape: Shape, q: Array, k: Array, v: Array) -> Array:
    if shape.work == "prefill":
        out: Array = flash_attention.flash_attn_func(q, k, v, causal=True)
    else:
        out = flash_attention.flash_attn_with_kvcache(q, k, v, cache_seqlens=shape.n)
    return out


def _exact(q: Array, k: Array, v: Array) -> tuple[NDArray[np.float64], Array]:
    """Some of the queries' results, [queries][h][d], and which queries these are."""
    n_q, n_kv = q.shape[1], k.shape[1]
    chosen = np.unique(np.linspace(0, n_q - 1, CHECKED_QUERIES).astype(int))
    hidden = np.arange(n_kv) > chosen[:, None] + n_kv - n_q
    exact = np.empty((len(chosen), N_HEADS, HEAD_DIM))
    for head in range(N_HEADS):
        keys, values = (x[0, :, head // GROUP].astype(np.float64) for x in (k, v))
        scores = q[0, chosen, head].astype(np.float64) @ keys.T * HEAD_DIM**-0.5
        scores[hidden] = -np.inf
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        exact[:, head] = weights @ values / weights.sum(axis=1, keepdims=True)
    return exact, chosen


def _torch_forms(shape: Shape, q: Array, caches: Sequence[Sequence[Array]]) -> list[list[Call]]:
    """Ways to ask PyTorch, each for all caches; none where it is not installed. The first one is
    enable_gqa; the other for a prompt KV heads that are repeated beforehand, and for one query the
    heads of a group as queries of one head."""
    try:
        import torch
    except ImportError:
        return []
    attend: Callable[..., Any] = torch.nn.functional.scaled_dot_product_attention
    heads = torch.from_numpy(q).transpose(1, 2).contiguous()  # (1, h, n_q, d)
    kept = [
        [torch.from_numpy(_flash(x, shape.layout)).transpose(1, 2).contiguous() for x in kv]
        for kv in caches
    ]
    if shape.work == "prefill":
        shared = partial(attend, heads, *kept[0], is_causal=True, enable_gqa=True)
        repeated = [x.repeat_interleave(GROUP, 1) for x in kept[0]]
        return [[shared], [partial(attend, heads, *repeated, is_causal=True)]]
    groups = heads.reshape(1, N_KV_HEADS, GROUP, HEAD_DIM)
    return [
        [partial(attend, heads, k, v, enable_gqa=True) for k, v in kept],
        [partial(_of_groups, attend, groups, k, v) for k, v in kept],
    ]


def _of_groups(attend: Callable[..., Any], groups: Any, k: Any, v: Any) -> Any:
    return attend(groups, k, v).reshape(1, N_HEADS, 1, HEAD_DIM)


def measure(shapes: Sequence[Shape], seconds: float, nbytes: int) -> Iterator[Row]:
    """Runs in a process of its own, whose environment has the number of threads."""
    limit = limits.Limits(cpp.simd_level, cpp.get_num_threads(), nbytes)
    for shape in shapes:
        try:
            yield compare(shape, seconds, nbytes, limit)
        except verify.WrongResultError as error:
            raise process.FailedError(f"{shape}: {error}") from None


def main(arguments: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    nbytes = QUICK_BYTES if args.quick else limits.beyond_caches()
    layouts: tuple[Layout, ...] = ("rows", "heads")
    shapes = [Shape("prefill", n, type, "rows") for type in args.types for n in args.prefill]
    shapes += [
        Shape("decode", n, type, layout)
        for type in args.types
        for layout in layouts
        for n in args.decode
    ]
    rows, quiet = list[Row](), args.json == "-" or args.markdown
    if not quiet:
        print(COLUMNS.line(COLUMNS.head), flush=True)
    for threads in args.threads or sorted({1, cpp.cpu_budget()["chosen"]}):
        for row in process.iterate(measure, shapes, args.seconds, nbytes, threads=threads):
            rows.append(row)
            if not quiet:
                print(COLUMNS.line(row.cells()), flush=True)
    if args.markdown:
        print(_markdown(rows))
    if args.json:
        document = {"machine": machine.describe(), "results": [asdict(row) for row in rows]}
        options.write_json(args.json, document)
    return 0


def _markdown(rows: Sequence[Row]) -> str:
    head = ["work", "type, layout", "threads", "ours", "PyTorch", "ratio", "to enable_gqa", "share"]
    lines = []
    for row in rows:
        work, n, type, layout, threads, ours, torch, ratio, _, gqa, share = row.cells()
        shape = (f"{work}, {int(n):,}", f"{type}, {layout}", threads)
        lines.append([*shape, ours, torch, ratio, gqa, share])
    return table.markdown(head, lines)


def _parser() -> options.Parser:
    parser = options.parser(__doc__)
    for flag, what, numbers in (
        ("--prefill", "lengths of prompts", (512, 2048, 8192)),
        ("--decode", "lengths of caches", (2048, 8192, 32768)),
        ("--threads", "default: 1 and all", None),
    ):
        parser.add_argument(flag, type=options.counts, default=numbers, metavar="N,...", help=what)
    parser.add_argument("--types", type=options.words, default=("f32", "f16"), metavar="NAME,...")
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="of timing for each row (default: %(default)s)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="less memory, to test that everything runs"
    )
    parser.add_argument("--markdown", action="store_true", help="a table for the documentation")
    options.add_json(parser)
    return parser


if __name__ == "__main__":
    process.run_script(main)
