"""The README tells the truth: its table of the demo model's answers."""

import re
from pathlib import Path

import pytest

from naiad import LLM

README = (Path(__file__).parents[1] / "README.md").read_text()
TABLE = README.partition("## The demo model")[2].partition("\n## ")[0]
ROWS = re.findall(r"^\| (?!prompt|---)(.+?) \| (.+?) \|$", TABLE, re.MULTILINE)


@pytest.fixture(scope="module")
def demo() -> LLM:
    # Exact, so that the answers are the same on every processor.
    return LLM(device="cpu", route="exact")


def test_the_table_was_found() -> None:
    assert len(ROWS) >= 8


@pytest.mark.parametrize(("prompt", "answer"), ROWS, ids=[prompt for prompt, _ in ROWS])
def test_demo_answers(demo: LLM, prompt: str, answer: str) -> None:
    completion = demo.chat([{"role": "user", "content": prompt}], temperature=0)
    assert completion.text.replace("\n", " ") == answer
    assert completion.finish_reason == "stop"
