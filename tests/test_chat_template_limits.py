"""Hostile chat templates: whatever a model file brings, rendering ends soon, small, with a text or a ValueError."""

from __future__ import annotations

import time
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from naiad.loaders.chat_template import ChatTemplate, budget

SECONDS = 10  # a slow and busy machine's; most take milliseconds
PEAK_BYTES = 400 * 2**20
MESSAGES = [{"role": "user", "content": "Hello, world. " * 10}]

TWICE = "{% set ns = namespace(x=FROM) %}{% for i in range(45) %}{% set ns.x = (ns.x, ns.x) %}{% endfor %}"
DAG = TWICE.replace("FROM", "(1,)") + TWICE.replace("FROM", "(1.0,)").replace("ns", "other")
DEEP = "{% set ns = namespace(x=1) %}{% for i in range(5000) %}{% set ns.x = (ns.x,) %}{% endfor %}"
GROW = "{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set ns.x = STEP %}{% endfor %}"
LONG = "{% set x = 'a' * 100000 %}"
MANY = "{% set x = [''] * 10000 %}"
ENDLESS = "{% for i in range(100000) %}BODY{% endfor %}"

# One operation that would take memory or time without bound.
BOMBS = {
    "repeat-text": "{{ 'a' * 10 ** 10 }}",
    "repeat-list": "{{ 10 ** 10 * [1] }}",
    "power": "{{ 10 ** 10000000000 }}",
    "power-chain": "{% set ns = namespace(x=7) %}{% for i in range(99) %}{% set ns.x = ns.x ** 2 %}{% endfor %}",
    "huge-literal": "{{ 0x" + "f" * 100_000 + " * 2 }}",
    "huge-decimal": "{{ " + "9" * 100_000 + " }}",
    "double-text": GROW.replace("STEP", "ns.x + ns.x"),
    "double-tilde": GROW.replace("STEP", "ns.x ~ ns.x"),
    "double-list": GROW.replace("STEP", "[ns.x] + [ns.x] * 2").replace("'a'", "[]") + "{{ ns.x }}",
    "double-replace": GROW.replace("STEP", "ns.x.replace('a', 'aaaa')"),
    "double-format": GROW.replace("STEP", "'{0}{0}'.format(ns.x)"),
    "double-percent": GROW.replace("STEP", "'%s%s' % (ns.x, ns.x)"),
    "double-join": GROW.replace("STEP", "[ns.x, ns.x]|join"),
    "double-batch": GROW.replace("STEP", "(ns.x * 2)|batch(2)|list").replace("'a'", "[1]") + "{{ ns.x }}",
    "percent-width": "{{ '%1000000000d' % 1 }}",
    "percent-precision": "{{ '%.1000000000f' % 1 }}",
    "percent-star": "{{ '%*d' % (1000000000, 1) }}",
    "percent-key": "{{ '%(a(b))-1000000000d' % {'a(b)': 1} }}",
    "percent-filter": "{{ '%1000000000d'|format(1) }}",
    "percent-repeat": "{{ ('%(a)s' * 100000) % {'a': 'x' * 100000} }}",
    "percent-test": "{{ '%1000000000d' is odd }}",
    "percent-divisible": "{{ '%1000000000d' is divisibleby(3) }}",
    "format-width": "{{ '{:1000000000}'.format(1) }}",
    "format-nested": "{{ '{:{}}'.format(1, 1000000000) }}",
    "format-digits": "{{ '{:٩٩٩٩٩٩٩٩٩}'.format(1) }}",
    "format-map": "{{ '{a:1000000000}'.format_map({'a': 1}) }}",
    "format-repeat": "{{ ('{0}' * 100000).format('x' * 100000) }}",
    "format-braces": "{{ ('{{' * 8000000).format()|length }}",
    "center": "{{ 'x'|center(10 ** 9) }}",
    "center-constant": "{{ 'x'|center(1000000000) }}",
    "filter-block": "{% filter center(1000000000) %}x{% endfilter %}",
    "ljust": "{{ 'x'.ljust(10 ** 9) }}",
    "zfill": "{{ 'x'.zfill(10 ** 9) }}",
    "indent": "{{ ('a\n' * 100000)|indent(9000) }}",
    "indent-text": "{{ 'a\nb'|indent('x' * 10000000) }}",
    "join": "{{ range(100000)|join('x' * 100000) }}",
    "join-method": "{{ ('x' * 100000).join('y' * 100000) }}",
    "replace": "{{ ('a' * 1000000)|replace('', 'b' * 1000000) }}",
    "batch": "{{ [1]|batch(10 ** 10, 0)|list }}",
    "slice": "{{ [1]|slice(10 ** 10)|list }}",
    "round-up": "{{ 1.5|round(10 ** 9, 'ceil') }}",
    "round-whole": "{{ 5|round(-1000000000) }}",
    "sum-of-lists": "{{ ([[1] * 1000] * 1000)|sum(start=[]) }}",
    "range": "{{ range(10 ** 9)|list }}",
    "split": "{{ ('a,' * 10000000).split(',')|length }}",
    "list-of-text": "{{ ('é' * 20000000)|list|length }}",
    "repr": "{{ ['\\U000e0001' * 30000000]|string|length }}",
    "strip": "{{ ('b' * 1000000).strip('a' * 1000000 ~ 'b') }}",
    "search-backwards": "{{ ('a' * 1000000).rfind('b' ~ 'a' * 500000) }}",
    "json-indent": "{{ [[1]]|tojson(indent=10 ** 9) }}",
    "json-separators": "{{ range(100000)|list|tojson(separators=('x' * 100000, ':')) }}",
    "print-deep": DEEP + "{{ ns.x }}",
    "hash-deep": DEEP + "{{ {}.get(ns.x) }}",
    "dict-deep": DEEP + "{{ dict([(ns.x, 1)])|length }}",
    "hash-dag": DAG + "{{ {ns.x: 1} }}",
    "cycle": "{% set x = [] %}{% set _ = x.append(x) %}{{ x }}",
    "output": ENDLESS.replace("BODY", "x" * 1000),
    "buffered-output": "{% set x %}" + ENDLESS.replace("BODY", "x" * 1000) + "{% endset %}",
    "buffered-values": LONG + "{% set y %}" + ENDLESS.replace("BODY", "{{ x }}") + "{% endset %}",
    "kept-slices": LONG + "{% set k = [] %}" + ENDLESS.replace("BODY", "{% set _ = k.append(x[1:]) %}"),
    "attribute-path": "{% set n = namespace() %}{% set n.a = n %}"
    "{{ ([n] * 100000)|map(attribute='a.' * 100000 ~ 'a')|list|length }}",
    "date": "{{ strftime_now('%c' * 10000000) }}",
    "macro": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "call-block": "{% macro m() %}{{ caller() }}{% endmacro %}{% macro n() %}{% call m() %}{{ n() }}{% endcall %}"
    "{% endmacro %}{{ n() }}",
    "recursive-loop": "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "long-error": "{{ {}['x' * 10000000].y }}",
}


