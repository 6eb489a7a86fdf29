"""Simple questions with their right answers, in several wordings."""

from __future__ import annotations

import random
from collections.abc import Callable

from . import facts, words
from .stories import expand, with_article

Pair = tuple[str, str]
BIGGEST_SUM = 12


def capital(rng: random.Random) -> Pair:
    country, city = rng.choice(tuple(facts.CAPITALS.items()))
    if rng.random() < 0.2:
        if country in ("the USA", "England"):
            country = {"the USA": "the United States", "England": "the United Kingdom"}[country]
        if country != "the United Kingdom":
            return (
                expand(f"{city} is the capital of which country?", rng, {}),
                f"{city} is the capital of {country}.",
            )
    wordings = (
        f"What is the capital of {country}?",
        f"What is {country}'s capital?",
        f"What's the capital of {country}?",
        f"Which city is the capital of {country}?",
        f"Tell me the capital of {country}.",
        f"Do you know the capital of {country}?",
        f"Capital of {country}?",
        f"And the capital of {country}?",
    )
    return rng.choice(wordings), f"The capital of {country} is {city}".rstrip(".") + "."


def colour(rng: random.Random) -> Pair:
    thing, answer = rng.choice(tuple(facts.COLOURS.items()))
    word = rng.choice(("colour", "color"))
    wordings = (
        f"What {word} is {thing}?",
        f"Which {word} is {thing}?",
        f"What is the {word} of {thing}?",
        f"Tell me the {word} of {thing}.",
    )
    return rng.choice(wordings), expand(f"{thing} is {answer}.", rng, {})


def opposite(rng: random.Random) -> Pair:
    first, second = rng.choice(facts.OPPOSITES)
    firsts = {pair[0] for pair in facts.OPPOSITES}
    if second not in firsts and first != "heavy" and rng.random() < 0.5:
        first, second = second, first
    if first == "short":
        second = "long"
    wordings = (
        f"What is the opposite of {first}?",
        f"What's the opposite of {first}?",
        f'What is the opposite of "{first}"?',
        f"Tell me the opposite of {first}.",
        f"Opposite of {first}?",
    )
    return rng.choice(wordings), f"The opposite of {first} is {second}."


def use(rng: random.Random) -> Pair:
    thing, answer = rng.choice(tuple(facts.USES.items()))
    verb = "are" if thing in ("glasses", "scissors") else "is"
    wordings = (
        f"What {verb} {thing} used for?",
        f"What do we use {thing} for?",
        f"What do people use {thing} for?",
        f"Why do we need {thing}?",
    )
    return rng.choice(wordings), expand(f"{thing} {verb} used for {answer}.", rng, {})


def job(rng: random.Random) -> Pair:
    who, answer = rng.choice(tuple(facts.JOBS.items()))
    wordings = (f"What does {who} do?", f"What is the job of {who}?", f"What is {who}?", f"Who is {who}?")
    return rng.choice(wordings), expand(f"{who} {answer}.", rng, {})


def definition(rng: random.Random) -> Pair:
    thing, answer = rng.choice(tuple(facts.DEFINITIONS.items()))
    wordings = (
        f"What is {thing}?",
        f"What's {thing}?",
        f"Can you tell me what {thing} is?",
        f"Explain what {thing} is.",
        f"Do you know what {thing} is?",
    )
    return rng.choice(wordings), expand(f"{thing} is {answer}.", rng, {})


def general(rng: random.Random) -> Pair:
    return rng.choice(facts.FACTS)


def animal(rng: random.Random) -> Pair:
    beast = rng.choice(words.ANIMALS)
    one = with_article(beast.kind)
    choices: list[tuple[tuple[str, ...], str]] = [
        ((f"Where does {one} live?", f"Where do you find {one}?"), f"{one} lives {beast.home}."),
        ((f"What does {one} eat?", f"What food does {one} like?"), f"{one} eats {beast.food}."),
    ]
    if beast.sound:
        choices.append(
            (
                (
                    f"What sound does {one} make?",
                    f"What does {one} say?",
                    f"What noise does {one} make?",
                    f"Which sound does the {beast.kind} make?",
                ),
                f"{one} {beast.sound}.",
            )
        )
    if beast.young:
        choices.append(
            (
                (f"What is a baby {beast.kind} called?", f"What do you call a young {beast.kind}?"),
                f"A baby {beast.kind} is called a {beast.young}.",
            )
        )
    wordings, answer = rng.choice(choices)
    return rng.choice(wordings), expand(answer, rng, {})


def number(value: int, rng: random.Random) -> str:
    """Digits, and now and then the word."""
    return str(value) if rng.random() < 0.8 else facts.NUMBERS[value]


def addition(rng: random.Random) -> Pair:
    a, b = rng.randint(0, BIGGEST_SUM), rng.randint(0, BIGGEST_SUM)
    if rng.random() < 0.15:
        a, b = rng.sample(((teen := rng.randint(13, 20)), rng.randint(0, 20 - teen)), 2)
    left, right = number(a, rng), number(b, rng)
    if a + b > 20 or not (left.isdigit() and right.isdigit()):
        left, right = str(a), str(b)
    wordings = (
        f"What is {left} + {right}?",
        f"What is {left} plus {right}?",
        f"{left} + {right}?",
        f"{left}+{right}=",
        f"How much is {left} plus {right}?",
        f"Add {left} and {right}.",
        f"What's {left} + {right}?",
        f"Can you add {left} and {right}?",
        f"And {left} + {right}?",
    )
    return rng.choice(wordings), f"{a} + {b} = {a + b}."


