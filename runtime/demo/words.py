"""Word tables of the demo corpus: who and what its stories and questions are about."""

from __future__ import annotations

from typing import NamedTuple


class Animal(NamedTuple):
    """One animal: its sound (a verb phrase), home, food and young; empty where nobody asks."""

    kind: str
    sound: str
    home: str
    food: str
    young: str


class Place(NamedTuple):
    """A place to go to, with the preposition that a sentence wants before it."""

    at: str
    name: str

    @property
    def there(self) -> str:
        """'in the forest', 'on the hill'."""
        return f"{self.at} {self.name}"


# The heroes of stories: name, whether a girl, and the friend's kind. A tiny model cannot learn from few words to repeat
# just any name, so who is asked for settles who appears.
CAST: dict[str, tuple[str, bool, str]] = {
    "cat": ("Lily", True, "mouse"), "mouse": ("Max", False, "cat"), "dog": ("Ben", False, "rabbit"),
    "rabbit": ("Daisy", True, "dog"), "fox": ("Felix", False, "hen"), "hen": ("Clara", True, "fox"),
    "bear": ("Bruno", False, "bee"), "bee": ("Bella", True, "bear"), "lion": ("Leo", False, "zebra"),
    "zebra": ("Zoe", True, "lion"), "elephant": ("Ella", True, "monkey"), "monkey": ("Milo", False, "elephant"),
    "horse": ("Henry", False, "duck"), "duck": ("Poppy", True, "horse"), "frog": ("Toby", False, "turtle"),
    "turtle": ("Tina", True, "frog"), "owl": ("Olive", True, "squirrel"), "squirrel": ("Sam", False, "owl"),
    "penguin": ("Peter", False, "whale"), "whale": ("Hazel", True, "penguin"), "dragon": ("Rocky", False, "princess"),
    "princess": ("Rosa", True, "dragon"), "robot": ("Finn", False, "girl"), "girl": ("Mia", True, "robot"),
    "boy": ("Tom", False, "king"), "king": ("George", False, "boy"),
}  # fmt: skip
GIRLS = ("Anna", "Kate", "Nina", "Sara")
BOYS = ("Hugo", "Jack", "Noah", "Theo")

ANIMALS = (
    Animal("cat", "meows", "in a house", "fish and meat", "kitten"),
    Animal("dog", "barks", "in a house or a kennel", "meat and bones", "puppy"),
    Animal("mouse", "squeaks", "in a small hole", "seeds and cheese", "pup"),
    Animal("rabbit", "", "in a burrow", "grass and carrots", "kit"),
    Animal("fox", "", "in a den", "mice and berries", "cub"),
    Animal("bear", "growls", "in a cave", "fish, berries and honey", "cub"),
    Animal("wolf", "howls", "in a den", "meat", "pup"),
    Animal("lion", "roars", "on the dry plains of Africa", "meat", "cub"),
    Animal("tiger", "roars", "in the jungle", "meat", "cub"),
    Animal("elephant", "trumpets", "in Africa and Asia", "grass, leaves and fruit", "calf"),
    Animal("monkey", "chatters", "in the trees of the jungle", "fruit and leaves", "infant"),
    Animal("horse", "neighs", "in a stable", "grass and hay", "foal"),
    Animal("cow", "moos", "in a barn", "grass", "calf"),
    Animal("pig", "oinks", "in a sty", "corn, roots and vegetables", "piglet"),
    Animal("sheep", "bleats", "in a green field", "grass", "lamb"),
    Animal("goat", "bleats", "on rocky hills", "grass and leaves", "kid"),
    Animal("donkey", "brays", "in a stable", "grass and hay", "foal"),
    Animal("duck", "quacks", "near a pond", "water plants and small insects", "duckling"),
    Animal("goose", "honks", "near a lake", "grass and grain", "gosling"),
    Animal("hen", "clucks", "in a henhouse", "grain and worms", "chick"),
    Animal("owl", "hoots", "in a hollow tree", "mice", "owlet"),
    Animal("bird", "sings", "in a nest", "seeds and worms", "chick"),
    Animal("parrot", "squawks", "in the rainforest", "seeds and fruit", "chick"),
    Animal("penguin", "", "on the ice near the South Pole", "fish", "chick"),
    Animal("frog", "croaks", "near a pond", "flies and other insects", "tadpole"),
    Animal("turtle", "", "near the water", "plants and small fish", "hatchling"),
    Animal("snake", "hisses", "in the grass or under rocks", "mice and eggs", "hatchling"),
    Animal("fish", "", "in the water", "water plants and tiny animals", "fry"),
    Animal("whale", "", "in the ocean", "tiny shrimps and fish", "calf"),
    Animal("dolphin", "whistles", "in the sea", "fish", "calf"),
    Animal("shark", "", "in the sea", "fish", "pup"),
    Animal("octopus", "", "on the floor of the sea", "crabs", ""),
    Animal("crab", "", "on the beach", "small sea animals", ""),
    Animal("bee", "buzzes", "in a hive", "nectar from flowers", "larva"),
    Animal("ant", "", "in an anthill", "seeds and crumbs", "larva"),
    Animal("butterfly", "", "in gardens and meadows", "nectar from flowers", "caterpillar"),
    Animal("spider", "", "in a web", "flies and other insects", "spiderling"),
    Animal("snail", "", "in damp gardens", "leaves", ""),
    Animal("squirrel", "chatters", "in a tree", "nuts and seeds", "kit"),
    Animal("hedgehog", "", "under a pile of leaves", "insects and worms", "hoglet"),
    Animal("deer", "", "in the forest", "grass and leaves", "fawn"),
    Animal("panda", "", "in the mountains of China", "bamboo", "cub"),
    Animal("koala", "", "in the trees of Australia", "leaves", "joey"),
    Animal("kangaroo", "", "in Australia", "grass", "joey"),
    Animal("giraffe", "", "on the dry plains of Africa", "leaves from tall trees", "calf"),
    Animal("zebra", "", "on the dry plains of Africa", "grass", "foal"),
    Animal("camel", "", "in the desert", "dry grass and leaves", "calf"),
    Animal("crocodile", "", "in warm rivers", "fish and meat", "hatchling"),
    Animal("beaver", "", "in a lodge in the river", "bark and leaves", "kit"),
    Animal("otter", "", "near a river", "fish", "pup"),
    Animal("mole", "", "in tunnels under the ground", "worms", "pup"),
    Animal("raccoon", "", "in a hollow tree", "fruit, nuts and fish", "kit"),
)