@pytest.mark.parametrize("source", BOMBS.values(), ids=BOMBS.keys())
def test_bombs_are_refused(source: str) -> None:
    tracemalloc.start()
    start = time.perf_counter()
    try:
        with pytest.raises(ValueError, match="the chat template"):
            ChatTemplate(source).render(MESSAGES)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.perf_counter() - start < SECONDS
    assert peak < PEAK_BYTES


TEN_BILLION = ENDLESS.replace("BODY", ENDLESS)
MACRO = "{% macro m(a=1+1+1) %}{{ a }}{% endmacro %}"
# What would go on and on, in the template or inside one operation. All of it pays as it goes, so that a hundredth of
# the limits is reached in a hundredth of the time.
ENDLESS_LOOPS = {
    "empty": TEN_BILLION.replace("BODY", ""),
    "filtered": ENDLESS.replace("BODY", "{% for j in range(100000) if false %}{% endfor %}"),
    "assignment": TEN_BILLION.replace("BODY", "{% set x = i + 1 %}"),
    "comparison": TEN_BILLION.replace("BODY", "{% if i == 1 %}x{% endif %}"),
    "attribute": TEN_BILLION.replace("BODY", "{% set x = messages.nothing %}"),
    "filter": TEN_BILLION.replace("BODY", "{% set x = 'a'|upper %}"),
    "method": TEN_BILLION.replace("BODY", "{% set x = 'a'.upper() %}"),
    "format": TEN_BILLION.replace("BODY", "{% set x = '{}{}'.format(i, i) %}"),
    "json": TEN_BILLION.replace("BODY", "{% set x = [i, {}]|tojson %}"),
    "macro": MACRO + TEN_BILLION.replace("BODY", "{% set x = m() %}"),
    "macro-tree": "{% macro m(n) %}{{ m(n - 1) ~ m(n - 1) if n }}{% endmacro %}{{ m(90) }}",
    "map": ENDLESS.replace("BODY", "{% set x = range(100000)|map('string')|list %}"),
    "select": ENDLESS.replace("BODY", "{% set x = range(100000)|select('in', [1])|list %}"),
    "growing-list": "{% set x = [1] %}{% for y in x %}{% set _ = x.append(1) %}{% endfor %}",
    "arguments": "{% set x = range(100000)|list %}" + ENDLESS.replace("BODY", "{% set _ = cycler(*x) %}"),
    "print-dag": DAG + "{{ ns.x }}",
    "json-dag": DAG + "{{ ns.x|tojson }}",
    "compare-dag": DAG + "{{ ns.x == other.x }}",
    "search-dag": DAG + "{{ ns.x in [other.x] }}",
    "test-dag": DAG + "{{ ns.x is eq(other.x) }}",
    "loop-dag": DAG + "{% for v in [1, other.x] %}{% if loop.first %}{{ (ns.x, 1) in loop }}{% endif %}{% endfor %}",
    "get-dag": DAG + "{{ {}.get(ns.x) }}",
    "attribute-dag": DAG + "{{ {}|attr(ns.x) }}",
    "is-filter-dag": DAG + "{{ ns.x is filter }}",
    "unique-dag": DAG + "{{ [ns.x]|unique|list|length }}",
    "view-dag": DAG.replace("(ns.x, ns.x)", "{'a': ns.x, 'b': ns.x}.items()") + "{{ ns.x }}",
    "compare-texts": LONG + "{% set y = x ~ '' %}" + ENDLESS.replace("BODY", "{% set z = x == y %}"),
    "search-text": LONG + ENDLESS.replace("BODY", "{% set z = 'b' in x %}"),
    "search-list": MANY + ENDLESS.replace("BODY", "{% set z = 'b' in x %}"),
    "compare-lists": MANY + "{% set y = x + [] %}" + ENDLESS.replace("BODY", "{% set z = x == y %}"),
    "sort": MANY + ENDLESS.replace("BODY", "{% set z = x|sort %}"),
    "earning": "{{ [-999999999]|map(' step', -999999999)|list }}",
}


