"""Plots for two heroes that can walk and talk: how they find, help and treat each other."""

from __future__ import annotations

from .plot import Plot

LOST: Plot = (
    (
        "{He} had a {colour} {thing} and loved it more than anything else.",
        "{His} favourite thing in the world was a {colour} {thing}.",
        "{He} carried a {colour} {thing} everywhere {he} went.",
    ),
    (
        "One morning, the {thing} was gone.",
        "One day, {name} woke up and could not find the {thing}.",
        "One windy day, the {thing} disappeared.",
    ),
    (
        "{name} looked {spot}, but it was not there.",
        "First {he} looked {spot}, but {he} found nothing there.",
        "{He} searched {spot} and found only (dust|dry leaves|an old stick).",
    ),
    (
        'A {other} named {friend} saw {him} and asked, "Why are you so sad?"',
        'Then {friend} the {other} came by and said, "Let us look for it together."',
        "{His} friend {friend}, a {other}, came to help.",
    ),
    (
        "Together they looked {spot2}, and there was the {colour} {thing}!",
        "The two of them looked {spot2}, and there they found the {thing}.",
        "They walked for a while, and {friend} saw something {colour} {spot2}. It was the {thing}!",
    ),
    (
        "{name} thanked {friend} and gave (a big hug|a warm smile) in return.",
        '"Thank you, {friend}!" said {name}. "You are a true friend."',
        "{name} was so happy that {he} danced all the way home.",
    ),
    (
        "From that day on, {name} and {friend} were the best of friends.",
        "After that, {he} took good care of the {thing}, and even better care of {his} friend.",
        "{name} learned that a friend is worth more than any {thing}.",
    ),
)
LONELY: Plot = (
    (
        "{name} had no one to play with.",
        "{He} had just moved there and did not know anybody.",
        "All day long {he} played alone {spot}.",
    ),
    (
        "One (sunny|rainy|cold|bright) afternoon, {he} saw a {other} sitting alone {spot2}.",
        "One day a {other} came down the road with a {colour} {thing}.",
        "One morning {he} heard someone singing {spot2}. It was a {other}.",
    ),
    (
        '"Hello," said {name}. "What is your name?" "I am {friend}," said the {other}.',
        '"My name is {friend}," said the {other}. "Would you like to play?"',
        '"Good day! I am {name}," said the {kind}. "And I am {friend}," said the {other}.',
    ),
    (
        "They played with {friend}'s {colour} {thing} until the sun went down.",
        "They ran, they jumped, and they laughed all afternoon.",
        "They shared some {food} and told each other funny stories.",
    ),
    (
        '"I was lonely, too," said {friend} quietly.',
        '"I thought that nobody liked me," said {friend}.',
        "{friend} was different from {name}, but that did not matter at all.",
    ),
    (
        "The next day they met again, and the day after that.",
        "When it was time to go home, they promised to meet again.",
        "Every day after that, they met {spot2}.",
    ),
    (
        "And so the {kind} and the {other} became best friends.",
        "{name} was never lonely again.",
        "{name} learned that one kind word can be the start of a friendship.",
    ),
)
SHARING: Plot = (
    (
        "One autumn day, {he} found a basket full of {food}.",
        "One day {name} made some {food} and put them all in a basket.",
        "{He} had a large bag of {food} and wanted to eat them all alone.",
    ),
    (
        "On the way home, {he} met a {other} named {friend}.",
        "Just then, a {other} named {friend} knocked at the door.",
        "Near the well sat {friend}, a thin {other}.",
    ),
    (
        '"I have not eaten since yesterday," said {friend}.',
        '"I am so hungry," said {friend}. "Could you give me a little?"',
        "{friend} looked at the basket but was too shy to ask.",
    ),
    (
        "{name} thought for a moment. There was not very much in the basket.",
        "At first, {name} held the basket tightly.",
        "{name} looked at the {food}, and then {he} looked at {friend}.",
    ),
    (
        'Then {he} said, "Half is enough for me. The other half is yours."',
        'Then {he} smiled and said, "Sit down, and let us eat together."',
        "Then {name} gave {friend} the biggest share.",
    ),
    (
        "They ate in the warm sun, and the {food} had never tasted so good.",
        "They ate until they were full, and they talked until the stars came out.",
    ),
    (
        "When winter came and {name} had nothing left, {friend} came with a full basket.",
        "A few weeks later, {name} was ill, and {friend} brought hot soup every day.",
        "The next spring, {friend} showed {name} a tree full of ripe fruit.",
    ),
    (
        "That is how {name} learned that what you share comes back to you.",
        '"You shared with me," said {friend}, "and now I share with you."',
        "The {kind} and the {other} have shared everything ever since.",
    ),
)
PARTY: Plot = (
    (
        "It was {friend}'s birthday, and {friend} the {other} was {name}'s best friend.",
        "{name} had a good friend, a {other} named {friend}, who had a birthday that week.",
    ),
    (
        "{name} wanted to give a present, but {he} had no money.",
        "{name} thought for a long time about a present.",
    ),
    (
        '"I will make something myself," said {name}.',
        "So {he} decided to make a surprise.",
    ),
    (
        "{He} baked a cake and tied a {colour} ribbon around the box.",
        "{He} found some wood and made a {thing}, and then {he} painted it {colour}.",
    ),
    (
        "In the evening, {he} knocked at {friend}'s door.",
        "{He} asked all of the neighbours to come, and they hid {spot}.",
    ),
    (
        '"Happy birthday, {friend}!" called {name}.',
        '"Surprise!" they all cried when {friend} came home.',
    ),
    (
        "{friend} opened the present and smiled from ear to ear.",
        '"This is the best present of all," said {friend}, "because you made it yourself."',
    ),
    (
        "They sang and danced until the moon was high in the sky.",
        "They ate cake, and the party lasted until midnight.",
    ),
    (
        "{name} learned that the best gifts come from the heart.",
        "And {name} was even happier than {friend}.",
    ),
)
STORM: Plot = (
    (
        "One afternoon, {he} was far from home when dark clouds came.",
        "One day a great storm came over the land.",
    ),
    (
        "The wind howled, and the rain fell harder and harder.",
        "There was lightning, and the thunder was very loud.",
    ),
    (
        "{name} ran and ran, and at last {he} saw a light {spot}.",
        "{name} was cold and wet when {he} saw a little house.",
    ),
    (
        "A {other} named {friend} opened the door.",
        "There lived {friend}, a {other} whom {he} had never met before.",
    ),
    (
        '"Come in quickly," said {friend}. "There is room for two."',
        '"You are wet," said {friend}. "Come and sit by the fire."',
    ),
    (
        "They ate hot soup and listened to the rain.",
        "{friend} gave {name} a {colour} blanket and some hot tea.",
    ),
    (
        "When the storm was over, there was a rainbow in the sky.",
        "By morning, the sun was shining, and the birds were singing.",
    ),
    (
        "{name} thanked {friend} and promised to come back soon.",
        '"Whenever it rains, my door is open," said {friend}.',
    ),
    (
        "Ever since, {name} has liked the rain a little, because it brought a new friend.",
        "And from that day on, the {kind} and the {other} visited each other every week.",
    ),
)
