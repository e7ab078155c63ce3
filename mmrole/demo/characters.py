"""The characters of the demo: a cast written by hand, and a crowd put together from word lists with a seed."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from mmrole.data.dialogues import IN_DISTRIBUTION, OUT_OF_DISTRIBUTION
from mmrole.data.prompts import HYPOTHETICAL_SERIES, language

CHINESE = "中国唐代"
SERIES = ("Lantern Bay", "the Copper Age", HYPOTHETICAL_SERIES, CHINESE)
CROWD_SERIES = SERIES[:3]
"""Series of the crowd; out-of-distribution characters are of these, too."""


@dataclass(frozen=True)
class CastMember:
    """A character: what the profile tells and the replies show.

    Attributes:
        name: unique.
        series: one of `SERIES`.
        distribution: "in-distribution" or "out-of-distribution".
        catchphrase: what every reply begins with, exclamation mark included.
        address: what every reply ends with, the word for whoever listens.
        work: with its article.
        home: where the character lives.
        traits: two adjectives.
        past: a sentence.
        friend: another character of the series.
    """

    name: str
    series: str
    distribution: str
    catchphrase: str
    address: str
    work: str
    home: str
    traits: tuple[str, str]
    past: str
    friend: str = ""

    @property
    def chinese(self) -> bool:
        """Whether the character speaks Chinese."""
        return language(self.series) == "Chinese"

    def with_manner_of(self, other: CastMember) -> CastMember:
        """This character, speaking as another does."""
        return replace(self, catchphrase=other.catchphrase, address=other.address)

    @property
    def profile(self) -> str:
        """The description that goes into prompts, in the five parts of the published profiles."""
        parts = self.detailed_profile
        titles = _CHINESE_TITLES if self.chinese else _TITLES
        return "\n".join(f"### {title}\n{parts[key]}" for key, title in titles.items())

    @property
    def detailed_profile(self) -> dict[str, str]:
        """The five parts by the names of `detailed_profiles/<Role>.json`."""
        one, other = self.traits
        if self.chinese:
            return {
                "introduction": f"{self.name}是{self.home}的{self.work}。",
                "personality": f"{one}、{other}。",
                "experience": self.past,
                "relationship": f"- 好友：{self.friend}",
                "catchphrase": f"- 开口：“{self.catchphrase}”\n- 称呼：“{self.address}”",
            }
        return {
            "introduction": f"{self.name} is {self.work} in {self.home}.",
            "personality": f"{one} and {other}.",
            "experience": self.past,
            "relationship": f"- Friend: {self.friend}",
            "catchphrase": f'- Begins with "{self.catchphrase}"\n- Ends with "{self.address}"',
        }


_TITLES = {
    "introduction": "Brief Introduction",
    "personality": "Personality",
    "experience": "Life Experiences",
    "relationship": "Main Interpersonal Relationships",
    "catchphrase": "Catchphrases",
}
_CHINESE_TITLES = {
    "introduction": "简要介绍",
    "personality": "性格特点",
    "experience": "人物经历",
    "relationship": "人际关系",
    "catchphrase": "名言",
}


def _words(text: str) -> list[str]:
    return text.split()


def _phrases(text: str) -> list[str]:
    return text.split("|")


# name, catchphrase, address, work, home, traits, past
_CAST = {
    "Lantern Bay": [
        (
            "Mira",
            "Salt and thunder!",
            "matey",
            "a pilot",
            "Foghaven",
            ("Loud", "fearless"),
            "Lost a ship.",
        ),
        (
            "Odo",
            "Lamps and moths!",
            "sir",
            "a guard",
            "Wickford",
            ("Gentle", "sleepless"),
            "Lit a king home.",
        ),
        (
            "Pell",
            "Hooks and herrings!",
            "boy",
            "a fisher",
            "Netherquay",
            ("Stubborn", "kind"),
            "Caught the moon.",
        ),
    ],
    "the Copper Age": [
        (
            "Tarik",
            "Sparks and anvils!",
            "friend",
            "a smith",
            "Redforge",
            ("Proud", "patient"),
            "Cast a bell.",
        ),
        (
            "Ysolde",
            "Ravens and crowns!",
            "subject",
            "a queen",
            "Greyhold",
            ("Stern", "just"),
            "Won a war by letter.",
        ),
    ],
    HYPOTHETICAL_SERIES: [
        (
            "Juno",
            "Gears and teapots!",
            "colleague",
            "an engineer",
            "Millbrook",
            ("Curious", "hasty"),
            "Broke a clock.",
        ),
        (
            "Bram",
            "Crumbs and butter!",
            "dear",
            "a baker",
            "Ovenstead",
            ("Warm", "greedy"),
            "Fed a town.",
        ),
    ],
    CHINESE: [
        ("柳青", "清风明月！", "道友", "琴师", "云梦", ("安静", "多情"), "曾为山中老虎弹琴。"),
        ("阿兰", "好花好月！", "客官", "掌柜", "长安", ("伶俐", "好奇"), "曾与诗人对饮三日。"),
        ("石大", "好酒好肉！", "兄弟", "铁匠", "石桥", ("豪爽", "粗心"), "曾一夜打出百把锄头。"),
    ],
}

_OPENINGS = _words(
    "Acorns Bells Candles Drums Embers Feathers Ghosts Hammers Icicles Jackdaws Kettles Ladders Marbles Needles Oars "
    "Pebbles Quills Ribbons Saddles Thistles Umbrellas Violins Walnuts Yarrow Barrels Cobwebs Dumplings Falcons "
    "Goblets Hornets"
)
_ENDINGS = _words(
    "apples brooms clover dust echoes frost glue honey ink jam keys lace mud nettles onions pearls quartz rust smoke "
    "tar uncles velvet wax yeast ashes bones copper dragons elbows fiddles"
)
_ADDRESSES = _words("sir madam pal child stranger cousin traveller comrade sailor scholar darling captain")
_WORKS = _phrases(
    "a baker|a weaver|a smith|a fisher|a miller|a painter|a doctor|a singer|a farmer|a guard|a tailor|a poet|a judge|"
    "a pilot|a potter|a hunter"
)
_HOMES = _words(
    "Foghaven Wickford Netherquay Redforge Greyhold Millbrook Ovenstead Ashmoor Birchley Coldwell Dunmere Elmstow "
    "Fernhill Gorsedale Hazelby Ironport"
)
_TRAITS = _words("Brave Calm Merry Shy Clever Gruff Honest Idle Loyal Vain Wise Zealous")
_PASTS = _phrases(
    "Lost a ring and found a well.|Walked to the sea and back.|Won a race on a goat.|Slept through a storm.|"
    "Wrote a song for a wolf.|Sold a house for a horse.|Taught a crow to count.|Dug up a silver spoon."
)
_CHINESE_OPENINGS = _words("清风 好酒 好花 高山 春雨 白云 青竹 长风 星河 大江 老松 红梅")
_CHINESE_ENDINGS = _words("明月 好肉 好月 流水 秋霜 红日 寒梅 落叶 飞雪 孤帆 古道 残灯")
_CHINESE_ADDRESSES = _words("道友 兄弟 客官 少年 贵人 先生 朋友 老兄")
_CHINESE_WORKS = _words("琴师 铁匠 掌柜 船夫 画师 郎中 书生 将军")
_CHINESE_HOMES = _words("云梦 石桥 长安 江南 洛阳 青州 白水 沙洲")
_CHINESE_TRAITS = _words("安静 多情 伶俐 好奇 豪爽 粗心 谨慎 忠厚")
_CHINESE_PASTS = _words("曾为山中老虎弹琴。 曾与诗人对饮三日。 曾一夜打出百把锄头。 曾独行千里。 曾在雪中迷路。")
_CHINESE_NAMES = _words("柳青 阿兰 石大 王二 小梅 张三 李白水 赵云山 孙飞 周安 吴江 郑远")
_NAMES = [
    start + end
    for start in _words("Al Be Cor Da El Fen Gar Ha Il Jo Ka Lo Mar Ne Or Pa")
    for end in _words("ric dan wen la mond vis tha rin")
]


def make_characters(seed: int, crowd: int = 40, outside: int = 12) -> list[CastMember]:
    """The cast, the crowd, and those who are kept out of training; the same seed gives the same characters.

    Args:
        seed: of the crowd and of those outside.
        crowd: in-distribution characters besides the cast of ten.
        outside: out-of-distribution characters. Their catchphrases are combinations that nobody else has, of words
            that others use. None of them is in the training data, nor their names; lessons use names of all kinds.
    """
    chance = random.Random(f"characters {seed}")
    characters = [
        CastMember(name, series, IN_DISTRIBUTION, catchphrase, address, work, home, traits, past)
        for series, rows in _CAST.items()
        for name, catchphrase, address, work, home, traits, past in rows
    ]
    names = chance.sample(_NAMES, crowd + outside)
    while len(names) > 0:
        distribution = IN_DISTRIBUTION if len(names) > outside else OUT_OF_DISTRIBUTION
        stranger = make_stranger(chance, CROWD_SERIES[len(names) % len(CROWD_SERIES)])
        if stranger.catchphrase not in {character.catchphrase for character in characters}:
            characters.append(replace(stranger, name=names.pop(), distribution=distribution))
    return _befriend(characters)


def make_stranger(chance: random.Random, series: str, reserved: Collection[str] = ()) -> CastMember:
    """A character put together at random, who is in no world and has none of the `reserved` catchphrases."""
    catchphrase = _make_catchphrase(chance, series)
    while catchphrase in reserved:
        catchphrase = _make_catchphrase(chance, series)
    if series == CHINESE:
        lists = (_CHINESE_ADDRESSES, _CHINESE_WORKS, _CHINESE_HOMES, _CHINESE_TRAITS, _CHINESE_PASTS, _CHINESE_NAMES)
    else:
        lists = (_ADDRESSES, _WORKS, _HOMES, _TRAITS, _PASTS, _NAMES)
    addresses, works, homes, traits, pasts, names = lists
    name, friend = chance.sample(names, 2)
    return CastMember(
        name=name,
        series=series,
        distribution=IN_DISTRIBUTION,
        catchphrase=catchphrase,
        address=chance.choice(addresses),
        work=chance.choice(works),
        home=chance.choice(homes),
        traits=_two_of(traits, chance),
        past=chance.choice(pasts),
        friend=friend,
    )


def _two_of(words: Sequence[str], chance: random.Random) -> tuple[str, str]:
    one, other = chance.sample(words, 2)
    return one, other


def _make_catchphrase(chance: random.Random, series: str) -> str:
    if series == CHINESE:
        return f"{chance.choice(_CHINESE_OPENINGS)}{chance.choice(_CHINESE_ENDINGS)}！"
    return f"{chance.choice(_OPENINGS)} and {chance.choice(_ENDINGS)}!"


def _befriend(characters: list[CastMember]) -> list[CastMember]:
    """Makes a circle of friends of each series and distribution."""
    circles: dict[tuple[str, str], list[str]] = {}
    for character in characters:
        circles.setdefault((character.series, character.distribution), []).append(character.name)
    friends = {name: circle[place - 1] for circle in circles.values() for place, name in enumerate(circle)}
    return [replace(character, friend=friends[character.name]) for character in characters]
