"""airllm batch: many prompts from a file, their answers to another."""

import argparse
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airllm.cli import answer_options, console, model, options, values
from airllm.cli.answer import Answer, parser_for
from airllm.cli.live import StreamLine
from airllm.text.answer import Tool

if TYPE_CHECKING:
    from airllm.cli.engine import Engine
    from airllm.engine.continuation import Generation
    from airllm.text.prompts import Prompt
    from airllm.tools.batch_jobs import Job


def add(subparsers: options.Subparsers) -> None:
    parser = options.add_command(
        subparsers,
        "batch",
        run,
        help="answer a file of prompts, and continue an interrupted run",
        description='Answers a file of prompts. Each line is a JSON object with "prompt" '
        '(a text to continue) or "messages" (a chat). A line may have an "id" and settings of its '
        'own, such as "max_tokens", "temperature" and "seed". Lines of OpenAI\'s batch files are '
        "taken, too, and answered by lines as OpenAI has them. Each answer is appended to --out "
        "as a line when it is ready. After a crash or Ctrl-C, the same command continues with the "
        "prompts that have no answer yet.",
        examples=[
            "airllm batch -m smollm2-135m --in prompts.jsonl --out answers.jsonl",
            "airllm batch -m model.gguf --in q.jsonl --out a.jsonl -n 100 --temperature 0",
        ],
    )
    options.add_model(parser)
    parser.add_argument(
        "--in",
        dest="prompts",
        required=True,
        type=Path,
        metavar="FILE",
        help="file of prompts, a JSON object in each line",
    )
    parser.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="FILE",
        help="file to which answers are appended; prompts that have an answer there are skipped",
    )
    parser.add_argument(
        "--batch",
        type=values.positive,
        default=8,
        metavar="N",
        help="number of prompts that are answered together; a pass of the model gives a token "
        "for each of them, so that a larger number is faster; their KV caches take memory in "
        "addition to --ram (default: %(default)s)",
    )
    options.add_template(parser)
    options.add_think(
        parser,
        show='show writes them beside the text of a chat\'s answer, as "thought", and as '
        '"reasoning_content" in lines as OpenAI has them',
        default="show",
    )
    answer_options.add_answer(parser)
    options.add_threads(parser)
    options.add_engine(parser)
    options.add_output(
        parser,
        json="prompts, answered (now), failed (now), answered_before, stream (statistics of the "
        "disk reads, null where the whole model is in memory)",
    )


def run(args: argparse.Namespace) -> int:
    from airllm.tools import openai_lines
    from airllm.tools.batch_answers import Answers, check_place
    from airllm.tools.batch_jobs import digest, read_jobs

    if args.on_full == "error":
        raise options.UsageError("--on-full error would end all answers; choose stop or shift")
    check_place(args.out)  # before the model is loaded
    jobs = read_jobs(args.prompts)
    settings = answer_options.answer_options(args)
    variables = options.template_variables(args.chat_template_kwargs, args.think)
    with model.open_engine(args, context=args.context, threads=args.threads) as engine:
        run = digest(
            {
                **settings,
                **_if_any("chat_template_kwargs", variables),
                "model": engine.fingerprint().hex(),
                "context": engine.context,
                "kv_type": args.kv_type,
                "activations": args.activations,
            }
        )
        with Answers.open(args.out, jobs, run) as answers:
            before = len(jobs) - len(answers.left)
            if before:
                console.log.info("%d of %d prompts are answered already", before, len(jobs))
            answered = failed = 0
            with console.progress("answering", "prompts") as progress:
                packers = model.runtime(engine)["threads"]
                line = StreamLine(engine.stream_stats, packers=packers, shown=False)
                pieces = 0

                def on_layer(done: int, total: int) -> None:
                    line.update(done, total)
                    progress.update(answered, len(answers.left), line.place(done, total))

                def on_token(index: int, text: str) -> None:
                    nonlocal pieces
                    pieces += 1
                    progress.update(answered, len(answers.left), f"pieces of text: {pieces:,}")

                # If layers are streamed, a token may take seconds: show the layers, too.
                streams = engine.stream_stats() is not None
                shown = {"on_layer": on_layer} if streams else {"on_token": on_token}
                generate = partial(engine.stream_batch, batch=args.batch, markup=True, **shown)
                asked = partial(_asked, variables)
                for job, said in _answers(engine, answers.left, asked, settings, generate):
                    if args.think == "hide":
                        said.pop("thought", None)
                    answer = said
                    if job.url is not None:
                        name = job.model or Path(args.model).name
                        answer = openai_lines.result(job.url, name, said, int(time.time()))
                    answers.append(job, answer)
                    answered, failed = answered + 1, failed + ("text" not in said)
                    progress.update(answered, len(answers.left))
        stream = engine.stream_stats()
    if args.json:
        counts = {"answered": answered - failed, "failed": failed, "answered_before": before}
        console.write_json({"prompts": len(jobs), **counts, "stream": stream})
    else:
        console.log.info("%d prompts answered now, %d failed", answered - failed, failed)
        if stream is not None:
            console.log.info("%s", model.stream_in_words(stream))
    if failed:
        console.note(f'{failed} prompts could not be answered; their lines say why, as "error"')
    return int(failed > 0)