@pytest.mark.parametrize("source", ENDLESS_LOOPS.values(), ids=ENDLESS_LOOPS.keys())
def test_loops_end(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    template = ChatTemplate(source)
    for limit in ("MAX_STEPS", "STEPS_PER_MESSAGE", "MAX_CHARS"):
        monkeypatch.setattr(budget, limit, getattr(budget, limit) // 100)
    start = time.perf_counter()
    with pytest.raises(ValueError, match=r"it runs too long|handles too much text"):
        template.render(MESSAGES)
    assert time.perf_counter() - start < SECONDS / 4


def test_loops_end_at_the_real_limit() -> None:
    start = time.perf_counter()
    with pytest.raises(ValueError, match="it runs too long"):
        ChatTemplate(ENDLESS_LOOPS["method"]).render(MESSAGES)
    assert time.perf_counter() - start < SECONDS


# Nested so deeply, or so large, that jinja's or Python's compiler gives up.
COMPILER_BOMBS = {
    "parentheses": "{{ " + "(" * 30_000 + "1" + ")" * 30_000 + " }}",
    "lists": "{{ " + "[" * 30_000 + " }}",
    "additions": "{{ " + "1+" * 30_000 + "1 }}",
    "negations": "{{ " + "not " * 20_000 + "1 }}",
    "attributes": "{{ a" + ".a" * 30_000 + " }}",
    "filters": "{{ a" + "|e" * 30_000 + " }}",
    "ifs": "{% if a %}" * 5_000,
    "elifs": "{% if a %}" + "{% elif b %}" * 3_000 + "{% endif %}",
    "fors": "{% for a in b %}" * 30 + "{% endfor %}" * 30,
    "quotes": "{{ '" + "\\'" * 60_000,
}


@pytest.mark.parametrize("source", COMPILER_BOMBS.values(), ids=COMPILER_BOMBS.keys())
def test_compiling_ends(source: str) -> None:
    start = time.perf_counter()
    with pytest.raises(ValueError, match="the chat template"):
        ChatTemplate(source)
    assert time.perf_counter() - start < SECONDS


# Ways into Python's internals; what they would have reached must not show.
ESCAPES = {
    "class": "{{ ''.__class__ }}",
    "class-item": "{{ ''['__class__'] }}",
    "class-filter": "{{ ''|attr('__class__') }}",
    "class-map": "{{ ['']|map(attribute='__class__')|list }}",
    "class-format": "{{ '{0.__class__}'.format('') }}",
    "class-format-map": "{{ '{a.__class__}'.format_map({'a': ''}) }}",
    "globals": "{{ raise_exception.__globals__ }}",
    "function-code": "{{ strftime_now.__code__.co_filename }}",
    "generator-frame": "{{ (messages|map('string')).gi_frame }}",
    "bound-self": "{{ ''.upper.__self__ }}",
    "format-parts": "{{ 'secret {}'.format.template }}",
    "namespace-class": "{{ namespace().__class__ }}",
    "namespace-name": "{% set ns = namespace() %}{% set ns.__html__ = 1 %}",
    "namespace-argument": "{{ namespace(__call__=1) }}",
    "macro-internals": "{% macro m() %}{% endmacro %}{{ m._func }}",
    "context": "{{ self._TemplateReference__context }}",
    "cycler": "{{ cycler.__init__.__globals__ }}",
    "encode": "{{ ('é' * 1000).encode('idna') }}",
    "translate": "{{ 'a'.translate({97: 'b' * 1000}) }}",
    "to-bytes": "{{ (1).to_bytes(1000, 'big') }}",
    "dict-update": "{{ messages[0].update(role='x') }}",
    "lipsum": "{{ lipsum() }}",
}


@pytest.mark.parametrize("source", ESCAPES.values(), ids=ESCAPES.keys())
def test_internals_are_out_of_reach(source: str) -> None:
    try:
        prompt = ChatTemplate(source).render(MESSAGES)
    except ValueError:
        return
    assert prompt in ("", "[Undefined]")


# Filter and call blocks print whatever their filter or function returns.
BLOCKS = {
    "list": "{% filter list %}a{% endfilter %}",
    "undefined": "{% filter attr('x') %}a{% endfilter %}",
    "nothing": "{% filter first %}{% endfilter %}",
    "number": "{% filter length %}abc{% endfilter %}",
    "truth": "{% filter default(true) %}{% endfilter %}{% filter int %}7{% endfilter %}",
    "generator": "{% filter batch(2) %}abc{% endfilter %}",
    "map": "{% filter map('upper') %}abc{% endfilter %}",
    "dict": "{% call dict() %}{% endcall %}",
    "namespace": "{% call namespace() %}{% endcall %}",
    "in a macro": "{% macro m() %}{% filter list %}a{% endfilter %}{% endmacro %}{{ m() }}",
    "in a set": "{% set x %}{% call dict() %}{% endcall %}{% endset %}{{ x }}",
    "in a loop": "{% for m in messages %}{% filter length %}a{% endfilter %}{% endfor %}",
    "in a block": "{% filter upper %}{% filter list %}a{% endfilter %}{% endfilter %}",
}


@pytest.mark.parametrize("source", BLOCKS.values(), ids=BLOCKS.keys())
def test_blocks_that_give_no_text_are_refused(source: str) -> None:
    with pytest.raises(ValueError, match=r"the chat template.*(TypeError|has no attribute|must be text)"):
        ChatTemplate(source).render(MESSAGES)


def test_blocks_that_give_text_are_printed() -> None:
    source = (
        "{% filter upper %}a{% endfilter %}{% macro m() %}<{{ caller() }}>{% endmacro %}{% call m() %}b{% endcall %}"
    )
    assert ChatTemplate(source).render(MESSAGES) == "A<b>"


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ m.role }}{{ m.content }}{% endfor %}",
        "{% set ns = namespace(t='') %}{% for m in messages %}{% set ns.t = ns.t ~ m.content %}{% endfor %}{{ ns.t }}",
        "{% for m in messages %}{% for n in messages %}{% if n.role == m.name %}x{% endif %}{% endfor %}{% endfor %}",
        "{% for m in messages %}{{ messages[loop.index0:]|selectattr('role', 'eq', 'user')|list|length }}{% endfor %}",
    ],
    ids=["plain", "one-growing-text", "all-for-each", "rest-for-each"],
)
def test_long_conversations_stay_within_the_limits(source: str) -> None:
    messages = [{"role": role, "content": "word " * 100} for role in ("user", "assistant")] * 100
    ChatTemplate(source).render(messages)


