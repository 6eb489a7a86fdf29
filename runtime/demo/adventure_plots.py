"""Plots for heroes that can walk and talk: what they dare, learn and discover."""

from __future__ import annotations

from .plot import Plot

FEAR: Plot = (
    ("{name} was afraid of {fear}.", "{He} was happy all day long, but {he} was afraid of {fear}."),
    (
        "Whenever {he} thought of it, {he} hid {spot}.",
        "{He} never told anyone about it.",
        "The others did not understand why {he} stayed at home.",
    ),
    (
        'One day {his} friend {friend}, a {other}, said, "Everyone is afraid of something."',
        'One evening a {other} named {friend} sat down beside {him} and said, "I was afraid once, too."',
        "One day {he} told {his} friend {friend}, a wise old {other}, about it.",
    ),
    (
        '"Come with me," said {friend}. "We will try it together."',
        '"Take one small step," said {friend}. "I will be right beside you."',
    ),
    (
        "{name} took a deep breath and {braved}.",
        "{name} was shaking, but {he} {braved}.",
        "So {name} closed {his} eyes, counted to three, and {braved}.",
    ),
    (
        "Nothing bad happened, and {name} saw that {truth}.",
        "And what a surprise: {truth}!",
        "Soon {he} began to smile, for {truth}.",
    ),
    (
        "{name} was very proud that day.",
        '"I did it!" cried {name}, and {friend} cheered.',
        "{friend} smiled, and {name} laughed out loud.",
    ),
    (
        "Now {name} knows that being brave means trying even when you are afraid.",
        "From then on, {name} was not afraid of {fear} any more.",
        "And that night {he} slept better than ever before.",
    ),
)
SKILL: Plot = (
    (
        "More than anything, {name} wanted to learn to {skill}.",
        "{name} had one big wish: {he} wanted to {skill}.",
        "All of {his} friends could {skill}, but {name} could not.",
    ),
    (
        "The first time {he} tried, everything went wrong.",
        "{He} tried once and failed, and {he} tried again and failed again.",
        "On the first day it went so badly that some of the others laughed.",
    ),
    (
        "{name} sat down and (almost cried|sighed).",
        '"I will never learn it," said {name} sadly.',
        "{He} wanted to give up.",
    ),
    (
        'But an old {other} named {friend} said, "Nobody is good at the start. Try a little every day."',
        'Then {friend} the {other} came along and said, "I will show you how."',
        'A {other} named {friend} smiled at {him} and said, "Slow steps are still steps."',
    ),
    (
        "So {name} practised every morning and every evening.",
        "So {name} practised in the sun and in the rain.",
        "Day after day, {name} practised a little more.",
    ),
    (
        "After many weeks, the big day came, and {name} {mastered}.",
        "Then one bright morning, {name} {mastered}.",
        "When spring came, {name} {mastered}.",
    ),
    (
        "Everyone clapped, and {friend} clapped the loudest.",
        "{friend} was so proud that {his2} eyes were shining.",
        "The whole village cheered.",
    ),
    (
        "{name} had learned to {skill}, and also never to give up.",
        "Today {name} teaches others to {skill}, one small step at a time.",
        'When people ask how {he} did it, {name} always says, "One day at a time."',
    ),
)
GARDEN: Plot = (
    (
        "One spring day, {he} found a tiny seed {spot}.",
        "One day an old farmer gave {him} a tiny seed.",
        "In {his} pocket {he} found a small brown seed.",
    ),
    (
        "{name} put it into the ground and gave it some water.",
        "{He} made a small hole, put the seed in, and covered it with earth.",
    ),
    (
        "The next day nothing happened, and the day after that nothing happened.",
        "For many days, there was nothing to see.",
        "{He} looked every morning, but the ground was bare.",
    ),
    (
        '"Be patient," said {his} friend {friend}, a {other}. "Good things take time."',
        '{His} neighbour {friend}, a {other}, laughed and said, "Nothing will ever grow there."',
    ),
    (
        "But {name} did not give up and watered the seed every day.",
        "So {name} waited, and sang to the seed in the evening.",
    ),
    (
        "Then, after a warm night, a little green leaf came out of the ground.",
        "Then one morning there was a small green shoot.",
    ),
    (
        "It grew and grew until it was a {colour} flower, taller than {name}.",
        "By the end of summer it was a tree full of {colour} flowers.",
        "In autumn, there was a huge {colour} pumpkin.",
    ),
    (
        "Everyone came to see it, and {name} shared the new seeds with them all.",
        '{friend} came to see it and said, "You were right to wait."',
        "{name} had learned to be patient.",
    ),
)
RACE: Plot = (
    (
        "One day there was a big race {place}.",
        "Every summer there was a great race, and this year {name} wanted to win it.",
    ),
    (
        "{name} had practised for weeks.",
        "The winner would get a {colour} {thing}.",
        "Everybody came to watch.",
    ),
    (
        "Next to {him} stood {friend}, the fastest {other} of them all.",
        '{friend}, a proud {other}, said, "Nobody can beat me."',
    ),
    (
        '"One, two, three, go!" cried the judge, and off they went.',
        "The bell rang, and they all began to run.",
    ),
    (
        "Halfway along the road, {friend} slipped and hurt a foot.",
        "Near the bridge, {friend} tripped over a stone and fell.",
    ),
    (
        "{name} could have run on and won, but {he} stopped.",
        "{name} saw it, turned around, and went back.",
    ),
    (
        '"Lean on me," said {name}. "We will finish together."',
        "{He} helped {friend} to stand up, and they walked on side by side.",
    ),
    (
        "They came in last, but everyone cheered for them.",
        "They crossed the line together, long after the others, and the crowd clapped the loudest for them.",
    ),
    (
        '"You did not win the race," said {friend}, "but you won a friend."',
        "The judge gave {name} the {thing}, because kindness is better than speed.",
        "{name} went home without a prize, but with a new friend.",
    ),
)
NOISE: Plot = (
    (
        "One night, {he} woke up because of a strange noise.",
        "One dark night, {name} heard something go (tap, tap, tap|bump, bump, bump|scratch, scratch, scratch).",
    ),
    (
        '"Who is there?" asked {name}, but nobody answered.',
        "{He} pulled the blanket over {his} head and listened.",
        "The noise stopped, and then it began again.",
    ),
    (
        "At last {name} took a lantern and went to look.",
        "Then {name} got up, lit a candle, and opened the door.",
    ),
    (
        "{He} looked {spot}, but there was nothing there.",
        "There was nobody {spot}.",
    ),
    (
        "Then {he} looked {spot2} and saw two bright eyes.",
        "But {spot2} {he} saw something move.",
    ),
    (
        "It was only {friend}, a {other}, who was looking for a warm place to sleep.",
        "It was {friend}, a young {other}, who had lost the way home.",
        "It was {friend}, a hungry {other}, who was looking for some {food}.",
    ),
    (
        '"I was afraid of you," said {name}. "And I was afraid of you," said {friend}.',
        '"I am sorry that I woke you up," said {friend}.',
    ),
    (
        "They both laughed, and {name} made some warm milk.",
        "{name} let {friend} in and gave {him2} a soft blanket.",
    ),
    (
        "In the morning, the {kind} and the {other} had breakfast together.",
        "After that night, {name} was not afraid of strange noises any more.",
    ),
)
JOURNEY: Plot = (
    (
        "{He} had always wondered what was on the other side of the mountain.",
        "Every evening {he} looked at the mountain and dreamed of the world behind it.",
    ),
    (
        "One day {name} packed some {food} and a {colour} {thing} and set out.",
        "One fine morning, {he} put a {thing} into a bag and started to walk.",
    ),
    (
        "On the road {he} met a {other} named {friend}, who wanted to see the world, too.",
        'After an hour, {he} met {friend}, a {other}. "May I come with you?" asked {friend}.',
    ),
    (
        "They crossed a river, walked through a forest, and slept under the stars.",
        "It rained and the path was steep, but they helped each other.",
        "When {name} was tired, {friend} sang a song, and when {friend} was tired, {name} told a joke.",
    ),
    (
        "On the third day, they reached the top.",
        "At last they stood on the top of the mountain.",
    ),
    (
        "Behind it lay the wide blue sea, shining in the sun.",
        "Before them was a green valley full of {colour} flowers.",
    ),
    (
        "They looked for a long time and did not say a word.",
        '"It is even more beautiful than I dreamed," said {name}.',
    ),
    (
        "Then they went home, for the best part of a journey is a friend to share it with.",
        "{name} came home with tired feet and a happy heart.",
        "When they came home, they told everyone about it.",
    ),
)
TREASURE: Plot = (
    (
        "One day {he} found an old map {spot}.",
        "One day, {name} opened an old box, and inside it was a map.",
    ),
    (
        "A {colour} cross on the map showed where a treasure was hidden.",
        "On the map there was a {colour} line that led to a treasure.",
    ),
    (
        "{He} ran to {his} friend {friend}, a {other}, and they set out together.",
        "A {other} named {friend} wanted to come along, and so they went together.",
    ),
    (
        "They went over the hill, across the stream, and through the dark forest.",
        "The way was long, and twice they got lost.",
    ),
    (
        "At last they came to the place and began to dig.",
        "In the end, the map led them to a big stone, and they dug a hole beside it.",
    ),
    (
        "They found a wooden chest, but there was no gold in it.",
        "Deep in the ground there was a chest, and they opened it slowly.",
    ),
    (
        'Inside was a letter. It said: "The real treasure is the friend who came with you."',
        "It was full of old books with wonderful stories.",
        'Inside were a {colour} {thing} and a note that said: "For the ones who do not give up."',
    ),
    (
        "{name} and {friend} looked at each other and laughed.",
        '"We did it together," said {friend}.',
    ),
    (
        "They kept the old map, and every year they tell the story of that day.",
        "It was the best day that {name} had ever had.",
    ),
)
