"""The options of sampling, with llama.cpp's names and defaults."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from ..sampling import RANDOM_SEED, SamplingParams, sampler_names
from .options import Option, integer, number, real, shortened
from .texts import argument_text

DEFAULTS = SamplingParams()


_BIAS = re.compile(r"\s*([+-]?[0-9]{1,19})\s*([+-])(.+)", re.DOTALL)


def logit_biases(text: str) -> dict[int, float]:
    """ "15043+1,29871-inf" -> what is added to which token's logit. TOKEN, a sign, and any number: 300+1e-2."""
    found: dict[int, float] = {}
    for part in text.split(","):
        match = _BIAS.fullmatch(part)
        bias = math.nan
        if match is not None:
            with suppress(ValueError):
                bias = real(match[3]) * (-1 if match[2] == "-" else 1)
        if match is None or math.isnan(bias):
            raise ValueError(f"expected TOKEN+BIAS or TOKEN-BIAS, found {shortened(part)!r}")
        found[int(match[1])] = found.get(int(match[1]), 0.0) + bias
    return found


def predict_count(text: str) -> int:
    """-n: -2, until the context is full, is what -1 is here."""
    return max(-1, integer(-2)(text))


def _letters(text: str) -> tuple[str, ...]:
    return sampler_names(text, letters=True)


def _names(text: str) -> tuple[str, ...]:
    return sampler_names(text, letters=False)


# Names, what it is, how it is read, and the field of SamplingParams that it sets.
_TABLE: tuple[tuple[tuple[str, ...], str, Callable[[str], Any], str], ...] = (
    (("-s", "--seed"), "random seed, -1 = a new one each time", integer(-1, RANDOM_SEED), "seed"),
    (("--temp", "--temperature"), "temperature, 0 = always the likeliest token", number(), "temperature"),
    (("--dynatemp-range",), "temperature follows the entropy within this range, 0 = off", number(), "dynatemp_range"),
    (("--dynatemp-exp",), "how it follows", number(), "dynatemp_exponent"),
    (("--top-k",), "keep the k likeliest tokens, 0 = all", integer(-(2**31) + 1), "top_k"),
    (("--top-p",), "keep tokens up to this probability together, 1 = all", number(0), "top_p"),
    (("--min-p",), "keep tokens of this share of the likeliest's probability, 0 = all", number(high=1), "min_p"),
    (
        ("--top-nsigma", "--top-n-sigma"),
        "keep logits within n deviations of the best",
        number(),
        "top_n_sigma",
    ),
    (
        ("--typical", "--typical-p"),
        "keep tokens of typical surprise up to this probability",
        number(),
        "typical_p",
    ),
    (("--xtc-probability",), "how often the likeliest tokens are left out, 0 = never", number(0, 1), "xtc_probability"),
    (("--xtc-threshold",), "those above this probability but one, above 0.5 = none", number(0, 1), "xtc_threshold"),
    (("--min-keep",), "tokens that the filters leave at least", integer(0), "min_keep"),
    (("--repeat-last-n",), "tokens that the penalties look back at", integer(0), "repeat_last_n"),
    (("--repeat-penalty",), "divides the logits of repeated tokens, 1 = off", number(1e-6), "repeat_penalty"),
    (("--presence-penalty",), "subtracted from the logits of repeated tokens", number(), "presence_penalty"),
    (("--frequency-penalty",), "the same, per repetition", number(), "frequency_penalty"),
    (("--dry-multiplier",), "how much repeated passages are penalised, 0 = not at all", number(), "dry_multiplier"),
    (("--dry-base",), "how the penalty grows with the length of the passage", number(), "dry_base"),
    (("--dry-allowed-length",), "passages that may be repeated", integer(0), "dry_allowed_length"),
    (("--dry-penalty-last-n",), "tokens in which repetitions are looked for", integer(0), "dry_penalty_last_n"),
    (("--mirostat",), "1 or 2 = Mirostat in place of the other samplers", integer(0, 2), "mirostat"),
    (("--mirostat-lr",), "Mirostat's learning rate", number(), "mirostat_eta"),
    (("--mirostat-ent",), "Mirostat's target entropy", number(), "mirostat_tau"),
    (
        ("--adaptive-target",),
        "choose tokens near this probability, with the sampler adaptive_p",
        number(high=1),
        "adaptive_target",
    ),
    (("--adaptive-decay",), "how slowly that follows what was chosen", number(0, 0.99), "adaptive_decay"),
    (("-n", "--predict", "--n-predict"), "tokens to generate, -1 = no limit", predict_count, "max_tokens"),
)
_ENVIRONMENT = {
    "temperature": "LLAMA_ARG_TEMPERATURE",
    "top_k": "LLAMA_ARG_TOP_K",
    "top_p": "LLAMA_ARG_TOP_P",
    "min_p": "LLAMA_ARG_MIN_P",
    "repeat_penalty": "LLAMA_ARG_REPEAT_PENALTY",
    "presence_penalty": "LLAMA_ARG_PRESENCE_PENALTY",
    "frequency_penalty": "LLAMA_ARG_FREQUENCY_PENALTY",
    "max_tokens": "LLAMA_ARG_N_PREDICT",
}


SAMPLING_OPTIONS = [
    *(
        Option(names, f"{text} (default: {getattr(DEFAULTS, field)})", convert, "X", env=_ENVIRONMENT.get(field, ""))
        for names, text, convert, field in _TABLE
    ),
    Option(
        ("-l", "--logit-bias"),
        "added to logits: TOKEN+BIAS or TOKEN-BIAS, by commas; may be given again",
        logit_biases,
        "BIASES",
        many=True,
    ),
    Option(
        ("--samplers",),
        f"the samplers in their order, by semicolons (default: {';'.join(DEFAULTS.samplers)})",
        _names,
        "NAMES",
    ),
    Option(("--sampler-seq", "--sampling-seq"), "the same by letters, edskypmxt", _letters, "LETTERS"),
    Option(
        ("--dry-sequence-breaker",),
        "text that no repetition reaches across, in place of the default ones; may be given again; none = no such text",
        str,
        "TEXT",
        many=True,
    ),
    Option(("--ignore-eos",), "go on past the model's end tokens"),
    Option(("-r", "--reverse-prompt"), "text that ends an answer; may be given again", str, "TEXT", many=True),
]


def sampling_params(values: dict[str, Any], base: SamplingParams = DEFAULTS) -> SamplingParams:
    """What the options ask for, and what `base` says where they do not."""
    given = {field: values[names[-1].lstrip("-").replace("-", "_")] for names, _, _, field in _TABLE}
    fields = {field: value for field, value in given.items() if value is not None}
    samplers = values["samplers"] or values["sampling_seq"]
    if samplers is not None:
        fields["samplers"] = samplers
    biases: dict[int, float] = {}
    for part in values["logit_bias"] or ():
        biases |= {token: biases.get(token, 0.0) + bias for token, bias in part.items()}
    if biases:
        fields["logit_bias"] = biases
    # As llama.cpp: --no-escape is for these texts, too.
    texts = {
        key: [argument_text(text, escape=values.get("escape", True)) for text in values[key] or ()]
        for key in ("dry_sequence_breaker", "reverse_prompt")
    }
    if texts["dry_sequence_breaker"]:
        fields["dry_sequence_breakers"] = tuple(text for text in texts["dry_sequence_breaker"] if text != "none")
    fields["stop"] = tuple(texts["reverse_prompt"])
    return replace(base, **fields, ignore_eos=bool(values["ignore_eos"]))
