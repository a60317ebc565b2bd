"""Requests as coding agents and chat pages send them: their fields, types, order and headers.

They were recorded from Codex 0.163 (with a provider of its own, and in the mode that it has with
OpenAI's models), Claude Code 2.1.332 and Open WebUI 0.12.4; those of Continue are read from its
source. All texts, names of further tools and schemas are ours.
"""

from typing import Any

Json = dict[str, Any]
QUESTION = "What is in this folder?"

# ---- Codex: /v1/responses ------------------------------------------------------------------------


def _object(required: list[str], **properties: Json) -> Json:
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _text(description: str, **more: Any) -> Json:
    return {"type": "string", "description": description, **more}


def _function(name: str, description: str, parameters: Json) -> Json:
    kind = {"type": "function", "name": name, "description": description}
    return {**kind, "strict": False, "parameters": parameters}


EXEC_COMMAND = _function(
    "exec_command",
    "Runs a command.",
    _object(
        ["cmd"],
        cmd=_text("What to run."),
        login={"type": "boolean", "description": "In a login shell."},
        prefix_rule={"type": "array", "description": "A prefix.", "items": {"type": "string"}},
        sandbox_permissions=_text("Where.", enum=["use_default", "require_escalated"]),
        yield_time_ms={"type": "number", "description": "How long to wait."},
    ),
)
HELPERS: Json = {
    "type": "namespace",
    "name": "helpers_v1",
    "description": "Other agents.",
    "tools": [_function("start", "Starts a helper.", _object(["task"], task=_text("What to do.")))],
}


def _item(kind: str, id: str, **fields: Any) -> Json:
    return {"type": kind, "id": id, **fields}


def _said(id: str, role: str, *texts: str) -> Json:
    content = [{"type": "input_text", "text": text} for text in texts]
    return _item("message", f"msg_{id}", role=role, content=content)


def _answered(id: str, text: str) -> Json:
    content = [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}]
    return {
        "type": "message",
        "status": "completed",
        "id": f"msg_{id}",
        "role": "assistant",
        "content": content,
    }


CODEX: Json = {
    "model": "model",
    "stream": True,
    "input": [
        _said("1", "developer", "You are a coding agent."),
        _said("2", "developer", "<skills>None.</skills>", "<permissions>All.</permissions>"),
        _said("3", "user", "<environment>\n  <cwd>/work</cwd>\n</environment>"),
        _said("4", "user", QUESTION),
        _item(
            "reasoning",
            "rs_5",
            summary=[],
            content=[{"type": "reasoning_text", "text": "A list would tell."}],
            encrypted_content=None,
        ),
        _answered("6", "I look."),
        {
            "type": "function_call",
            "status": "completed",
            "id": "fc_7",
            "name": "exec_command",
            "arguments": '{"cmd": "ls"}',
            "call_id": "call_7",
        },
        _item("function_call_output", "fco_8", call_id="call_7", output="Output:\nREADME.md\n"),
    ],
    "tools": [
        EXEC_COMMAND,
        HELPERS,
        _function("get_goal", "The goal.", {**_object([]), "properties": {}}),
        {"type": "web_search", "external_web_access": True},
    ],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "reasoning": {"effort": "medium", "summary": "auto"},
    "store": False,
    "include": ["reasoning.encrypted_content"],
    "service_tier": "flex",
    "prompt_cache_key": "01a22ba4-9a5f",
    "text": {"verbosity": "low"},
    "client_metadata": {"session_id": "01a22ba4-9a5f", "turn_id": "01a22ba4-9ae8"},
}

# With OpenAI's models: the tools are an item, and the commands are programs of one custom tool.
CODEX_PROGRAMS: Json = {
    "model": "gpt-6.1-sol",
    "stream": True,
    "input": [
        {
            "type": "additional_tools",
            "id": "at_1",
            "role": "developer",
            "tools": [
                {
                    "type": "namespace",
                    "name": "functions",
                    "description": "",
                    "tools": [
                        {
                            "type": "custom",
                            "name": "exec",
                            "description": "Runs a program.",
                            "format": {
                                "type": "grammar",
                                "syntax": "lark",
                                "definition": "start: SOURCE\nSOURCE: /[\\s\\S]+/\n",
                            },
                        },
                        _function("wait", "Waits.", _object(["cell_id"], cell_id=_text("Whose."))),
                    ],
                },
                HELPERS,
            ],
        },
        _said("2", "developer", "You are a coding agent."),
        _said("3", "user", QUESTION),
        {
            "type": "custom_tool_call",
            "status": "completed",
            "id": "ctc_4",
            "call_id": "call_4",
            "name": "exec",
            "input": 'text("one")',
        },
        _item(
            "custom_tool_call_output",
            "ctco_5",
            call_id="call_4",
            output=[{"type": "input_text", "text": "Done:"}, {"type": "input_text", "text": "one"}],
        ),
    ],
    "tool_choice": "auto",
    "parallel_tool_calls": False,
    "reasoning": {"effort": "low", "context": "all_turns"},
    "store": False,
    "include": ["reasoning.encrypted_content"],
    "prompt_cache_key": "01a22ba6-5e97",
    "text": {"verbosity": "low"},
    "client_metadata": {"session_id": "01a22ba6-5e97"},
}

