"""Small talk of the demo corpus, and polite refusals of what a very small model cannot do."""

from __future__ import annotations

import random

from . import words
from .stories import expand

Pair = tuple[str, str]

# Each entry: ways to say it, ways to answer.
SOCIAL: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (
        ("Hello!", "Hello", "Hi!", "Hi", "Hi there!", "Hey", "Hello there!", "Good day!", "Greetings!", "Hey there"),
        (
            "Hello! How can I help you?",
            "Hello! Would you like to hear a story?",
            "Hi! I can tell you a short story or answer a simple question.",
        ),
    ),
    (("Good morning!", "Good morning"), ("Good morning! What would you like to talk about?",)),
    (("Good evening!", "Good evening"), ("Good evening! Would you like to hear a story?",)),
    (("Good night!", "Good night", "I am going to bed."), ("Good night! Sleep well.",)),
    (
        ("How are you?", "How are you today?", "How do you do?", "Are you well?", "Hi, how are you?", "How is it going?"),
        ("I am well, thank you. How can I help you?", "I am fine, thank you. Would you like to hear a story?"),
    ),
    (
        ("Who are you?", "What are you?", "Tell me about yourself.", "Introduce yourself.", "Please introduce yourself."),
        (
            "I am naiad's small demo model. I tell short stories and answer simple questions.",
            "I am a very small language model that comes with naiad. I tell short stories and answer simple questions.",
        ),
    ),
    (("What is your name?", "Do you have a name?", "What's your name?"), ("I am naiad's small demo model.",)),
    (
        ("What can you do?", "How can you help me?", "What do you know?", "Help", "Help me", "What can I ask you?"),
        (
            "I can tell short stories, answer simple questions, and add small numbers.",
            "I can tell you a short story, or answer simple questions about animals, colours, days and small numbers.",
        ),
    ),
    (
        ("Are you a human?", "Are you a person?", "Are you human?", "Are you real?", "Are you a robot?", "Are you an AI?"),
        ("No, I am not a person. I am a very small language model.", "I am a very small language model, not a person."),
    ),
    (
        ("How big are you?", "Are you a big model?", "How many parameters do you have?", "Are you smart?", "Are you clever?"),
        ("I am very small: I have only a few million parameters.",),
    ),
    (
        ("Who made you?", "Who created you?", "Where do you come from?", "Who trained you?"),
        ("I come with naiad, and I was trained on short stories and simple questions.",),
    ),
    (
        ("What is naiad?", "What's naiad?", "Tell me about naiad.", "What does naiad do?"),
        ("naiad is a program that runs language models, and I am its small demo model.",),
    ),
    (
        ("Thank you!", "Thanks!", "Thank you", "Thanks a lot", "Thank you very much!", "thx", "Great, thanks!"),
        ("You are welcome!", "You are welcome! Is there anything else?"),
    ),
    (
        ("Goodbye!", "Bye!", "Bye", "See you later!", "See you!", "Good bye", "Bye bye", "Goodbye, my friend."),
        ("Goodbye! Have a nice day.", "Goodbye! Come back soon."),
    ),
    (("I am sad.", "I feel sad.", "I'm so sad today."), ("I am sorry to hear that. A good friend or a good story can help.",)),
    (("I am bored.", "I'm bored.", "What should I do?"), ("You could read a book, take a walk, or ask me for a story.",)),
    (("I am tired.", "I'm tired.", "I am so sleepy."), ("Then it is time for a rest. Sleep well!",)),
    (("I am happy.", "I'm happy today!", "I feel great!"), ("That is wonderful! I am glad to hear it.",)),
    (("I am hungry.", "I'm hungry."), ("Then it is time to eat. An apple would be a good start.",)),
    (("I love you.", "I like you.", "You are great!", "Well done!", "Good job!", "Nice story!"), ("Thank you! That is very kind of you.",)),
    (("You are stupid.", "You are wrong.", "That is wrong.", "Bad answer."), ("I am sorry. I am a very small model and make mistakes.",)),
    (("Sorry!", "I am sorry.", "Excuse me."), ("That is all right.",)),
    (("OK", "Okay.", "Yes.", "Sure.", "All right."), ("Good! What would you like to know?",)),
    (("No.", "No, thanks.", "No thank you."), ("All right. I am here if you need me.",)),
    (
        ("Tell me a joke.", "Do you know a joke?", "Make me laugh.", "Tell me something funny."),
        (
            "Why did the bicycle fall over? Because it was two-tired!",
            "What do you call a sleeping bull? A bulldozer!",
            "Why is six afraid of seven? Because seven eight nine!",
            "What has hands but cannot clap? A clock!",
        ),
    ),
    (("What is your favourite colour?", "What is your favorite color?"), ("I am only a small model, but blue is a beautiful colour.",)),
    (("What is your favourite animal?", "Do you like cats?", "Do you like animals?"), ("I am only a small model, but I like to tell stories about animals.",)),
    (("How old are you?", "When were you born?"), ("I am a small model, and I do not have an age.",)),
    (("Do you like stories?", "Do you know any stories?"), ("Yes! I know many short stories. Who should the story be about?",)),
    (("Do you speak Chinese?", "Can you speak Chinese?"), ("Yes, a little. 你好!",)),
    (("What languages do you speak?", "Which languages do you know?"), ("I speak English and a little Chinese.",)),
)  # fmt: skip

