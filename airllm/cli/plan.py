"""airllm plan: which parts of a model would be in memory or streamed, and how fast that is."""

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from airllm.cli import console, model, options

if TYPE_CHECKING:
    from airllm.weights.plan import Plan


def add(subparsers: options.Subparsers) -> None:
    parser = options.add_command(
        subparsers,
        "plan",
        run,
        help="say what fits in memory, what is streamed, and how fast",
        description="Shows how a model would use the memory of --ram, without loading the "
        "model: which layers stay in memory, which layers are streamed from the disk for each "
        "token, the bytes that are read for each token, the size of the KV cache, and the "
        "tokens a second to expect after a quick measurement of the disk. A model that cannot "
        "run in --ram is refused, and the error names the smallest --ram in which it runs.",
        examples=[
            "airllm plan -m model.gguf --ram 2GiB",
            "airllm plan -m model.gguf --ram 2GiB --context 1024 --json",
        ],
    )
    options.add_model(parser)
    options.add_engine(parser)
    options.add_mtp(parser)
    options.add_output(parser, json="the same values, with bytes as numbers")


def run(args: argparse.Namespace) -> int:
    path = model.find(args)
    from airllm.weights.plan_model import plan_model

    plan = plan_model(
        path,
        backend=args.backend,
        context=args.context,
        kv_type=args.kv_type,
        activations=args.activations,
        ram_budget=args.ram,
        quantize=args.quantize,
        mtp=args.mtp,
        probe=True,
    )
    if args.json:
        console.write_json({"model": args.model, **plan.as_dict()})
        return 0
    for name, text in _rows(plan):
        print(f"{name:<12}{text}")
    return 0


def _rows(plan: "Plan") -> Iterator[tuple[str, str]]:
    size = console.format_bytes
    granted = "no limit" if plan.budget_bytes is None else size(plan.budget_bytes)
    yield "model", size(plan.model_bytes)
    yield "memory", f"{size(plan.total_bytes)} of {granted}"
    yield "  KV cache", f"{size(plan.kv_cache_bytes)}, for a context of {plan.context} tokens"
    yield "  buffers", f"{size(plan.buffer_bytes)}, for {plan.batch_size} tokens at once"
    yield "  pinned", f"{size(plan.pinned_bytes)}: {_pinned(plan)}"
    if plan.next_head_bytes:
        yield "  of which", f"{size(plan.next_head_bytes)} for the next-token head"
    if not plan.streams:
        yield "streamed", "nothing: the disk is read once"
        return
    yield "  ring", f"{size(plan.ring_bytes)}, for {_streamed(plan)}"
    yield "streamed", f"{size(plan.streamed_bytes_per_pass)} a token"
    if plan.disk_bytes_per_second is not None:
        yield "disk", f"{plan.disk_bytes_per_second / 1e9:.2f} GB/s"
        yield "expected", f"{plan.expected_tokens_per_second:.3g} tokens/s"


def _pinned(plan: "Plan") -> str:
    if plan.expert_places:
        return "all but the experts and the embedding"
    n_layers = len(plan.pinned_layers + plan.streamed_layers)
    parts = [f"{len(plan.pinned_layers)} of {n_layers} layers"]
    parts += ["the head"] if plan.head == "pinned" else []
    parts += ["the embedding"] if plan.embedding == "pinned" else []
    return ", ".join(parts)


def _streamed(plan: "Plan") -> str:
    if plan.expert_places:
        return f"the {plan.expert_places} experts that were used last"
    head = " and the head" if plan.head == "streamed" else ""
    return f"{len(plan.streamed_layers)} layers{head}"
