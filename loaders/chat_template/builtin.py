"""The chat templates that llama.cpp knows by name (its src/llama-chat.cpp), written as Jinja.

Most are one pattern per role, repeated. In patterns, $role and $content stand for the message's own, $trimmed for its
content without the white space around it, $Role and $ROLE for the role with capitals.
"""

from __future__ import annotations

from collections.abc import Mapping

# C's isspace: jinja's own trim would also take Unicode's spaces.
TRIM = r"|trim(' \t\n\v\f\r')"
PLACEHOLDERS = {
    "$role": "{{ m.role }}",
    "$Role": "{{ m.role[:1]|upper }}{{ m.role[1:] }}",
    "$ROLE": "{{ 'HUMAN' if m.role == 'user' else m.role|upper }}",
    "$content": "{{ m.content }}",
    "$trimmed": "{{ m.content" + TRIM + " }}",
}
OTHERS = "*"


def _turns(turn: str | Mapping[str, str], generation: str = "", start: str = "") -> str:
    """turn: the pattern of all messages, or of those with each role (OTHERS: all further ones; else they vanish).

    start, generation: what stands before the first message and what invites the assistant's.
    """
    if isinstance(turn, str):
        body = turn
    else:
        cases = [f"{{% elif m.role == '{role}' %}}{text}" for role, text in turn.items() if role != OTHERS]
        other = f"{{% else %}}{turn[OTHERS]}" if OTHERS in turn else ""
        body = "{% if" + "".join(cases).removeprefix("{% elif") + other + "{% endif %}"
    if generation:
        generation = "{% if add_generation_prompt %}" + generation + "{% endif %}"
    text = start + "{% for m in messages %}" + body + "{% endfor %}" + generation
    for placeholder, jinja in PLACEHOLDERS.items():
        text = text.replace(placeholder, jinja)
    return text


def _llama2(system: str, content: str = "$content", bos: str = "") -> str:
    """system: the pattern of system messages. bos: what begins every turn but the first."""
    return _turns(
        "{% if turns.open %}{% set turns.open = false %}" + bos + "[INST] {% endif %}"
        "{% if m.role == 'system' %}" + system + "{% elif m.role == 'user' %}" + content + " [/INST]"
        "{% else %}" + content + "</s>{% set turns.open = true %}{% endif %}",
        start="{% set turns = namespace(open=false) %}[INST] ",
    )


def _mistral(before: str, after: str, answer: str = "$content") -> str:
    """before, after: the spaces around the markers, which differ from version to version."""
    before, after = f"{{{{ '{before}' }}}}", f"{{{{ '{after}' }}}}"  # as text, they would be stripped before blocks
    return _turns(
        "{% if turns.open %}{% set turns.open = false %}" + before + "[INST]" + after + "{% endif %}"
        "{% if m.role == 'system' %}$content\n\n{% elif m.role == 'user' %}$content" + before + "[/INST]"
        "{% else %}" + after + answer + "</s>{% set turns.open = true %}{% endif %}",
        start="{% set turns = namespace(open=true) %}",
    )


def _mistral_v7(space: str) -> str:
    space = f"{{{{ '{space}' }}}}"
    return _turns(
        {
            "system": f"[SYSTEM_PROMPT]{space}$content[/SYSTEM_PROMPT]",
            "user": f"[INST]{space}$content[/INST]",
            OTHERS: f"{space}$content</s>",
        }
    )


def _exaone(roles: str) -> str:
    turns = {role: f"[|{role}|]$trimmed[|endofturn|]\n" for role in roles.split()}
    return _turns(turns | {"user": "[|user|]$trimmed\n"}, "[|assistant|]")


def _granite(tool_call_role: str) -> str:
    start, end = "<|start_of_role|>", "<|end_of_role|>"
    return _turns(
        {
            "assistant_tool_call": f"{start}{tool_call_role}{end}<|tool_call|>$content<|end_of_text|>\n",
            OTHERS: f"{start}$role{end}$content<|end_of_text|>\n",
        },
        f"{start}assistant{end}",
    )


def _system_merged(system: str, turn: str, generation: str = "") -> str:
    """For models without a system role: texts of system messages wait in `system.text` for the turn to print them."""
    return _turns(
        "{% if m.role == 'system' %}{% set system.text = system.text ~ " + system + " %}"
        "{% else %}" + turn + "{% endif %}",
        generation,
        start="{% set system = namespace(text='') %}",
    )


WAITING_SYSTEM = "{% if system.text %}{{ system.text }}{{ '\n\n' }}{% set system.text = '' %}{% endif %}"

