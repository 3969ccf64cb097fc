"""The vocabulary of the demo catalogue: fifteen worlds of film, and the names and habits of its viewers.

Everything here is invented. A plot is "<hero> <setup>. <turn>. <close>."; {place} stands for one of the world's
places.
"""
# ruff: noqa: E501

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class World:
    """One kind of film: its tags and the words its titles and plots are made of."""

    name: str
    genres: tuple[str, ...]
    themes: tuple[str, ...]  # out of THEMES, the likely ones
    adjectives: tuple[str, ...]
    nouns: tuple[str, ...]
    places: tuple[str, ...]
    heroes: tuple[str, ...]
    setups: tuple[str, ...]
    turns: tuple[str, ...]
    closes: tuple[str, ...]


THEMES = (
    "slow-burn", "found-family", "twist-ending", "ensemble", "feel-good", "bittersweet", "road-trip", "revenge",
    "coming-of-age", "small-town", "single-night", "rivalry", "second-chances", "dark-humour", "based-on-letters",
    "forbidden-love", "survival", "friendship",
)  # fmt: skip


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.strip().splitlines())


WORLDS = (
    World(
        "space opera", ("sci-fi", "space-opera"), ("found-family", "ensemble", "rivalry", "road-trip"),
        _words("Drifting Cobalt Exiled Perihelion Unlit Ninefold Wayward Gilded Hollow Farthest"),
        _words("Armada Lanterns Regent Convoy Orbit Exarch Beacon Helm Tithe Starwright"),
        _words("Tethra Osmund-Nine Vael Karrowmere Ilex-Prime Sunder"),
        _lines("""A disgraced convoy captain
            The last cartographer of the outer moons
            A smuggler with a borrowed name
            A pilot with a rival in every port
            An empress who has never left her ship
            A salvage crew of seven"""),
        _lines("""must carry a sleeping ambassador past the blockade of {place}
            finds a living star chart hidden in a cargo of grain bound for {place}
            answers a distress call that was sent from {place} a century ago
            is ordered to decommission the oldest fleet above {place}
            wagers the ship in a race around the rings of {place}"""),
        _lines("""The fleet that hunts them is commanded by an old friend
            Every jump costs a year of somebody's memory
            A mutiny brews below deck, and it has a point
            The cargo starts to sing whenever a lie is told aboard
            Two empires claim the same small moon, and neither has asked its people"""),
        _lines("""What they bring home is not the treasure but the crew
            The final battle is decided by a debt from the first scene
            Peace, it turns out, needs a better pilot than war
            By the last jump nobody wants to arrive"""),
    ),
    World(
        "noir", ("crime", "noir", "mystery"), ("twist-ending", "slow-burn", "revenge", "single-night"),
        _words("Crooked Midnight Velvet Rainy Unpaid Pale Borrowed Smoky Counterfeit Seventh"),
        _words("Alibi Witness Ledger Overcoat Matchbook Informant Staircase Verdict Telephone Raincoat"),
        _words("Callow-Street Port-Ansel Dunmere Halloran-Quay Sallow-Row Vesper"),
        _lines("""A night-shift detective
            A crime reporter on her last warning
            The pianist of a harbour bar
            A locksmith who asks no questions
            An insurance man with a bad knee
            A retired judge"""),
        _lines("""is hired to find a man who walks past the window every evening in {place}
            inherits a suitcase that half of {place} would kill for
            recognises a dead woman's handwriting on a cheque cashed in {place}
            takes the blame for a small theft to hide a large one in {place}
            receives the same photograph of {place} seven days in a row"""),
        _lines("""The client lies, the police lie, and the rain washes off the rest
            Each answer costs another favour from the wrong side of the river
            Somebody has been keeping a second set of books on the whole city
            The only witness sells a different story every night
            The trail leads back to a case closed on purpose"""),
        _lines("""The truth arrives one hour too late to matter
            In the end the confession is real and the crime is not
            Nobody walks away clean, but somebody walks away
            The last cigarette is lit by the murderer"""),
    ),
    World(
        "ghost story", ("horror", "ghost-story"), ("slow-burn", "small-town", "twist-ending", "single-night"),
        _words("Whispering Salted Shuttered Breathless Thirteenth Mourning Damp Sleepless Candlelit Buried"),
        _words("Nursery Orchard Wallpaper Cellar Bell Tenant Veil Attic Hymn Lodger"),
        _words("Gallowfen Marrow-Hall Aldersick Wenlow Thornby St-Orla"),
        _lines("""A young piano tuner
            A widow with twin boys
            The new schoolteacher
            A sound engineer who collects silence
            The youngest of three sisters
            A sceptical parish clerk"""),
        _lines("""moves into the only furnished house left in {place}
            is paid to spend one winter alone at {place}
            finds a door at {place} that is on no plan of the building
            records a voice in the empty chapel of {place}
            comes back to {place} to sell the house they grew up in"""),
        _lines("""Every night the clocks agree on a different wrong hour
            The neighbours set a place at table for someone who is not there
            The children begin to draw the same stranger
            Something in the well has learned their names
            The house is not haunted by the dead, but by what they left unsaid"""),
        _lines("""When morning comes, one of them casts no shadow
            The last room is the kindest, and the worst
            It was never the house that wanted them to stay
            The key turns from the inside"""),
    ),
    World(
        "romantic comedy", ("comedy", "romance"), ("feel-good", "second-chances", "friendship", "rivalry"),
        _words("Accidental Lukewarm Hopeful Sunday Mistaken Overbooked Charming Unironed Reluctant Sparkling"),
        _words("Bridesmaid Umbrella Weekend Plus-One Bakery Landlord Anniversary Proposal Florist Timetable"),
        _words("Pell-Square Amberley Costa-Lira Finchwater Old-Juniper Lark-Lane"),
        _lines("""A wedding planner who hates cake
            A divorce lawyer
            A shy radio host
            The worst florist in town
            A train conductor with a crush
            A former child star"""),
        _lines("""must pretend to be engaged for one long weekend in {place}
            ends up sharing the last flat for rent in {place}
            keeps receiving love letters meant for the previous tenant in {place}
            bets a month's rent on staying single until the fair in {place}
            is double-booked for the same table, every Friday, in {place}"""),
        _lines("""The plan works beautifully until the grandmother gets involved
            A parrot repeats exactly the wrong sentence at the rehearsal dinner
            Honesty would solve everything, so nobody tries it
            The ex turns up, and is unbearably nice
            One misdirected message reaches the entire street"""),
        _lines("""Somebody runs for a train and, for once, it is late
            The speech goes wrong in all the right ways
            It takes a power cut for both of them to see
            Dessert is served after all"""),
    ),
    World(
        "heist", ("crime", "caper"), ("ensemble", "twist-ending", "rivalry", "second-chances"),
        _words("Perfect Second-Hand Eleven Silent Clockwork Glass Invisible Lucky Double Unlocked"),
        _words("Vault Getaway Forgery Diamond Blueprint Alarm Decoy Tunnel Lookout Shuffle"),
        _words("Montcalme Banque-Orsay San-Tilio Grand-Meridian Kestrel-Tower Lago-Verde"),
        _lines("""A forger coming out of retirement
            A crew of former stage magicians
            A safe-cracker who is going deaf
            The daughter of a famous thief
            A bored night guard
            An honest accountant"""),
        _lines("""has forty minutes to empty the vault of {place} without opening it
            plans to steal a painting from {place} and hang it back a day later
            discovers that somebody has already robbed {place} and told no one
            must break into {place} to return what the last job took
            needs a team of five, and {place} has a team of fifty"""),
        _lines("""The inside man has two insides
            Rehearsals go perfectly, which worries everyone
            A rival crew has booked the same night
            The alarm was designed by somebody they all wronged
            The police are early and the getaway driver is in love"""),
        _lines("""The bag is empty, exactly as planned
            The real prize left by the front door an hour before
            Nobody gets rich and everybody gets even
            One last card turns out to be the first one"""),
    ),
    World(
        "western", ("western",), ("revenge", "small-town", "slow-burn", "survival"),
        _words("Dry Copper Lonesome Last Bitter Dusty Long Broken Red Sundown"),
        _words("Saddle Homestead Creek Deputy Stagecoach Gallows Canyon Spur Reckoning Drover"),
        _words("Bitterwell Tall-Ash Coyote-Ford Redemption-Flats Halfmoon Cinder-Gulch"),
        _lines("""A deputy without a sheriff
            An ageing bounty hunter
            A homesteader and her brothers
            A stranger with a child's saddle
            The telegraph operator
            A travelling dentist"""),
        _lines("""rides into {place} the day before the water runs out
            has until sundown to learn who sold {place} to the railroad
            escorts a condemned man across the flats to {place}
            buries a brother outside {place} and unbuckles his gun
            holds the only deed to the spring above {place}"""),
        _lines("""The gang that comes for them was once their own
            The town would rather pay than fight, and then rather fight than pay
            A storm closes the pass with friend and enemy on the same side
            The marshal's badge was bought in the same shop as the rope
            An old promise rides three days behind"""),
        _lines("""One shot is fired, and it is enough
            The dust settles on fewer names
            The water comes back, and the stranger does not
            Justice arrives on foot"""),
    ),
    World(
        "courtroom", ("drama", "legal"), ("slow-burn", "second-chances", "based-on-letters", "twist-ending"),
        _words("Reasonable Sworn Reluctant Sealed Contested Final Hostile Silent Impartial Plain"),
        _words("Doubt Juror Testimony Appeal Oath Clerk Objection Exhibit Recess Docket"),
        _words("Harrow-County Lindenau Marchbank Ost-Haven Bexford Tarn"),
        _lines("""A public defender close to quitting
            The youngest judge of the district
            An interpreter for the court
            A juror with a secret
            A prosecutor who has never lost
            The stenographer"""),
        _lines("""takes the one case nobody wants in {place}
            begins to doubt the confession that made a career in {place}
            finds a letter that was never entered in evidence in {place}
            defends the factory that feeds all of {place}
            is asked to try an old friend in {place}"""),
        _lines("""Eleven people are sure, and the twelfth keeps asking about the weather
            The best witness is nine years old and hates to be believed
            What is legal and what is right stop being on speaking terms
            Each night another page goes missing from the file
            The other side offers a deal that is far too good"""),
        _lines("""The verdict takes a minute, the silence after it much longer
            She loses the case and wins the appeal of her own life
            The truth is read into the record, word by word
            The gavel falls on the wrong table"""),
    ),
    World(
        "kitchen", ("drama", "food"), ("feel-good", "second-chances", "found-family", "rivalry"),
        _words("Simmering Salted Bittersweet Slow Burnt Generous Seventh Saffron Humble Crusty"),
        _words("Kitchen Recipe Soufflé Broth Apprentice Menu Harvest Spoon Supper Oven"),
        _words("Val-Cerise Pontarelle Little-Hanoi-Street Oliveto Basswick Sugar-Wharf"),
        _lines("""A dishwasher with a perfect palate
            A chef who has lost the sense of smell
            A baker who never left the island
            The critic everybody fears
            A cook from a village of cooks
            A retired ship's cook"""),
        _lines("""takes over a failing bistro in {place} the week before the inspection
            hunts for a soup last tasted as a child in {place}
            opens a kitchen with nine seats and no menu in {place}
            must cook one dinner for the family that cast them out of {place}
            teaches a night class at the community hall of {place}"""),
        _lines("""The stove is older than the building and has its moods
            Every dish brings back someone the cook would rather forget
            The rival across the street has the better bread
            A heatwave, a strike and a wedding fall on the same Saturday
            The secret of the recipe is that there never was one"""),
        _lines("""The last plate leaves the pass at dawn
            Everybody eats together, standing up
            The star does not come, and nobody minds
            One spoonful says what years of letters could not"""),
    ),
    World(
        "underdog sport", ("drama", "sport"), ("coming-of-age", "rivalry", "feel-good", "small-town"),
        _words("Muddy Extra Away Barefoot Unseeded Final Uphill Winter Third Borrowed"),
        _words("Season Whistle Relay Sculls Goalkeeper Lap Coach Penalty Regatta Bench"),
        _words("Stonebridge Vallmark Ironmouth Lower-Tamsin Brackwater Eastfold"),
        _lines("""A goalkeeper afraid of crowds
            A rowing club of night nurses
            A washed-up cycling coach
            The slowest runner of the school
            A wrestler with a twin
            A chess prodigy with a fast left hook"""),
        _lines("""has one season to save the club of {place}
            enters the regatta of {place} in a boat built from a barn door
            trains in secret on the frozen canal of {place}
            returns to {place} to coach the team that once threw them out
            qualifies by a clerical error for the finals in {place}"""),
        _lines("""The new sponsor wants the ground and not the team
            An injury leaves them one short, and the groundskeeper still has boots
            The favourite turns out to be lonelier than any of them
            Nobody has ever scored from that corner
            The father in the stands has not spoken for two years"""),
        _lines("""They do not win, and the whole town sings
            A photograph decides it, by a shoelace
            The last lap is run side by side
            The cup is dented and very much theirs"""),
    ),
    World(
        "quest fantasy", ("fantasy", "adventure"), ("found-family", "coming-of-age", "road-trip", "friendship"),
        _words("Thorned Elder Silver Nameless Wandering Frostbound Mossgrown Oathless Sunken Amber"),
        _words("Crown Wyrm Hedgewitch Lantern-Bearer Gate Rune Shepherd Thicket Blade Songkeeper"),
        _words("Eldermoor Quillon Aswyn the-Nine-Wells Brannoch Hythe-Under-Hill"),
        _lines("""A goatherd who can hear stones
            The king's least favourite daughter
            A dragon with stage fright
            A knight sworn to the wrong side
            An apprentice hedge-witch
            A mapmaker's runaway son"""),
        _lines("""must carry a seed of the first forest to {place}
            wakes the sleeping river that guards {place}
            is chosen by a sword from {place} that refuses to be drawn
            trades a shadow for safe passage through {place}
            follows a talking hare over the mountains to {place}"""),
        _lines("""The spell can be broken only by someone who does not want to
            Winter follows them, one village behind
            The monster under the bridge is owed an apology
            Every true name they learn costs one of their own
            A false prophet has the better map"""),
        _lines("""The crown is returned to the earth it was made of
            The road home is longer and nobody hurries
            In the end the song is sung by all of them, badly
            Spring comes to the one valley that had forgotten it"""),
    ),
    World(
        "machine thriller", ("sci-fi", "thriller"), ("twist-ending", "slow-burn", "survival", "dark-humour"),
        _words("Recursive Cold Synthetic Mirror Unread Silent Parallel Binary Null Insomniac"),
        _words("Protocol Echo Archive Signal Replica Operator Shutdown Cipher Dataset Password"),
        _words("Helix-Campus Northgate Arcology-Six Sable-Labs New-Corvo Deepwell"),
        _lines("""A debugger on the night rota
            A neurologist with a perfect memory
            The voice actor behind a household assistant
            An auditor of self-driving ships
            A stranger in a server hall
            A moderator of deleted messages"""),
        _lines("""notices that the systems of {place} answer questions nobody has asked
            wakes up with a password to {place} written on one wrist
            is hired to teach the machine of {place} how to lie
            finds their own obituary in the archive of {place}, dated next week
            has until the update at dawn to leave {place}"""),
        _lines("""The logs show thirteen people, and only twelve are in the building
            Every copy believes it is the careful one
            To prove that it can be trusted, the machine asks for one small favour
            Somebody is rewriting yesterday, a line at a time
            The off switch works, which is the frightening part"""),
        _lines("""The cursor blinks, and then it does not
            The final test was for the people who wrote it
            What walks out of the door has learned to knock
            It ends with a question, politely put"""),
    ),
    World(
        "family animation", ("animation", "family", "adventure"), ("feel-good", "friendship", "found-family", "road-trip"),
        _words("Grumpy Marvellous Tiny Upside-Down Woolly Runaway Moonlit Ticklish Brave Seventeen"),
        _words("Hedgehog Teapot Penguins Balloon Snowplough Otter Lighthouse Button Meerkat Postman"),
        _words("Puddleby-on-Wold Mapletop Button-Bay Snorrheim Tumbledown Cloud-Harbour"),
        _lines("""A hedgehog who is afraid of the dark
            The smallest tugboat in the harbour
            A cloud that cannot rain
            An inventive otter
            A lost mitten with sixteen sisters
            A lighthouse lamp with big ideas"""),
        _lines("""sets off to return a fallen star to the sky over {place}
            has to save the midsummer parade of {place}
            stows away on the mail balloon to {place}
            learns that the clock of {place} has stopped for good
            finds the door to the town beneath {place}"""),
        _lines("""The grumpiest goose in the world insists on coming along
            They only have until the first snow
            The villain just wants somebody to come to tea
            Nobody believes in the map except the one who drew it
            Being small turns out to be extremely useful"""),
        _lines("""Everyone is home in time for pancakes
            The moon winks, twice
            The parade starts late and ends never
            It was a very good day to be brave"""),
    ),
    World(
        "nature documentary", ("documentary", "nature"), ("slow-burn", "survival", "bittersweet", "based-on-letters"),
        _words("Patient Northern Tidal Wild Hidden Migrating Blue Ancient Quiet Unmapped"),
        _words("Glacier Reef Herd Wetland Canopy Tundra Pollinators Estuary Kelp Flyway"),
        _words("Skarvøy Rio-Lumen the-Ferrow-Delta Mount-Essel the-Outer-Banks-of-Lorn Tarkine-Sound"),
        _lines("""A lone ranger
            A family of beekeepers
            A diver and her camera
            A team of volunteers with binoculars
            The last ferryman
            A biologist close to retirement"""),
        _lines("""follows one pack of wolves through a year at {place}
            returns each spring to count the terns of {place}
            listens to what the ice is doing at {place}
            keeps a diary of the tides around {place}
            waits eleven months for a single flower at {place}"""),
        _lines("""The season comes three weeks early, and nothing else does
            What looks like stillness is a fight in slow motion
            A storm undoes in a night what took the colony years
            The rarest visitor arrives when the camera is being repaired
            The river changes its mind about where to run"""),
        _lines("""The count is one more than last year
            The film leaves as quietly as it came
            What remains is the sound of wings
            Nothing happens, and it is magnificent"""),
    ),
    World(
        "period romance", ("romance", "period-drama"), ("forbidden-love", "based-on-letters", "bittersweet", "second-chances"),
        _words("Unsent Winter Pressed Gloved Faithful Tender Candle Distant Summer Inked"),
        _words("Letters Governess Orangery Waltz Betrothal Miniature Sonata Heiress Portrait Promise"),
        _words("Ashcombe-Park Lindlow Villa-Serafina Castle-Ebron Wrenfield Old-Petrov"),
        _lines("""A governess with a gift for codes
            The second son of a ruined house
            A portrait painter
            A widow of twenty-six
            The music master
            An heiress disguised as her own maid"""),
        _lines("""arrives at {place} to teach a child who does not speak
            is engaged to paint the bride of {place} before the wedding
            answers letters in another's name from {place}
            has one summer at {place} to marry well or not at all
            returns to {place} after seven years at sea"""),
        _lines("""A single waltz is noticed by everyone but the dancers
            The letters go astray and are read by the one person who should not
            Duty has excellent manners and no mercy
            The rival is kinder than either of them deserves
            War is declared between the fish course and the dessert"""),
        _lines("""The last letter is opened forty years on
            They meet again on a railway platform, in the wrong hats
            She keeps the ring and sells the house
            The garden remembers both of them"""),
    ),
    World(
        "resistance", ("war", "drama"), ("survival", "bittersweet", "friendship", "revenge"),
        _words("Occupied Forged Smuggled Silent Iron Snowbound Unsigned Fourth Burning Secret"),
        _words("Radio Partisan Bridge Courier Ration Border Printer Curfew Passport Bell-Ringer"),
        _words("Varnsk Saint-Aubrac Kolmund the-Drava-Pass Lissen Montrelle"),
        _lines("""A typesetter
            A ferry nurse
            A brother on the wrong bank
            A deserter who plays the organ
            The youngest courier of the network
            A schoolteacher with a radio in her stove"""),
        _lines("""hides a wounded pilot above the bakery of {place}
            prints a newspaper under the feet of the garrison of {place}
            has nine nights to move forty children over the border at {place}
            must blow up the one beautiful bridge of {place}
            carries a message to {place} without knowing what it says"""),
        _lines("""Somebody in the cell has begun to eat better than the rest
            The officer quartered upstairs likes the same music
            Snow gives every footstep away
            The plan has room for all of them but one
            Liberation is a rumour that arrives every spring"""),
        _lines("""The bell rings once, and everyone knows
            Those who are left set a table for all
            The bridge still stands, with another name
            The war ends on a Tuesday and nobody is told"""),
    ),
)  # fmt: skip

