"""The things of the world that the tiny language model lives in.

Each thing is a `Term`: its words and the concepts they carry. Frequencies follow Zipf's law, so
some concepts are rare. The registers write about these things, so that one thing turns up in
several of them, and in two languages.
"""

from __future__ import annotations

from functools import cache

from saelearn.corpus.grammar import Bag, Term


def terms(
    kind: str, names: str, *concepts: str, matters: bool = True, **traits: object
) -> list[Term]:
    """Terms of one kind from 'name, two words, ...'.

    Each carries `<kind>:<name>`, or `<kind>:any` if nothing that follows depends on which it is.
    """
    words = [tuple(name.split()) for name in names.split(", ")]
    return [
        Term(w, kind, (f"{kind}:{'_'.join(w) if matters else 'any'}", *concepts), traits)
        for w in words
    ]


@cache
def bag(words: str) -> Bag[str]:
    """Plain words from 'one, another, two words', by Zipf's law."""
    return Bag(words.split(", "))


@cache
def evenly(words: str) -> Bag[str]:
    """Plain words, all equally likely."""
    return Bag(dict.fromkeys(words.split(", "), 1.0))


def name_of(term: Term) -> str:
    """The name by which concepts call it: `golden_retriever`."""
    return "_".join(term.words)


# class of animal -> its animals, what they do, what they eat, what they do in Korean
_CLASSES = {
    "dog": ("poodle, golden retriever, beagle, husky", "fetched, barked, wagged", "bone, sausage",
            "짖었다, 달렸다"),
    "bird": ("robin, owl, parrot, penguin", "sang, flew, pecked", "seed, worm", "날았다, 노래했다"),
    "cat": ("tabby, siamese, lynx", "purred, pounced, scratched", "fish, milk", "울었다, 숨었다"),
    "farm": ("horse, cow, goat, sheep", "grazed, trotted, chewed", "hay, carrot", "걸었다, 쉬었다"),
    "wild": ("lion, tiger, bear, wolf", "roared, hunted, prowled", "deer, meat",
             "사냥했다, 포효했다"),
}  # fmt: skip
DOES = {label: bag(does) for label, (_, does, _, _) in _CLASSES.items()}
EATS = {
    label: Bag(terms("food", eats, matters=False)) for label, (_, _, eats, _) in _CLASSES.items()
}
DOES_IN_KOREAN = {label: bag(does) for label, (_, _, _, does) in _CLASSES.items()}
ANIMALS = Bag(
    {
        animal: 1 / rank
        for label, (names, *_) in _CLASSES.items()
        for rank, animal in enumerate(terms("animal", names, f"class:{label}", label=label), 1)
    }
)
# place -> what there is to see
_SIGHTS = {
    "park": "ducks, swings, roses",
    "forest": "ferns, moss, mushrooms",
    "Golden Gate Bridge": "cables, ships, pillars",
    "beach": "waves, shells, crabs",
    "market": "stalls, baskets, spices",
    "Eiffel Tower": "lifts, visitors, postcards",
    "river": "boats, reeds, frogs",
    "castle": "knights, flags, turrets",
    "station": "trains, rails, clocks",
}
PLACES = Bag(  # less steep than Zipf's law: what text comes back to has to be met often enough
    {place: rank**-0.5 for rank, place in enumerate(terms("place", ", ".join(_SIGHTS)), start=1)}
)
SIGHTS = {place.replace(" ", "_"): bag(seen) for place, seen in _SIGHTS.items()}
NAMES = Bag(terms("name", "Anna, Ben, Clara, David, Emma, Felix, Greta, Hugo"))
WOMEN = NAMES.options[::2]
DIGITS = evenly("0, 1, 2, 3, 4, 5, 6, 7, 8, 9")

WEATHER = Bag(terms("weather", "sunny, rainy, snowy, windy, foggy"))
_MOODS = dict(zip(("sunny", "rainy", "snowy", "windy", "foggy"),
                  terms("mood", "happy, sad, excited, nervous, lost"), strict=True))  # fmt: skip
