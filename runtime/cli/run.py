"""`naiad run`: llama-cli's flags. Generates text from a prompt, or chats."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from ...loaders.hub import fetch_model
from ...quant.cache_types import CACHE_TYPES
from ..devices import list_devices
from ..llm import LLM, Completion, Generation
from ..model import WEIGHT_DTYPES
from ..sampling import RANDOM_SEED, SamplingParams
from . import print_version
from .chat import Chat, Conversation
from .interrupt import Interrupt
from .options import Option, Parser, UsageError, integer, layer_count, number, one_of, process_escapes

N_POSITIONAL = 0
DEFAULTS = SamplingParams()


def dtype(text: str) -> torch.dtype | None:
    return WEIGHT_DTYPES[one_of(*WEIGHT_DTYPES)(text)]


MODEL_OPTIONS = [
    Option(
        ("-m", "--model"),
        "GGUF file or safetensors folder (the demo model without it)",
        str,
        "FILE",
        env="LLAMA_ARG_MODEL",
    ),
    Option(
        ("-hf", "-hfr", "--hf-repo"),
        "model on the Hugging Face Hub, user/model[:quant]",
        str,
        "REPO",
        env="LLAMA_ARG_HF_REPO",
    ),
    Option(
        ("-hff", "--hf-file"),
        "file of that repository, overrides the quant",
        str,
        "FILE",
        env="LLAMA_ARG_HF_FILE",
    ),
    Option(
        ("-c", "--ctx-size"),
        "tokens of context, 0 = what the model was trained for",
        integer(0),
        "N",
        0,
        env="LLAMA_ARG_CTX_SIZE",
    ),
    Option(("-b", "--batch-size"), "prompt tokens per step", integer(1), "N", 512, env="LLAMA_ARG_BATCH"),
    Option(("-t", "--threads"), "CPU threads", integer(1, 4096), "N", env="LLAMA_ARG_THREADS"),
    Option(("-dev", "--device"), "device to use, see --list-devices", str, "NAME", env="LLAMA_ARG_DEVICE"),
    Option(
        ("-ngl", "--gpu-layers", "--n-gpu-layers"),
        "layers on the GPU: a number, auto or all",
        layer_count,
        "N",
        env="LLAMA_ARG_N_GPU_LAYERS",
    ),
    Option(
        ("-fa", "--flash-attn"),
        "fused attention: on, off or auto",
        one_of("on", "off", "auto"),
        "WHEN",
        "auto",
        env="LLAMA_ARG_FLASH_ATTN",
    ),
    *(
        Option(
            (short, f"--cache-type-{letter}"),
            f"type of the cache's {what}: {', '.join(CACHE_TYPES)}; without it, as they are computed",
            one_of(*CACHE_TYPES),
            "TYPE",
            env=f"LLAMA_ARG_CACHE_TYPE_{letter.upper()}",
        )
        for short, letter, what in (("-ctk", "k", "keys"), ("-ctv", "v", "values"))
    ),
    Option(
        ("--route",),
        "on a GPU, multiply quantised weights with 8-bit activations where that is faster (int8) or never (exact)",
        one_of("int8", "exact"),
        "ROUTE",
        "int8",
    ),
    Option(("--batch-invariant",), "on a GPU, let no result depend on what else is in the batch"),
    Option(("--mmap",), "map the file into memory", default=True, off=("--no-mmap",)),
    Option(
        ("--dequantize",),
        "decode quantised weights when loading: on, off or auto",
        one_of("on", "off", "auto"),
        "WHEN",
        "auto",
    ),
    Option(("--weight-type",), "what they are decoded to: auto, f32, bf16 or f16", dtype, "TYPE"),
]
SAMPLING_OPTIONS = [
    Option(("-s", "--seed"), "random seed, -1 = a new one each time", integer(-1, RANDOM_SEED), "N", -1),
    Option(
        ("--temp", "--temperature"),
        "temperature, 0 = always the likeliest token",
        number(),
        "T",
        DEFAULTS.temperature,
        env="LLAMA_ARG_TEMPERATURE",
    ),
    Option(
        ("--top-k",),
        "keep the k likeliest tokens, 0 = all",
        integer(-(2**31)),
        "K",
        DEFAULTS.top_k,
        env="LLAMA_ARG_TOP_K",
    ),
    Option(
        ("--top-p",),
        "keep tokens up to this probability together, 1 = all",
        number(0),
        "P",
        DEFAULTS.top_p,
        env="LLAMA_ARG_TOP_P",
    ),
    Option(
        ("--min-p",),
        "keep tokens of this share of the likeliest's probability, 0 = all",
        number(high=1),
        "P",
        DEFAULTS.min_p,
        env="LLAMA_ARG_MIN_P",
    ),
    Option(
        ("--repeat-last-n",),
        "tokens that the penalties look back at",
        integer(0),
        "N",
        DEFAULTS.repeat_last_n,
    ),
    Option(
        ("--repeat-penalty",),
        "divides the logits of repeated tokens, 1 = off",
        number(1e-6),
        "X",
        DEFAULTS.repeat_penalty,
        env="LLAMA_ARG_REPEAT_PENALTY",
    ),
    Option(
        ("--presence-penalty",),
        "subtracted from the logits of repeated tokens",
        number(),
        "X",
        0.0,
        env="LLAMA_ARG_PRESENCE_PENALTY",
    ),
    Option(
        ("--frequency-penalty",),
        "the same, per repetition",
        number(),
        "X",
        0.0,
        env="LLAMA_ARG_FREQUENCY_PENALTY",
    ),
    Option(("--ignore-eos",), "go on past the model's end tokens"),
    Option(
        ("-n", "--predict", "--n-predict"),
        "tokens to generate, -1 = no limit",
        integer(-1),
        "N",
        -1,
        env="LLAMA_ARG_N_PREDICT",
    ),
    Option(("-r", "--reverse-prompt"), "text that ends an answer", str, "TEXT"),
]
PROMPT_OPTIONS = [
    Option(("-p", "--prompt"), "the prompt; without it, a chat starts", str, "TEXT"),
    Option(("-f", "--file"), "read the prompt from a file", Path, "FILE"),
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
    "Generates text from a prompt, or chats.",
    [*MODEL_OPTIONS, *SAMPLING_OPTIONS, *PROMPT_OPTIONS, *PROGRAM_OPTIONS],
)


def main(values: dict[str, Any]) -> int:
    if values["version"]:
        return print_version()
    if values["list_devices"]:
        return _print_devices()
    prompt = _prompt(values)
    params = SamplingParams(
        max_tokens=values["n_predict"],
        temperature=values["temperature"],
        stop=(process_escapes(values["reverse_prompt"]),) if values["reverse_prompt"] else (),
        **{
            key: values[key]
            for key in (
                "top_k", "top_p", "min_p", "repeat_penalty", "frequency_penalty", "presence_penalty", "repeat_last_n",
                "seed", "ignore_eos",
            )
        },
    )  # fmt: skip
    with _load(values) as llm:
        if values["verbose"]:
            _print_plan(llm)
        chats = values["conversation"]
        if chats is None:
            chats = prompt is None or llm.chat_template is not None
        if not chats:
            if prompt is None:
                raise UsageError("-no-cnv needs a prompt: -p or -f")
            return _continue_text(llm, prompt, params, display_prompt=values["display_prompt"])
        chat = Chat(Conversation(llm, params, values["system_prompt"]))
        once = values["single_turn"] or (prompt is not None and not values["conversation"])
        return chat.run(prompt, once=once)


def _prompt(values: dict[str, Any]) -> str | None:
    if values["file"] is not None:
        # As llama.cpp: one newline at the end of the file is not part of the prompt.
        text: str = values["file"].read_text("utf-8", "replace").removesuffix("\n")
    elif values["prompt"] is not None:
        text = values["prompt"]
    else:
        return None
    return process_escapes(text) if values["escape"] else text


def _load(values: dict[str, Any]) -> LLM:
    model = values["model"]
    if values["hf_repo"]:
        model = fetch_model(values["hf_repo"], values["hf_file"])
    elif values["hf_file"]:
        raise UsageError("--hf-file needs --hf-repo")
    return LLM(
        model,
        device=values["device"],
        n_gpu_layers=values["n_gpu_layers"],
        n_ctx=values["ctx_size"],
        n_batch=values["batch_size"],
        n_threads=values["threads"],
        dequantize=values["dequantize"],
        weight_dtype=values["weight_type"],
        flash_attn=values["flash_attn"],
        cache_type_k=values["cache_type_k"],
        cache_type_v=values["cache_type_v"],
        route=values["route"],
        batch_invariant=values["batch_invariant"],
        use_mmap=values["mmap"],
        chat_template=values["chat_template"],
        progress=sys.stderr.isatty(),
    )


def _continue_text(llm: LLM, prompt: str, params: SamplingParams, *, display_prompt: bool) -> int:
    """The prompt's text and what follows it, as llama-completion does."""
    generation = llm.start(prompt, params)
    if display_prompt:
        print(prompt, end="", flush=True)
    with Interrupt() as interrupt:
        for piece in generation:
            print(piece, end="", flush=True)
            if interrupt.pressed:
                break
    print()
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
    for line in llm.plan.describe(llm.decoder.config):
        print(line, file=sys.stderr)
    for ops in dict.fromkeys(
        [llm.decoder.input_ops, *(layer.ops for layer in llm.decoder.layers), llm.decoder.output_ops]
    ):
        print(f"{ops.device}: {ops.name}, activations {str(ops.dtype).split('.')[1]}", file=sys.stderr)
        for line in ops.describe():
            print(line, file=sys.stderr)


def _print_devices() -> int:
    print("Available devices:")
    for info in list_devices():
        sizes = (
            f"{info.total_bytes // 2**20} MiB, {info.free_bytes // 2**20} MiB free"
            if info.total_bytes
            else "size unknown"
        )
        print(f"  {info.device}: {info.description} ({sizes})")
    return 0
