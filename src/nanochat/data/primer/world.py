"""The Primer's world: tables of facts and nothing else.

Every line should be true for an attentive ten-year-old. Where several answers are right (a fox cub is also called a
kit), the table has one of them or leaves the subject out.
"""

COUNTRIES: dict[str, tuple[str, str]] = {  # country: (capital, continent)
    "France": ("Paris", "Europe"), "Italy": ("Rome", "Europe"), "Spain": ("Madrid", "Europe"),
    "Portugal": ("Lisbon", "Europe"), "Germany": ("Berlin", "Europe"), "Austria": ("Vienna", "Europe"),
    "Greece": ("Athens", "Europe"), "Poland": ("Warsaw", "Europe"), "Sweden": ("Stockholm", "Europe"),
    "Norway": ("Oslo", "Europe"), "Finland": ("Helsinki", "Europe"), "Denmark": ("Copenhagen", "Europe"),
    "Ireland": ("Dublin", "Europe"), "Hungary": ("Budapest", "Europe"), "Belgium": ("Brussels", "Europe"),
    "England": ("London", "Europe"), "Romania": ("Bucharest", "Europe"), "Bulgaria": ("Sofia", "Europe"),
    "Croatia": ("Zagreb", "Europe"), "Serbia": ("Belgrade", "Europe"), "Ukraine": ("Kyiv", "Europe"),
    "Estonia": ("Tallinn", "Europe"), "Latvia": ("Riga", "Europe"), "Egypt": ("Cairo", "Africa"),
    "Kenya": ("Nairobi", "Africa"), "Ghana": ("Accra", "Africa"), "Nigeria": ("Abuja", "Africa"),
    "Senegal": ("Dakar", "Africa"), "Morocco": ("Rabat", "Africa"), "Tunisia": ("Tunis", "Africa"),
    "Uganda": ("Kampala", "Africa"), "Angola": ("Luanda", "Africa"), "Japan": ("Tokyo", "Asia"),
    "China": ("Beijing", "Asia"), "Thailand": ("Bangkok", "Asia"), "Vietnam": ("Hanoi", "Asia"),
    "Nepal": ("Kathmandu", "Asia"), "Iran": ("Tehran", "Asia"), "Iraq": ("Baghdad", "Asia"),
    "Jordan": ("Amman", "Asia"), "Qatar": ("Doha", "Asia"), "Canada": ("Ottawa", "North America"),
    "Cuba": ("Havana", "North America"), "Jamaica": ("Kingston", "North America"),
    "Peru": ("Lima", "South America"), "Chile": ("Santiago", "South America"),
    "Colombia": ("Bogota", "South America"), "Ecuador": ("Quito", "South America"),
    "Australia": ("Canberra", "Oceania"), "Fiji": ("Suva", "Oceania"),
}  # fmt: skip

SOUNDS = {  # what the animal does, as a verb
    "dog": "barks", "cat": "meows", "cow": "moos", "horse": "neighs", "pig": "grunts", "sheep": "bleats",
    "hen": "clucks", "duck": "quacks", "goose": "honks", "lion": "roars", "wolf": "howls", "frog": "croaks",
    "bee": "buzzes", "owl": "hoots", "mouse": "squeaks", "snake": "hisses", "elephant": "trumpets",
    "donkey": "brays", "rooster": "crows", "turkey": "gobbles", "bear": "growls",
}  # fmt: skip

LEGS = {
    "dog": "four", "cat": "four", "cow": "four", "horse": "four", "pig": "four", "sheep": "four", "goat": "four",
    "lion": "four", "tiger": "four", "wolf": "four", "fox": "four", "bear": "four", "mouse": "four",
    "rabbit": "four", "deer": "four", "elephant": "four", "donkey": "four", "frog": "four", "camel": "four",
    "hen": "two", "duck": "two", "goose": "two", "owl": "two", "swan": "two", "turkey": "two", "rooster": "two",
    "penguin": "two", "eagle": "two", "bee": "six", "ant": "six", "butterfly": "six", "beetle": "six",
    "spider": "eight", "scorpion": "eight", "snake": "no", "fish": "no", "worm": "no", "whale": "no",
}  # fmt: skip

YOUNG = {
    "dog": "puppy", "cat": "kitten", "cow": "calf", "horse": "foal", "pig": "piglet", "sheep": "lamb",
    "goat": "kid", "hen": "chick", "duck": "duckling", "goose": "gosling", "lion": "cub", "tiger": "cub",
    "bear": "cub", "frog": "tadpole", "deer": "fawn", "elephant": "calf", "whale": "calf", "swan": "cygnet",
    "owl": "owlet", "kangaroo": "joey", "donkey": "foal", "butterfly": "caterpillar", "eagle": "eaglet",
}  # fmt: skip

HOMES = {
    "bee": "hive", "spider": "web", "bird": "nest", "horse": "stable", "pig": "sty", "hen": "coop",
    "rabbit": "burrow", "bear": "den", "lion": "den", "fox": "den", "dog": "kennel", "frog": "pond",
    "camel": "desert", "monkey": "jungle", "deer": "forest", "cow": "barn",
    "squirrel": "tree", "mole": "burrow", "tiger": "jungle",
}  # fmt: skip

