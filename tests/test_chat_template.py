"""Rendering chat templates: equal to transformers where it renders, and clear errors where nothing can."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest

from naiad.loaders.chat_template import ChatTemplate

CALL = {"id": "call00001", "type": "function", "function": {"name": "sum", "arguments": {"b": 2, "a": [1, None]}}}
CONVERSATION: list[dict[str, Any]] = [
    {"role": "system", "content": " Be brief.\n"},
    {"role": "user", "content": 'What is 1+2? <b>&"é"</b> 🦙'},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "3", "tool_call_id": "call00001"},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nThree."},
    {"role": "user", "content": "Thanks"},
]
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "sum",
            "description": "Adds <é> & 'ü'",
            "parameters": {"type": "object", "properties": {"a": {"type": "number"}}, "required": ["a"]},
        },
    }
]

# What transformers' environment offers and templates use; each line is rendered by both.
FEATURES = {
    "plain": "{% for m in messages %}{{ m.role }}: {{ m['content'] }}\n{% endfor %}",
    "whitespace": "  {% for m in messages %}\n    {%- if loop.first %}\n  x {{- m.role -}} y\n"
    "    {% endif %}\n  {% endfor %}\n\n",
    "generation-prompt": "{{ bos_token }}x{{ eos_token }}{% if add_generation_prompt %}<a>{% endif %}",
    "tojson": "{{ tools|tojson }}{{ messages[2].tool_calls|tojson }}",
    "tojson-options": "{{ tools|tojson(indent=4) }}{{ tools|tojson(true, none, ('|', '='), sort_keys=true) }}"
    "{{ [1.5, true, none, 'ß\\n\"', {}, []]|tojson(indent='--') }}",
    "loop-controls": "{% for m in messages %}{% if loop.index0 == 0 %}{% continue %}{% endif %}{{ m.content }}"
    "{% if loop.index == 4 %}{% break %}{% endif %}{% endfor %}",
    "loop-variables": "{% for m in messages %}{{ loop.index }}{{ loop.revindex }}{{ loop.last }}{{ loop.length }}"
    "{{ loop.previtem is defined }}{{ (loop.nextitem or {}).role }}{{ loop.cycle('a', 'b') }}"
    "{{ loop.changed(m.role) }}{% endfor %}",
    "loop-filter-else": "{% for m in messages if m.role == 'user' %}{{ loop.length }}{% else %}none{% endfor %}"
    "{% for m in messages if m.role == 'nobody' %}x{% else %}none{% endfor %}",
    "loop-recursive": "{% for x in [1, [2, [3]]] recursive %}{% if x is iterable %}({{ loop(x) }}){% else %}"
    "{{ x }}@{{ loop.depth }}{% endif %}{% endfor %}",
    "strftime": "{{ strftime_now('%Y') }}",
    "namespace": "{% set ns = namespace(n=0, seen={}) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    "{% set ns.last = m %}{% endfor %}{{ ns.n }}{{ ns.last.role }}{{ ns.missing is defined }}",
    "macros": "{% macro show(x, mark='*', rest=[]) %}{{ mark }}{{ x }}{{ varargs }}{{ kwargs }}{% endmacro %}"
    "{{ show('a') }}{{ show('b', '+', [1], 2, z=3) }}{{ show.name }}",
    "macro-recursion": "{% macro f(n) %}{{ n }}{% if n %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(5) }}",
    "call-block": "{% macro twice() %}{{ caller('x') }}|{{ caller('y') }}{% endmacro %}"
    "{% call(v) twice() %}<{{ v }}>{% endcall %}",
    "set-block": "{% set text %}{% for m in messages %}{{ m.role }},{% endfor %}{% endset %}{{ text|upper }}",
    "filter-block": "{% filter replace('s', 'S') %}{{ messages[0].role }}{% endfilter %}",
    "generation-tag": "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{% set x = 1 %}"
    "{{ m.content }}{{ loop.index }}{% endgeneration %}{{ x is defined }}{% endif %}{% endfor %}",
    "undefined": "{{ nothing }}{{ messages[0].nothing }}{{ nothing is defined }}{{ nothing|default('d') }}"
    "{{ messages[99] is defined }}{{ 'x' if nothing }}{{ nothing|length }}{{ nothing|replace('a', 'b') }}",
    "text-methods": "{% set c = messages[4].content %}{{ c.split('</think>')[-1].lstrip('\\n') }}"
    "{{ c.startswith('<t') }}{{ c.strip().upper() }}{{ c.replace('\\n', '|') }}{{ c.rsplit('>', 1) }}"
    "{{ c.find('k') }}{{ c.title() }}{{ 'a,b'.split(',', 1) }}{{ ','.join(['x', 'y']) }}{{ 'x'.zfill(3) }}"
    "{{ 'ab'.center(6, '*') }}",
    "formats": "{{ '{}-{:>4}-{x!r}'.format('a', 5, x=[1]) }}{{ '%s-%04d' % ('a', 5) }}{{ '%.2f'|format(1.234) }}"
    "{{ '{a[b]}'.format_map({'a': {'b': 1}}) }}{{ '%(k)s' % {'k': 'v'} }}",
    "slices": "{{ messages[1:][0].content[::-1] }}{{ [1, 2, 3][-2:] }}{{ 'abc'[1] }}{{ (1, 2, 3)[:2] }}",
    "comparisons": "{{ 1 < 2 <= 2 }}{{ 1 < 3 < 2 }}{{ 'a' in 'abc' }}{{ 'user' in messages|map(attribute='role') }}"
    "{{ [1, [2]] == [1, [2]] }}{{ messages[0] != messages[1] }}{{ 1 not in {1: 2} }}{{ 'b' > 'a' }}",
    "arithmetic": "{{ 7 // 2 }}{{ 7 % 3 }}{{ 2 ** 10 }}{{ 1 / 4 }}{{ -3 + 1 }}{{ 'ab' * 2 }}{{ [1] * 2 + [3] }}"
    "{{ 1 ~ 'x' ~ none }}",
    "filters": "{{ messages|selectattr('role', 'equalto', 'user')|map(attribute='content')|list }}"
    "{{ messages|rejectattr('tool_calls', 'defined')|list|length }}{{ [3, 1, 2]|sort(reverse=true) }}"
    "{{ {'b': 1, 'a': 2}|dictsort }}{{ {'b': 1}|items|list }}{{ 'a b'|wordcount }}{{ [1, 2]|join('-') }}"
    "{{ 'x'|indent(2, true) }}{{ ' x '|trim }}{{ 3.7|int }}{{ '3'|float }}{{ -2|abs }}{{ 2.345|round(1) }}"
    "{{ [1, 2, 2]|unique|list }}{{ [1, 2]|sum }}{{ [[1], [2]]|first|last }}{{ 'abc'|reverse }}{{ [1, 2]|max }}"
    "{{ range(5)|batch(2, 0)|list }}{{ range(5)|slice(2)|list }}{{ 'tEst'|capitalize }}{{ '<&>'|e }}",
    "groupby": "{% for g in messages|groupby('role') %}{{ g.grouper }}{{ g.list|length }}{{ g[0] }}{% endfor %}",
    "tests": "{{ 1 is number }}{{ 'a' is string }}{{ {} is mapping }}{{ [] is sequence }}{{ none is none }}"
    "{{ 2 is even }}{{ true is boolean }}{{ 1.0 is float }}{{ messages is iterable }}{{ 'x' is in ['x'] }}"
    "{{ 4 is divisibleby 2 }}{{ 2 is gt 1 }}{{ 'A' is upper }}{{ dict is callable }}{{ 'upper' is filter }}"
    "{{ 1 is sameas 1 }}",
    "objects": "{{ messages[0].get('content', 'x') }}{{ messages[0].items()|list }}{{ dict(a=1, b=2) }}"
    "{{ {'k': [1, {'x': none}]} }}{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}",
    "helpers": "{% set c = cycler(1, 2) %}{{ c.next() }}{{ c.next() }}{{ c.current }}{% set j = joiner('; ') %}"
    "{{ j() }}a{{ j() }}b{{ range(2, 10, 3)|list }}",
    "arguments": "{{ (reasoning or {}).effort }}{{ flag }}{{ words|join(',') }}{% set a, b = words %}{{ b }}",
}
ARGUMENTS = {"flag": False, "words": ["x", "y"], "reasoning": {"effort": "high"}}


@pytest.mark.parametrize("source", FEATURES.values(), ids=FEATURES.keys())
@pytest.mark.parametrize("add_generation_prompt", [False, True])
def test_renders_as_transformers_does(source: str, add_generation_prompt: bool) -> None:
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    prompts, _ = utils.render_jinja_template(
        [copy.deepcopy(CONVERSATION)],
        tools=TOOLS,
        chat_template=source,
        add_generation_prompt=add_generation_prompt,
        bos_token="<s>",
        eos_token="</s>",
        **ARGUMENTS,
    )
    template = ChatTemplate(source, bos_token="<s>", eos_token="</s>")
    prompt = template.render(CONVERSATION, add_generation_prompt=add_generation_prompt, tools=TOOLS, **ARGUMENTS)
    assert prompt == prompts[0]


# Where transformers fails or escapes HTML, llama.cpp's engine renders; so do we.
DIALECT = [
    ("no-tools-are-undefined", "{% for t in tools %}x{% endfor %}{{ tools is defined }}", "False"),
    ("list-append", "{% set l = [1] %}{% set _ = l.append(2) %}{{ l }}{{ l.pop(0) }}{{ l }}", "[1, 2]1[2]"),
    ("lazy-values-have-json", "{{ [1, 2]|map('string')|tojson }}{{ [1]|select|list|length }}", '["1", "2"]1'),
    ("safe-escapes-nothing", "{{ '<a>'|safe + '<b>' }}{{ ('<'|e) ~ '<' + '<' }}", "<a><b>&lt;<<"),
]


@pytest.mark.parametrize(("source", "expected"), [case[1:] for case in DIALECT], ids=[case[0] for case in DIALECT])
def test_dialect(source: str, expected: str) -> None:
    assert ChatTemplate(source).render([]) == expected


def test_templates_cannot_change_the_messages() -> None:
    messages = [{"role": "user", "content": ["a"]}]
    source = "{% set _ = messages.append(1) %}{% set _ = messages[0].content.pop() %}{{ messages|length }}"
    assert [ChatTemplate(source).render(messages) for _ in range(2)] == ["2", "2"]
    assert messages == [{"role": "user", "content": ["a"]}]


SYNTAX_ERRORS = [
    ("unclosed", "a\n{% if x %}\nb", "line 3"),
    ("unknown-tag", "a\n\n{% frobnicate %}", "line 3.*frobnicate"),
    ("unknown-filter", "{{ x|urlize }}", "line 1.*No filter named 'urlize'"),
    ("expression", "\n{{ 1 + }}", "line 2"),
    ("include", "\n{% include 'x' %}", "line 2.*'include'"),
    ("autoescape", "{% autoescape true %}{% endautoescape %}", "'autoescape'"),
    ("break-outside", "{% break %}", "chat template 'named'"),
    ("too-long", "x" * 200_000, "200000 characters"),
    ("too-many-parts", "{{a.b}}" * 8_000, "more than 15000 parts"),
]


@pytest.mark.parametrize(
    ("source", "message"), [case[1:] for case in SYNTAX_ERRORS], ids=[case[0] for case in SYNTAX_ERRORS]
)
def test_refuses_bad_syntax(source: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ChatTemplate(source, name="named")


RUNTIME_ERRORS = [
    ("raise", "a\n{% if messages %}\n{{ raise_exception('bad ' ~ 'roles') }}{% endif %}", "line 3: bad roles"),
    ("in-macro", "{% macro m() %}\n{{ raise_exception('no') }}\n{% endmacro %}\n\n{{ m() }}", "line 2: no"),
    ("undefined", "\n{{ nothing.attribute }}", "line 2: 'nothing' is undefined"),
    ("type", "{{ 'a' + 1 }}", r"line 1: TypeError: \+ is not defined for str and int"),
    ("zero", "{{ 1 // 0 }}", "ZeroDivisionError"),
    ("json", "{{ nothing|tojson }}", "not JSON serializable"),
    ("long-message", "{{ raise_exception('x' * 100000) }}", "^.{,600}$"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("source", "message"), [case[1:] for case in RUNTIME_ERRORS], ids=[case[0] for case in RUNTIME_ERRORS]
)
def test_reports_failures(source: str, message: str) -> None:
    template = ChatTemplate(source, name="named")
    with pytest.raises(ValueError, match=message) as error:
        template.render([{"role": "user", "content": "x"}])
    assert "chat template 'named'" in str(error.value)


def nested(depth: int) -> list[Any]:
    return [] if depth == 0 else [nested(depth - 1)]


MISSHAPEN: list[tuple[str, Any, str]] = [
    ("text", "hello", "messages must be a list of objects, found str"),
    ("object", {"role": "user"}, "messages must be a list of objects, found dict"),
    ("none", None, "messages must be a list of objects, found NoneType"),
    ("item", ["hello"], r"messages\[0\] must be an object, found str"),
    ("no-role", [{"role": "user"}, {"content": "x"}], r"messages\[1\] must have a role"),
    ("role-type", [{"role": 3}], r"messages\[0\] must have a role"),
    ("key", [{"role": "user", 3: "x"}], r"messages\[0\] has the key 3"),
    ("value", [{"role": "user", "content": [{"a": b"x"}]}], r"messages\[0\]\.content\[0\]\.a must be .* found bytes"),
    ("object-value", [{"role": "user", "content": SimpleNamespace()}], r"found SimpleNamespace"),
    ("deep", [{"role": "user", "content": nested(200)}], "nested deeper than 50 levels"),
]


@pytest.mark.parametrize(("messages", "message"), [case[1:] for case in MISSHAPEN], ids=[case[0] for case in MISSHAPEN])
def test_refuses_misshapen_messages(messages: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ChatTemplate("x").render(messages)


def test_refuses_misshapen_arguments() -> None:
    template = ChatTemplate("x")
    with pytest.raises(ValueError, match=r"tools\[0\] must be an object"):
        template.render([], tools=["sum"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="documents must be what JSON can hold, found set"):
        template.render([], documents={1})
    with pytest.raises(ValueError, match="must be text, found int"):
        ChatTemplate(3)  # type: ignore[arg-type]
