"""`naiad tokenize`: llama-tokenize's flags and output."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...loaders.gguf import GGUFFile
from ...loaders.tokenizer import Tokenizer
from ..demo import demo_model
from .importing import keeping
from .options import Option, Parser, UsageError
from .texts import argument_text, process_escapes, read_stdin, read_text

N_POSITIONAL = 0
PARSER = Parser(
    "tokenize",
    "Shows how a model splits text into tokens.",
    [
        Option(("-m", "--model"), "GGUF file (the demo model without it)", str, "FILE", env="LLAMA_ARG_MODEL"),
        Option(("-p", "--prompt"), "the text", str, "TEXT"),
        Option(("-f", "--file"), "read the text from a file, all of it", Path, "FILE"),
        Option(("--stdin",), "read the text from standard input"),
        Option(("--ids",), "print only the ids, as [1, 2, 3]"),
        Option(("--no-bos",), "leave out the begin-of-text token"),
        Option(("--no-parse-special",), "treat texts of control tokens as plain text"),
        Option(("-e", "--escape"), r"process \n, \t, … in the text", default=True, off=("--no-escape",)),
        Option(("--show-count",), "print the number of tokens"),
    ],
)


def main(values: dict[str, Any]) -> int:
    with keeping():
        tokenizer = Tokenizer.from_source(GGUFFile(values["model"] or demo_model()))
    text = _text(values)
    add_special = tokenizer.add_bos and not values["no_bos"]
    ids = tokenizer.encode(text, add_special=add_special, parse_special=not values["no_parse_special"])
    if values["ids"]:
        print(ids)
    else:
        for i in ids:
            print(f"{i:6d} -> '{tokenizer.token_to_piece(i).decode('utf-8', 'replace')}'")
    if values["show_count"]:
        print(f"Total number of tokens: {len(ids)}")
    return 0


def _text(values: dict[str, Any]) -> str:
    if values["stdin"]:
        text = read_stdin()
    elif values["file"] is not None:
        text = read_text(values["file"])
    elif values["prompt"] is not None:
        return argument_text(values["prompt"], escape=values["escape"])
    else:
        raise UsageError("must specify one of: --stdin, --file or --prompt")
    return process_escapes(text) if values["escape"] else text
