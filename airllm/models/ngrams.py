"""Rows of a table that hashes of a token and of those before it choose (Qwen3.8-Flash-Next).

For each size from 2 tokens on, several hashes of the last tokens choose a row each. The table has
hundreds of millions of rows, of which a token needs 16: it stays in the file.
"""

import numpy as np
from numpy.typing import NDArray

from airllm.models.config import NGramTable
from airllm.models.config_reader import MAX_WIDTH, ConfigReader
from airllm.models.hugging_face import HFReader

__all__ = ["CONSTANTS", "TABLE", "ngram_values", "read_ngrams", "row_numbers"]

TABLE = "per_layer_token_embd.weight"
_MOST_SIZE, _MOST_HEADS = 8, 64
_MOST_ROWS = 2**31  # row numbers are int32 in other programs
_MOST_TOKENS = 2**31

# GGUF's keys. CONSTANTS: also the names of tensors of folders, in the layer's part.
_LAYERS, _SIZE, _HEADS, _END, _WIDTH = (
    *("ple.layers", "ple.ngram_size", "ple.heads_per_ngram", "ple.eos_token_id"),
    "embedding_length_per_layer_input",
)
CONSTANTS = {
    "ple.layer_multipliers": "ple.ple_embedding.layer_multipliers",
    "ple.head_vocab_sizes": "ple.ple_embedding.ngram_heads_vocab_sizes",
    "ple.head_offsets": "ple.ple_embedding.ngram_heads_offsets",
}

Int64 = NDArray[np.int64]


def row_numbers(n: NGramTable, tokens: Int64) -> Int64:
    """The rows of each token but the first len(n.multipliers) - 1, which lie before the others; -1
    stands for a token that is not there: [n_tokens, n_heads]. Nothing before n.end counts."""
    before = len(n.multipliers) - 1
    count = len(tokens) - before
    mixed = tokens[before:].astype(np.uint64) * np.uint64(n.multipliers[0])
    found, cut = [], np.zeros(count, bool)
    sizes, offsets = (
        np.array(each, np.uint64).reshape(before, 1, n.heads_per_size)
        for each in (n.vocab_sizes, n.offsets)
    )
    for back in range(1, before + 1):
        earlier = tokens[before - back : before - back + count]
        cut |= (earlier < 0) | (earlier == n.end)
        seen = np.where(cut, n.end, earlier).astype(np.uint64)
        mixed = mixed ^ seen * np.uint64(n.multipliers[back])
        found.append(mixed[:, np.newaxis] % sizes[back - 1] + offsets[back - 1])
    return np.concatenate(found, axis=1).astype(np.int64)


# ---- the configuration ---------------------------------------------------------------------------