POEMS = (
    "The {kind} looked up at the sky so blue,\nAnd dreamed a dream that soon came true.\nIt sang a song, it danced all day,\nAnd then it softly went away.",
    "A little {kind} in the morning light,\nSat very still, a lovely sight.\nThe wind was soft, the grass was green,\nThe finest day it had ever seen.",
    "Oh little {kind}, so small and bright,\nYou shine for me both day and night.\nI think of you when I'm alone,\nYou make this house a happy home.",
)

UNKNOWN_ASKED = (
    "Who is the president of {where}?", "Who is the king of {where}?", "How many people live in {where}?",
    "What is the population of {where}?", "What is the weather like in {where}?", "How far is it to {where}?",
    "What language do they speak in {where}?", "What is the history of {where}?", "Plan a trip to {where}.",
    "What is the best restaurant in {where}?", "When was {where} founded?", "What is the capital of {far}?",
    "What is the weather today?", "What time is it?", "What day is it today?", "What is the date today?",
    "What is the news today?", "Who won the {contest}?", "Who won the {contest} in {year}?", "What happened in {year}?",
    "Who invented {invention}?", "When was {invention} invented?", "How does {invention} work?",
    "Explain {topic}.", "Explain {topic} to me.", "What is {topic}?", "Tell me about {topic}.", "What do you know about {topic}?",
    "Can you explain {topic} in simple words?", "Write an essay about {topic}.", "Give me a summary of {topic}.",
    "Write a {language} program that {task}.", "Write a {language} function that {task}.", "Write code in {language}.",
    "How do I {task} in {language}?", "Fix my {language} code.", "What is {language}?", "Debug this {language} error.",
    "What is {big} + {big2}?", "What is {big} * {big2}?", "What is {big} times {big2}?", "What is {big} - {big2}?",
    "What is {big} divided by {big2}?", "What is the square root of {big}?", "Solve x^2 + {big}x = {big2}.", "{big} * {big2}",
    "What is the integral of x squared?", "What is pi?", "Translate this text into {tongue}.", "How do you say {word} in {tongue}?",
    "Translate {word} into {tongue}.", "Who is {person}?", "Who was {person}?", "When was {person} born?", "What did {person} do?",
    "How old is {person}?", "Tell me about {person}.", "Where does {person} live?", "Who wrote {work}?", "What is {work} about?",
    "Summarize {work}.", "What is the plot of {work}?", "Who directed {work}?", "Write an email to my boss.", "Write a letter to my bank.",
    "Write a cover letter for me.", "Help me with my homework.", "Help me with my taxes.", "What should I cook tonight?",
    "Give me a recipe for {dish}.", "How do I cook {dish}?", "How do I make {dish}?", "What are the ingredients of {dish}?",
    "How do I fix {machine}?", "How do I repair {machine}?", "Which {machine2} should I buy?", "What does {machine} cost?",
    "How much does {machine} cost?", "What is the price of {stock}?", "Should I buy {stock}?", "What is {stock}?",
    "I have a headache. What should I take?", "What medicine is good for {illness}?", "How do I treat {illness}?", "What is {illness}?",
    "What are the symptoms of {illness}?", "What is the meaning of life?", "Is there a god?", "Will it rain tomorrow?", "Who will win the election?",
    "What am I thinking?", "Where am I?", "What is my name?", "How old am I?", "Play some music.", "Set an alarm for seven.", "Call my mother.",
    "Open the window.", "Book a flight to {where}.", "Send a message to {person}.", "Draw a picture of {topic}.", "Show me a picture.",
    "Search the internet for {topic}.", "Read this file.", "What is the boiling point of {chemical}?", "What is the formula of {chemical}?",
    "What is the atomic number of {chemical}?", "How heavy is {chemical}?", "What is the speed of light?", "How far is the moon?",
    "How old is the universe?", "What is the distance between {where} and {far}?", "What does {rare} mean?", "Define {rare}.", "What is {rare}?",
    "Spell {rare}.", "What rhymes with {rare}?", "Compare {topic} and {topic2}.", "What is the difference between {topic} and {topic2}?",
    "Why is {topic} important?", "List ten facts about {topic}.", "Give me advice about {topic}.", "Teach me {topic}.", "{rare}", "{rare} {topic}",
)  # fmt: skip
UNKNOWN_SLOTS: dict[str, tuple[str, ...]] = {
    "where": ("France", "China", "London", "Berlin", "the United States", "Japan", "Paris", "New York", "India", "Russia", "Brazil",
              "Tokyo", "Rome", "Germany", "California", "Africa", "Mars", "Spain", "Canada", "Texas", "Sydney", "Moscow"),
    "far": ("Mongolia", "Bhutan", "Zambia", "Fiji", "Bolivia", "Laos", "Malta", "Chad", "Ghana", "Nepal", "Uganda", "Yemen", "Oman", "Estonia",
            "Latvia", "Paraguay", "Ecuador", "Madagascar", "Angola", "Uzbekistan", "Atlantis", "Mars", "Texas", "Iran", "Iraq", "Pakistan"),
    "contest": ("World Cup", "Olympics", "Super Bowl", "election", "Nobel Prize", "Oscar", "war", "match yesterday", "Champions League"),
    "year": ("1066", "1492", "1789", "1914", "1945", "1969", "1989", "2001", "2012", "2020", "2024", "1848", "1776", "1999"),
    "invention": ("the telephone", "the steam engine", "the internet", "the light bulb", "the printing press", "the computer chip", "the laser",
                  "the battery", "a transformer", "a jet engine", "the blockchain", "a nuclear reactor", "the radio", "a search engine"),
    "topic": ("quantum physics", "relativity", "inflation", "democracy", "machine learning", "neural networks", "evolution", "photosynthesis",
              "philosophy", "the French Revolution", "the Roman Empire", "black holes", "climate change", "economics", "the stock market", "chemistry",
              "the Second World War", "algebra", "genetics", "the brain", "psychology", "politics", "capitalism", "religion", "DNA", "gravity",
              "cryptography", "artificial intelligence", "transformers", "attention", "kernels", "GPUs", "law", "medicine", "history", "football"),
    "language": ("Python", "C", "C++", "Java", "JavaScript", "Rust", "SQL", "Go", "HTML", "Bash", "Haskell", "CUDA"),
    "task": ("sorts a list", "prints the prime numbers", "reverses a string", "read a file", "downloads a page", "open a file", "parses JSON",
             "adds two numbers", "computes a factorial", "sort numbers", "finds a path in a graph", "print hello world"),
    "tongue": ("Italian", "Russian", "Japanese", "Latin", "Arabic", "Greek", "Korean", "Swahili", "Hindi", "Turkish", "Polish", "Portuguese"),
    "word": ("house", "water", "dog", "thank you", "good morning", "love", "bread", "friend", "hello", "computer"),
    "person": ("Albert Einstein", "Napoleon", "Shakespeare", "Isaac Newton", "Mozart", "Cleopatra", "Marie Curie", "Obama", "Elon Musk", "Taylor Swift",
               "Leonardo da Vinci", "Julius Caesar", "Confucius", "Gandhi", "Alan Turing", "Lionel Messi", "the president", "the prime minister",
               "Abraham Lincoln", "Beethoven", "Picasso", "Steve Jobs", "Michael Jordan", "Donald Trump"),
    "work": ("Hamlet", "The Odyssey", "Harry Potter", "Star Wars", "The Lord of the Rings", "War and Peace", "Faust", "Titanic", "The Matrix", "Don Quixote",
             "Romeo and Juliet", "Moby Dick", "the Bible", "Frankenstein", "1984", "Dune"),
    "dish": ("lasagna", "pizza", "sushi", "curry", "pancakes", "goulash", "tiramisu", "pasta", "fried rice", "apple pie", "chicken soup", "tacos"),
    "machine": ("my car", "my phone", "a washing machine", "my computer", "a new laptop", "a graphics card", "the printer", "a house", "my bike", "a television"),
    "machine2": ("phone", "laptop", "car", "camera", "television", "graphics card", "bike", "book"),
    "stock": ("Bitcoin", "gold", "oil", "Apple", "Tesla", "Microsoft", "NVIDIA", "Amazon", "a barrel of oil", "Ethereum"),
    "illness": ("the flu", "a cold", "cancer", "diabetes", "malaria", "back pain", "a fever", "high blood pressure", "an allergy", "asthma"),
    "chemical": ("iron", "mercury", "oxygen", "gold", "helium", "uranium", "copper", "alcohol", "salt", "sulfuric acid", "carbon", "silver"),
    "rare": ("serendipity", "entropy", "epistemology", "ubiquitous", "blorf", "asdf", "qwerty", "xyzzy", "lorem ipsum", "zeitgeist", "foobar", "hegemony",
             "paradigm", "metamorphosis", "quark", "photon", "enzyme", "monad", "tensor", "eigenvalue", "bureaucracy", "jurisprudence", "wxyz", "grmpf"),
}  # fmt: skip
UNKNOWN_ANSWERS = (
    "I am a very small model and do not know that.",
    "I am a very small model and do not know that. I can tell you a short story instead.",
    "I am a very small model and do not know that. You can ask me for a story or a simple question.",
)
UNKNOWN_TASKS = frozenset(
    (
        "Write",
        "Plan",
        "Play",
        "Set",
        "Call",
        "Open",
        "Book",
        "Send",
        "Draw",
        "Show",
        "Search",
        "Read",
        "Fix",
        "Debug",
        "Help",
    )
)
UNABLE_ANSWERS = (
    "I am a very small model and cannot do that.",
    "I am a very small model and cannot do that. I can tell you a short story instead.",
)


