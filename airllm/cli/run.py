"""airllm run: a model by its name, for a conversation or one answer."""

import argparse

from airllm.cli import answer_options, chat, generate, options, values


def add(subparsers: options.Subparsers) -> None:
    parser = options.add_command(
        subparsers,
        "run",
        run,
        help="talk with a model, or ask it one question; fetch it if need be",
        description="Holds a conversation with a model, as `airllm chat` does. With a prompt, it "
        "answers that and ends, as `airllm generate` does. A model that is not on this machine is "
        "fetched after a question.",
        examples=[
            "airllm run smollm2-135m",
            'airllm run smollm2-135m "Why is the sky blue?"',
            "airllm run hf.co/unsloth/Qwen3-0.6B-GGUF:Q4_K_M",
        ],
    )
    options.add_model(parser, positional=True)
    parser.add_argument(
        "prompt",
        nargs="*",
        default=[],  # else argparse says that one is required, where MODEL is missing
        type=values.text,
        metavar="PROMPT",
        help="a question; several words are joined, and - reads it from stdin (default: a "
        "conversation)",
    )
    chat.add_conversation(parser)
    options.add_template(parser)
    options.add_think(parser)
    answer_options.add_answer(parser, max_tokens=1024)
    options.add_lookahead(parser)
    options.add_threads(parser)
    options.add_engine(parser)
    parser.set_defaults(chat=False, raw=False, json=False, keep=0, more_prompt=None)
    options.add_output(parser)


def run(args: argparse.Namespace) -> int:
    if not args.prompt:
        return chat.run(args)
    if args.session is not None:
        raise options.UsageError("--session is for a conversation; leave the prompt out")
    args.prompt = " ".join(args.prompt)
    return generate.run(args)