COLOURS = {
    "banana": "yellow", "lemon": "yellow", "butter": "yellow", "corn": "yellow", "sunflower": "yellow",
    "grass": "green", "cucumber": "green", "spinach": "green", "frog": "green", "lettuce": "green",
    "snow": "white", "milk": "white", "salt": "white", "swan": "white", "rice": "white", "flour": "white",
    "coal": "black", "raven": "black", "tar": "black", "tomato": "red", "blood": "red", "cherry": "red",
    "strawberry": "red", "ruby": "red", "carrot": "orange", "pumpkin": "orange", "chocolate": "brown",
    "mud": "brown", "flamingo": "pink", "lavender": "purple", "plum": "purple", "ash": "grey",
    "elephant": "grey", "sky": "blue", "sapphire": "blue", "emerald": "green",
}  # fmt: skip
MASS_NOUNS = {"butter", "corn", "grass", "spinach", "lettuce", "snow", "milk", "salt", "rice", "flour", "coal",
              "tar", "blood", "chocolate", "mud", "lavender", "ash", "sky",
              "gold", "iron", "silver"}  # fmt: skip

MATERIALS = {
    "window": "glass", "mirror": "glass", "table": "wood", "door": "wood", "bench": "wood", "book": "paper",
    "newspaper": "paper", "key": "metal", "coin": "metal", "sweater": "wool", "scarf": "wool", "candle": "wax",
    "tyre": "rubber", "balloon": "rubber", "shoe": "leather", "belt": "leather", "shirt": "cotton",
    "towel": "cotton", "castle": "stone", "statue": "stone", "brick": "clay", "nail": "iron",
}  # fmt: skip

PURPOSES = {
    "cut paper": "scissors", "write a letter": "pen", "sweep the floor": "broom", "dig a hole": "spade",
    "open a lock": "key", "tell the time": "clock", "hit a nail": "hammer", "eat soup": "spoon",
    "cut bread": "knife", "stay dry in the rain": "umbrella", "clean teeth": "toothbrush",
    "boil water": "kettle", "light a room": "lamp", "call a friend": "phone", "sew a button": "needle",
    "drink tea": "cup", "dry wet hands": "towel", "climb to the roof": "ladder", "find the way": "map",
    "comb long hair": "comb",
}  # fmt: skip

KINDS = {
    "apple": "fruit", "banana": "fruit", "pear": "fruit", "cherry": "fruit", "plum": "fruit",
    "carrot": "vegetable", "potato": "vegetable", "onion": "vegetable", "cabbage": "vegetable",
    "oak": "tree", "pine": "tree", "birch": "tree", "rose": "flower", "tulip": "flower", "daisy": "flower",
    "hammer": "tool", "saw": "tool", "spade": "tool", "violin": "instrument", "piano": "instrument",
    "drum": "instrument", "flute": "instrument", "car": "vehicle", "bus": "vehicle", "truck": "vehicle",
    "eagle": "bird", "owl": "bird", "penguin": "bird", "swan": "bird", "shark": "fish", "salmon": "fish",
    "trout": "fish", "ant": "insect", "bee": "insect", "beetle": "insect", "shirt": "piece of clothing",
    "coat": "piece of clothing", "hat": "piece of clothing", "chair": "piece of furniture",
    "table": "piece of furniture", "bed": "piece of furniture", "gold": "metal", "iron": "metal",
    "silver": "metal",
}  # fmt: skip

SIDES = {"triangle": "three", "square": "four", "rectangle": "four", "pentagon": "five", "hexagon": "six",
         "heptagon": "seven", "octagon": "eight", "decagon": "ten"}  # fmt: skip

OPPOSITE_PAIRS = [
    ("hot", "cold"), ("big", "small"), ("tall", "short"), ("fast", "slow"), ("up", "down"), ("day", "night"),
    ("happy", "sad"), ("old", "young"), ("full", "empty"), ("open", "closed"), ("light", "dark"),
    ("loud", "quiet"), ("hard", "soft"), ("wet", "dry"), ("rich", "poor"), ("early", "late"),
    ("clean", "dirty"), ("strong", "weak"), ("thick", "thin"), ("near", "far"), ("high", "low"),
    ("left", "right"), ("first", "last"), ("true", "false"), ("wide", "narrow"), ("heavy", "weightless"),
    ("deep", "shallow"), ("sweet", "sour"), ("good", "bad"), ("easy", "difficult"), ("inside", "outside"),
    ("above", "below"), ("before", "after"), ("always", "never"), ("push", "pull"), ("begin", "end"),
    ("buy", "sell"), ("win", "lose"), ("laugh", "cry"), ("love", "hate"), ("awake", "asleep"),
    ("brave", "afraid"), ("cheap", "expensive"), ("sharp", "blunt"),
]  # fmt: skip

DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
          "November", "December"]  # fmt: skip
SEASONS = ["spring", "summer", "autumn", "winter"]
MONTH_DAYS = {
    "January": "31", "February": "28", "March": "31", "April": "30", "May": "31", "June": "30", "July": "31",
    "August": "31", "September": "30", "October": "31", "November": "30", "December": "31",
}  # fmt: skip
AMOUNTS = {  # how many … are there in …
    "days|a week": "7", "months|a year": "12", "hours|a day": "24", "minutes|an hour": "60",
    "seconds|a minute": "60", "weeks|a year": "52", "seasons|a year": "4", "years|a century": "100",
    "years|a decade": "10", "days|a weekend": "2", "letters|the alphabet": "26",
}  # fmt: skip