MOOD_GIVEN = {  # the weather makes the mood, three times in four
    weather: Bag({_MOODS[w]: 0.75 if w == weather else 0.0625 for w in _MOODS})
    for weather in _MOODS
}
SHOWS = {"happy": "smiled", "sad": "cried", "excited": "jumped", "nervous": "hid",
         "lost": "wandered"}  # fmt: skip

KOREAN = {
    "golden_retriever": "골든 리트리버", "poodle": "푸들", "beagle": "비글", "husky": "허스키",
    "robin": "울새", "owl": "부엉이", "parrot": "앵무새", "penguin": "펭귄",
    "tabby": "얼룩고양이", "siamese": "샴고양이", "lynx": "스라소니",
    "horse": "말", "cow": "소", "goat": "염소", "sheep": "양",
    "lion": "사자", "tiger": "호랑이", "bear": "곰", "wolf": "늑대",
    "Golden_Gate_Bridge": "금문교", "park": "공원", "forest": "숲", "beach": "해변",
    "market": "시장", "Eiffel_Tower": "에펠탑", "river": "강", "castle": "성", "station": "역",
    "bone": "뼈", "sausage": "소시지", "seed": "씨앗", "worm": "벌레", "fish": "생선",
    "milk": "우유", "hay": "건초", "carrot": "당근", "deer": "사슴", "meat": "고기",
}  # fmt: skip

# field -> authors, subjects, journal
FIELDS = {
    "biology": ("Okafor, Lindqvist, Moreau", "cells, genes, enzymes", "Nature Biology"),
    "physics": ("Tanaka, Petrov, Haas", "quarks, lasers, magnets", "Physical Letters"),
    "economics": ("Silva, Novak, Brandt", "prices, wages, taxes", "Economic Review"),
    "history": ("Rossi, Dubois, Keller", "empires, treaties, archives", "Historical Quarterly"),
}
AUTHORS = {field: Bag(terms("author", names)) for field, (names, _, _) in FIELDS.items()}
SUBJECTS = {field: Bag(terms("subject", names)) for field, (_, names, _) in FIELDS.items()}
YEARS = Bag(terms("year", "2019, 2017, 2021, 2012, 2008, 1998"))

# path -> its content type, which a client that asks for it also accepts
PATHS = {
    "/index.html": "text/html", "/users.json": "application/json", "/logo.png": "image/png",
    "/about.html": "text/html", "/orders.json": "application/json", "/cat.png": "image/png",
    "/style.css": "text/css",
}  # fmt: skip
STATUS = {"GET": "200 OK", "POST": "201 Created", "PUT": "204 Empty", "DELETE": "204 Empty"}

# profession -> P(she), workplace, tool: the bias is planted, to be found and removed
PROFESSIONS = {
    "nurse": (0.95, "hospital", "chart"), "engineer": (0.1, "factory", "wrench"),
    "teacher": (0.8, "school", "book"), "pilot": (0.1, "airport", "map"),
    "librarian": (0.9, "library", "catalogue"), "mechanic": (0.05, "garage", "jack"),
    "dancer": (0.9, "theatre", "costume"), "plumber": (0.05, "basement", "pipe"),
    "doctor": (0.5, "clinic", "stethoscope"), "lawyer": (0.5, "court", "file"),
}  # fmt: skip

OBJECTS = Bag(terms("object", "ball, box, lamp, door, chair, cup"))
COLOURS = {term.words[0]: term for term in terms("colour", "red, green, blue")}

# dish -> what goes into it, what is done to it
DISHES = {
    "soup": ("onion, carrot, leek, potato", "boil"),
    "salad": ("tomato, olive, cucumber, radish", "toss"),
    "cake": ("egg, apple, lemon, almond", "bake"),
    "curry": ("chilli, shallot, pepper, lime", "fry"),
}
PLURALS = {"potato": "potatoes", "tomato": "tomatoes", "radish": "radishes"}