BUILTIN: dict[str, str] = {
    "bailing": _turns("<role>$ROLE</role>$content", "<role>ASSISTANT</role>"),
    "bailing-think": _turns("<role>$ROLE</role>$content", "<role>ASSISTANT</role><think>"),
    "bailing2": _turns(
        "<role>$ROLE</role>$content<|role_end|>",
        "<role>ASSISTANT</role>",
        start="{% if not messages or messages[0].role != 'system' %}"
        "<role>SYSTEM</role>detailed thinking off<|role_end|>{% endif %}",
    ),
    "chatglm3": _turns("<|$role|>\n $content", "<|assistant|>", start="[gMASK]sop"),
    "chatglm4": _turns("<|$role|>\n$content", "<|assistant|>\n", start="[gMASK]<sop>"),
    "chatml": _turns("<|im_start|>$role\n$content<|im_end|>\n", "<|im_start|>assistant\n"),
    "command-r": _turns(
        {
            "system": "<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>$trimmed<|END_OF_TURN_TOKEN|>",
            "user": "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>$trimmed<|END_OF_TURN_TOKEN|>",
            "assistant": "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>$trimmed<|END_OF_TURN_TOKEN|>",
        },
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
    ),
    "deepseek": _turns(
        {
            "system": "$content",
            "user": "### Instruction:\n$content\n",
            "assistant": "### Response:\n$content\n<|EOT|>\n",
        },
        "### Response:\n",
    ),
    "deepseek-ocr": _turns("$content"),
    "deepseek2": _turns(
        {
            "system": "$content\n\n",
            "user": "User: $content\n\n",
            "assistant": "Assistant: $content<｜end▁of▁sentence｜>",
        },
        "Assistant:",
    ),
    "deepseek3": _turns(
        {
            "system": "$content\n\n",
            "user": "<｜User｜>$content",
            "assistant": "<｜Assistant｜>$content<｜end▁of▁sentence｜>",
        },
        "<｜Assistant｜>",
    ),
    "exaone-moe": _turns(
        {role: f"<|{role}|>\n$trimmed<|endofturn|>\n" for role in ("system", "user", "assistant", "tool")},
        "<|assistant|>\n",
    ),
    "exaone3": _exaone("system assistant"),
    "exaone4": _exaone("system assistant tool"),
    "falcon3": _turns("<|$role|>\n$content\n", "<|assistant|>\n"),
    "gemma": _system_merged(
        "m.content" + TRIM,
        "{% if m.role == 'assistant' %}<start_of_turn>model\n"
        "{% else %}<start_of_turn>$role\n" + WAITING_SYSTEM + "{% endif %}$trimmed<end_of_turn>\n",
        "<start_of_turn>model\n",
    ),
    "gigachat": _turns(
        {
            "user": "user<|role_sep|>$content<|message_sep|>available functions<|role_sep|>[]<|message_sep|>",
            "assistant": "assistant<|role_sep|>$content<|message_sep|>",
        },
        "assistant<|role_sep|>",
        start="<s>{% if messages and messages[0].role == 'system' %}"
        "{{ messages[0].content }}<|message_sep|>{% endif %}",
    ),
    "glmedge": _turns("<|$role|>\n$content", "<|assistant|>"),
    "gpt-oss": _turns(
        {
            "assistant": "<|start|>assistant<|message|>$content<|return|>",
            OTHERS: "<|start|>$role<|message|>$content<|end|>",
        },
        "<|start|>assistant",
    ),
    "granite": _granite("assistant_tool_call"),
    "granite-4.0": _granite("assistant"),
    "granite-4.1": _granite("assistant"),
    "grok-2": _turns(
        {
            "system": "System: $trimmed<|separator|>\n\n",
            "user": "Human: $trimmed<|separator|>\n\n",
            "assistant": "Assistant: $content<|separator|>\n\n",
        },
        "Assistant:",
    ),
    "hunyuan-dense": _turns(
        {
            "assistant": "<｜hy_Assistant｜>$content<｜hy_place▁holder▁no▁2｜>",
            "user": "<｜hy_User｜>$content<｜hy_Assistant｜>",
            "system": "{% if loop.first %}$content<｜hy_place▁holder▁no▁3｜>{% endif %}",
        }
    ),
    "hunyuan-moe": _turns(
        {
            "system": "<|startoftext|>$content<|extra_4|>",
            "assistant": "$content<|eos|>",
            OTHERS: "<|startoftext|>$content<|extra_0|>",
        }
    ),
    "hunyuan-vl": _turns(
        {
            "user": "$content<｜hy_User｜>",
            "assistant": "$content<｜hy_Assistant｜>",
            "system": "{% if loop.first %}$content<｜hy_place▁holder▁no▁3｜>{% endif %}",
        },
        start="<｜hy_begin▁of▁sentence｜>",
    ),
    "kimi-k2": _turns(
        {
            "system": "<|im_system|>system<|im_middle|>$content<|im_end|>",
            "user": "<|im_user|>user<|im_middle|>$content<|im_end|>",
            "assistant": "<|im_assistant|>assistant<|im_middle|>$content<|im_end|>",
            "tool": "<|im_system|>tool<|im_middle|>$content<|im_end|>",
            OTHERS: "$content<|im_end|>",
        },
        "<|im_assistant|>assistant<|im_middle|>",
    ),
    "llama2": _llama2("$content\n"),
    "llama2-sys": _llama2("<<SYS>>\n$content\n<</SYS>>\n\n"),
    "llama2-sys-bos": _llama2("<<SYS>>\n$content\n<</SYS>>\n\n", bos="<s>"),
    "llama2-sys-strip": _llama2("<<SYS>>\n$trimmed\n<</SYS>>\n\n", "$trimmed"),
    "llama3": _turns(
        "<|start_header_id|>$role<|end_header_id|>\n\n$trimmed<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "llama4": _turns(
        "<|header_start|>$role<|header_end|>\n\n$trimmed<|eot|>",
        "<|header_start|>assistant<|header_end|>\n\n",
    ),
    "megrez": _turns("<|role_start|>$role<|role_end|>$content<|turn_end|>", "<|role_start|>assistant<|role_end|>"),
    "minicpm": _turns({"user": "<用户>$trimmed<AI>", OTHERS: "$trimmed"}),
    "mistral-v1": _mistral(" ", " "),
    "mistral-v3": _mistral("", " ", answer="$trimmed"),
    "mistral-v3-tekken": _mistral("", ""),
    "mistral-v7": _mistral_v7(" "),
    "mistral-v7-tekken": _mistral_v7(""),
    "monarch": _turns("{% if not loop.first %}<s>{% endif %}$role\n$content</s>\n", "<s>assistant\n"),
    "openchat": _turns(
        {"system": "$content<|end_of_turn|>", OTHERS: "GPT4 Correct $Role: $content<|end_of_turn|>"},
        "GPT4 Correct Assistant:",
    ),
    "orion": _system_merged(
        "m.content",
        "{% if m.role == 'user' %}Human: " + WAITING_SYSTEM + "$content\n\nAssistant: </s>"
        "{% else %}$content</s>{% endif %}",
    ),
    "pangu-embedded": _turns(
        {
            "system": "[unused9]系统：$content[unused10]",
            "user": "[unused9]用户：$content[unused10]",
            "assistant": "[unused9]助手：$content[unused10]",
            "tool": "[unused9]工具：$content[unused10]",
            "function": "[unused9]方法：$content[unused10]",
        },
        "[unused9]助手：",
        start="{% if messages and messages[0].role != 'system' %}[unused9]系统：[unused10]{% endif %}",
    ),
    "phi3": _turns("<|$role|>\n$content<|end|>\n", "<|assistant|>\n"),
    "phi4": _turns("<|im_start|>$role<|im_sep|>$content<|im_end|>", "<|im_start|>assistant<|im_sep|>"),
    "rwkv-world": _turns(
        {
            "system": "System: $trimmed\n\n",
            "user": "User: $trimmed\n\n{% if loop.last %}Assistant:{% endif %}",
            "assistant": "Assistant: $trimmed\n\n",
        }
    ),
    "seed_oss": _turns(
        {
            "assistant": "<seed:bos>assistant\n$trimmed<seed:eos>",
            OTHERS: "<seed:bos>$role\n$content<seed:eos>",
        },
        "<seed:bos>assistant\n",
    ),
    "smolvlm": _turns(
        {
            "system": "$content\n\n",
            "user": "User: $content<end_of_utterance>\n",
            OTHERS: "Assistant: $content<end_of_utterance>\n",
        },
        "Assistant:",
        start="<|im_start|>",
    ),
    "solar-open": _turns("<|begin|>$role<|content|>$content<|end|>", "<|begin|>assistant"),
    "vicuna": _turns(
        {
            "system": "$content\n\n",
            "user": "USER: $content\n",
            "assistant": "ASSISTANT: $content</s>\n",
        },
        "ASSISTANT:",
    ),
    "vicuna-orca": _turns(
        {
            "system": "SYSTEM: $content\n",
            "user": "USER: $content\n",
            "assistant": "ASSISTANT: $content</s>\n",
        },
        "ASSISTANT:",
    ),
    "yandex": _turns(
        {"user": "{{ ' ' }}Пользователь: $content\n\n", "assistant": "{{ ' ' }}Ассистент: $content\n\n"},
        "{{ ' ' }}Ассистент:[SEP]",
    ),
    "zephyr": _turns("<|$role|>\n$content<|endoftext|>\n", "<|assistant|>\n"),
}


def builtin_template(name: str) -> str:
    """The Jinja text of a built-in template; ValueError lists the names."""
    if name not in BUILTIN:
        raise ValueError(
            f"no built-in chat template {name!r:.100} (and it is not Jinja text); they are: {', '.join(BUILTIN)}"
        )
    return BUILTIN[name]
