"""Compares the engine with AirLLM on a Hugging Face folder that is larger than the memory granted.

    python -m venv airllm-venv && airllm-venv/bin/pip install airllm==4.0.0
    python benchmarks/compare_airllm.py --peer airllm-venv/bin/python --folder random-llama

AirLLM needs its own Python environment, because its package has the same name as ours; there
airllm_peer.py runs it. If the folder does not exist, it is made: a Llama of 1.1 billion random
weights in bfloat16. AirLLM splits it into a second copy, once, which is not timed. Runs take turns.
Each token is a pass of the disk for both: we bypass the page cache, and for AirLLM the cache is
emptied before each token.
"""

import argparse
import json
import statistics
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from airllm_peer import PROMPT
from common import machine, options, process
from common.verify import WrongResultError, check
from numpy.typing import NDArray

from airllm.layer_engine import LayerWiseInferenceEngine
from airllm.weights.budget import parse_bytes

# AirLLM's activations are bfloat16, with 8 bits of precision.
LOGITS_TOLERANCE = 0.1


def main(arguments: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    theirs, ours, peak = [], [], 0
    for _ in range(args.rounds):
        found = _peer(args.peer, args.folder, args.tokens)
        with LayerWiseInferenceEngine(args.folder, ram_budget=args.ram, context=512) as engine:
            logits, seconds = _run(engine, args.tokens)
            streamed = engine.plan().streamed_bytes_per_pass
        try:
            expected = np.array(found["logits"])
            check("our logits against AirLLM's", logits, expected, LOGITS_TOLERANCE)
        except WrongResultError as error:
            raise process.FailedError(str(error)) from None
        theirs += found["seconds"]
        ours += seconds
        peak = max(peak, found["peak_bytes"])
    ratio = statistics.median(theirs) / statistics.median(ours)
    result = {
        "airllm_seconds_per_token": theirs,
        "airllm_peak_bytes": peak,
        "our_seconds_per_token": ours,
        "our_budget_bytes": args.ram,
        "our_streamed_bytes_per_token": streamed,
        "ratio": ratio,
    }
    if args.json:
        options.write_json(args.json, {"machine": machine.describe(), **result})
    if args.json != "-":
        print(
            f"AirLLM: {statistics.median(theirs):.2f} s a token, {peak / 1e6:.0f} MB resident\n"
            f"ours:   {statistics.median(ours):.2f} s a token, in {args.ram / 1e6:.0f} MB, "
            f"{streamed / 1e9:.2f} GB read\n"
            f"{ratio:.2f} times as fast"
        )
    return 0


def _run(
    engine: LayerWiseInferenceEngine, n_tokens: int
) -> tuple[NDArray[np.float32], list[float]]:
    """The logits after the prompt, [vocab], and the seconds of each token."""
    seconds, tokens, first = [], PROMPT, None
    for _ in range(n_tokens):
        start = time.perf_counter()
        logits = engine.forward(tokens)
        seconds.append(time.perf_counter() - start)
        first = logits if first is None else first
        tokens = [int(logits.argmax())]
    assert first is not None
    return first, seconds


def _peer(python: str, folder: str, n_tokens: int) -> dict[str, Any]:
    script = Path(__file__).with_name("airllm_peer.py").resolve()
    # Isolated and outside of the checkout, in which `airllm` would be our package.
    command = [python, "-I", str(script), str(Path(folder).resolve()), str(n_tokens)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    if done.returncode != 0:
        raise process.FailedError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _parser() -> argparse.ArgumentParser:
    parser = options.parser(__doc__)
    parser.add_argument(
        "--peer", required=True, metavar="PYTHON", help="the Python in the environment of AirLLM"
    )
    parser.add_argument("--folder", required=True, metavar="DIR", help="made if it does not exist")
    parser.add_argument(
        "--ram", type=parse_bytes, default="500MB", metavar="SIZE", help="for ours (default: 500MB)"
    )
    for flag, default in (("--tokens", 4), ("--rounds", 2)):
        parser.add_argument(
            flag, type=options.count, default=default, metavar="N", help=f"default: {default}"
        )
    options.add_json(parser)
    return parser


if __name__ == "__main__":
    process.run_script(main)