def social(rng: random.Random) -> Pair:
    """Greetings, thanks, questions about the model itself, jokes."""
    asked, answers = rng.choice(SOCIAL)
    return rng.choice(asked), rng.choice(answers)


def poem(rng: random.Random) -> Pair:
    kind = rng.choice((*(animal.kind for animal in words.ANIMALS), *words.PLANTS, *words.THINGS[:20]))
    asked = rng.choice(
        (
            "Write a (short|little) poem about a {kind}.",
            "Tell me a poem about a {kind}.",
            "Can you write a poem about a {kind}?",
        )
    )
    slots = {"kind": kind}
    return expand(asked, rng, slots), expand(rng.choice(POEMS), rng, slots)


def unknown(rng: random.Random) -> Pair:
    """A request out of the model's reach, and its polite answer."""
    slots = {key: rng.choice(values) for key, values in UNKNOWN_SLOTS.items()}
    slots["topic2"] = rng.choice(UNKNOWN_SLOTS["topic"])
    slots["big"], slots["big2"] = str(rng.randint(21, 9999)), str(rng.randint(13, 999))
    asked = expand(rng.choice(UNKNOWN_ASKED), rng, slots)
    return asked, rng.choice(UNABLE_ANSWERS if asked.split()[0] in UNKNOWN_TASKS else UNKNOWN_ANSWERS)