CODEX_WEBSOCKET = [
    ("connection", "Upgrade"),
    ("upgrade", "websocket"),
    ("sec-websocket-version", "13"),
    ("sec-websocket-key", "AAAAAAAAAAAAAAAAAAAAAA=="),
    ("openai-beta", "responses_websockets=2026-02-06"),
]

# ---- Claude Code: /v1/messages?beta=true ---------------------------------------------------------

_SCHEMA = {"$schema": "https://json-schema.org/draft/2020-12/schema"}


def _tool(name: str, description: str, parameters: Json, **more: Any) -> Json:
    schema = {**_SCHEMA, **parameters}
    return {"name": name, "description": description, "input_schema": schema, **more}


NOTEBOOK = _tool(
    "Notebook",
    "Changes a notebook.",
    _object(["path"], path=_text("Of the notebook.")),
    defer_loading=True,
)
_CACHED = {"cache_control": {"type": "ephemeral"}}


def claude_system(header: str = "cc_version=2.1.332.ea5; cc_entrypoint=sdk-cli;") -> list[Json]:
    return [
        {"type": "text", "text": f"x-anthropic-billing-header: {header}"},
        {"type": "text", "text": "You are an agent.", **_CACHED},
        {"type": "text", "text": "\nYou work towards the goals of a user.", **_CACHED},
    ]


CLAUDE: Json = {
    "model": "claude-opus-5-5",
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "<system-reminder>\nBe kind.\n</system-reminder>"},
                {"type": "text", "text": QUESTION},
            ],
        },
        {
            "role": "system",
            "content": [{"type": "text", "text": "# Environment\nToday is Monday.", **_CACHED}],
            "output_config": {"effort": "medium"},
        },
    ],
    "system": claude_system(),
    "tools": [
        _tool(
            "Bash",
            "Runs a command.",
            _object(["command"], command={"description": "What to run", "type": "string"}),
        ),
        _tool(
            "ToolSearch",
            "Finds tools.",
            _object(["query"], query={"type": "string"}, most={"default": 5, "type": "number"}),
        ),
        {
            "name": "Placeholder",
            "description": "Never call this.",
            "input_schema": {"type": "object", "properties": {}},
            "defer_loading": True,
        },
    ],
    "metadata": {"user_id": '{"device_id":"0","account_uuid":"","session_id":"0"}'},
    "max_tokens": 128000,
    "thinking": {"type": "adaptive", "display": "omitted"},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    "output_config": {"effort": "medium"},
    "stream": True,
}

CLAUDE_HEADERS = [
    ("authorization", "Bearer none"),
    ("anthropic-beta", "interleaved-thinking-2025-05-14,effort-2025-11-24"),
    ("anthropic-version", "2023-06-01"),
    ("x-stainless-retry-count", "0"),
]

# Two turns later: contents that were lists are texts, and a tool was loaded.
CLAUDE_LATER: Json = {
    **CLAUDE,
    "messages": [
        CLAUDE["messages"][0],
        {
            "role": "system",
            "content": "# Environment\nToday is Monday.",
            "output_config": {"effort": "medium"},
        },
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "A notebook is needed.", "signature": ""},
                {"type": "text", "text": "I search."},
                {
                    "type": "tool_use",
                    "id": "call_1",
                    "name": "ToolSearch",
                    "input": {"query": "select:Notebook"},
                },
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "call_1",
                    "content": [{"type": "tool_reference", "tool_name": "Notebook"}],
                },
                {"type": "text", "text": "Tool loaded.", **_CACHED},
            ],
        },
    ],
    "tools": [CLAUDE["tools"][0], NOTEBOOK, *CLAUDE["tools"][1:]],
}