def read_ngrams(r: ConfigReader) -> tuple[int, NGramTable] | None:
    """The layer that has them, and what they are; None if no layer has them. FormatError for
    hashes that the table has no rows for."""
    layers = _integers(r, _LAYERS, r.n_layers)
    r.ignore("ple.image_token_id")
    if not layers:
        return None
    if len(layers) > 1:
        raise r.metadata.fault(
            f"{r.key(_LAYERS)} has {len(layers)} layers; expected one, whose table the file has"
        )
    size = r.integer(_SIZE, low=2, high=_MOST_SIZE)
    per_size = r.integer(_HEADS, low=1, high=_MOST_HEADS)
    n_heads = per_size * (size - 1)
    multipliers, sizes, offsets = (_integers(r, key, 2**64) for key in CONSTANTS)
    for key, values, least in zip(
        CONSTANTS, (multipliers, sizes, offsets), (size, n_heads, n_heads), strict=True
    ):
        if len(values) < least:
            raise r.metadata.fault(
                f"{r.key(key)} has {len(values)} entries; expected {least} for n-grams of up to "
                f"{size} tokens"
            )
    found = NGramTable(
        multipliers=multipliers[:size],
        heads_per_size=per_size,
        vocab_sizes=sizes[:n_heads],
        offsets=offsets[:n_heads],
        row_width=r.integer(_WIDTH, low=1, high=MAX_WIDTH // n_heads),
        end=r.integer(_END, high=_MOST_TOKENS),
    )
    _check_table(r, found)
    return layers[0], found


def _integers(r: ConfigReader, name: str, end: int) -> tuple[int, ...]:
    """An array of integers from 0 to below `end`; empty if the file has none."""
    r.ignore(name)
    value = r.metadata.get(r.key(name))
    if value is None:
        return ()
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "iu":
        raise r.metadata.fault(f"{r.key(name)} is no array of integers")
    for each in value.tolist():
        if not 0 <= each < end:
            raise r.metadata.fault(f"{r.key(name)} has {each}; expected 0 to {end - 1}")
    return tuple(value.tolist())


def _check_table(r: ConfigReader, n: NGramTable) -> None:
    tensor = r.file.tensors.get(TABLE)
    if tensor is None:
        raise r.metadata.fault(f"tensor {TABLE} is missing")
    ends = [size + offset for size, offset in zip(n.vocab_sizes, n.offsets, strict=True)]
    if 0 in n.vocab_sizes or max(ends) > _MOST_ROWS:
        raise r.metadata.fault(
            f"{r.key('ple.head_vocab_sizes')} has {min(n.vocab_sizes)} to {max(n.vocab_sizes)} "
            f"rows; expected 1 or more, and less than {_MOST_ROWS} in all"
        )
    if len(tensor.shape) != 2 or tensor.shape[1] != n.row_width or tensor.shape[0] < max(ends):
        raise r.metadata.fault(
            f"tensor {TABLE} has shape {list(tensor.shape)}; expected [{max(ends)}, "
            f"{n.row_width}] or more rows, as the metadata says"
        )


# ---- folders -------------------------------------------------------------------------------------


def ngram_values(config: HFReader, n_layers: int) -> dict[str, object]:
    """GGUF's keys. The constants follow from config.json as transformers computes them."""
    layers = config.get("ple_layer_ids") or []
    # The tensors show how many rows there are, and in how many parts.
    config.ignore("ple_layer_ids", "number_of_conv_states", "split_ngram_parts")
    if not isinstance(layers, list) or not all(
        type(each) is int and 1 <= each <= n_layers for each in layers
    ):
        raise config.fault(f"ple_layer_ids is no list of layers from 1 to {n_layers}")
    if not layers:
        return {}
    if len(set(layers)) > 1:
        raise config.fault(f"ple_layer_ids has {len(set(layers))} layers; expected one")
    size = config.integer("ngram_size", low=2, high=_MOST_SIZE)
    per_size = config.integer("heads_per_ngram", low=1, high=_MOST_HEADS)
    n_heads = per_size * (size - 1)
    width = config.integer("ple_embed_dim", config.integer("hidden_size"), low=1, high=MAX_WIDTH)
    if width % n_heads:
        raise config.fault(f"ple_embed_dim is {width}; expected a multiple of {n_heads}")
    base = config.integer("ngram_vocab_size_base", low=1, high=_MOST_ROWS // n_heads - 2**16)
    sizes = _primes_from(base, n_heads)
    return {
        _LAYERS: np.array([layers[0] - 1], np.int32),
        _SIZE: size,
        _HEADS: per_size,
        "ple.conv_kernel": config.integer("ple_conv_kernel_size", low=1),
        _END: _end(config),
        _WIDTH: width // n_heads,
        "ple.layer_multipliers": _multipliers(config, size),
        "ple.head_vocab_sizes": sizes,
        "ple.head_offsets": np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.uint64),
    }


def _end(config: HFReader) -> int:
    """The first of the tokens that end a text."""
    value = config.get("eos_token_id")
    first = value[0] if isinstance(value, list) and value else value
    if type(first) is not int or not 0 <= first < _MOST_TOKENS:
        raise config.fault(f"eos_token_id is {str(value)[:80]}; expected a token, for the n-grams")
    return first


def _multipliers(config: HFReader, size: int) -> NDArray[np.uint64]:
    """An odd number for each token of an n-gram: splitmix64 of the seed, small enough that its
    product with a token is below 2^63."""
    seed, mask = config.integer("seed", 1234, high=2**62), 2**64 - 1
    half = max(1, (2**63 - 1) // config.integer("vocab_size", low=1) // 2)
    found = []
    for number in range(1, size + 1):
        # The state of the generator after one step from seed + number * gamma
        z = (seed + 0x9E3779B97F4A7C15 * (number + 1)) & mask
        z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ z >> 27) * 0x94D049BB133111EB) & mask
        found.append(2 * ((z ^ z >> 31) % half) + 1)
    return np.array(found, np.uint64)


def _primes_from(base: int, count: int) -> NDArray[np.uint64]:
    """The first `count` primes from `base` on."""
    length = 64 * count  # below 2^32, primes are 22 numbers apart on average
    while True:
        numbers = np.arange(base, base + length)
        prime = numbers > 1
        for divisor in range(2, int((base + length) ** 0.5) + 1):
            first = max(divisor * divisor, -(-base // divisor) * divisor)
            prime[first - base :: divisor] = False
        found = numbers[prime]
        if len(found) >= count:
            return found[:count].astype(np.uint64)
        length *= 2
