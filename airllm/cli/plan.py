"""airllm plan: what of a model would be in memory, what would be streamed, and how fast that is."""

import argparse

from airllm.cli import console, model, options


def add(subparsers: options.Subparsers) -> None:
    parser = options.add_command(
        subparsers,
        "plan",
        run,
        help="say what fits in memory, what is streamed, and how fast",
        description="What a model would do in the memory of --ram, before it is loaded: what is "
        "pinned in memory and what is streamed from the disk for each token, bytes per token, the "
        "KV cache's size, and the tokens a second to expect, from a quick probe of the disk. A "
        "model that cannot run is refused with the smallest --ram that would do.",
        examples=[
            "airllm plan -m model.gguf --ram 2GiB",
            "airllm plan -m model.gguf --ram 2GiB --context 1024 --json",
        ],
    )
    options.add_model(parser)
    options.add_engine(parser)
    options.add_output(parser, json="all of it, bytes as numbers")


def run(args: argparse.Namespace) -> int:
    path = model.find(args.model)
    from airllm.plan_model import plan_model

    plan = plan_model(
        path,
        backend=args.backend,
        context=args.context,
        kv_type=args.kv_type,
        activations=args.activations,
        ram_budget=args.ram,
        probe=True,
    )
    if args.json:
        console.write_json({"model": args.model, **plan.as_dict()})
        return 0
    size = console.format_bytes
    n_pinned, n_layers = len(plan.pinned_layers), len(plan.pinned_layers + plan.streamed_layers)
    granted = "no limit" if plan.budget_bytes is None else size(plan.budget_bytes)
    rows = [
        ("model", size(plan.model_bytes)),
        ("memory", f"{size(plan.total_bytes)} of {granted}"),
        ("  KV cache", f"{size(plan.kv_cache_bytes)}, for a context of {plan.context} tokens"),
        ("  buffers", size(plan.buffer_bytes)),
        (
            "  pinned",
            f"{size(plan.pinned_bytes)}: {n_pinned} of {n_layers} layers"
            f"{', the head' if plan.head == 'pinned' else ''}"
            f"{', the embedding' if plan.embedding == 'pinned' else ''}",
        ),
    ]
    if plan.streams:
        streamed = (
            f"{n_layers - n_pinned} layers{' and the head' if plan.head == 'streamed' else ''}"
        )
        rows.append(("  ring", f"{size(plan.ring_bytes)}, for what is streamed"))
        rows.append(("streamed", f"{size(plan.streamed_bytes_per_pass)} a token: {streamed}"))
        assert plan.disk_bytes_per_second is not None
        assert plan.expected_tokens_per_second is not None
        rows.append(("disk", f"{plan.disk_bytes_per_second / 1e9:.2f} GB/s"))
        rows.append(("expected", f"{plan.expected_tokens_per_second:.3g} tokens/s"))
    else:
        rows.append(("streamed", "nothing: the disk is read once"))
    for name, text in rows:
        print(f"{name:<12}{text}")
    return 0
