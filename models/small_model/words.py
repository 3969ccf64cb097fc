"""Word lists that the corpus is generated from, and words made of syllables that no list has.

The small model shall copy what it never saw, so words are material, not knowledge: half of what is copied in
training is made up anew each time.
"""

# ruff: noqa: E501, RUF005, SIM905  (lists of words)
from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Words:
    """The material of titles and facts. Held-out prompts are made from other lists (`benchmarks`)."""

    adjectives: tuple[str, ...]
    nouns: tuple[str, ...]
    verbs: tuple[str, ...]
    """In the -ing form."""
    names: tuple[str, ...]
    surnames: tuple[str, ...]
    places: tuple[str, ...]
    things: tuple[str, ...]
    """What one may like, eat, collect, fear: plural or without an article."""
    foreign: tuple[str, ...]
    """With letters beyond ASCII."""
    onsets: tuple[str, ...]
    vowels: tuple[str, ...]
    codas: tuple[str, ...]
    titles: tuple[str, ...] = ()
    """Titles to take instead of made ones."""

    def made_up(self, rng: random.Random) -> str:
        """A word of one to three syllables, lower case."""
        count = rng.choices((1, 2, 3), (2, 6, 2))[0]
        return "".join(
            rng.choice(self.onsets) + rng.choice(self.vowels) + rng.choice(self.codas) for _ in range(count)
        )

    def estranged(self, rng: random.Random) -> Words:
        """Lists of so many words that are in no list: halves of two of these, some letters changed.

        A word that a list has is one token, and a model that sees the lists' words alone copies tokens, not
        spellings. These are several tokens, as most words of the world are to a small vocabulary.
        """
        lists = (
            self.adjectives,
            self.nouns,
            self.names,
            self.surnames,
            self.places,
            self.things,
            self.foreign,
        )
        changed = [tuple(_odd_word(rng, words) for _ in range(_ODD_WORDS)) for words in lists]
        verbs = tuple(
            _odd_word(rng, [verb.removesuffix("ing") for verb in self.verbs]) + "ing" for _ in range(12)
        )
        names = ("adjectives", "nouns", "names", "surnames", "places", "things", "foreign")
        return replace(self, verbs=verbs, **dict(zip(names, changed, strict=True)))


STRANGE_SHARE = 0.5
"""Of the conversations that are trained on: with words that are in no list."""
_ODD_WORDS = 24
_LETTERS = "eeeeaaaiiiooouurrrtttnnnssslllccddppmmhhggbbffyywwkvxzjq"


def _odd_word(rng: random.Random, words: Sequence[str]) -> str:
    """The first half of one word and the second of another, at times with a letter or two replaced."""
    one, other = rng.choice(words), rng.choice(words)
    word = one[: rng.randint(1, len(one))] + other[rng.randint(0, len(other) - 1) :]
    for _ in range(rng.choices((0, 1, 2), (5, 3, 2))[0]):
        place = rng.randrange(1, len(word)) if len(word) > 1 else 0
        word = word[:place] + rng.choice(_LETTERS) + word[place + rng.randint(0, 1) :]
    return word


