"""The training pictures: Noto Color Emoji rendered on white, captioned with their names."""

import functools
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

DEFAULT_FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
PICTURE_SIZE = 128

_STRIKE_SIZE = 109  # the one bitmap size in the font, in PIL's units
_GLYPH_SIZE = (136, 128)
_CODE_POINTS = (range(0x2190, 0x3300), range(0x1F000, 0x1FB00))

# The pictures that the denoisers learn: distinct things that people would type.
_PROMPTED_GLYPHS = (
    "🍎🍏🍐🍊🍋🍌🍉🍇🍓🫐🍒🍑🥭🍍🥥🥝🍅🥑🍆🥦🥒🌽🥕🧅🥔🍄🥜"
    "🍞🥐🥖🥨🥞🧇🧀🍖🍗🥓🍔🍟🍕🌭🥪🌮🌯🥚🍳🥗🍿🍙🍝🍣🍤🍦🍩🍪🎂🍰🧁🍫🍬🍭🍯☕🍷🍸🍹🍺🥛"
    "🐶🐱🐭🐹🐰🦊🐻🐼🐨🐯🦁🐮🐷🐸🐵🐔🐧🐦🐤🦆🦅🦉🦇🐺🐴🦄🐝🐛🦋🐌🐞🐜🦂🐢🐍🦎🐙🦑🦐🦀🐡🐟🐬🐳"
    "🦈🐊🐘🐪🦒🐑🐐🦌🐓🦃🦩🦜🦔🐿🦕🦖🐉"
    "🌵🎄🌲🌴🌱🍀🍁🌷🌹🌻🌼💐"
    "🌞🌙⭐☁🌈⚡❄⛄🔥💧🌊☂🌍🌋🪐"
    "😀😂😍😎😭😡😱😴🤡👻💀👽🤖🎃💩🤠🤢🥶"
    "💙💚💛💜💔👍👎✋👀👂👃👄🧠🦷🦴"
    "🚗🚕🚙🚌🏎🚓🚑🚒🚜🚲🛵✈🚀🛸🚁⛵🚢🚂⚓🚦🛹"
    "⚽🏀🏈⚾🎾🏐🎱🏓🥊🎣🎯🎳🏆🥇"
    "⌚📱💻📷📺🔑🔒🔔💡📖✂📌🔨🔧💣🎈🎁👑💎👗👕👖👟👠🎒🎩🧢🧤🧦👓"
    "🎸🎹🥁🎺🎻🎤🎧🎨🎲🧸🚪🛒🧲⏰⌛🔭🔬💊💉🧹📦"
    "🏠🏰⛺🗽⛲🎡"
)

# What people say where the Unicode name is not it.
_COMMON_NAMES = {
    "aubergine": "eggplant",
    "ear of maize": "corn",
    "hamburger": "burger",
    "kiwifruit": "kiwi",
    "cheese wedge": "cheese",
    "doughnut": "donut",
    "wine glass": "red wine",
    "beer mug": "beer",
    "honeybee": "bee",
    "meat on bone": "meat",
    "poultry leg": "chicken leg",
    "slice of pizza": "pizza",
    "baguette bread": "baguette",
    "cooking": "fried egg",
    "green salad": "salad",
    "soft ice cream": "ice cream",
    "honey pot": "honey",
    "hot beverage": "hot coffee",
    "glass of milk": "milk",
    "cocktail glass": "cocktail",
    "lady beetle": "ladybug",
    "spouting whale": "whale",
    "dromedary camel": "camel",
    "giraffe face": "giraffe",
    "unicorn face": "unicorn",
    "sauropod": "long neck dinosaur",
    "t-rex": "t-rex dinosaur",
    "evergreen tree": "pine tree",
    "four leaf clover": "clover",
    "blossom": "daisy",
    "sun with face": "sun",
    "crescent moon": "moon",
    "white medium star": "yellow star",
    "high voltage sign": "lightning",
    "snowman without snow": "snowman",
    "droplet": "water drop",
    "water wave": "wave",
    "earth globe europe-africa": "earth globe",
    "ringed planet": "planet saturn",
    "face with tears of joy": "laughing face",
    "smiling face with heart-shaped eyes": "love face",
    "smiling face with sunglasses": "cool face",
    "loudly crying face": "crying face",
    "pouting face": "angry face",
    "face screaming in fear": "scared face",
    "extraterrestrial alien": "alien",
    "jack-o-lantern": "pumpkin",
    "pile of poo": "poop",
    "face with cowboy hat": "cowboy face",
    "nauseated face": "sick face",
    "thumbs up sign": "thumbs up",
    "thumbs down sign": "thumbs down",
    "raised hand": "hand",
    "automobile": "red car",
    "recreational vehicle": "blue car",
    "fire engine": "fire truck",
    "motor scooter": "scooter",
    "flying saucer": "ufo",
    "steam locomotive": "train",
    "vertical traffic light": "traffic light",
    "basketball and hoop": "basketball",
    "tennis racquet and ball": "tennis ball",
    "billiards": "billiard ball",
    "table tennis paddle and ball": "table tennis",
    "fishing pole and fish": "fishing rod",
    "direct hit": "target",
    "first place medal": "gold medal",
    "mobile phone": "phone",
    "personal computer": "laptop",
    "electric light bulb": "light bulb",
    "black scissors": "scissors",
    "pushpin": "red pin",
    "wrapped present": "gift",
    "gem stone": "diamond",
    "athletic shoe": "running shoe",
    "high-heeled shoe": "high heel",
    "school satchel": "backpack",
    "billed cap": "cap",
    "eyeglasses": "glasses",
    "musical keyboard": "piano",
    "drum with drumsticks": "drum",
    "artist palette": "palette",
    "game die": "dice",
    "headphone": "headphones",
    "shopping trolley": "shopping cart",
    "house building": "house",
    "european castle": "castle",
}