# Subjects that no story is known about.
PEOPLE = (
    "queen", "prince", "knight", "baker", "farmer", "teacher", "sailor", "pirate", "wizard", "witch", "fairy", "giant",
    "painter", "gardener", "fisherman", "shepherd", "doctor", "astronaut", "musician", "grandmother", "clown", "mermaid",
    "unicorn", "dinosaur", "monster", "ghost", "alien", "snowman", "puppy", "kitten", "chicken", "swan", "hamster", "pony",
)  # fmt: skip

THINGS = (
    "kite", "ball", "toy boat", "lamp", "umbrella", "paper plane", "drum", "music box",
    "teddy bear", "doll", "train", "ship", "balloon", "book", "candle", "lantern", "key", "mirror",
    "hat", "cup", "teapot", "pencil", "violin", "wooden chair", "bell", "basket", "blanket",
    "coin", "ring", "map", "telescope", "puppet", "clock", "bicycle", "boat", "toy", "tractor", "rocket",
    "computer", "camera", "guitar", "piano", "box", "letter", "pot", "spoon", "car", "bus", "truck", "plane",
)  # fmt: skip
NATURE = (
    "moon", "sun", "sea", "river", "mountain", "wind", "rain", "snow", "rainbow", "forest", "lake", "night sky",
    "sky", "ocean", "island", "desert", "garden", "beach", "castle", "farm", "lighthouse", "bridge",
    "school", "library", "zoo", "village", "city", "cave", "waterfall", "volcano", "jungle", "market", "park",
)  # fmt: skip
PLANTS = (
    "tree", "flower", "rose", "sunflower", "apple tree", "pumpkin", "seed", "oak tree", "carrot", "strawberry",
    "tulip", "bean", "cherry tree", "daisy", "tomato", "lemon tree", "mushroom",
)  # fmt: skip
TRAITS = ("small", "little", "young", "kind", "brave", "clever", "shy", "curious", "cheerful", "friendly")
COLOURS = ("red", "blue", "green", "yellow", "white", "golden")

PLACES = (
    Place("in", "the green forest"), Place("by", "the quiet river"), Place("near", "the old mill"),
    Place("on", "a sunny hill"), Place("in", "a small village"), Place("by", "the blue sea"),
    Place("on", "a little farm"), Place("by", "a clear lake"),
)  # fmt: skip
SPOTS = (
    Place("behind", "the door"), Place("in", "the tall grass"), Place("under", "the old oak"), Place("by", "the well"),
    Place("behind", "the barn"), Place("near", "the gate"),
)  # fmt: skip
TREASURES = ("ball", "hat", "scarf", "bell", "kite", "key", "book", "drum")
FOODS = ("apples", "berries", "pears", "nuts", "cookies")
SKILLS = (
    ("swim", "swam across the pond"), ("sing", "sang a clear and happy song"), ("paint", "painted a bright picture"),
    ("dance", "danced without a single wrong step"), ("climb", "climbed to the top of the tallest tree"),
    ("whistle", "whistled a merry tune"),
)  # fmt: skip
FEARS = (
    ("the dark", "walked through the dark garden", "the dark was only the day asleep"),
    ("thunder", "listened to the thunder without hiding", "thunder was only a loud noise"),
    ("deep water", "put one foot and then the other into the lake", "the water was cool and soft"),
    ("high places", "climbed up to the top of the tower", "the view was worth every step"),
    ("the wind", "stood outside in the wind", "the wind only wanted to play"),
)
ELDERS = ("mother", "father", "grandmother", "grandfather")
