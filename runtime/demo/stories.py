"""Stories for the demo corpus: a subject, a plot, and the words that stay the same through both."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from . import adventure_plots, friend_plots, thing_plots, words
from .plot import OPENING, Plot

HEROES = (*(animal.kind for animal in words.ANIMALS), *words.PEOPLE, *words.CREATURES)
# Each plot, and the ideas that it shows.
PLOTS: tuple[tuple[Plot, tuple[str, ...]], ...] = (
    (friend_plots.LOST, ("friendship", "friends", "a dream", "a surprise", "helping others", "summer")),
    (friend_plots.RESCUE, ("helping others", "kindness", "courage", "spring", "home")),
    (adventure_plots.FEAR, ("courage", "hope", "friendship", "a family")),
    (adventure_plots.SKILL, ("hard work", "patience", "hope", "a dream", "spring")),
    (friend_plots.LONELY, ("friendship", "love", "friends", "kindness")),
    (friend_plots.SHARING, ("sharing", "kindness", "autumn", "winter", "love")),
    (adventure_plots.GARDEN, ("patience", "hope", "spring", "hard work", "summer", "autumn")),
    (adventure_plots.RACE, ("kindness", "helping others", "friendship", "summer")),
    (adventure_plots.NOISE, ("a secret", "courage", "a surprise", "home")),
    (friend_plots.HONEST, ("honesty", "a rainy day", "love", "a family")),
    (adventure_plots.JOURNEY, ("an adventure", "a journey", "courage", "friendship", "a dream")),
    (friend_plots.PARTY, ("a birthday", "a gift", "a party", "love", "a surprise")),
    (adventure_plots.TREASURE, ("treasure", "an adventure", "a secret", "friends", "magic")),
    (friend_plots.STORM, ("a rainy day", "kindness", "home", "autumn", "friends")),
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


def hero_name(kind: str, rng: random.Random, taken: str = "") -> tuple[str, bool]:
    """A name that fits what its bearer is and is not `taken`; and whether it is a girl's name."""
    is_girl = kind in words.FEMALE or (kind not in words.MALE and rng.random() < 0.5)
    return rng.choice([name for name in (words.GIRLS if is_girl else words.BOYS) if name != taken]), is_girl


def story_slots(kind: str, rng: random.Random, other: str | None = None) -> dict[str, str]:
    """The words of one story whose hero is a `kind`, and whose second character is `other` if given."""
    name, is_girl = hero_name(kind, rng)
    other = other or rng.choice([hero for hero in HEROES if hero != kind])
    friend, friend_is_girl = hero_name(other, rng, taken=name)
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
        "elder": rng.choice(thing_plots.ELDERS),
    }  # fmt: skip


def tell(plot: Plot, rng: random.Random, slots: dict[str, str]) -> str:
    """One sentence of each beat."""
    return " ".join(expand(rng.choice(beat), rng, slots) for beat in plot)


def finish(subject: str, text: str, slots: dict[str, str]) -> Story:
    return Story(subject, text, slots["name"], slots["kind"], slots["friend"], slots["other"])


def with_article(noun: str) -> str:
    return ARTICLE.sub(r"\1n ", f"a {noun}")


def hero_story(rng: random.Random, kind: str | None = None) -> Story:
    """A story about one or two living heroes, or about an idea that its plot shows."""
    plot, ideas = rng.choice(PLOTS)
    form = rng.random()
    if kind is None:
        kind = rng.choice(words.ANIMALS).kind if rng.random() < 0.5 else rng.choice(HEROES)
    slots = story_slots(kind, rng)
    subject = with_article(kind)
    if form < 0.2:
        subject = f"{subject} and {with_article(slots['other'])}"
    elif form < 0.3:
        subject = with_article(f"{slots['trait']} {kind}")
    elif form < 0.4:
        subject = f"{subject} named {slots['name']}"
    elif form < 0.46:
        subject = rng.choice(ideas)
    opening = rng.choice(OPENING[:1] + OPENING[3:4]) if 0.2 <= form < 0.3 else rng.choice(OPENING)
    return finish(subject, tell(((opening,), *plot), rng, slots), slots)


def thing_story(rng: random.Random) -> Story:
    """A story about a thing, a plant, or something of nature, with a child in it."""
    subjects, plots, article = rng.choice(
        (
            (words.THINGS, thing_plots.THING_PLOTS, "a"),
            (words.NATURE, thing_plots.NATURE_PLOTS, "the"),
            (words.PLANTS, thing_plots.PLANT_PLOTS, "a"),
        )
    )
    kind = rng.choice(("girl", "boy"))
    slots = story_slots(kind, rng, rng.choice(("girl", "boy"))) | {"subject": rng.choice(subjects)}
    subject = with_article(slots["subject"]) if article == "a" else f"the {slots['subject']}"
    if rng.random() < 0.2:
        subject = f"a {kind} and {subject}"
    return finish(subject, tell(rng.choice(plots), rng, slots), slots)


def story(rng: random.Random, kind: str | None = None) -> Story:
    """Any story; `kind` asks for one with that hero."""
    return hero_story(rng, kind) if kind or rng.random() < 0.75 else thing_story(rng)
