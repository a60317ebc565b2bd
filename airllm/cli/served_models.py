"""Models for `airllm serve --models-dir`: what each needs, and how it is opened."""

import argparse
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from airllm.cli import model
from airllm.cli.models import sizes

if TYPE_CHECKING:
    from airllm.engine.fair_lock import FairLock
    from airllm.hub import LocalModel
    from airllm.layer_engine import LayerWiseInferenceEngine
    from airllm.server.model_catalog import ModelNeeds, ModelSource
    from airllm.server.served_model import ServedModel
    from airllm.weights.plan import Plan
    from airllm.weights.plan_model import PlannedModel

__all__ = ["needed_bytes", "scheduling_of", "served", "sources_of"]

# Of the budget, for a model's answers beside the first, and for what it keeps of earlier prompts.
ROOM_SHARE = 8


def sources_of(
    args: argparse.Namespace, granted: int | None, pass_lock: "FairLock"
) -> "Callable[[], list[ModelSource]]":
    """Finds the models of --models-dir, the one of --model first. granted: --ram for all of them.
    pass_lock: of their schedulers."""
    from airllm.server.model_catalog import ModelSource

    own = None if args.model is None else model.find(args).resolve()

    def found() -> list[ModelSource]:
        return [
            ModelSource(
                id=each.name,
                version=(each.path, each.files, each.n_bytes, each.modified),
                n_bytes=each.n_bytes,
                modified=each.modified,
                needs=partial(_needs, args, each.path, granted),
                open=partial(_open, args, each, granted, pass_lock),
                aliases=(each.name.removeprefix("hf.co/"),),
                folder=str(each.path.parent),
            )
            for each in _models(args.models_dir, own, args.name)
        ]

    return found


def _models(
    directories: Sequence[Path | None], own: Path | None, own_name: str | None
) -> "list[LocalModel]":
    """directories: None for the models that `airllm list` lists."""
    from airllm import hub

    found: list[LocalModel] = []
    for directory in directories:
        here = hub.local_models() if directory is None else hub.models_in_directory(directory)
        found += here
    if own is not None:
        listed = next((each for each in found if each.path.resolve() == own), None)
        first = listed or hub.model_at(own)
        if first is not None:
            others = [each for each in found if each is not first]
            found = [replace(first, name=own_name or first.name), *others]
    return hub.told_apart(found)


def needed_bytes(plan: "Plan", granted: int, cache_bytes: int | None) -> int:
    """The memory that a model gets: what its plan takes, and room for answers and earlier prompts.
    All of it if the model is streamed, which is faster the more it has."""
    if plan.streams:
        return granted
    room = max(granted // ROOM_SHARE, plan.kv_cache_bytes) + (cache_bytes or 0)
    return min(granted, plan.total_bytes + room)


def _needs(args: argparse.Namespace, path: Path, granted: int | None) -> "ModelNeeds":
    from airllm.weights.open_weights import plan_weights
    from airllm.weights.plan_model import PlannedModel

    with PlannedModel.open(
        path,
        backend=args.backend,
        threads=args.threads,
        context=None,
        kv_type=args.kv_type,
        activations=args.activations,
        batch_size=None,
        ram_budget=granted or None,
        quantize=args.quantize,
        fusion=None,
        mtp=False,
    ) as planned:
        plan = planned.plan
        if args.context is not None:  # a model that allows less gets less
            plan, _ = plan_weights(
                planned.file,
                planned.model,
                planned.backend,
                budget=plan.budget_bytes,
                context=min(args.context, planned.model.config.context_length),
                kv_type=planned.kv_type,
            )
        return _needs_of(planned, plan, granted, args.cache)


def _needs_of(
    planned: "PlannedModel", plan: "Plan", granted: int | None, cache_bytes: int | None
) -> "ModelNeeds":
    from airllm.server.model_catalog import ModelNeeds

    types, n = sizes(planned.file)
    facts = {
        "family": planned.model.config.architecture,
        "bytes": types.total(),
        "parameters": f"{n / 1e9:.1f}B" if n >= 1e9 else f"{n / 1e6:.0f}M",
        "type": types.most_common(1)[0][0] if types else "",
        "chat_template": planned.file.metadata.text("tokenizer.chat_template", "") or None,
    }
    n_bytes = plan.total_bytes
    if granted is not None:
        n_bytes = needed_bytes(plan, granted, cache_bytes)
    return ModelNeeds(n_bytes, plan.context, facts)


def _open(
    args: argparse.Namespace,
    local: "LocalModel",
    granted: int | None,
    pass_lock: "FairLock",
    needs: "ModelNeeds",
) -> "ServedModel":
    ram = None if granted is None else needs.n_bytes
    own = argparse.Namespace(**{**vars(args), "model": str(local.path.resolve()), "ram": ram})
    engine = cast(
        "LayerWiseInferenceEngine",
        model.open_engine(own, context=needs.context, threads=args.threads),
    )
    return served(
        engine,
        local.name,
        dict(needs.facts),
        **scheduling_of(args),
        pass_lock=pass_lock,
    )


def scheduling_of(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of engine.scheduler."""
    return {
        "lanes": args.parallel,
        "queue_length": args.queue,
        "piece_tokens": args.piece,
        "cache_bytes": args.cache,
        "cache_dir": args.cache_dir,
        "cache_save_seconds": args.cache_save_seconds,
    }


def served(
    engine: "LayerWiseInferenceEngine",
    name: str,
    facts: "dict[str, Any] | None" = None,
    **scheduling: Any,
) -> "ServedModel":
    """The model of a server, which owns the engine from now on. scheduling: of engine.scheduler."""
    from airllm.server.served_model import ServedModel

    with contextlib.ExitStack() as stack:
        stack.enter_context(engine)
        plan = engine.plan().as_dict()  # before the scheduler has the engine to itself
        scheduler = stack.enter_context(engine.scheduler(**scheduling))
        return ServedModel(
            name=name,
            scheduler=scheduler,
            prompts=engine.prompts,
            context=engine.context,
            close=stack.pop_all().close,
            grammar=engine.grammar,
            sampling=engine.sampling,
            facts={
                "family": engine.config.architecture,
                **(facts or {}),
                **model.runtime(engine),
                "plan": plan,
            },
            measured=lambda: {"stream": engine.stream_stats(), "memory": engine.memory_usage()},
        )
