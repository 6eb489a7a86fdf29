"""Stories for the demo corpus: a subject, a plot, and the words that stay the same through both."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from . import adventure_plots, friend_plots, words
from .plot import OPENING, Plot

HEROES = tuple(words.CAST)
PLOTS: tuple[Plot, ...] = (
    friend_plots.LOST,
    friend_plots.LONELY,
    friend_plots.SHARING,
    friend_plots.PARTY,
    friend_plots.STORM,
    adventure_plots.FEAR,
    adventure_plots.SKILL,
    adventure_plots.TREASURE,
)
CHOICE = re.compile(r"\(([^()]*\|[^()]*)\)")
ARTICLE = re.compile(r"\b([Aa]) (?=(?!uni|use|one\b|Euro)[aeiouAEIOU])")


@dataclass(frozen=True)
class Story:
    """A finished story: `subject` as a request would name it ("a cat"), and facts to ask about."""

    subject: str
    text: str
    name: str
    kind: str
    friend: str
    other: str


def expand(template: str, rng: random.Random, slots: dict[str, str]) -> str:
    """Decides each `(a|b)`, fills each `{slot}`, writes "an" before vowels and starts with a capital."""
    while found := CHOICE.search(template):
        template = template[: found.start()] + rng.choice(found[1].split("|")) + template[found.end() :]
    text = ARTICLE.sub(r"\1n ", template.format_map(slots))
    return text[0].upper() + text[1:]


def pronouns(is_girl: bool) -> tuple[str, str, str]:
    """Subject, object and possessive form."""
    return ("she", "her", "her") if is_girl else ("he", "him", "his")


def story_slots(kind: str, rng: random.Random) -> dict[str, str]:
    """The words of one story whose hero is a `kind`."""
    name, is_girl, other = words.CAST[kind]
    friend, friend_is_girl, _ = words.CAST[other]
    he, him, his = pronouns(is_girl)
    _, him2, his2 = pronouns(friend_is_girl)
    spot, spot2 = rng.sample(words.SPOTS, 2)
    skill, mastered = rng.choice(words.SKILLS)
    fear, braved, truth = rng.choice(words.FEARS)
    return {
        "name": name, "kind": kind, "friend": friend, "other": other,
        "he": he, "him": him, "his": his, "He": he.capitalize(), "His": his.capitalize(),
        "him2": him2, "his2": his2,
        "trait": rng.choice(words.TRAITS), "colour": rng.choice(words.COLOURS),
        "place": rng.choice(words.PLACES).there, "spot": spot.there, "spot2": spot2.there,
        "thing": rng.choice(words.TREASURES), "food": rng.choice(words.FOODS),
        "skill": skill, "mastered": mastered, "fear": fear, "braved": braved, "truth": truth,
        "elder": rng.choice(words.ELDERS),
    }  # fmt: skip


def tell(plot: Plot, rng: random.Random, slots: dict[str, str]) -> str:
    """One sentence of each beat."""
    return " ".join(expand(rng.choice(beat), rng, slots) for beat in plot)


def with_article(noun: str) -> str:
    return ARTICLE.sub(r"\1n ", f"a {noun}")


def story(rng: random.Random, kind: str | None = None) -> Story:
    """A story about a hero and a friend; `kind` asks for one with that hero."""
    slots = story_slots(kind or rng.choice(HEROES), rng)
    form, subject = rng.random(), with_article(slots["kind"])
    if form < 0.12:
        subject = f"{subject} and {with_article(slots['other'])}"
    elif form < 0.22:
        subject = with_article(f"{slots['trait']} {slots['kind']}")
    elif form < 0.3:
        subject = f"{subject} named {slots['name']}"
    text = tell(((rng.choice(OPENING),), *rng.choice(PLOTS)), rng, slots)
    return Story(subject, text, slots["name"], slots["kind"], slots["friend"], slots["other"])
