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
