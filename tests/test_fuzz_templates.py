"""Random chat templates over random messages: a prompt or one short ValueError, soon and in little memory."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from fuzzing import CASES, fuzz, nasty

from naiad.loaders.chat_template import ChatTemplate, adapt_messages, budget

WORDS = """
    {{ {{- }} -}} {% {%- %} -%} {# #} for if elif else endif endfor set endset macro endmacro call endcall filter
    endfilter generation endgeneration break continue in is not and or recursive with endwith namespace ns x m messages
    tools loop range dict caller raise_exception strftime_now cycler joiner content role index0 .items() .split() raw
    upper tojson join list map select sort length center batch indent string default first trim replace endraw block
    ( ) [ ] { } , : . | ~ + - * ** / // % == != < > = 0 1 2 99999 1.5 'a' '%s' '{}' "b" none true "\\n" é 🦙 __class__
"""
FILTERS = """
    upper trim list first last length string tojson tojson(indent=2) join('-') map('upper') map(attribute='role') sort
    center(9) center(9999) indent(3) batch(2) slice(3) replace('a','bb') default(1) items reverse int float abs sum
    unique groupby('role') select reject('none') selectattr('role','eq','user') dictsort attr('x') round(2) safe escape
    title capitalize truncate(3) wordcount urlencode format(1) random min max filesizeformat count
"""
TESTS = "defined none string number mapping iterable sequence odd eq(1) in([1]) divisibleby(2) lower callable"
VALUES = """
    x messages messages[0] messages[-1].content messages[0]['role'] 'ab' '' [1,'b',[]] {'k':1} 3 -1 1.5 none true
    range(3) range(99999) ns loop loop.index caller() namespace(a=1) dict(a=1) cycler(1,2) undefined_name 'a'*999
    strftime_now('%Y') raise_exception('x'*99999) raise_exception(messages) ('a',1) bos_token add_generation_prompt
"""
METHODS = """
    get('k') split() split('a') format(1) format(*[1]*9) items() x pop() append(1) join(['a']) replace('a','b'*99)
    strip() upper() center(99) splitlines() __class__ startswith('a') count('a') zfill(999) update({})
"""
OPERATORS = "+ - * ** / // % == < in ~ and or"


def one(rng: random.Random, words: str) -> str:
    return rng.choice(words.split())


def expression(rng: random.Random, depth: int = 0) -> str:
    inner: Callable[[], str] = lambda: expression(rng, depth + 1)  # noqa: E731
    kind = rng.random() + 0.25 * depth
    if kind < 0.2:
        return f"({inner()} {one(rng, OPERATORS)} {inner()})"
    if kind < 0.4:
        return f"({inner()})|{one(rng, FILTERS)}"
    if kind < 0.55:
        return f"({inner()}).{one(rng, METHODS)}"
    if kind < 0.65:
        return f"({inner()})[{rng.choice([inner(), '1:', '::-1', '-9999:9999'])}]"
    if kind < 0.72:
        return f"({inner()} is {one(rng, TESTS)})"
    if kind < 0.78:
        return f"({inner()} if {inner()} else {inner()})"
    return one(rng, VALUES)


def block(rng: random.Random, depth: int = 0) -> str:
    inner: Callable[[], str] = lambda: block(rng, depth + 1)  # noqa: E731
    value = expression(rng)
    forms = (
        lambda: f"{{{{ {value} }}}}",
        lambda: f"{{% set x = {value} %}}",
        lambda: f"{{% set ns = namespace(a={value}) %}}{{% set ns.a = {value} %}}{{{{ ns.a }}}}",
        lambda: inner() + inner(),
        lambda: (
            f"{{% for x in {value}{rng.choice(['', ' recursive', ' if x'])} %}}{inner()}{{% else %}}-{{% endfor %}}"
        ),
        lambda: f"{{% for i in range(99999) %}}{inner()}{{% endfor %}}",
        lambda: f"{{% if {value} %}}{inner()}{{% elif x %}}{inner()}{{% endif %}}",
        lambda: f"{{% macro m(x, y={value}) %}}{inner()}{{% endmacro %}}{{{{ m({value}) }}}}",
        lambda: f"{{% filter {one(rng, FILTERS)} %}}{inner()}{{% endfilter %}}",
        lambda: f"{{% call {rng.choice(['m', 'dict', 'x', 'namespace'])}({value}) %}}{inner()}{{% endcall %}}",
        lambda: f"{{% set x %}}{inner()}{{% endset %}}{{{{ x }}}}",
        lambda: f"{{% with x = {value} %}}{inner()}{{% endwith %}}",
        lambda: f"{{% generation %}}{inner()}{{% endgeneration %}}",
        lambda: f"{{# {value} #}}{{% raw %}}{inner()}{{% endraw %}}",
    )
    return rng.choice(forms[: 3 if depth > 2 else len(forms)])()


def source(rng: random.Random) -> str:
    if rng.random() < 0.3:
        return " ".join(rng.choices(WORDS.split(), k=rng.randrange(14)))
    text = block(rng)
    if rng.random() < 0.2:
        start = rng.randrange(len(text) + 1)
        text = text[:start] + rng.choice(["", "{{", "%}", "é", "'"]) + text[start + rng.randrange(3) :]
    return text


def message(rng: random.Random) -> Any:
    text = rng.choice(["", "Hello", "a\nb " * 9, "<|im_end|>"])
    value: dict[str, Any] = {"role": rng.choice(["user", "system", "assistant", "tool"]), "content": text}
    if rng.random() < 0.3:
        value[rng.choice(["role", "content", "tool_calls", "x"])] = nasty(rng)
    return value


@pytest.mark.parametrize("n", CASES)
def test_templates(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # A hundredth of the limits is reached in a hundredth of the time.
    monkeypatch.setattr(budget, "MAX_STEPS", budget.MAX_STEPS // 100)
    monkeypatch.setattr(budget, "STEPS_PER_MESSAGE", budget.STEPS_PER_MESSAGE // 100)
    monkeypatch.setattr(budget, "MAX_CHARS", budget.MAX_CHARS // 100)

    def case(rng: random.Random) -> None:
        template = ChatTemplate(source(rng), bos_token="<s>", eos_token="</s>", file="some model.gguf")
        messages = [message(rng) for _ in range(rng.randrange(3))]
        if rng.random() < 0.1:
            messages = adapt_messages(messages, template)
        assert isinstance(template.render(messages, x=rng.choice([3, "ab", [1, "a"], {"k": "v"}])), str)

    fuzz(n, case)
