"""Story plots about things, plants and places; the slots are those of `plot`, plus {subject}."""

from __future__ import annotations

from .plot import Plot

# The hero {name} is a child; {subject} is the thing that the story was asked to be about.
FOUND: Plot = (
    (
        "One day, a {kind} named {name} found an old {subject} {spot}.",
        "A {kind} called {name} was playing when {he} saw an old {subject} {spot}.",
    ),
    (
        "It was dusty and broken, and nobody wanted it any more.",
        "The {subject} looked sad and forgotten.",
    ),
    (
        "{name} took the {subject} home and cleaned it carefully.",
        '"You can come home with me," said {name}, and {he} carried the {subject} away.',
    ),
    (
        "{His} {elder} helped {him} to repair it and paint it {colour}.",
        "{He} asked {his} {elder} for help, and they worked on it all evening.",
    ),
    (
        "In the morning, the {subject} looked as good as new.",
        "At last the {subject} was ready, and it was more beautiful than ever.",
    ),
    (
        'When {friend} came to visit, {name} said, "Look what I have found!"',
        "{name} showed the {subject} to {his} friend {friend}.",
    ),
    (
        "The two friends were happy with it all summer long.",
        "From then on, {name} and {friend} shared the {subject} every day.",
    ),
    (
        "{name} learned that old things only need a little love.",
        "And the {subject} was never forgotten again.",
    ),
)
SHELF: Plot = (
    (
        "Once upon a time, a {colour} {subject} stood on a shelf in a little shop.",
        "Once there was a small {subject} in the window of an old shop.",
    ),
    (
        "Many people came in, but nobody bought the {subject}.",
        "Day after day, the {subject} waited, and day after day, people walked past it.",
    ),
    (
        '"Perhaps I am too old," thought the {subject}.',
        '"Will nobody ever take me home?" thought the {subject}.',
    ),
    (
        "Then, on a (rainy|snowy|cold|windy) day, a {kind} named {name} came into the shop.",
        "One evening, just before the shop closed, a {kind} called {name} opened the door.",
    ),
    (
        "{He} looked at all of the shiny new things, and then {he} saw the {subject}.",
        "{name} walked slowly along the shelf and stopped in front of the {subject}.",
    ),
    (
        '"This is the one," said {name}, and {his} eyes were shining.',
        '"It is perfect," said {name} to {his} {elder}.',
    ),
    (
        "{name} carried the {subject} home and gave it a place beside the bed.",
        "At home, {name} showed the {subject} to everyone.",
    ),
    (
        "The {subject} had found a home at last.",
        "From that day on, the {subject} was never lonely again.",
    ),
)
RETURNED: Plot = (
    (
        "A {kind} named {name} loved {his} {colour} {subject} very much.",
        "There once was a {kind} called {name} who had a {colour} {subject}.",
    ),
    (
        "It had been a present from {his} {elder}.",
        "{He} took it along wherever {he} went.",
    ),
    (
        "But one day, {name} left the {subject} {spot} and forgot it there.",
        "But one afternoon, {name} came home, and the {subject} was gone.",
    ),
    (
        "That evening, {name} was so sad that {he} could not eat.",
        "{name} looked everywhere, but {he} could not find it.",
    ),
    (
        "The next day there was a knock at the door.",
        "A few days later, somebody rang the bell.",
    ),
    (
        "It was {friend} from next door, holding the {subject}.",
        'There stood {friend} with the {subject}. "Is this yours?" asked {friend}.',
    ),
    (
        '"I found it {spot}," said {friend}. "I knew that you would miss it."',
        '"You found it!" cried {name}. "Thank you so much!"',
    ),
    (
        "{name} was very happy and let {friend} use the {subject}, too.",
        "Since then, {name} and {friend} have been good friends.",
    ),
)
VISIT: Plot = (
    (
        "A {kind} named {name} had always wanted to see the {subject}.",
        "Every night, a {kind} named {name} dreamed of the {subject}.",
        "There once was a {trait} {kind} named {name} who loved the {subject}.",
    ),
    (
        'One day {his} {elder} said, "Pack your bag. Today we are going to look at it together."',
        "One clear evening, {name} went out with {his} {elder} to look at it.",
    ),
    (
        "They took some {food} and a warm blanket with them.",
        "They walked for a long time and sang all the way.",
    ),
    (
        'At last {name} stood still and whispered, "It is so beautiful!"',
        "Then {name} saw it, and {he} could not say a word.",
    ),
    (
        '"Everything looks different when you take time to look," said {his} {elder}.',
        '"I came here when I was small," said {his} {elder}. "It was just like today."',
    ),
    (
        "They sat there side by side until it was late.",
        "{name} drew a picture of the {subject} so that {he} would never forget it.",
    ),
    (
        "On the way home, {name} fell asleep and dreamed of the {subject}.",
        "When they came home, {name} told {friend} all about the {subject}.",
    ),
    (
        "It was the best day of the whole year.",
        "{name} never forgot that day.",
    ),
)
TALKING: Plot = (
    (
        "Once upon a time, the {subject} felt very lonely.",
        "Long ago, the {subject} had no friends.",
    ),
    (
        '"Nobody ever talks to me," said the {subject}.',
        "Everybody saw the {subject}, but nobody ever said hello.",
    ),
    (
        "One night, a {kind} named {name} could not sleep and went outside.",
        "One day, a {trait} {kind} named {name} came by.",
    ),
    (
        '"Good evening," said {name} politely. "How are you?"',
        '"Hello," said {name}. "You look sad. Can I help you?"',
    ),
    (
        "The {subject} was so surprised that it did not know what to say.",
        '"I wish that I had a friend," answered the {subject}.',
    ),
    (
        '"Then I will be your friend," said {name}.',
        "So {name} sat down and told the {subject} a funny story.",
    ),
    (
        "From then on, {name} came every day and told the {subject} what had happened.",
        "{name} brought {friend} and all of the other children along, and they sang together.",
    ),
    (
        "And the {subject} was never lonely again.",
        "Since that day, the {subject} has looked brighter than ever.",
    ),
)
GROWING: Plot = (
    (
        "A {kind} named {name} had a small garden with only one {subject} in it.",
        "In the garden of a {kind} named {name} there was a little {subject}.",
    ),
    (
        "It was the smallest {subject} in the whole village.",
        "{name} looked after the {subject} every single day.",
    ),
    (
        "In the summer it did not rain for weeks, and the ground became dry.",
        "One night, there was a strong wind, and the {subject} nearly broke.",
    ),
    (
        "{name} carried water from the well in the morning and in the evening.",
        "{name} worked all day to protect the {subject}.",
    ),
    (
        '"It is only a {subject}," said {friend}, but {name} did not listen.',
        "{His} friend {friend} came to help {him}.",
    ),
    (
        "Slowly the {subject} became strong again.",
        "And then, one morning, {name} saw that the {subject} was fresher than ever.",
    ),
    (
        "Now everyone stops to look at the {subject} and smiles.",
        "When the next spring came, it was the most beautiful {subject} far and wide.",
    ),
    (
        "{name} knows that care and patience make things grow.",
        "And {name} was as proud as a {kind} can be.",
    ),
)

THING_PLOTS: tuple[Plot, ...] = (FOUND, SHELF, RETURNED)
NATURE_PLOTS: tuple[Plot, ...] = (VISIT, TALKING)
PLANT_PLOTS: tuple[Plot, ...] = (GROWING,)
ELDERS = ("mother", "father", "grandmother", "grandfather", "uncle", "aunt")
