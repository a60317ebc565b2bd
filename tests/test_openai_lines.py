"""Lines of OpenAI's batches become prompts of files."""

import json
from pathlib import Path
from typing import Any

import pytest

from airllm.tools.batch_jobs import read_jobs
from airllm.tools.json_lines import BatchError

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


def test_tools_and_an_effort_reach_the_template(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    found = chat(tmp_path, tools=tools, reasoning_effort="low", chat_template_kwargs={"a": 1})
    assert found.variables == {"tools": tools, "reasoning_effort": "low", "a": 1}


def test_null_is_as_if_the_field_were_not_there(tmp_path: Path) -> None:
    assert chat(tmp_path, temperature=None, n=None, stop=None).settings == {}


def test_an_effort_beside_variables_that_are_no_object_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BatchError, match=r"lines:1: .*kwargs"):
        chat(tmp_path, chat_template_kwargs=[], reasoning_effort="low")
