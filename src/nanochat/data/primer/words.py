"""Common words that the Primer spells, counts letters in, copies and tells stories with."""

WORDS: tuple[str, ...] = tuple(
    """
    apple arm army art aunt autumn baby back ball banana band bank barn basket bath beach bean bear bed bee bell
    belt bench berry bird blanket blue board boat body bone book boot bottle bowl box boy branch bread breakfast
    brick bridge broom brother brown brush bucket building bus butter button cabbage cake camel candle car card
    carpet carrot castle cat chair cheese cherry chicken child church circle city class clean clock cloud coat
    coffee coin cold colour comb cook corn corner cotton cousin cow cup curtain daisy dance daughter day deer
    desk dinner dish doctor dog doll donkey door dream dress drum duck eagle ear earth egg elephant engine
    evening eye face family farm farmer father feather fence field finger fire fish flag floor flower flute fly
    food foot forest fork fox friend frog fruit game garden gate gift girl glass glove goat gold goose
    grandmother grape grass green hair hammer hand happy hat head heart hen hill hole honey horse hotel hour
    house ice iron island jacket jam jar juice jungle kettle key king kitchen kite kitten knee knife ladder lake
    lamb lamp leaf leather leg lemon letter library light lion lunch map market meadow meal melon milk mirror
    money monkey month moon morning mother mountain mouse mouth music nail name neck needle nest night nose
    number nurse ocean onion orange owl page paint paper park party peach pear pen pencil pepper piano picture
    pig pillow pizza plane plant plate pocket pond potato puppy purple queen question rabbit radio rain ring
    river road robot rock roof room rose salad salt sand sandwich school scissors sea season seed sheep shelf
    ship shirt shoe shop silver sister sky smile snake snow soap sock song soup spider spoon spring square
    squirrel stable star station stone storm story strawberry street student sugar summer sun supper swan
    sweater table tea teacher tent ticket tiger tomato tooth towel tower town toy train tree triangle truck
    tulip turtle umbrella uncle valley vegetable village violin wagon wall watch water wave week whale wheel
    wind window winter wolf wood wool word worm yellow zebra
    """.split()  # noqa: SIM905 - a page of words is easier to read and to extend
)

# Short words for lists and copying: each is also among WORDS.
PLAIN_WORDS: tuple[str, ...] = tuple(word for word in WORDS if 3 <= len(word) <= 6)

_BOYS = ("Tom", "Ben", "Max", "Leo", "Sam", "Paul", "Jack", "Oscar", "Peter", "Adam", "Hugo", "Felix", "Noah", "Carl",
         "Omar")  # fmt: skip
_GIRLS = ("Anna", "Mia", "Lucy", "Emma", "Sara", "Nina", "Rosa", "Ella", "Kate", "Lily", "Clara", "Ruth", "Jane", "Zoe",
          "Alice")  # fmt: skip
NAMES: dict[str, tuple[str, str]] = {  # name: (pronoun, possessive)
    **dict.fromkeys(_BOYS, ("He", "his")),
    **dict.fromkeys(_GIRLS, ("She", "her")),
}

STORY_COLOURS = ("red", "blue", "green", "yellow", "black", "white", "brown", "orange", "purple", "pink")
STORY_THINGS = ("ball", "hat", "book", "cup", "key", "coin", "kite", "drum", "lamp", "box", "bell", "doll", "pen",
                "map", "ring", "shoe", "scarf", "basket", "bottle", "flute")  # fmt: skip
STORY_SPOTS = ("table", "bed", "chair", "tree", "bench", "bridge", "desk", "shelf", "sofa", "box")
STORY_PLACES = ("park", "beach", "market", "library", "school", "forest", "garden", "station", "farm", "lake", "museum",
                "zoo")  # fmt: skip
STORY_PETS = ("dog", "cat", "rabbit", "pony", "parrot", "hen", "goat", "mouse", "turtle", "duck")
STORY_PET_NAMES = ("Pip", "Coco", "Rex", "Luna", "Milo", "Daisy", "Bruno", "Fluffy", "Spot", "Ginger", "Bella", "Rocky")
STORY_FOODS = ("bread", "soup", "cake", "rice", "an apple", "a pear", "cheese", "salad", "pizza", "an egg", "a banana",
               "a sandwich")  # fmt: skip
COUNTED = ("apples", "books", "coins", "eggs", "stamps", "balls", "shells", "pencils", "cards", "stones", "marbles",
           "flowers", "pears", "buttons")  # fmt: skip
