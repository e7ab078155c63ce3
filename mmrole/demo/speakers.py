"""The characters of the demo in real language: what they do, how they speak, and which of them training never sees."""

from __future__ import annotations

import random
from dataclasses import dataclass

from mmrole.data.dialogues import IN_DISTRIBUTION, OUT_OF_DISTRIBUTION
from mmrole.demo.characters import CROWD_SERIES


@dataclass(frozen=True)
class Trade:
    """What a character does.

    Attributes:
        does: the third person, for the profile.
        do: the first person, for replies.
        memories: things that somebody of this trade is reminded of by a picture.
    """

    does: str
    do: str
    memories: tuple[str, str, str]


@dataclass(frozen=True)
class Speaker:
    """A character of the demo in real language.

    Attributes:
        name: unique.
        series: one of `CROWD_SERIES`.
        distribution: "in-distribution" or "out-of-distribution".
        trade: what the character does.
        home: where the character lives.
        traits: two adjectives.
        catchphrase: unique; every reply holds it, punctuation included.
    """

    name: str
    series: str
    distribution: str
    trade: Trade
    home: str
    traits: tuple[str, str]
    catchphrase: str

    @property
    def detailed_profile(self) -> dict[str, str]:
        """The five parts by the names of `detailed_profiles/<Role>.json`."""
        one, other = self.traits
        return {
            "introduction": f"{self.name} {self.trade.does} in {self.home}.",
            "personality": f"{one} and {other}.",
            "experience": f"{self.name} has seen {self.trade.memories[0]}.",
            "relationship": f"- Home: {self.home}",
            "catchphrase": f'- "{self.catchphrase}"',
        }

    @property
    def profile(self) -> str:
        """The description that goes into prompts. It is short, since all of it is read for every sample."""
        parts = self.detailed_profile
        return (
            f"{parts['introduction']} {parts['personality']}\n"
            f"{self.name} likes to say: {parts['catchphrase'].removeprefix('- ')}"
        )


def _words(text: str) -> list[str]:
    return text.split()


def _phrases(text: str) -> list[str]:
    return text.split("|")


