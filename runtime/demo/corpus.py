"""The demo corpus: chats and plain stories, drawn from a seed without end."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from . import chinese, questions, talk, words
from .stories import HEROES, Story, expand, story, with_article

END_OF_TEXT = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a friendly assistant.",
    "You are naiad's small demo model.",
    "Answer in short and simple sentences.",
    "You are a kind teller of stories.",
    "You are a helpful assistant. Be brief.",
)
STORY_REQUESTS = (
    "Tell me a story about {subject}.", "Tell me a story about {subject}.", "Tell me a story about {subject}.",
    "Write a short story about {subject}.", "Write a story about {subject}.", "Tell me a short story about {subject}.",
    "Can you tell me a story about {subject}?", "Could you write a story about {subject}?", "Please tell me a story about {subject}.",
    "I would like to hear a story about {subject}.", "I want a story about {subject}.", "Make up a story about {subject}.",
    "A story about {subject}, please.", "Do you know a story about {subject}?", "Tell a story about {subject}.",
    "Give me a story about {subject}.", "Story about {subject}", "Once more, a story about {subject}, please.",
    "Tell us a bedtime story about {subject}.", "Write a little story for children about {subject}.",
)  # fmt: skip
ANY_STORY_REQUESTS = (
    "Tell me a story.", "Please tell me a story.", "Can you tell me a story?", "Write a short story.", "Tell me a bedtime story.",
    "I want to hear a story.", "Do you know a good story?", "Surprise me with a story.",
)  # fmt: skip
AGAIN_REQUESTS = ("Tell me another story about {subject}.", "Another story about {subject}, please.", "And now a story about {subject}.",
                  "Now tell me about {subject}.", "One more about {subject}!")  # fmt: skip


@dataclass(frozen=True)
class Turn:
    """One message of a chat; role is system, user or assistant."""

    role: str
    text: str


@dataclass(frozen=True)
class Document:
    """A chat, or where `turns` is empty a plain text."""

    turns: tuple[Turn, ...] = ()
    plain: str = ""

    def render(self) -> str:
        """The text that a model reads, markers included, without the end-of-text marker."""
        return "".join(f"{TURN_START}{turn.role}\n{turn.text}{TURN_END}\n" for turn in self.turns) or self.plain


def casually(request: str, rng: random.Random) -> str:
    """A request as people type it: sometimes without capitals or the last mark; Chinese stays as it is."""
    style = rng.random()
    if style < 0.62 or not request.isascii():
        return request
    if style < 0.74:
        return request.rstrip(".?!")
    if style < 0.88:
        return request.lower().rstrip(".")
    if style < 0.94:
        return request.lower().rstrip(".?!")
    if style < 0.97:
        return request.rstrip(".") + "!" if request.endswith(".") else request
    return request.upper() if style > 0.985 else request.rstrip(".?!") + " please"


def plural(subject: str) -> str:
    """'a cat' as 'cats', for subjects of one simple noun."""
    noun = subject.split(" ", 1)[1]
    irregular = {"mouse": "mice", "fox": "foxes", "princess": "princesses"}
    return irregular.get(noun, noun + "s")


def story_exchange(
    rng: random.Random, requests: tuple[str, ...] = STORY_REQUESTS, kind: str | None = None
) -> tuple[str, Story]:
    """A request for a story and the story."""
    told = story(rng, kind)
    subject = told.subject
    if subject.count(" ") == 1 and rng.random() < 0.12:
        subject = plural(subject)
    if requests is STORY_REQUESTS and rng.random() < 0.06:
        return rng.choice(ANY_STORY_REQUESTS), told
    return expand(rng.choice(requests), rng, {"subject": subject}), told


def about_the_story(told: Story, rng: random.Random) -> tuple[str, str]:
    """A question that the story just told answers."""
    if told.friend in told.text and told.other in told.text and rng.random() < 0.4:
        return rng.choice(
            (
                ("Who was the friend in the story?", f"The friend was {told.friend}."),
                (f"Who was {told.friend}?", expand(f"{told.friend} was a {told.other}.", rng, {})),
            )
        )
    return rng.choice(
        (
            (f"What was the name of the {told.kind}?", f"The {told.kind} was named {told.name}."),
            ("Who was the story about?", f"The story was about {told.name}."),
            (f"Who was {told.name}?", expand(f"{told.name} was a {told.kind}.", rng, {})),
            ("What was the name of the hero?", f"The hero was named {told.name}."),
        )
    )


def other_story(rng: random.Random) -> tuple[str, str]:
    """A request for a story that is not known, and another story in its place."""
    others = [animal.kind for animal in words.ANIMALS if animal.kind not in HEROES]
    unknown = with_article(rng.choice((*others, *words.PEOPLE, *words.PLANTS, *words.THINGS)))
    if rng.random() < 0.3:
        unknown = f"the {rng.choice(words.NATURE)}"
    request = expand(rng.choice(STORY_REQUESTS), rng, {"subject": unknown})
    told = story(rng)
    return request, f"I do not know that story, but I know one about {with_article(told.kind)}. {told.text}"


def story_chat(rng: random.Random) -> list[tuple[str, str]]:
    """One story; sometimes a question about it, thanks, or another story."""
    if rng.random() < 0.15:
        return [other_story(rng)]
    request, told = story_exchange(rng)
    pairs = [(request, told.text)]
    if rng.random() < 0.12:
        pairs.append(about_the_story(told, rng))
    if rng.random() < 0.08:
        pairs.append(
            (
                rng.choice(("Thank you!", "Thanks!", "Nice story!")),
                "You are welcome! I am glad that you like stories.",
            )
        )
    elif rng.random() < 0.05:
        request, told = story_exchange(rng, AGAIN_REQUESTS, rng.choice(HEROES))
        if rng.random() < 0.4:
            request = rng.choice(
                ("Tell me another story.", "Another one, please.", "One more story!", "Another story?")
            )
        pairs.append((request, told.text))
    return pairs


def question_chat(rng: random.Random) -> list[tuple[str, str]]:
    """One to four questions, now and then one beyond the model."""
    makers = rng.choices((questions.question, talk.unknown, talk.social), (78, 14, 8), k=rng.choice((1, 1, 1, 2, 3, 4)))
    return [maker(rng) for maker in makers]


def social_chat(rng: random.Random) -> list[tuple[str, str]]:
    """Small talk, and what may follow it."""
    pairs = [talk.poem(rng) if rng.random() < 0.15 else talk.social(rng)]
    if rng.random() < 0.35:
        pairs.append(rng.choice((questions.question, talk.social, talk.unknown))(rng))
    elif rng.random() < 0.15:
        request, told = story_exchange(rng)
        pairs.append((request, told.text))
    return pairs


def unknown_chat(rng: random.Random) -> list[tuple[str, str]]:
    """Requests beyond the model, and what it can do after one."""
    pairs = [talk.unknown(rng)]
    if rng.random() < 0.3:
        pairs.append(rng.choice((questions.question, talk.unknown))(rng))
    return pairs


def chinese_chat(rng: random.Random) -> list[tuple[str, str]]:
    """One to three exchanges in Chinese."""
    return [chinese.exchange(rng) for _ in range(rng.choice((1, 1, 2, 3)))]


CHATS = {story_chat: 36, question_chat: 32, social_chat: 7, unknown_chat: 12, chinese_chat: 8}
PLAIN_SHARE = 0.05


def document(rng: random.Random) -> Document:
    """One document of any kind."""
    if rng.random() < PLAIN_SHARE:
        return Document(plain=story(rng).text)
    pairs = rng.choices(tuple(CHATS), tuple(CHATS.values()))[0](rng)
    turns = [Turn("system", rng.choice(SYSTEM_PROMPTS))] if rng.random() < 0.12 else []
    for request, answer in pairs:
        turns += [Turn("user", casually(request, rng)), Turn("assistant", answer)]
    return Document(turns=tuple(turns))


def generate(seed: int, n: int) -> Iterator[Document]:
    """The first `n` documents of a seed."""
    rng = random.Random(seed)
    for _ in range(n):
        yield document(rng)