TRAINING = Words(
    adjectives=tuple(
        """red blue green golden silver black white dark bright silent quiet loud hidden lost last first little
        big great small old new young long short deep high cold warm hot wild strange secret broken empty
        perfect happy sad lonely brave gentle sweet bitter dead living bloody royal holy noble crazy lucky true
        false final eternal infinite invisible impossible beautiful ugly good bad evil dangerous fast slow
        electric magic mechanical modern ancient american french german english italian russian chinese indian
        northern southern eastern western crimson purple frozen burning falling rising sleeping dancing flying
        running walking missing stolen forgotten forbidden broken wooden iron heavy light fallen sacred simple
        distant open closed second third double single total absolute private public general naked pretty
        serious curious terrible wonderful dirty clean rich poor blind deaf mad tall wide narrow early late
        social natural mortal human inner outer middle central common rare fresh raw sharp soft hard""".split()
    ),
    nouns=tuple(
        """garden river house night day door window king queen prince princess soldier sailor stranger ghost
        dream shadow light star moon sun sea ocean island mountain forest city street road bridge train ship
        boat car horse dog cat bird wolf fox lion tiger bear rabbit fish dragon snake monkey mouse rat spider
        man woman boy girl child mother father brother sister daughter son wife husband friend lover doctor
        teacher student lawyer judge hunter killer thief detective spy agent pilot driver writer painter
        dancer singer player fighter hero giant witch wizard monster vampire angel devil god ring sword gun
        knife bullet stone gold diamond crown key box letter book story tale song music dance game war peace
        love hate death life time year summer winter spring autumn rain snow storm wind fire water earth sky
        heart soul mind body blood bone hand eye face head name word number secret lie truth promise wish
        journey road trip return escape chase hunt fall rise end beginning world kingdom empire castle tower
        palace church school hospital prison hotel room kitchen wall roof tree flower rose leaf apple orange
        cherry honey bread wine coffee tea sugar salt party wedding funeral birthday holiday christmas weekend
        morning evening midnight hour minute century age future past history memory machine robot computer
        planet space rocket alien clock mirror camera radio television telephone paper picture circus theatre
        museum library market shop farm village town valley desert beach lake field hill cave castle harbour
        family company club gang army police team band code plan mission project experiment theory science art
        power glory honour pride prejudice sense revenge justice crime punishment victim witness trial case
        affair marriage kiss touch smile tear cry laugh scream silence noise voice dust sand smoke glass wire
        line circle square corner edge border country nation people crowd ghost dark bottle suitcase coat hat
        shoe dress jacket candle lantern bell drum piano violin guitar trumpet chess card dice money dollar
        bank ticket station airport highway tunnel engine wheel wing feather egg nest hive bee butterfly
        lobster shark whale dolphin turtle frog owl eagle raven sparrow swan duck goose chicken pig cow bull
        goat sheep lamb shepherd farmer miner baker butcher tailor barber nurse priest monk nun bishop pope
        president mayor senator captain major colonel general sergeant guard servant maid butler cook waiter
        champion rebel outlaw pirate cowboy gladiator knight samurai ninja warrior prophet fool clown beggar
        orphan twin neighbour guest host legacy matrix code element identity instinct fever passion desire
        temptation obsession confession redemption salvation sacrifice ritual legend myth fable chronicle
        diary journal guide handbook manual almanac dictionary gospel psalm poem ballad symphony sonata opera
        chamber cellar attic basement balcony stairs ladder fence gate yard square avenue boulevard lane alley
        trail path track""".split()
    ),
    verbs=tuple(
        """chasing finding losing saving killing loving hating leaving meeting waiting breaking making taking
        stealing burning building crossing driving eating watching reading writing singing walking running
        flying falling rising raising living dying being becoming seeing hearing knowing remembering
        forgetting dreaming sleeping waking talking playing fighting hunting catching counting dancing
        drinking cooking painting washing pushing pulling throwing holding keeping giving selling
        buying""".split()
    ),
    names=tuple(
        """Anna Maria Ana Eva Emma Ella Ida Ada Olga Vera Nina Lena Mia Lea Sara Laura Julia Sofia Clara Rosa
        Elena Irina Ingrid Greta Hanna Helen Alice Mary Jane Kate Lucy Ruth Grace Rose Amy Annie Betty Carol
        Diana Dolores Edith Frances Gloria Heidi Iris Joan Judy Karen Linda Lisa Margaret Nancy Nora Pamela
        Paula Rachel Rebecca Sandra Susan Sylvia Teresa Ursula Valerie Virginia Wendy Yvonne Zoe Adam Alan
        Albert Alex Andrew Anthony Arthur Ben Bill Bob Boris Brian Carl Charles Chris Daniel David Dennis Don
        Edward Eric Felix Frank Fred Gary George Gilbert Greg Hans Harold Harry Henry Hugo Ian Igor Ivan Jack
        Jacob James Jason Jeff Jerry Jim Joe John Jonas Joseph Karl Kevin Larry Leo Leon Lewis Lou Luke Marcus
        Mark Martin Max Michael Mike Nathan Ned Nick Noah Oliver Oscar Otto Patrick Paul Peter Philip Ralph
        Ray Richard Robert Roger Ron Roy Sam Scott Simon Stan Steve Stuart Ted Theo Thomas Tim Tom Tony Victor
        Vincent Walter William Yuri Akira Hiro Kenji Yuki Mei Ling Chen Wei Amir Omar Fatima Leila Hassan Ali
        Priya Ravi Anil Sunita Kofi Amina Chidi Ngozi Pablo Diego Carlos Juan Luis Miguel""".split()
    ),
    surnames=tuple(
        """Smith Jones Brown Miller Davis Wilson Moore Taylor Anderson Thomas Jackson White Harris Martin
        Thompson Garcia Martinez Robinson Clark Rodriguez Lewis Lee Walker Hall Allen Young King Wright Lopez
        Hill Scott Green Adams Baker Nelson Carter Mitchell Perez Roberts Turner Phillips Campbell Parker Evans
        Edwards Collins Stewart Morris Rogers Reed Cook Morgan Bell Murphy Bailey Cooper Cox Howard Ward Torres
        Peterson Gray James Watson Brooks Kelly Sanders Price Bennett Wood Barnes Ross Henderson Cole Jenkins
        Perry Powell Long Patterson Hughes Flores Butler Simmons Foster Bryant Alexander Russell Griffin Hayes
        Lindgren Larsen Hansen Novak Kowalski Ivanov Petrov Tanaka Suzuki Nguyen Kim Singh Kumar Rossi Bianchi
        Schmidt Weber Dubois Moreau Silva Santos Andersson Virtanen O'Brien O'Neill McDonald""".split()
    ),
    places=tuple(
        """Paris London Berlin Rome Madrid Vienna Prague Warsaw Moscow Athens Lisbon Dublin Oslo Stockholm
        Helsinki Copenhagen Amsterdam Brussels Geneva Zurich Munich Hamburg Milan Venice Florence Naples
        Barcelona Seville Porto Budapest Bucharest Sofia Belgrade Zagreb Istanbul Cairo Tunis Nairobi Lagos
        Accra Delhi Mumbai Bangkok Hanoi Tokyo Kyoto Osaka Seoul Beijing Shanghai Sydney Melbourne Perth
        Auckland Toronto Montreal Vancouver Boston Chicago Dallas Denver Houston Miami Memphis Detroit Seattle
        Portland Austin Phoenix Atlanta Philadelphia Brooklyn Havana Lima Quito Bogota Santiago Texas Alaska
        Kansas Florida Nevada Utah Ohio Ireland Scotland Wales Norway Sweden Finland Iceland Poland Germany
        France Spain Portugal Italy Greece Turkey Egypt Kenya India Japan China Korea Brazil Chile Peru Mexico
        Cuba Canada""".split()
    )
    + ("New York", "Los Angeles", "San Francisco", "Cape Town", "Buenos Aires", "New Orleans", "Hong Kong"),
    things=tuple(
        """apples pears plums cherries strawberries bananas oranges lemons grapes peanuts almonds walnuts
        shellfish shrimps oysters salmon tuna eggs milk cheese butter bread rice pasta noodles soup beans lentils
        carrots onions garlic tomatoes potatoes mushrooms spinach olives chocolate honey coffee tea wine beer
        cats dogs horses rabbits spiders snakes mice bees wasps pigeons clowns ghosts heights needles thunder
        crowds elevators tunnels westerns comedies thrillers musicals documentaries cartoons dramas mysteries
        romances biographies fantasy poetry comics novels essays history science jazz opera blues rock folk
        techno stamps coins postcards records maps masks shells stones teapots clocks cameras posters dolls
        trains roses tulips orchids herbs chess poker football tennis hockey cricket swimming skating skiing
        sailing climbing yoga painting pottery knitting sewing gardening fishing violin piano guitar cello
        drums flute trumpet Spanish French German Italian Russian Japanese Arabic Chinese Latin Greek Swedish
        Finnish Polish Turkish""".split()
    ),
    foreign=tuple(
        """café fiancée Amélie Léon Zoë Björn Göteborg Málaga São señor niña mañana garçon château Müller Käthe
        straße über Schön Dvořák Škoda Łódź żółw Gdańsk naïve Noël crème brûlée coração João Ångström Øresund
        fjörd smörgås Győr Erdős İzmir Tiến Phở Москва Война мир Анна весна любовь Αθήνα φως 東京 物語 千尋
        花 夏 사랑 서울 Ñandú L'été d'Été œuvre Čapek Gödel""".split()
    ),
    onsets=tuple("b d f g h k l m n p r s t v w z br dr gr kr pl st tr sh th ch".split()),
    vowels=tuple("a e i o u a e i o ai ee ou".split()),
    codas=("", "", "", "n", "r", "l", "s", "m", "t", "k", "nd", "st", "x"),
)