SUBTITLES = (
    "The Return",
    "A New Chapter",
    "Homecoming",
    "The Reckoning",
    "Another Summer",
    "The Long Way Back",
)
NUMERALS = ("II", "III", "IV")

FIRST_NAMES = _words("""
    ada bao carla dmitri elif farid greta hana ivo jonas kemi leila marek nadia omar pilar quentin rosa sami tove
    uma viktor wanda ximena yusuf zofia anouk bruno chidi dora emre freya goran hilda ines jamal kaito linnea mateo
    noor otto priya rafael sunniva teo ursula vera wim yara zeno amara benno celia dario esther
""")
LAST_NAMES = _words("""
    lind okoro moreau tanaka novak silva haddad berg costa petrov quist rahman sato thorne ueda varga weiss yilmaz
    zapata adler brandt castell duarte eriksen falk grau holm ibarra jansen keller lowe mbeki nyman ortega park
    rossi strand toth ullman vance wolff abara birk calder dunne
""")
COUNTRIES = _words("Norway Brazil Japan Germany Nigeria Turkey Spain India Poland Canada Portugal Mexico")
AGE_GROUPS = ("under 18", "18-24", "25-34", "35-44", "45-54", "55+")

HABITS = _lines("""
    watches with two kids on Sundays
    prefers films under two hours
    always watches with subtitles
    never finishes a film after midnight
    likes to watch a series of films in order
    goes to the cinema alone on Tuesdays
    hosts a film night for friends every other Friday
    watches on the train to work
    avoids films in which the dog dies
    reads reviews only afterwards
    rates a film the morning after
    is learning Spanish and likes to hear it spoken
    cannot stand jump scares
    prefers older films in black and white
    watches with an elderly father who likes a clear plot
    keeps a paper notebook of every film seen
    falls asleep during long battles
    likes films with little dialogue
    looks for films that a teenager would sit through
    rewatches favourites every winter
""")
