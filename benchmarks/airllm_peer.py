"""The part of compare_airllm.py that runs AirLLM, in the Python environment of AirLLM.

    python airllm_peer.py FOLDER TOKENS    -> a line of JSON: seconds of each token, logits, memory

Before each token, the pages of the model's files are dropped from the page cache. With a model that
is larger than the memory they would not have stayed there.
"""

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

PROMPT = [1, 5, 9, 2]


def main(folder: str, n_tokens: int) -> None:
    import torch

    from airllm import AutoModel

    if not Path(folder, "config.json").exists():
        make_folder(folder)
    model = AutoModel.from_pretrained(folder, device="cpu", dtype=torch.bfloat16)
    ids, seconds, first = torch.tensor([PROMPT]), [], []
    past = None
    with torch.inference_mode():
        for _ in range(n_tokens):
            drop_pages(Path(folder))
            start = time.perf_counter()
            out: Any = model(input_ids=ids, past_key_values=past, use_cache=True)
            seconds.append(time.perf_counter() - start)
            logits, past = out.logits[0, -1].float(), out.past_key_values
            first = first or logits.tolist()
            ids = logits.argmax().reshape(1, 1)
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"seconds": seconds, "logits": first, "peak_bytes": peak}))


def drop_pages(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            file = os.open(path, os.O_RDONLY)
            os.fsync(file)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(file)


def make_folder(folder: str) -> None:
    """Makes a Llama of 1.1 billion random weights in bfloat16."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
    )
    torch.set_default_dtype(torch.bfloat16)
    LlamaForCausalLM(config).save_pretrained(folder)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(f"{a}{b}{c}" for a in letters for b in letters for c in "ab")][:31999]
    vocab = {word: id for id, word in enumerate([*words, "</s>"])}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.save(f"{folder}/tokenizer.json")
    described = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}
    Path(folder, "tokenizer_config.json").write_text(json.dumps(described))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