# Last words that name a kind, not a thing.
_GENERIC_WORDS = {"face", "up", "down", "leg", "ball", "bar", "light", "cream", "wheel", "heel", "drop"}


@dataclass(frozen=True)
class Picture:
    """A glyph and the captions under which it is learnt; the first is its prompt."""

    glyph: str
    captions: tuple[str, ...]

    @property
    def prompt(self) -> str:
        return self.captions[0]


def render(glyph: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """Draw one emoji on a white square of PICTURE_SIZE."""
    width, height = _GLYPH_SIZE
    canvas = Image.new("RGB", (width, width), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((0, (width - height) // 2), glyph, font=font, embedded_color=True)
    return canvas.resize((PICTURE_SIZE, PICTURE_SIZE), Image.Resampling.LANCZOS)


def load_font(path: Path) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(path), _STRIKE_SIZE)


def all_glyphs(font: ImageFont.FreeTypeFont) -> list[str]:
    """Every emoji of a single code point that the font can draw."""
    named = (chr(code) for codes in _CODE_POINTS for code in codes if unicodedata.name(chr(code), ""))
    return [glyph for glyph in named if min(render(glyph, font).convert("L").tobytes()) < 250]


def _with_article(name: str) -> str:
    plural = name.endswith("s") and not name.endswith(("ss", "us"))
    if plural:
        return name
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _short_name(name: str) -> str | None:
    """A shorter way to say a name, e.g. 'apple' for 'red apple' and 'cat' for 'cat face'."""
    words = name.split()
    if len(words) != 2:
        return None
    if words[1] == "face":
        return words[0]
    return None if words[1] in _GENERIC_WORDS else words[1]


@functools.cache
def prompted_pictures() -> tuple[Picture, ...]:
    """The pictures of the denoisers. A short name belongs to the first picture that claims it."""
    names: dict[str, list[str]] = {}
    for glyph in _PROMPTED_GLYPHS:
        unicode_name = unicodedata.name(glyph).lower()
        common = _COMMON_NAMES.get(unicode_name, unicode_name)
        names[glyph] = list(dict.fromkeys((common, unicode_name)))
    taken = {name for own in names.values() for name in own}
    faces_first = sorted(names.values(), key=lambda own: not own[0].endswith(" face"))
    for own in faces_first:
        short = _short_name(own[0])
        if short is not None and short not in taken:
            taken.add(short)
            own.append(short)
    return tuple(Picture(glyph, _captions(own)) for glyph, own in names.items())


def _captions(names: list[str]) -> tuple[str, ...]:
    forms: list[str] = []
    for name in names:
        article = _with_article(name)
        forms += [name, article, f"a picture of {article}", f"an emoji of {article}", f"{name} emoji"]
    return tuple(dict.fromkeys(forms))