CLAUDE_TITLE: Json = {
    "model": "claude-haiku-4-5",
    "messages": [{"role": "user", "content": [{"type": "text", "text": f"Name this: {QUESTION}"}]}],
    "system": claude_system("cc_version=2.1.332.e24; cc_entrypoint=cli;")[:2],
    "tools": [],
    "metadata": {"user_id": "{}"},
    "max_tokens": 32000,
    "output_config": {
        "effort": "high",
        "format": {"type": "json_schema", "schema": _object(["title"], title={"type": "string"})},
    },
    "stream": True,
}

CLAUDE_COUNT: Json = {
    "model": "claude-opus-5-5",
    "messages": [{"role": "user", "content": "foo"}],
    "tools": [CLAUDE["tools"][0]],
}

# ---- Open WebUI: /v1/chat/completions, or /api/chat for an Ollama --------------------------------

WEATHER: Json = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}

OPEN_WEBUI: Json = {
    "model": "scripted",
    "stream": True,
    "tools": [WEATHER],
    "messages": [{"role": "user", "content": QUESTION}],
}

OPEN_WEBUI_OLLAMA: Json = {
    "model": "scripted",
    "messages": [{"role": "user", "content": QUESTION}],
    "stream": True,
    "tools": [WEATHER],
}

OPEN_WEBUI_OLLAMA_OPTIONS: Json = {
    "model": "scripted",
    "messages": [{"role": "user", "content": QUESTION}],
    "options": {
        "temperature": 0.1,
        "top_k": 5,
        "min_p": 0.1,
        "stop": ["###"],
        "seed": 1,
        "frequency_penalty": 0.1,
        "repeat_penalty": 1.1,
        "num_ctx": 4096,
        "mirostat": 0,
        "tfs_z": 1,
        "num_predict": 50,
    },
    "stream": False,
}

# ---- Continue: /v1/chat/completions --------------------------------------------------------------

_CONTINUE: Json = {"model": "scripted", "max_tokens": 4096, "stream": True}
CONTINUE_CHAT: Json = {
    "messages": [
        {"role": "system", "content": "You are in chat mode."},
        {"role": "user", "content": QUESTION},
    ],
    **_CONTINUE,
    "temperature": 0.5,
    "stream_options": {"include_usage": True},
}
CONTINUE_EDIT: Json = {
    **_CONTINUE,
    "messages": [
        {"role": "user", "content": f"The code to rewrite:\n```python\nx = 1\n```\n{QUESTION}"},
        {"role": "assistant", "content": "Sure! Here's the code you requested:\n```python\n"},
    ],
    "stop": ["```"],
}
# The marks of Qwen's coders: Continue writes them itself, whatever the provider.
_GAP = "<|fim_prefix|># app.py\ndef f():\n    return <|fim_suffix|>\n<|fim_middle|>"
_GAP_STOPS = [
    *("<|endoftext|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>"),
    *("<|repo_name|>", "<|file_sep|>", "<|im_start|>", "<|im_end|>"),
    *("/src/", "#- coding: utf-8", "```"),
]
CONTINUE_GAP: Json = {
    "prompt": _GAP,
    **_CONTINUE,
    "max_tokens": 256,
    "temperature": 0.01,
    "stop": _GAP_STOPS,
}
CONTINUE_OLLAMA_GAP: Json = {
    "model": "scripted",
    "prompt": _GAP,
    "raw": True,
    "options": {"temperature": 0.01, "num_predict": 256, "stop": _GAP_STOPS, "num_ctx": 4096},
    "keep_alive": 1800,
    "stream": True,
}
CONTINUE: Json = {
    "messages": [
        {"role": "system", "content": "You are in agent mode."},
        {"role": "user", "content": QUESTION},
        {
            "role": "assistant",
            "content": " ",
            "tool_calls": [
                {
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "ls", "arguments": '{"dirPath":"."}'},
                }
            ],
        },
        {"role": "tool", "content": "README.md", "tool_call_id": "call_1"},
    ],
    "model": "scripted",
    "max_tokens": 4096,
    "stream": True,
    "tools": [
        {
            "type": "function",
            "function": {
                "name": "ls",
                "description": "Lists a folder.",
                "parameters": {
                    "type": "object",
                    "required": ["dirPath"],
                    "properties": {"dirPath": {"type": "string", "description": "Of the folder."}},
                },
            },
        }
    ],
    "parallel_tool_calls": False,
    "stream_options": {"include_usage": True},
}
