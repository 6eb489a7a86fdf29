"""Stop texts: the automaton against searching, control tokens, and requests that end with the step."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from naiad import LLM, AsyncLLM, SamplingParams
from naiad.runtime.stop import StopFilter

Run = Callable[[str], tuple[int, str, str]]
Piece = tuple[bytes, bool]


def searched(pieces: list[Piece], stops: list[bytes]) -> tuple[bytes, bool]:
    """What StopFilter does, by looking for every stop text again after every piece."""
    shown, kinds = b"", b""
    for piece, hidden in pieces:
        before = len(shown)
        shown += piece
        kinds += (b"h" + b"i" * len(piece))[: len(piece)] if hidden else b"t" * len(piece)
        cuts = [
            begin
            for stop in stops
            for begin in range(len(shown) - len(stop) + 1)
            if shown.startswith(stop, begin)
            and begin + len(stop) > before
            and kinds[begin : begin + 1] != b"i"
            and kinds[begin + len(stop) : begin + len(stop) + 1] != b"i"
        ]
        if cuts:
            return bytes(b for b, kind in zip(shown[: min(cuts)], kinds, strict=False) if kind == ord("t")), True
    return bytes(b for b, kind in zip(shown, kinds, strict=True) if kind == ord("t")), False


LETTERS = st.text("ab<>", max_size=4)
STOPS = st.lists(st.text("ab<>", min_size=1, max_size=7), max_size=6)


@given(st.lists(st.tuples(LETTERS, st.booleans()), max_size=14), STOPS)
@settings(max_examples=300)
def test_it_is_searching_the_whole_text(texts: list[tuple[str, bool]], stops: list[str]) -> None:
    pieces = [(text.encode(), hidden) for text, hidden in texts]
    stop = StopFilter(stops)
    out = b"".join(stop.put(piece, hidden=hidden) for piece, hidden in pieces) + stop.finish()
    assert (out, stop.found) == searched(pieces, [s.encode() for s in stops])


CASES: list[tuple[list[str], list[Any], str, bool]] = [
    (["</end>", "<x>"], ["hello </e", "nd> more <x>"], "hello ", True),
    (["<|s|>"], ["a", ["<|s|>"], "b"], "a", True),
    (["<|s|>"], ["a<|", "s|>b"], "a", True),
    (["a<|s|>b"], ["xa", ["<|s|>"], "by"], "x", True),
    (["<|s|><|t|>"], ["a", ["<|s|>"], ["<|t|>"]], "a", True),
    (["<|s|><|t|>"], ["a", ["<|s|>"], "b", ["<|t|>"]], "ab", False),
    ([".<|s|>"], ["a.", ["<|t|>"], "b.", ["<|s|>"]], "a.b", True),
    (["|s|", "s", "a<", "|>b"], ["a", ["<|s|>"], "b"], "ab", False),
    (["€"], ["a\u20ac"], "a", True),
    (["aab", "ab"], ["aaa", "b"], "a", True),
    (["", ""], ["a"], "a", False),
]


@pytest.mark.parametrize(("stops", "pieces", "out", "found"), CASES)
def test_cases(stops: list[str], pieces: list[Any], out: str, found: bool) -> None:
    stop = StopFilter(stops)
    given = [
        stop.put(piece[0].encode(), hidden=True) if isinstance(piece, list) else stop.put(piece.encode())
        for piece in pieces
    ]
    assert ((b"".join(given) + stop.finish()).decode(), stop.found) == (out, found)


def test_only_what_may_become_a_stop_text_is_held() -> None:
    stop = StopFilter(["abc", "bcd"])
    assert [stop.put(c.encode()) for c in "xabxabd"] == [b"x", b"", b"", b"abx", b"", b"", b"abd"]


def test_many_stop_texts_cost_what_one_does() -> None:
    generator = random.Random(1)
    many = ["".join(generator.choices("abcdefgh ", k=generator.randrange(6, 30))) for _ in range(100_000)]
    text = "".join(generator.choices("abcdefgh ijklm", k=4000)).encode()

    def seconds(stops: list[str]) -> float:
        best = float("inf")
        for _ in range(3):
            stop = StopFilter(stops)
            stop.put(text)
            start = time.perf_counter()
            stop.put(text)
            best = min(best, time.perf_counter() - start)
            assert not stop.found
        return best

    assert seconds([s + "!" for s in many]) < 20 * seconds(["abcdefgh!"]) + 0.01


def test_stop_texts_that_begin_with_one_another() -> None:
    """Thousands of texts of which each is an end of the next, first met at the longest."""
    n = 3000
    stop = StopFilter(["a" * k + "b" for k in range(1, n)])
    assert stop.put(b"a" * 2 * n) == b"a" * (n + 1)
    assert stop.put(b"c") == b"a" * (n - 1) + b"c"
    assert stop.put(b"aab") == b""
    assert stop.found


START = "<|im_start|>"


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(device="cpu", max_seqs=4) as llm:
        yield llm


@pytest.fixture(scope="module")
def hidden(llm: LLM) -> int:
    token = llm.tokenizer.token_id(START)
    assert token is not None and llm.tokenizer.is_control(token)
    return token


GREEDY = SamplingParams(temperature=0, max_tokens=10)


def test_a_control_token_that_begins_the_answer(llm: LLM, hidden: int) -> None:
    for stop in (START, START * 2):
        completion = llm.generate("Once upon", GREEDY, logit_bias={hidden: 1000.0}, stop=[stop, "never"])
        assert (completion.finish_reason, completion.text) == ("stop", "")
        assert completion.tokens == (hidden,) * (len(stop) // len(START))
    for stop in ("im_start", "|", START + "x"):
        assert llm.generate("Once upon", GREEDY, logit_bias={hidden: 1000.0}, stop=[stop]).finish_reason == "length"


def test_a_stop_text_from_text_to_the_end_token(llm: LLM) -> None:
    """The token that ends the text is a part of the text that is looked at."""
    messages = [{"role": "user", "content": "What sound does a cow make?"}]
    answer = llm.chat(messages, temperature=0, max_tokens=60)
    assert answer.finish_reason == "stop"
    end = llm.tokenizer.token_text(answer.tokens[-1])
    for stop, text in ((answer.text[-4:] + end, answer.text[:-4]), (answer.text[-4:] + end[:2], answer.text)):
        found = llm.chat(messages, temperature=0, max_tokens=60, stop=["zzz", stop])
        assert (found.text, found.finish_reason, found.tokens) == (text, "stop", answer.tokens)


def test_the_request_ends_with_the_step(llm: LLM) -> None:
    """Whoever takes the text late, or never, has no token computed in vain."""
    plain = llm.generate("Once upon", GREEDY, max_tokens=30)
    word = plain.text.split()[4]
    late = llm.start("Once upon", GREEDY, max_tokens=30, stop=[word])
    assert llm.generate("Once upon a time", GREEDY, max_tokens=30).finish_reason == "length"
    assert late.handle.finish_reason == "stop"
    assert len(late.handle.tokens) < 30 and late.handle.tokens == list(plain.tokens[: len(late.handle.tokens)])
    assert "".join(late) == plain.text[: plain.text.index(word)]
    assert late.completion("").finish_reason == "stop"


def test_a_stop_text_with_the_last_token_that_is_allowed(llm: LLM) -> None:
    plain = llm.generate("Once upon", GREEDY)
    completion = llm.generate("Once upon", GREEDY, stop=[plain.text[-2:]])
    assert (completion.finish_reason, len(completion.tokens)) == ("stop", 10)


def test_streams_and_asyncio(llm: LLM, hidden: int) -> None:
    plain = llm.generate("Once upon", GREEDY).text
    word = plain.split()[3]
    expected = plain[: plain.index(word)]
    assert "".join(llm.stream("Once upon", GREEDY, stop=[word])) == expected

    async def work(asynchronous: AsyncLLM) -> None:
        found = await asynchronous.generate("Once upon", GREEDY, stop=[word])
        assert (found.text, found.finish_reason) == (expected, "stop")
        stopped = await asynchronous.generate("Once upon", GREEDY, logit_bias={hidden: 1000.0}, stop=[START])
        assert (stopped.tokens, stopped.finish_reason) == ((hidden,), "stop")
        pieces = [piece async for piece in asynchronous.stream("Once upon", GREEDY, stop=[START, word])]
        assert "".join(pieces) == expected

    asynchronous = AsyncLLM(llm)
    asyncio.run(work(asynchronous))
    asynchronous._thread.close()


def test_reverse_prompts(run: Run, hidden: int) -> None:
    for mode in ("-no-cnv --no-display-prompt", ""):
        command = f"run -p Once -n 9 --temp 0 -l {hidden}+1000 {mode}"
        code, out, err = run(f"{command} -r x -r '{START}'")
        assert (code, out, "Generation: 1 tokens" in err) == (0, "\n", True)
        assert "Generation: 9 tokens" in run(f"{command} -r x")[2]
