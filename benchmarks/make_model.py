"""Writes a Llama of random weights as a GGUF file of any size, which need not fit into memory.

    python benchmarks/make_model.py model.gguf                    1.1 billion weights, Q4_0
    python benchmarks/make_model.py tiny.gguf --hidden-size 256 --ffn 512 --layers 2 --heads 4 \\
        --kv-heads 2 --vocab 1000 --type q8_0

It is as fast as a trained model of the same shape and type, but writes nonsense.
"""

import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from common import options, weights

from airllm.formats.gguf_writer import GGUFWriter, TensorInfo
from airllm.util.progress import Progress

PIECE_BYTES = 16 << 20
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Shape:
    hidden: int = 2048
    ffn: int = 8192
    layers: int = 16
    heads: int = 32
    kv_heads: int = 8
    vocab: int = 32000
    context: int = 4096

    def check(self, type: str) -> None:
        """Raises ValueError for sizes that do not fit together."""
        block = weights.BY_NAME[type].block_size
        if self.hidden % self.heads or self.heads % self.kv_heads:
            raise ValueError("heads must divide the hidden size, and KV heads must divide heads")
        for width in (self.hidden, self.ffn):
            if width % block:
                raise ValueError(f"widths must be multiples of {block} for {type}, not {width}")
        if self.vocab < len(_fixed_tokens()):
            raise ValueError(f"a vocabulary has at least {len(_fixed_tokens())} tokens")


def main(arguments: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    shape = Shape(
        *(args.hidden_size, args.ffn, args.layers, args.heads, args.kv_heads),
        *(args.vocab, args.context),
    )
    try:
        shape.check(args.type)
        write_model(args.path, shape, args.type, args.seed)
    except (ValueError, OSError) as error:
        print(f"make_model: {error}", file=sys.stderr)
        return 1
    return 0


def write_model(path: str, shape: Shape, type: str, seed: int = 1) -> None:
    """Writes the model. Raises OSError if the file cannot be written."""
    rng = np.random.default_rng(seed)
    tensors = list(_tensors(shape, type))
    total, done = sum(tensor.nbytes for tensor in tensors), 0
    with (
        GGUFWriter(path, _metadata(shape), tensors) as writer,
        Progress("writing", "bytes") as progress,
    ):
        for tensor in tensors:
            for piece in _pieces(tensor, rng):
                writer.write(tensor.name, piece)
                done += piece.nbytes
                progress.update(done, total, tensor.name)


def _tensors(shape: Shape, type: str) -> Iterator[TensorInfo]:
    hidden, kv_width = shape.hidden, shape.hidden // shape.heads * shape.kv_heads
    yield TensorInfo("token_embd.weight", type, (shape.vocab, hidden))
    for i in range(shape.layers):
        yield TensorInfo(f"blk.{i}.attn_norm.weight", "f32", (hidden,))
        yield TensorInfo(f"blk.{i}.attn_q.weight", type, (hidden, hidden))
        yield TensorInfo(f"blk.{i}.attn_k.weight", type, (kv_width, hidden))
        yield TensorInfo(f"blk.{i}.attn_v.weight", type, (kv_width, hidden))
        yield TensorInfo(f"blk.{i}.attn_output.weight", type, (hidden, hidden))
        yield TensorInfo(f"blk.{i}.ffn_norm.weight", "f32", (hidden,))
        yield TensorInfo(f"blk.{i}.ffn_gate.weight", type, (shape.ffn, hidden))
        yield TensorInfo(f"blk.{i}.ffn_up.weight", type, (shape.ffn, hidden))
        yield TensorInfo(f"blk.{i}.ffn_down.weight", type, (hidden, shape.ffn))
    yield TensorInfo("output_norm.weight", "f32", (hidden,))
    yield TensorInfo("output.weight", type, (shape.vocab, hidden))


def _pieces(tensor: TensorInfo, rng: np.random.Generator) -> Iterator[weights.Bytes]:
    if len(tensor.shape) == 1:  # a norm's weight: about 1
        yield rng.uniform(0.8, 1.2, tensor.shape).astype("<f4").view(np.uint8)
        return
    n, k = tensor.shape
    step = max(1, PIECE_BYTES * n // tensor.nbytes)
    for first in range(0, n, step):
        yield weights.random_rows(tensor.type, min(step, n - first), k, rng)


def _metadata(shape: Shape) -> dict[str, object]:
    tokens = _fixed_tokens()
    words = itertools.chain.from_iterable(map(_words, itertools.count(1)))
    tokens += itertools.islice(words, shape.vocab - len(tokens))
    kinds = np.full(shape.vocab, 1, np.int32)  # normal
    kinds[0] = 2  # unknown
    kinds[1:3] = 3  # control
    kinds[3:259] = 6  # bytes
    return {
        "general.architecture": "llama",
        "general.name": "random",
        "general.quantization_version": 2,
        "llama.block_count": shape.layers,
        "llama.context_length": shape.context,
        "llama.embedding_length": shape.hidden,
        "llama.feed_forward_length": shape.ffn,
        "llama.attention.head_count": shape.heads,
        "llama.attention.head_count_kv": shape.kv_heads,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": shape.hidden // shape.heads,
        "llama.rope.freq_base": 10000.0,
        "llama.vocab_size": shape.vocab,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": -np.arange(shape.vocab, dtype=np.float32),
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def _fixed_tokens() -> list[str]:
    """The tokens with which each SentencePiece vocabulary of Llama begins, and the space."""
    return ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]


def _words(length: int) -> Iterator[str]:
    """All words of `length` letters, each without and with a space before it."""
    for letters in itertools.product(LETTERS, repeat=length):
        word = "".join(letters)
        yield from (word, "▁" + word)


def _parser() -> options.Parser:
    parser = options.parser(__doc__)
    parser.add_argument("path", metavar="FILE.gguf")
    default = Shape()
    for flag, value in (
        *(("--hidden-size", default.hidden), ("--ffn", default.ffn), ("--layers", default.layers)),
        *(("--heads", default.heads), ("--kv-heads", default.kv_heads)),
        *(("--vocab", default.vocab), ("--context", default.context)),
    ):
        parser.add_argument(
            flag, type=options.count, default=value, metavar="N", help="default: %(default)s"
        )
    parser.add_argument(
        "--type", choices=weights.NAMES, default="q4_0", help="type of the matrices (default: q4_0)"
    )
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    return parser


if __name__ == "__main__":
    sys.exit(main())
