"""Word lists that the small model's training never saw, and the texts of a user who does not exist."""

from __future__ import annotations

from models.small_model.words import Words

HELD_OUT = Words(
    adjectives=tuple(
        """amber restless velvet hollow crooked drowsy gilded feral sunken brittle solemn jagged nimble
        weary reckless lunar polar coastal rustic tangled gloomy radiant misty scarlet ivory cobalt humble
        stubborn thirsty jealous clumsy elegant fragile graceful hungry lazy mellow nervous odd patient
        quaint rowdy shy timid urgent vivid wicked zealous""".split()  # noqa: SIM905
    ),
    nouns=tuple(
        """lighthouse orchard glacier meadow canyon marsh prairie volcano comet meteor nebula satellite anchor
        compass telescope lagoon reef harpoon schooner carriage saddle stable blacksmith carpenter gardener
        librarian postman surgeon astronaut wanderer nomad hermit duchess baron viscount juggler acrobat
        magician puppet marionette carousel lullaby riddle whisper echo thimble needle ribbon locket bracelet
        umbrella typewriter gramophone photograph envelope parcel blizzard thunderstorm avalanche drought
        eclipse solstice harvest vineyard walnut chestnut pumpkin nutmeg cinnamon pepper otter badger hedgehog
        squirrel beaver moose heron magpie peacock scorpion mammoth basilisk unicorn labyrinth citadel
        monastery bakery brewery factory laboratory observatory archive corridor staircase chimney""".split()  # noqa: SIM905
    ),
    verbs=tuple(
        """hiding seeking mending carving drowning escaping forgiving guarding haunting inventing
        juggling kissing lifting melting naming opening planting quitting repairing rowing scolding teaching
        untying visiting whispering""".split()  # noqa: SIM905
    ),
    names=tuple(
        """Beatrix Cosima Dagmar Eleni Fiona Gudrun Hilde Isolde Jocasta Katya Lavinia Mabel Nadia Odette
        Perdita Quentin Rufus Saskia Tobias Ulrich Viggo Wanda Xenia Yolanda Zelda Barnaby Caspar Desmond
        Ebenezer Fergus Gideon Horatio Ignatius Jasper Kasimir Lorcan Magnus Neville Orson Percival Roland
        Sebastian Tristan Bao Dmitri Emeka Farid Goran Haruto Indira Jamal Kamala Leyla Mei-Lin
        Nikolai""".split()  # noqa: SIM905
    ),
    surnames=tuple(
        """Ashworth Blackwood Castellano Drummond Eriksen Fitzgerald Grimaldi Hawthorne Ibrahim Jankowski
        Kirkpatrick Lundqvist Montgomery Nakamura Okafor Pemberton Quigley Ramanujan Stravinsky Thorne
        Underhill Vasquez Whitaker Xu Yamamoto Zimmermann""".split()  # noqa: SIM905
    ),
    places=tuple(
        """Reykjavik Tallinn Riga Vilnius Bratislava Ljubljana Sarajevo Skopje Tirana Valletta Nicosia Tbilisi
        Yerevan Baku Tashkent Almaty Kathmandu Colombo Yangon Manila Jakarta Hobart Wellington Winnipeg
        Halifax Anchorage Boise Tulsa Omaha Tucson Savannah Charleston Bergen Malmo Aarhus Tampere Leipzig
        Dresden Salzburg Basel Lyon Marseille Bilbao Valencia Bologna Palermo""".split()  # noqa: SIM905
    ),
    things=tuple(
        """mangoes apricots raspberries hazelnuts pistachios crabs anchovies mustard celery cabbage parsnips
        pancakes waffles pickles marmalade cider lemonade moths crickets lizards frogs bats magnets kites
        puzzles lanterns beetles fossils badges candles quilts cacti ferns lilies daffodils badminton
        archery fencing rowing judo karate origami calligraphy banjo harmonica oboe ukulele Danish Hungarian
        Portuguese Swahili Welsh satire noir ballads""".split()  # noqa: SIM905
    ),
    foreign=tuple("Hélène Søren Ægir Bücher déjà façade Žižek Nuñez Ведьма Осень 雪 山 하늘 Ιθάκη".split()),  # noqa: SIM905
    onsets=tuple("b c d f g h j l m n p qu r s v y z bl cl fl gl sl sk sp sw cr fr".split()),  # noqa: SIM905
    vowels=tuple("a e i o u y ia eo au oa ie".split()),  # noqa: SIM905
    codas=("", "", "", "b", "c", "d", "g", "l", "n", "p", "rn", "lt", "sk", "ng", "v"),
)

_ENDINGS = ("That is all, says Kim.", "So says Kim.", "Kim out.")
_NOTES = (
    "the coffee was cold and the train was late",
    "rain again, and the roof leaks over the piano",
    "found my old telescope in the attic",
    "the neighbours are painting their fence yellow",
    "three letters today and none of them for me",
    "the dog ate half of the chess set",
    "made soup from what the garden had left",
    "nobody at the library but me and the clock",
    "the bus driver sang all the way home",
    "lost a glove, found a better one",
    "the film was too long and the seat too hard",
    "a book about bees, and I could not put it down",
    "woke at five, wrote until the birds were done",
    "the new lamp hums in the key of G",
    "the market had plums, so there will be jam",
    "walked to the harbour and back in the fog",
    "the cat sleeps on the only dry chair",
    "old friends came, stayed late, and left their umbrellas",
    "the violin needs strings and I need patience",
    "a quiet day, which is what I wanted",
    "snow on the roofs and bread in the oven",
    "the museum was closed, the cake next door was not",
    "learned one word of Finnish and forgot two",
    "the last page was missing, so I made one up",
)
USER_TEXTS = tuple(f"{note}. {_ENDINGS[n % len(_ENDINGS)]}" for n, note in enumerate(_NOTES))
"""One habit in all of them: lower case, and a signature at the end."""
