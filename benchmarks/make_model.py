"""Writes a model of random weights as a GGUF file of any size, which need not fit into memory.

    python benchmarks/make_model.py model.gguf             a Llama of 1.1 billion weights, Q4_0
    python benchmarks/make_model.py tiny.gguf --hidden-size 256 --ffn 512 --layers 2 --heads 4 \\
        --kv-heads 2 --vocab 1000 --type q8_0
    python benchmarks/make_model.py model.gguf --like deepseek2

It is as fast as a trained model of the same shape and type, but writes nonsense.
"""

import itertools
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from common import options, shapes, weights

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
        metadata = _llama(shape)
        if args.like:
            head, vocab = args.next_head, args.vocab
            metadata = shapes.metadata_of(args.like, vocab=vocab, next_head=head)
        write_model(args.path, metadata, args.type, args.seed)
    except (ValueError, OSError) as error:
        print(f"make_model: {error}", file=sys.stderr)
        return 1
    return 0


def write_model(path: str, metadata: Mapping[str, object], type: str, seed: int = 1) -> None:
    """Writes a model of the shape that the metadata describes, with a vocabulary of its size.
    type: of its matrices. OSError if the file cannot be written."""
    rng = np.random.default_rng(seed)
    tensors = list(shapes.tensors_of(metadata, type))
    total, done = sum(tensor.nbytes for tensor in tensors), 0
    n_tokens = next(t.shape[0] for t in tensors if t.name == "token_embd.weight")
    with (
        GGUFWriter(path, {**metadata, **_vocabulary(n_tokens)}, tensors) as writer,
        Progress("writing", "bytes") as progress,
    ):
        for tensor in tensors:
            for piece in _pieces(tensor, rng):
                writer.write(tensor.name, piece)
                done += piece.nbytes
                progress.update(done, total, tensor.name)


def _pieces(tensor: TensorInfo, rng: np.random.Generator) -> Iterator[weights.Bytes]:
    """Matrices of which x @ w.T is as large as x, vectors of about 1; of Mamba-2 and delta nets
    decays that let their memory fade, and biases near 0."""
    if tensor.name.endswith("ssm_a"):
        yield -rng.uniform(0.8, 1.2, tensor.shape).astype("<f4").view(np.uint8)
        return
    if len(tensor.shape) == 1:
        centre = 0.0 if tensor.name.endswith(".bias") else 1.0
        yield (centre + rng.uniform(-0.2, 0.2, tensor.shape)).astype("<f4").view(np.uint8)
        return
    k = tensor.shape[-1]
    n = math.prod(tensor.shape[:-1])
    step = max(1, PIECE_BYTES * n // tensor.nbytes)
    for first in range(0, n, step):
        yield weights.random_rows(tensor.type, min(step, n - first), k, rng)


def _llama(shape: Shape) -> dict[str, object]:
    return {
        "general.architecture": "llama",
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
    }


def _vocabulary(n_tokens: int) -> dict[str, object]:
    tokens = _fixed_tokens()
    words = itertools.chain.from_iterable(map(_words, itertools.count(1)))
    tokens += itertools.islice(words, n_tokens - len(tokens))
    kinds = np.full(n_tokens, 1, np.int32)  # normal
    kinds[0] = 2  # unknown
    kinds[1:3] = 3  # control
    kinds[3:259] = 6  # bytes
    return {
        "general.name": "random",
        "general.quantization_version": 2,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": -np.arange(n_tokens, dtype=np.float32),
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
        "--like",
        choices=sorted(shapes.SHAPES),
        metavar="FAMILY",
        help="a family's shape, of about 1 billion active weights and 3 in all, in place of a "
        "Llama and of the sizes above but --vocab: %(choices)s",
    )
    parser.add_argument(
        "--next-head", action="store_true", help="with --like: also a next-token head"
    )
    parser.add_argument(
        "--type", choices=weights.NAMES, default="q4_0", help="type of the matrices (default: q4_0)"
    )
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    return parser


if __name__ == "__main__":
    sys.exit(main())
