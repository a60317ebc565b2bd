"""airllm serve: a model over HTTP, for the clients of OpenAI, Anthropic and Ollama."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from airllm.cli import answer_options, console, demo, model, options, values
from airllm.cli.served_models import scheduling_of, served, sources_of
from airllm.cli.worker import port
from airllm.engine.settings import CACHE_SAVE_SECONDS, LANES, PIECE_TOKENS, QUEUE_LENGTH
from airllm.server.model_names import check_aliases, read_aliases, split_alias
from airllm.server.settings import LOOPBACK_HOSTS, ServerSettings, is_loopback

if TYPE_CHECKING:
    from airllm.layer_engine import LayerWiseInferenceEngine
    from airllm.server.models import ListedModel, Models
    from airllm.server.served_model import ServedModel


def add(subparsers: options.Subparsers) -> None:
    parser = options.add_command(
        subparsers,
        "serve",
        run,
        help="serve a model over HTTP",
        description="Serves a model, or several, to the clients of OpenAI, Anthropic and Ollama, "
        "many at once. It listens on this machine only, unless --host says otherwise. SIGTERM or "
        "Ctrl-C lets the requests that run end; a second one ends at once. docs/pages/server.md "
        "describes the paths and how to run it as a service.",
        examples=[
            "airllm serve --demo                     with the small model of `airllm demo`",
            "airllm serve -m model.gguf --parallel 16 --context 32768",
            "airllm serve --models-dir models --ram 8GiB     several, loaded as they are used",
            "airllm serve -m model.gguf --host 0.0.0.0 --api-key-file keys.txt",
        ],
    )
    options.add_model(parser, required=False)
    parser.add_argument(
        "--demo",
        action="store_true",
        help=f"serve {demo.MODEL}, which is fetched once (98 MB)",
    )
    parser.add_argument(
        "--name",
        metavar="NAME",
        help="the model's name for clients (default: the file's name without its ending)",
    )
    _add_several(parser)
    _add_network(parser)
    _add_limits(parser)
    _add_defaults(parser)
    options.add_threads(parser)
    options.add_engine(parser)
    options.add_output(parser)


def _add_several(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("several models")
    group.add_argument(
        "--models-dir",
        action="append",
        nargs="?",
        default=[],
        type=_directory,
        metavar="DIR",
        help="serve all GGUF files and Hugging Face folders in DIR and its subfolders, or without "
        "DIR all that `airllm list` lists; requests choose by name, and models are loaded and "
        "unloaded as they are used, within one --ram; may be given more than once. With "
        "--model, that model is loaded at the start and answers requests that name none",
    )
    group.add_argument(
        "--alias",
        action="append",
        default=[],
        type=_alias,
        metavar="NAME=MODEL",
        help="a further name for a model of --models-dir, for clients that always ask for the same "
        "name: gpt-5=qwen3; claude-*=qwen3 stands for all names that begin so; may be given more "
        "than once (default: AIRLLM_ALIASES, as gpt-5=qwen3,claude-*=qwen3)",
    )
    group.add_argument(
        "--keep-alive",
        type=_keep_alive,
        default=-1.0,
        metavar="S",
        help="unload a model of --models-dir that has not been used for so many seconds; -1: only "
        "when others need its memory (default: %(default).0f)",
    )


def _directory(text: str) -> Path:
    return Path(values.not_empty(text))


def _alias(text: str) -> tuple[str, str]:
    try:
        return split_alias(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _keep_alive(text: str) -> float:
    return -1.0 if text == "-1" else values.above_zero(text)


def _add_network(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("who may connect")
    group.add_argument(
        "--host",
        default=ServerSettings.host,
        metavar="H",
        help="address to listen on (default: %(default)s, for this machine only); another one "
        "needs an API key",
    )
    group.add_argument(
        "--port",
        type=port,
        default=ServerSettings.port,
        metavar="P",
        help="port to listen on; 0 takes a free one (default: %(default)s)",
    )
    group.add_argument(
        "--api-key",
        action="append",
        default=[],
        type=values.not_empty,
        metavar="KEY",
        help="key that clients must send; other users of this machine can see it among the "
        "processes, so prefer --api-key-file or AIRLLM_API_KEY; may be given more than once",
    )
    group.add_argument(
        "--api-key-file",
        type=Path,
        metavar="FILE",
        help="file with a key in each line",
    )
    group.add_argument(
        "--allowed-host",
        action="append",
        default=[],
        type=values.not_empty,
        metavar="NAME",
        help="further name by which clients may address the server, for instance that of a "
        "reverse proxy (default: localhost and its addresses; with another --host any name)",
    )
    group.add_argument(
        "--cors-origin",
        action="append",
        default=[],
        type=values.not_empty,
        metavar="ORIGIN",
        help="origin of web pages that may use the server, for instance https://chat.example, or "
        "* for all (default: none but the server's own)",
    )


def _add_limits(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("limits")
    group.add_argument(
        "--parallel",
        type=values.positive,
        default=LANES,
        metavar="N",
        help="answers that are written at once; others wait (default: %(default)s)",
    )
    group.add_argument(
        "--queue",
        type=values.positive,
        default=QUEUE_LENGTH,
        metavar="N",
        help="requests that may wait; more are refused with the status 429 (default: %(default)s)",
    )
    group.add_argument(
        "--max-connections",
        type=values.positive,
        default=ServerSettings.max_connections,
        metavar="N",
        help="connections at once; more are refused with the status 503 (default: %(default)s)",
    )
    group.add_argument(
        "--max-body",
        type=values.size,
        default=ServerSettings.max_body,
        metavar="SIZE",
        help="bytes of a request (default: 16 MiB)",
    )
    group.add_argument(
        "--max-prompt",
        type=values.positive,
        metavar="N",
        help="tokens of a prompt (default: as many as --context has room for)",
    )
    own = ServerSettings
    for name, default, help in (
        ("queue", own.queue_seconds, "seconds that a request may wait in the queue"),
        ("prompt", own.prompt_seconds, "seconds that the evaluation of a prompt may take"),
        ("answer", own.answer_seconds, "seconds that an answer may take after that"),
    ):
        group.add_argument(
            f"--{name}-timeout",
            type=values.above_zero,
            default=default,
            metavar="S",
            help=f"{help} (default: %(default).0f)",
        )
    group.add_argument(
        "--cache",
        type=values.size,
        metavar="SIZE",
        help="memory for what was evaluated of earlier prompts and answers, which requests that "
        "begin alike share; 0 keeps nothing (default: half of what --ram leaves, at most 8 GiB)",
    )
    group.add_argument(
        "--cache-dir",
        type=Path,
        metavar="DIR",
        help="read what --cache keeps from this folder at the start, and write it there when the "
        "server has nothing to do, and at the end",
    )
    group.add_argument(
        "--cache-save-seconds",
        type=values.not_negative,
        default=CACHE_SAVE_SECONDS,
        metavar="S",
        help="write to --cache-dir after S seconds without a request, or every 10 S seconds if "
        "there always is one; what was evaluated since then is lost if the server is killed "
        "(default: %(default).0f)",
    )
    group.add_argument(
        "--piece",
        type=values.positive,
        default=PIECE_TOKENS,
        metavar="N",
        help="tokens of prompts that are evaluated between two tokens of the answers beside it "
        "(default: %(default)s)",
    )


def _add_defaults(parser: argparse.ArgumentParser) -> None:
    options.add_template(parser)
    group = parser.add_argument_group("where a request does not say")
    group.add_argument(
        "-n",
        "--max-tokens",
        dest="max_new_tokens",
        type=values.positive,
        metavar="N",
        help="tokens of an answer (default: as many as the context has room for)",
    )
    answer_options.add_sampling(group)
    parser.add_argument(
        "--keep-agent-headers",
        action="store_true",
        help="give the model the lines about billing that coding agents put before their system "
        "prompt; they change with each request, so that nothing of it could be reused",
    )


def run(args: argparse.Namespace) -> int:
    chosen = args.model is not None
    if args.demo == (chosen or bool(args.models_dir)):
        raise options.UsageError("give either --model or --demo, or --models-dir")
    for directory in args.models_dir:
        if directory is not None and not directory.is_dir():
            raise options.UsageError(f"--models-dir {directory} is no folder")
    if args.name is not None and args.models_dir and not chosen:
        raise options.UsageError("--name is for the model of --model, which is not given")
    if args.alias and not args.models_dir:
        raise options.UsageError(
            "--alias is for the models of --models-dir; a single model answers to any name"
        )
    settings = _settings(args)
    try:
        from airllm.server.run import Server, listen
    except ModuleNotFoundError as error:
        raise ImportError(
            f"the server needs {error.name}; install it with: "
            "python -m pip install starlette uvicorn"
        ) from None
    if args.demo:
        demo.fetch(quiet=args.quiet)
        args.model = demo.MODEL
    models = _several(args) if args.models_dir else _one(args)
    listener = listen(settings)

    def announce(listed: "Sequence[ListedModel]") -> None:
        where = url(listener.getsockname())
        what = listed[0].id if len(listed) == 1 else f"a choice of {len(listed)} models"
        tokens = f" of {listed[0].context} tokens" if not args.models_dir else ""
        text = "%s is served at %s, %d answers%s at once; Ctrl-C ends"
        console.log.info(text, what, where, args.parallel, tokens)
        for each in listed:
            for alias in each.aliases:
                console.log.info("%s is %s", alias, each.id)

    Server(models, settings, listener).run(announce)
    return 0


def url(address: Any) -> str:
    host, number = address[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{number}"


def _one(args: argparse.Namespace) -> "Models":
    from airllm.server.one_model import OneModel

    path = model.find(args)  # so that a wrong name fails before anything listens
    name = args.name or path.name.removesuffix(".gguf")

    def opened() -> "ServedModel":
        engine = model.open_engine(args, context=args.context, threads=args.threads)
        return served(cast("LayerWiseInferenceEngine", engine), name, **scheduling_of(args))

    return OneModel(opened)


def _several(args: argparse.Namespace) -> "Models":
    from airllm.engine.fair_lock import FairLock
    from airllm.server.loaded_models import LoadedModels
    from airllm.weights.budget import granted_bytes

    granted = granted_bytes(args.ram)  # once: what is available shrinks with each model
    find = sources_of(args, granted, FairLock())
    found = find()  # so that a folder that is not there fails before anything listens
    aliases = read_aliases(args.alias)
    check_aliases(found, aliases)
    return LoadedModels(
        find,
        budget=granted,
        default=found[0].id if args.model is not None else None,
        aliases=aliases,
        keep_alive=None if args.keep_alive < 0 else args.keep_alive,
        queue_length=args.queue,
        queue_seconds=args.queue_timeout,
    )


def _settings(args: argparse.Namespace) -> ServerSettings:
    keys = [*args.api_key, *_keys_of(args.api_key_file)]
    if from_environment := os.environ.get("AIRLLM_API_KEY"):
        keys.append(from_environment)
    local = is_loopback(args.host)
    if not local and not keys:
        raise options.UsageError(
            f"--host {args.host} lets other machines connect; give a key with --api-key-file, "
            "--api-key or AIRLLM_API_KEY"
        )
    hosts = None
    if local or args.allowed_host:
        names = {*args.allowed_host, args.host, *(LOOPBACK_HOSTS if local else ())}
        hosts = frozenset(name.lower().strip("[]") for name in names)
    return ServerSettings(
        host=args.host,
        port=args.port,
        api_keys=tuple(keys),
        hosts=hosts,
        origins=frozenset(args.cors_origin),
        max_body=args.max_body,
        max_connections=args.max_connections,
        max_prompt=args.max_prompt,
        max_tokens=args.max_new_tokens,
        queue_seconds=args.queue_timeout,
        prompt_seconds=args.prompt_timeout,
        answer_seconds=args.answer_timeout,
        sampling=answer_options.sampling_options(args),
        variables=args.chat_template_kwargs,
        keeps_agent_headers=args.keep_agent_headers,
    )


def _keys_of(path: Path | None) -> list[str]:
    if path is None:
        return []
    keys = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    if not any(keys):
        raise ValueError(f"{path} has no key; expected a key in each line")
    return [key for key in keys if key]