def _answers(
    engine: "Engine",
    jobs: Sequence["Job"],
    asked: Callable[["Job"], "Prompt"],
    settings: Mapping[str, Any],
    generate: Callable[..., Generator[tuple[int, "Generation"], None, None]],
) -> Iterator[tuple["Job", dict[str, object]]]:
    """Each job with the fields of its answer, as the answers get ready.

    Jobs with the same settings are answered together. A prompt that cannot be answered (for
    instance, it does not fit the context) gets an "error" in place of a text and does not affect
    other prompts. asked: returns the prompt of a job. generate: see
    LayerWiseInferenceEngine.stream_batch.
    """
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        try:
            engine.prompt_length(asked(job))
        except ValueError as error:
            if isinstance(error, _model_error()):
                raise
            yield job, {"error": str(error)}
        else:
            groups.setdefault(repr(sorted(job.settings.items())), []).append(job)
    for group in groups.values():
        try:
            answers = generate([asked(job) for job in group], **{**settings, **group[0].settings})
        except ValueError as error:  # the settings are invalid
            for job in group:
                yield job, {"error": str(error)}
            continue
        with closing(answers):
            for index, generation in answers:
                job = group[index]
                said = _taken_apart(engine, asked(job), _tools(job), generation.text)
                yield job, {**_fields(generation, said), **_if_any("tool_calls", _calls(job, said))}


def _asked(variables: Mapping[str, object], job: "Job") -> "Prompt":
    """The job's prompt. A chat gets the common template variables and its own."""
    if isinstance(job.prompt, str):
        return job.prompt
    return model.request(job.prompt, {**variables, **job.variables})


def _if_any(name: str, value: object) -> dict[str, object]:
    return {name: value} if value else {}


def _model_error() -> type[ValueError]:
    """The error of a damaged model file, which is no fault of a prompt."""
    from airllm.util.metadata import FormatError

    return FormatError


def _tools(job: "Job") -> list[Tool]:
    """The functions among the job's tools, which are as OpenAI has them. The template may take
    others, too; their calls stay in the text."""
    found = []
    for item in job.variables.get("tools", ()):
        match item:
            case {"function": {"name": str(name), **more}}:
                schema = more.get("parameters")
                found.append(Tool(name, parameters=schema if isinstance(schema, dict) else {}))
    return found


def _calls(job: "Job", said: Answer) -> list[dict[str, object]]:
    """The calls of an answer as OpenAI has them. Those that the model gave no id get one."""
    return [
        replace(call, id=call.id or f"call_{job.index}_{at}").as_json()
        for at, call in enumerate(said.calls)
    ]


def _taken_apart(engine: "Engine", asked: "Prompt", tools: Sequence[Tool], text: str) -> Answer:
    """An answer. If it is one to a chat, its thought and the calls of tools are apart from its
    text."""
    is_chat = not isinstance(asked, str)
    parser = parser_for(engine, engine.tokenize(asked), tools) if is_chat else None
    calls = bool(tools)
    with Answer(parser, shown=False, thoughts=False, waits=True, tells_calls=calls) as said:
        said.show(text)
    return said


def _fields(generation: "Generation", said: Answer) -> dict[str, object]:
    return {
        "text": said.text,
        **_if_any("thought", said.thought),
        "finish_reason": generation.finish_reason,
        "prompt_tokens": generation.prompt_tokens,
        "tokens": len(generation.tokens),
        "seconds": round(generation.prefill_seconds + generation.decode_seconds, 3),
    }
