"""What a story plot of the demo corpus is: beats of interchangeable sentences.

A plot is a tuple of beats; a story takes one sentence from each. `(a|b)` is a free choice and `{slot}` a
word that stays the same through the story: {name} the hero, {kind} what the hero is, {He} {he} {him} {his} the
hero's pronouns, {friend} and {other} a second name and kind, {place}, {spot} and {spot2} where things happen,
{thing} a small object, {food}, {colour}, {trait}.
"""

from __future__ import annotations

Beat = tuple[str, ...]
Plot = tuple[Beat, ...]

OPENING: Beat = (
    "Once upon a time, there was a {trait} {kind} named {name}.",
    "Once upon a time, a {trait} {kind} named {name} lived {place}.",
    "There once was a {trait} {kind} called {name} who lived {place}.",
    "A {trait} {kind} named {name} lived {place}.",
    "Once there was a {trait} {kind} called {name}.",
    "Long ago, a {trait} {kind} named {name} lived {place}.",
)