WORDS = """
    {{ {{- }} -}} {% {%- %} -%} {# #} for if elif else endif endfor set endset macro endmacro call endcall filter
    endfilter generation endgeneration break continue in is not and or recursive with endwith namespace ns x m messages
    tools loop range dict caller raise_exception strftime_now cycler content role index0 .items() .split() .format
    upper tojson join list map select sort length center batch indent string default first trim replace
    ( ) [ ] { } , : . | ~ + - * ** / // % == != < > = 0 1 2 99999 1.5 'a' '%s' '{}' "b" none true "\\n" é 🦙
"""
FILTERS = """
    upper trim list first length string tojson sort join('-') map('upper') select map(attribute='role') center(9)
    indent(3) batch(2) replace('a','bb') default(1) items reverse int sum unique groupby('role')
"""
OPERATORS = "+ - * ** / // % == < in ~ and"
VALUES = "x messages messages[0] messages[0].content 'ab' [1,'b',[]] {'k':1} 3"
METHODS = "get('k') split() format(1) items() x pop()"


def one_of(words: str) -> st.SearchStrategy[str]:
    return st.sampled_from(words.split())


FRAGMENT = one_of(WORDS) | st.text(max_size=3)
VALUE = one_of(VALUES) | st.builds("{}|{}".format, one_of(VALUES), one_of(FILTERS))
EXPRESSION = st.recursive(
    VALUE,
    lambda inner: (
        st.builds("({} {} {})".format, inner, one_of(OPERATORS), inner)
        | st.builds("({})[{}]".format, inner, inner | st.just("1:"))
        | st.builds("({}).{}".format, inner, one_of(METHODS))
        | st.builds("({})|{}".format, inner, one_of(FILTERS))
    ),
    max_leaves=5,
)
BLOCK = st.recursive(
    st.builds("{{{{ {} }}}}".format, EXPRESSION) | st.builds("{{% set x = {} %}}".format, EXPRESSION),
    lambda inner: (
        st.builds("{{% for x in {} %}}{}{{% endfor %}}".format, EXPRESSION, inner)
        | st.builds("{{% if {} %}}{}{{% endif %}}".format, EXPRESSION, inner)
        | st.builds("{{% macro m(x) %}}{}{{% endmacro %}}{{{{ m({}) }}}}".format, inner, EXPRESSION)
        | st.builds("{}{}".format, inner, inner)
    ),
    max_leaves=4,
)
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
MESSAGE = st.fixed_dictionaries({"role": st.sampled_from(["user", "system"])}, optional={"content": JSON, "x": JSON})


@given(st.lists(FRAGMENT, max_size=12).map(" ".join) | BLOCK, st.lists(MESSAGE, max_size=2) | JSON)
@settings(max_examples=200, deadline=None)
def test_any_template_gives_text_or_value_error(source: str, messages: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(budget, "MAX_STEPS", 20_000)
        patch.setattr(budget, "MAX_CHARS", 1_000_000)
        try:
            prompt = ChatTemplate(source).render(messages, x=3)
        except ValueError:
            return
    assert isinstance(prompt, str)