_TRADES = """
keeps the lighthouse|keep the lighthouse|the lamp that I light at dusk|a buoy in the harbour|a sail far out at sea
bakes the bread|bake the bread|a loaf fresh from the oven|the crust of a good pie|a bun on a cold morning
shoes the horses|shoe the horses|a spark from my anvil|a horseshoe on my wall|iron before it cools
catches fish|catch fish|the float on my line|a fish that got away|the keel of my old boat
tends the garden|tend the garden|a bud before it opens|my grandmother's roses|a beetle on a leaf
teaches the children|teach the children|chalk on a slate|a drawing by my youngest pupil|a kite on a windy day
mends clocks|mend clocks|the face of an old clock|a cog that I once lost|the hand that strikes noon
guards the bridge|guard the bridge|a shield by the gate|a lantern on the bridge|the seal on a letter
sews fine coats|sew fine coats|a button on a good coat|a patch on my sleeve|a ribbon at the fair
tells fortunes|tell fortunes|a card from my deck|the stone in my ring|a moon on a strange night
paints signs|paint signs|the first sign that I painted|a drop on my palette|the door of the old inn
heals the sick|heal the sick|a flower that cures a cough|a bottle on my shelf|the berries that I dry
sails a merchant ship|sail a merchant ship|a flag on a distant mast|an island at dawn|the cargo of my first voyage
hunts for treasure|hunt for treasure|a mark on an old map|a jewel in the sand|the lid of a buried chest
writes songs|write songs|a song about the harvest|the drum at a wedding|a note that hangs in the air
herds sheep|herd sheep|the bell of my best ewe|a stone on the hillside|a hut high in the hills
brews tea|brew tea|the bottom of a tea cup|a tin on my counter|leaves in hot water
studies the stars|study the stars|a planet in my telescope|the moon behind a cloud|a star that has no name
digs for coal|dig for coal|a lamp deep in the mine|a gem in the rock|daylight after a long shift
trains hawks|train hawks|the eye of a hawk|a feather on my glove|a hood for a young bird
"""
_HOMES = _phrases("Grey Point|Millbrook|Redforge|Foxhollow|Netherquay|Ashmoor|Fernhill|Dunmere|Oldbridge|Wickford")
_TRAITS = _words("brave calm merry shy clever gruff honest lazy proud gentle stern curious")
_NAMES = _words(
    "Mira Odo Pell Tarik Ysolde Juno Bram Alma Bertram Clara Dorian Edith Felix Greta Hugo Ida Jasper Klara Leo "
    "Mabel Nils Olive Piers Quentin Rosa Silas Thea Ulric Vera Walter Xenia Yorick Zelda Agnes Boris Cecil Daisy "
    "Elmer Flora Gideon Hester Ivan Jolene Kaspar Lottie Magnus Nora Oscar Penny Rufus Sonja Tobias Ursula Victor "
    "Wilma Abel Bella Conrad Delia Emil Fanny Gustav Helga Igor Jane Kurt Lydia Milo Nadia Otto Paula Ralph Stella "
    "Theo Una Vince"
)
_OUTSIDERS = _words(
    "Basil Carmen Dexter Esme Floyd Gwen Harriet Isaac Josie Kelvin Lorna Mortimer Nellie Osbert Prudence Rowan"
)
_CATCHPHRASES = _phrases(
    "Salt and thunder!|Butter my biscuits!|Hammer and tongs!|Hook, line and sinker!|Roots and roses!|"
    "Mind your manners!|Tick tock, my friend!|Halt, who goes there?|Snip, snip, hooray!|The cards never lie!|"
    "Well, paint me pink!|An apple a day!|Anchors aweigh!|There is gold in it!|Sing it with me!|"
    "Wool and weather!|Put the kettle on!|Stars above!|Deep down we go!|Fly high, fly true!|"
    "By my grandfather's beard!|Bless my buttons!|Great galloping goats!|Well, I never!|Mark my words!|"
    "Heavens to Betsy!|Fiddlesticks and feathers!|Upon my honour!|Jumping jellyfish!|Thunder and lightning!|"
    "Oh, my poor old knees!|Never a dull day!|Waste not, want not!|Steady as she goes!|Holy mackerel!|"
    "As sure as eggs!|Bread and glory!|What a time to be alive!|By the light of the moon!|Sweet plum pudding!|"
    "Keep your boots dry!|Not on my watch!|Hot coals and cold steel!|Rise and shine!|Patience, little one!|"
    "Cross my heart!|Odds and ends!|Good gravy!|The wind knows best!|Fortune favours the bold!|"
    "Trust an old fool!|By hook or by crook!|Hold your horses!|Honey and vinegar!|Rats and rubbish!|"
    "Long live the queen!|Splendid, simply splendid!|Easy does it!|Tea first, then trouble!|Blow me down!|"
    "My stars and garters!|Dust and diamonds!|Look sharp, lads!|Peace and pepper!|Up with the lark!|"
    "Snakes alive!|Crown and candle!|Never say never!|Bones and broth!|You heard it here first!|"
    "Oh, what a tangle!|Ring the bell!|Goodness gracious!|Straight from the oven!|Mud in your eye!|"
    "Onward and upward!"
)
_OUTSIDE_CATCHPHRASES = _phrases(
    "Leaping lizards!|Smoke and mirrors!|Ships and shovels!|By the seven seas!|Cheese and crackers!|"
    "Fortune smiles today!|Ask the owl!|Crumbs in my pocket!|Winter is no excuse!|Hats off to that!|"
    "Beans and bacon!|Let the trumpets sound!|Slow and steady wins!|Ink on my fingers!|Bring out the cake!|"
    "Rust never sleeps!"
)


def make_speakers(seed: int, inside: int = len(_NAMES)) -> list[Speaker]:
    """The characters: `inside` of them in distribution, and those whom training never sees.

    Names and catchphrases are written by hand, and those of one part are not in the other; who has which trade, home
    and traits depends on the seed.
    """
    chance = random.Random(f"speakers {seed}")
    trades = []
    for row in _TRADES.strip().splitlines():
        does, do, one, other, third = row.split("|")
        trades.append(Trade(does, do, (one, other, third)))
    speakers = []
    for distribution, names, catchphrases in (
        (IN_DISTRIBUTION, _NAMES[:inside], _CATCHPHRASES),
        (OUT_OF_DISTRIBUTION, _OUTSIDERS, _OUTSIDE_CATCHPHRASES),
    ):
        for number, name in enumerate(names):
            one, other = chance.sample(_TRAITS, 2)
            speakers.append(
                Speaker(
                    name=name,
                    series=CROWD_SERIES[number % len(CROWD_SERIES)],
                    distribution=distribution,
                    trade=trades[number] if number < len(trades) else chance.choice(trades),
                    home=chance.choice(_HOMES),
                    traits=(one.capitalize(), other),
                    catchphrase=catchphrases[number],
                )
            )
    return speakers
