"""Requests in the shape in which coding agents and chat pages send them, each answered.

The bodies have the fields of Codex, Claude Code, Open WebUI and Continue, in short.
"""

from typing import Any

import pytest

pytest.importorskip("starlette")

from scripted_server import Client

SHELL = {
    "type": "object",
    "properties": {"command": {"type": "array", "items": {"type": "string"}}},
    "required": ["command"],
    "additionalProperties": False,
    "$schema": "http://json-schema.org/draft-07/schema#",
}
CALL = 'I look.\n<tool_call>\n{"name": "shell", "arguments": {"command": ["ls"]}}\n</tool_call>'

CODEX: dict[str, Any] = {
    "model": "gpt-5-codex",
    "instructions": "You are a coding agent.",
    "input": [
        {
            "type": "message",
            "role": "developer",
            "content": [{"type": "input_text", "text": "<permissions>read-only</permissions>"}],
        },
        {
            "type": "message",
            "role": "user",
            "content": [{"type": "input_text", "text": "What is in this folder?"}],
        },
        {"type": "reasoning", "summary": [], "content": None, "encrypted_content": None},
        {
            "type": "function_call",
            "name": "shell",
            "arguments": '{"command": ["ls"]}',
            "call_id": "call_1",
        },
        {"type": "function_call_output", "call_id": "call_1", "output": "README.md"},
        {
            "type": "message",
            "role": "user",
            "content": [{"type": "input_text", "text": "And in the README?"}],
        },
    ],
    "tools": [
        {
            "type": "function",
            "name": "shell",
            "description": "Runs a command.",
            "strict": False,
            "parameters": SHELL,
        },
        {"type": "custom", "name": "apply_patch", "format": {"type": "grammar", "syntax": "lark"}},
        {"type": "web_search", "external_web_access": False},
    ],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "reasoning": {"effort": "medium", "summary": "auto"},
    "store": False,
    "stream": True,
    "include": ["reasoning.encrypted_content"],
    "prompt_cache_key": "0190",
    "text": {"verbosity": "low"},
}

CLAUDE_CODE: dict[str, Any] = {
    "model": "claude-sonnet-4-5",
    "max_tokens": 2000,
    "stream": True,
    "temperature": 1,
    "system": [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1; cch=00000;"},
        {
            "type": "text",
            "text": "You are Claude Code.",
            "cache_control": {"type": "ephemeral"},
        },
    ],
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "<system-reminder>Today is Monday.</system-reminder>"},
                {
                    "type": "text",
                    "text": "What is in this folder?",
                    "cache_control": {"type": "ephemeral"},
                },
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "I should look.", "signature": ""},
                {"type": "tool_use", "id": "t1", "name": "shell", "input": {"command": ["ls"]}},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "t1",
                    "content": "README.md",
                    "is_error": False,
                    "cache_control": {"type": "ephemeral"},
                }
            ],
        },
    ],
    "tools": [{"name": "shell", "description": "Runs a command.", "input_schema": SHELL}],
    "metadata": {"user_id": "user_0"},
    "thinking": {"type": "adaptive"},
    "output_config": {"effort": "medium"},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
}

OPEN_WEBUI: dict[str, Any] = {
    "model": "scripted",
    "stream": True,
    "stream_options": {"include_usage": True},
    "messages": [
        {"role": "system", "content": "User Context: none"},
        {"role": "user", "content": "What is in this folder?"},
    ],
    "temperature": 0.7,
    "max_tokens": 500,
    "top_k": 40,
    "frequency_penalty": 0,
    "tools": [{"type": "function", "function": {"name": "shell", "parameters": SHELL}}],
}

OPEN_WEBUI_OLLAMA: dict[str, Any] = {
    "model": "scripted:latest",
    "stream": True,
    "messages": [{"role": "user", "content": "What is in this folder?"}],
    "options": {"temperature": 0.7, "num_ctx": 2048, "num_keep": 24, "repeat_last_n": 64},
    "keep_alive": "5m",
    "tools": [{"type": "function", "function": {"name": "shell", "parameters": SHELL}}],
}

CONTINUE: dict[str, Any] = {
    "model": "scripted",
    "messages": [
        {"role": "system", "content": "You are in agent mode."},
        {"role": "user", "content": [{"type": "text", "text": "What is in this folder?"}]},
    ],
    "max_tokens": 500,
    "stream": True,
    "tools": [{"type": "function", "function": {"name": "shell", "parameters": SHELL}}],
    "parallel_tool_calls": False,
    "stop": ["<|im_end|>"],
}


@pytest.mark.parametrize(
    ("path", "body", "mark"),
    [
        ("/v1/responses", CODEX, "response.function_call_arguments.done"),
        ("/v1/messages", CLAUDE_CODE, '"stop_reason":"tool_use"'),
        ("/v1/chat/completions", OPEN_WEBUI, '"finish_reason":"tool_calls"'),
        ("/api/chat", OPEN_WEBUI_OLLAMA, '"tool_calls"'),
        ("/v1/chat/completions", CONTINUE, '"finish_reason":"tool_calls"'),
    ],
    ids=["Codex", "Claude Code", "Open WebUI", "Open WebUI as Ollama's client", "Continue"],
)
def test_an_agent_gets_its_call(path: str, body: dict[str, Any], mark: str) -> None:
    thinks = "reasoning" in body or "thinking" in body  # the template then begins a thought
    with Client("Hm.\n</think>\n" + CALL if thinks else CALL) as client:
        response = client.post(path, body)
        assert response.status == 200, response.body
        text = response.body.decode()
        assert mark in text
        assert "ls" in text
        assert client.engine.prompt().count("What is in this folder?") == 1


def test_the_prompt_of_an_agent_begins_alike_in_each_request() -> None:
    with Client(CALL) as client:
        client.post("/v1/messages", CLAUDE_CODE)
        system = [{**CLAUDE_CODE["system"][0], "text": "x-anthropic-billing-header: cch=fffff;"}]
        client.post(
            "/v1/messages", {**CLAUDE_CODE, "system": [*system, *CLAUDE_CODE["system"][1:]]}
        )
        assert client.engine.prompt(0) == client.engine.prompt(1)