def subtraction(rng: random.Random) -> Pair:
    a = rng.randint(0, 20)
    b = rng.randint(0, min(a, 10))
    wordings = (
        f"What is {a} - {b}?",
        f"What is {a} minus {b}?",
        f"{a} - {b}?",
        f"How much is {a} minus {b}?",
        f"Take {b} away from {a}.",
        f"What's {a} - {b}?",
    )
    return rng.choice(wordings), f"{a} - {b} = {a - b}."


def word_problem(rng: random.Random) -> Pair:
    """Apples given and taken, with the sum written out."""
    a, b = rng.randint(1, 10), rng.randint(1, 10)
    thing = rng.choice(("apples", "cookies", "books", "balls", "coins", "flowers", "pears", "nuts"))
    name = rng.choice((*words.GIRLS, *words.BOYS))
    if rng.random() < 0.5:
        asked = (
            f"(I have|{name} has) {a} {thing} and (get|gets) {b} more. How many {thing} (do I|does {name}) have now?"
        )
        total, sign = a + b, "+"
    else:
        a, b = max(a, b), min(a, b)
        asked = f"(I have|{name} has) {a} {thing} and (lose|loses) {b}. How many {thing} (do I|does {name}) have now?"
        total, sign = a - b, "-"
    side = rng.randrange(2)
    for pair in (("I have", f"{name} has"), ("get", "gets"), ("lose", "loses"), ("do I", f"does {name}")):
        asked = asked.replace(f"({pair[0]}|{pair[1]})", pair[side])
    who = ("You have", f"{name} has")[side]
    return (
        asked,
        f"{who} {total} {thing if total != 1 else thing.removesuffix('s')} now, because {a} {sign} {b} = {total}.",
    )


def counting(rng: random.Random) -> Pair:
    end = rng.randint(3, 20)
    start = 1 if rng.random() < 0.7 else rng.randint(2, end - 1)
    down = rng.random() < 0.25
    values = [str(value) for value in (range(end, start - 1, -1) if down else range(start, end + 1))]
    answer = ", ".join(values) + "."
    if down:
        return rng.choice((f"Count down from {end} to {start}.", f"Count from {end} down to {start}.")), answer
    if start == 1 and rng.random() < 0.6:
        word = number(end, rng)
        return rng.choice((f"Count to {word}.", f"Can you count to {word}?", f"Please count to {word}.")), answer
    return f"Count from {start} to {end}.", answer


def bigger(rng: random.Random) -> Pair:
    if rng.random() < 0.5:
        a, b = rng.sample(range(21), 2)
        if rng.random() < 0.5:
            return f"Which number is bigger, {a} or {b}?", f"{max(a, b)} is bigger than {min(a, b)}."
        return f"Which number is smaller, {a} or {b}?", f"{min(a, b)} is smaller than {max(a, b)}."
    a, b = rng.sample(range(len(facts.SIZES)), 2)
    big, small = facts.SIZES[max(a, b)], facts.SIZES[min(a, b)]
    if rng.random() < 0.5:
        return f"Which is bigger, {facts.SIZES[a]} or {facts.SIZES[b]}?", expand(
            f"{big} is bigger than {small}.", rng, {}
        )
    return f"Which is smaller, {facts.SIZES[a]} or {facts.SIZES[b]}?", expand(
        f"{small} is smaller than {big}.", rng, {}
    )


def sequence(rng: random.Random) -> Pair:
    """The neighbour of a day, month, letter or number."""
    kind, items = rng.choice(
        (
            ("day", facts.DAYS),
            ("month", facts.MONTHS),
            ("letter", tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")),
            ("number", tuple(str(value) for value in range(21))),
        )
    )
    place = rng.randrange(len(items))
    after = rng.random() < 0.65
    wraps = kind in ("day", "month")
    if not wraps:
        place = min(max(place, 0 if after else 1), len(items) - (2 if after else 1))
    answer = items[(place + (1 if after else -1)) % len(items)]
    side = "after" if after else "before"
    wordings = (
        f"What {kind} comes {side} {items[place]}?",
        f"Which {kind} comes {side} {items[place]}?",
        f"What comes {side} {items[place]}?",
    )
    return rng.choice(wordings), f"{answer} comes {side} {items[place]}."


WEIGHTS: dict[Callable[[random.Random], Pair], float] = {
    capital: 5,
    colour: 4,
    opposite: 5,
    use: 5,
    job: 2,
    definition: 5,
    general: 9,
    animal: 9,
    addition: 12,
    subtraction: 8,
    word_problem: 3,
    counting: 3,
    bigger: 4,
    sequence: 5,
}


def question(rng: random.Random) -> Pair:
    """A question and its answer, of any kind."""
    return rng.choices(tuple(WEIGHTS), tuple(WEIGHTS.values()))[0](rng)
