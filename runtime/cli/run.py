"""`naiad run`: llama-cli's flags. Generates text from a prompt, or chats."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..sampling import SamplingParams
from . import print_version
from .interrupt import Interrupt
from .model_options import MODEL_OPTIONS, load_llm
from .options import Option, Parser, UsageError
from .sampling_options import SAMPLING_OPTIONS, sampling_params
from .screen import end_text
from .texts import argument_text, process_escapes, read_text

if TYPE_CHECKING:
    from ..generation import Completion, Generation
    from ..llm import LLM

N_POSITIONAL = 0
PROMPT_OPTIONS = [
    Option(("-p", "--prompt"), "the prompt; without it, a chat starts", str, "TEXT"),
    Option(("-f", "--file"), "read the prompt from a file, without a newline at its end", Path, "FILE"),
    Option(("-sys", "--system-prompt"), "the system message of a chat", str, "TEXT"),
    Option(("-e", "--escape"), r"process \n, \t, … in the prompt", default=True, off=("--no-escape",)),
    Option(
        ("-cnv", "--conversation"),
        "chat, also after -p; off: continue the prompt's text as it is. Without either, -p is one message of a chat "
        "where the model has a chat template, and text to continue where it has none",
        off=("-no-cnv", "--no-conversation"),
        default=None,
    ),
    Option(("-st", "--single-turn"), "end after one answer"),
    Option(
        ("--chat-template",),
        "a built-in template's name, or Jinja text",
        str,
        "NAME",
        env="LLAMA_ARG_CHAT_TEMPLATE",
    ),
    Option(
        ("--display-prompt",),
        "begin continued text with the prompt",
        default=True,
        off=("--no-display-prompt",),
    ),
]
PROGRAM_OPTIONS = [
    Option(("-v", "--verbose"), "say what runs where, and how"),
    Option(("--list-devices",), "list the devices and exit"),
    Option(("--version",), "print the version and exit"),
]
PARSER = Parser(
    "run",
    "Generates text from a prompt, or chats. Where a model's file recommends sampling, that goes before the defaults.",
    [*MODEL_OPTIONS, *SAMPLING_OPTIONS, *PROMPT_OPTIONS, *PROGRAM_OPTIONS],
)


def main(values: dict[str, Any]) -> int:
    if values["version"]:
        return print_version()
    if values["list_devices"]:
        return _print_devices()
    prompt = _prompt(values)
    # Before the model is loaded: what is impossible should not take long.
    sampling_params(values)
    with load_llm(values, chat_template=values["chat_template"]) as llm:
        params = sampling_params(values, llm.default_params)
        if values["verbose"]:
            _print_plan(llm)
        chats = values["conversation"]
        if chats is None:
            chats = prompt is None or llm.chat_template is not None
        if not chats:
            if prompt is None:
                raise UsageError("-no-cnv needs a prompt: -p or -f")
            return _continue_text(llm, prompt, params, display_prompt=values["display_prompt"])
        from .chat import Chat, Conversation

        chat = Chat(Conversation(llm, params, argument_text(values["system_prompt"] or "", escape=False)))
        once = values["single_turn"] or (prompt is not None and not values["conversation"])
        return chat.run(prompt, once=once)


def _prompt(values: dict[str, Any]) -> str | None:
    if values["file"] is not None:
        text = read_text(values["file"])
        # As llama.cpp: one newline at the end of the file is not part of the prompt.
        text = text[:-2] if text.endswith("\r\n") else text.removesuffix("\n")
        return process_escapes(text) if values["escape"] else text
    if values["prompt"] is None:
        return None
    return argument_text(values["prompt"], escape=values["escape"])


def _continue_text(llm: LLM, prompt: str, params: SamplingParams, *, display_prompt: bool) -> int:
    """The prompt's text and what follows it, as llama-completion does."""
    with Interrupt() as interrupt:
        generation = llm.start(prompt, params)
        if display_prompt:
            print(prompt, end="", flush=True)
        for piece in () if interrupt.pressed else generation.steps():
            if piece:
                print(piece, end="", flush=True)
            if interrupt.pressed:
                break
    generation.close()
    end_text()
    print()
    if generation.finish_reason == "error":
        raise ValueError(generation.handle.error)
    print_timings(generation)
    return 130 if interrupt.pressed else 0


def print_timings(generation: Generation) -> None:
    completion: Completion = generation.completion("")
    t = completion.timings
    print(
        f"\n[ Prompt: {t.n_prompt - t.n_cached} tokens, {t.prompt_per_second:.1f} t/s | "
        f"Generation: {t.n_generated} tokens, {t.generated_per_second:.1f} t/s ]",
        file=sys.stderr,
    )


def _print_plan(llm: LLM) -> None:
    for line in (*llm.plan.describe(llm.decoder.config), *llm.memory.lines()):
        print(line, file=sys.stderr)
    for ops in dict.fromkeys(
        [llm.decoder.input_ops, *(layer.ops for layer in llm.decoder.layers), llm.decoder.output_ops]
    ):
        print(f"{ops.device}: {ops.name}, activations {str(ops.dtype).split('.')[1]}", file=sys.stderr)
        for line in ops.describe():
            print(line, file=sys.stderr)


def _print_devices() -> int:
    from ..devices import list_devices

    print("Available devices:")
    for info in list_devices():
        sizes = (
            f"{info.total_bytes // 2**20} MiB, {info.free_bytes // 2**20} MiB free"
            if info.total_bytes
            else "size unknown"
        )
        print(f"  {info.device}: {info.description} ({sizes})")
    return 0
