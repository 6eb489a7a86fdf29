"""The options of sampling, with llama.cpp's names and defaults."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..sampling import RANDOM_SEED, SamplingParams, sampler_names
from .options import Option, integer, number, process_escapes

DEFAULTS = SamplingParams()


def logit_biases(text: str) -> dict[int, float]:
    """ "15043+1,29871-inf" -> what is added to which token's logit."""
    found = {}
    for part in text.split(","):
        place = max(part.find("+"), part.find("-"))
        try:
            found[int(part[:place])] = float(part[place:])
        except ValueError:
            raise ValueError(f"expected TOKEN+BIAS or TOKEN-BIAS, found {part!r}") from None
        if place < 1 or math.isnan(found[int(part[:place])]):
            raise ValueError(f"expected TOKEN+BIAS or TOKEN-BIAS, found {part!r}")
    return found


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
    (
        ("-l", "--logit-bias"),
        "added to logits: TOKEN+BIAS or TOKEN-BIAS, by commas",
        logit_biases,
        "logit_bias",
    ),
    (("-n", "--predict", "--n-predict"), "tokens to generate, -1 = no limit", integer(-1), "max_tokens"),
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


def _default(field: str) -> str:
    value = getattr(DEFAULTS, field)
    return "" if value == {} else f" (default: {value})"


SAMPLING_OPTIONS = [
    *(
        Option(names, f"{text}{_default(field)}", convert, "X", env=_ENVIRONMENT.get(field, ""))
        for names, text, convert, field in _TABLE
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
    if values["dry_sequence_breaker"]:
        breakers = [process_escapes(text) for text in values["dry_sequence_breaker"]]
        fields["dry_sequence_breakers"] = tuple(text for text in breakers if text != "none")
    stop = tuple(process_escapes(text) for text in values["reverse_prompt"] or ())
    return replace(base, **fields, ignore_eos=bool(values["ignore_eos"]), stop=stop)
