"""Lines of OpenAI's batches become prompts of files."""

import json
from pathlib import Path
from typing import Any

import pytest

from airllm.tools.batch_file import BatchError, read_jobs

HELLO = [{"role": "user", "content": "Hello?"}]


def job(tmp_path: Path, **line: Any) -> Any:
    (tmp_path / "lines").write_text(json.dumps(line))
    return read_jobs(tmp_path / "lines")[0]


def chat(tmp_path: Path, **body: Any) -> Any:
    return job(
        tmp_path,
        custom_id="one",
        method="POST",
        url="/v1/chat/completions",
        body={"model": "any", "messages": HELLO, **body},
    )


def test_a_chat_and_its_settings_are_read(tmp_path: Path) -> None:
    found = chat(tmp_path, max_tokens=5, temperature=0, stop=["x"], seed=3, n=1, user="ada")
    assert found.id == "one"
    assert found.prompt == HELLO
    assert found.settings == {"max_new_tokens": 5, "temperature": 0, "stop": ["x"], "seed": 3}


def test_the_newer_name_of_the_length_counts(tmp_path: Path) -> None:
    found = chat(tmp_path, max_tokens=5, max_completion_tokens=7)
    assert found.settings == {"max_new_tokens": 7}


def test_tools_and_an_effort_reach_the_template(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    found = chat(tmp_path, tools=tools, reasoning_effort="low", chat_template_kwargs={"a": 1})
    assert found.variables == {"tools": tools, "reasoning_effort": "low", "a": 1}


def test_a_text_is_read(tmp_path: Path) -> None:
    found = job(tmp_path, custom_id="two", url="/v1/completions", body={"prompt": "Once"})
    assert (found.id, found.prompt) == ("two", "Once")


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ({"custom_id": "a"}, "body"),
        ({"body": {"messages": HELLO}, "url": "/v1/embeddings"}, "url"),
        ({"body": {"messages": HELLO}, "method": "GET"}, "method"),
        ({"body": {"messages": HELLO}, "method": []}, "method"),
        ({"body": {"messages": HELLO}, "url": []}, "url"),
        ({"body": {"prompt": "x"}}, "messages"),
        ({"body": {"messages": HELLO}, "more": 1}, "more"),
        ({"body": {"messages": HELLO, "n": 2}}, "n"),
        ({"body": {"messages": HELLO, "response_format": {"type": "json_object"}}}, "format"),
        ({"body": {"messages": HELLO, "frobnicate": 1}}, "frobnicate"),
        ({"body": {"messages": HELLO, "temperature": "hot"}}, "temperature"),
        (
            {"body": {"messages": HELLO, "chat_template_kwargs": [], "reasoning_effort": "low"}},
            "kw",
        ),
        ({"body": {"messages": "Hello?"}}, "messages"),
    ],
)
def test_what_has_no_meaning_here_is_refused_by_its_name(
    tmp_path: Path, line: dict[str, Any], word: str
) -> None:
    with pytest.raises(BatchError, match=f"lines:1: .*{word}"):
        job(tmp_path, **line)
