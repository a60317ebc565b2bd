"""airllm generate: one prompt, one answer."""

import argparse
import sys
from typing import TYPE_CHECKING

from airllm.cli import answer_options, console, model, options, values
from airllm.cli.answer import Answer, parser_for, shows_thoughts
from airllm.engine.settings import Limits

if TYPE_CHECKING:
    from airllm.cli.engine import Engine
    from airllm.engine.continuation import Generation
    from airllm.text.prompts import Prompt

MAX_PROMPT = 2**26  # characters on stdin; the engine checks that they fit the context


def add(subparsers: options.Subparsers) -> None:
    parser = options.add_command(
        subparsers,
        "generate",
        run,
        help="answer a question, or continue a text (--raw)",
        description="Answers a question: the model's chat template puts the prompt into the form "
        "that the model was trained on. With --raw, or if the model has no chat template, the "
        "prompt is a text that the model continues. The answer appears on stdout while it is "
        "generated. Notes go to stderr.",
        examples=[
            'airllm generate -m smollm2-135m "What is the capital of France?"',
            'airllm generate -m model.gguf --raw -p "Once upon a time" --max-tokens 50 --seed 1',
            "airllm generate -m model.gguf - < question.txt",
        ],
    )
    options.add_model(parser)
    parser.add_argument(
        "more_prompt",
        nargs="?",
        type=values.text,
        metavar="PROMPT",
        help="the prompt; - reads it from stdin",
    )
    parser.add_argument("-p", "--prompt", type=values.text, metavar="P", help="the same, by name")
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--raw",
        action="store_true",
        help="continue the prompt as a text, without the chat template",
    )
    how.add_argument(
        "--chat",
        action="store_true",
        help="fail if the model cannot chat, instead of continuing the prompt as a text",
    )
    parser.add_argument(
        "--system",
        type=values.text,
        metavar="S",
        help="the system message, which says who the model is and how it should answer",
    )
    options.add_template(parser)
    options.add_think(parser)
    group = answer_options.add_answer(parser)
    group.add_argument(
        "--keep",
        type=values.count_or_all,
        default=Limits.keep,
        metavar="N",
        help="with --on-full shift: number of tokens at the prompt's beginning that are not "
        "forgotten; -1 means the whole prompt (default: %(default)s)",
    )
    options.add_lookahead(parser)
    options.add_threads(parser)
    options.add_engine(parser)
    options.add_output(
        parser,
        json="text, thought (what the model wrote before its answer), tokens, prompt_tokens, "
        "shifted_tokens, finish_reason, passes, accepted_tokens, tokens_per_pass, timings, stream "
        "(statistics of the disk reads, null where the whole model is in memory), backend, isa, "
        "threads",
    )


def run(args: argparse.Namespace) -> int:
    if args.keep and args.on_full != "shift":
        raise options.UsageError("--keep needs --on-full shift, because only shift forgets tokens")
    variables = options.template_variables(args.chat_template_kwargs, args.think)
    for_chat = args.chat or args.system is not None or bool(variables)
    if args.raw and args.system is not None:
        raise options.UsageError("--system is for a chat: with --raw, a text has no place for it")
    if args.raw and args.chat_template_kwargs:
        raise options.UsageError("--chat-template-kwargs is for a chat, and --raw wants none")
    if args.raw and args.think is not None:
        raise options.UsageError("--think is for a chat: with --raw, thoughts are not told apart")
    prompt = _prompt(args)
    with model.open_with_draft(args) as (engine, draft):
        request: Prompt = prompt
        if for_chat or (engine.has_chat_template and not args.raw):
            messages = model.conversation(prompt, args.system)
            request = model.request(messages, variables)
        elif not args.raw:
            console.log.info("the model has no chat template: it continues the prompt as a text")
        generation, said = answer(engine, request, args, draft)
        if args.json:
            console.write_json(as_json(engine, generation, said))
        _report(engine, generation, args)
    return 0


def _prompt(args: argparse.Namespace) -> str:
    given: list[str] = [text for text in (args.prompt, args.more_prompt) if text is not None]
    if len(given) != 1:
        raise options.UsageError(
            "expected one prompt, found two: one of them after -p"
            if given
            else "expected a prompt: a text in quotes, or - to read it from stdin"
        )
    return _read_stdin() if given[0] == "-" else given[0]


def answer(
    engine: "Engine",
    request: "Prompt",
    args: argparse.Namespace,
    draft: "Engine | None" = None,
) -> tuple["Generation", Answer]:
    """The answer, which is shown as it comes unless --json asks for it as a whole."""
    is_chat = not isinstance(request, str)
    said = Answer(
        parser_for(engine, engine.tokenize(request)) if is_chat else None,
        shown=not args.json,
        thoughts=not args.json and shows_thoughts(args.think),
        waits=engine.stream_stats() is not None,
    )
    with said, model.evaluation_progress(engine, args.max_new_tokens) as progress:
        generation = engine.generate(
            request,
            markup=is_chat,
            on_token=progress.before(said.show),
            on_progress=progress.update,
            lookahead=args.lookahead,
            draft=draft,
            **answer_options.answer_options(args),
        )
    return generation, said


def as_json(engine: "Engine", generation: "Generation", said: Answer) -> dict[str, object]:
    return {
        "text": said.text,
        "thought": said.thought,
        "tokens": list(generation.tokens),
        "prompt_tokens": generation.prompt_tokens,
        "shifted_tokens": generation.shifted_tokens,
        "finish_reason": generation.finish_reason,
        "passes": generation.passes,
        "accepted_tokens": generation.accepted_tokens,
        "tokens_per_pass": generation.tokens_per_pass,
        "timings": model.timings(generation),
        "stream": engine.stream_stats(),
        **model.runtime(engine),
    }


def _report(engine: "Engine", generation: "Generation", args: argparse.Namespace) -> None:
    if generation.finish_reason == "length":
        console.log.info("stopped after %d tokens; --max-tokens allows more", args.max_new_tokens)
    elif generation.finish_reason == "context":
        console.log.info(
            "stopped: the context of %d tokens is full; --context makes it larger, and --on-full "
            "shift goes on without the oldest tokens",
            engine.context,
        )
    if generation.shifted_tokens:
        console.log.info(
            "the context of %d tokens was full: %d tokens were forgotten",
            engine.context,
            generation.shifted_tokens,
        )
    if args.lookahead or generation.accepted_tokens:
        console.log.info(
            "lookahead: %d tokens were guessed right, %.2f tokens a pass",
            generation.accepted_tokens,
            generation.tokens_per_pass,
        )
    console.log.info(
        "prompt: %d tokens, %.1f tokens/s; answer: %d tokens, %.1f tokens/s",
        generation.prompt_tokens,
        generation.prefill_tokens_per_second,
        len(generation.tokens),
        generation.decode_tokens_per_second,
    )
    if (stats := engine.stream_stats()) is not None:
        console.log.info("%s", model.stream_in_words(stats))


def _read_stdin() -> str:
    """All of stdin without the newline that ends a file."""
    if sys.stdin.isatty():
        console.log.info("reading the prompt; Ctrl-D ends it")
    try:
        text = sys.stdin.read(MAX_PROMPT + 1)
    except UnicodeDecodeError as error:
        raise ValueError(f"the prompt on stdin is not UTF-8: {error}") from None
    if len(text) > MAX_PROMPT:
        raise ValueError(f"the prompt on stdin has more than {MAX_PROMPT:,} characters")
    return text.removesuffix("\n")
