"""Twelve ways of writing about the world.

A register is a function that writes one segment with a `Writer`. To add one, write the function
and give it a weight: `REGISTERS[mine] = 0.05`, or, without touching the course's own corpus,
`corpus.documents(100, mix=Bag(REGISTERS | {mine: 0.05}))`. data/README.md has an example. Three
rules. Begin with a word that no other register begins with. Give a concept to a token where it
helps to predict the next one (`recall` and `knowing` do that), since nothing else makes a model
represent it there. And make every choice right before the word that reveals it, or the entropy
bound would be too high: what is chosen and never told (because the document ends) still counts
as surprise.
"""

from __future__ import annotations

from collections.abc import Callable

from saelearn.corpus import world
from saelearn.corpus.formal import arithmetic, citation, code, http, recipe
from saelearn.corpus.grammar import Bag, Term, Writer
from saelearn.corpus.world import bag, evenly, name_of, terms

MIXED = 0.15  # of the English stories' nouns are Korean words


def _in_korean(term: Term) -> Term:
    return Term(tuple(world.KOREAN[name_of(term)].split()), term.kind, term.concepts)


def _name(w: Writer, term: Term) -> None:
    """Name a thing in English or, now and then, in Korean: what follows is the same."""
    w.say(_in_korean(term) if w.flip(MIXED) else term)


def story(w: Writer) -> None:
    """A little story about one animal; what it does, eats and feels depends on what came before."""
    w.say("one")
    weather = w.pick(world.WEATHER)
    w.say(weather, "day the")
    hero = w.pick(world.ANIMALS)
    _name(w, hero)
    w.say("went to the")
    place = w.pick(world.PLACES)
    _name(w, place)
    w.say(".")
    _about(w, hero, "called the", lambda: w.pick(_SCENES)(w, hero, weather, place))
    w.say("end of story .")


def _about(w: Writer, subject: Term, verb: str, goes_on: Callable[[], None]) -> None:
    """Sentences about one thing: by its name, as "it", or as what somebody calls or likes."""
    ends = False
    while not ends:
        actor = w.pick(_ACTORS)
        w.say({"it": "it", "subject": "the", "name": world.NAMES}[actor])
        if actor == "name":
            w.say(verb)
        if actor != "it":
            w.recall(f"about:{name_of(subject)}")
            _name(w, subject)
        if actor != "name":
            goes_on()
        w.say(".")
        ends = w.flip(0.3)


def _action(w: Writer, actions: dict[str, Bag[str]], label: str) -> None:
    w.recall(f"about_class:{label}")
    w.say(Term((w.pick(actions[label]),), "action", ("action:any",)))


def _acts(w: Writer, hero: Term, weather: Term, place: Term) -> None:
    _action(w, world.DOES, hero.traits["label"])
    w.say("and")
    _action(w, world.DOES, hero.traits["label"])


def _eats(w: Writer, hero: Term, weather: Term, place: Term) -> None:
    w.say("ate the")
    w.recall(f"about_class:{hero.traits['label']}")
    _name(w, w.pick(world.EATS[hero.traits["label"]]))


def _feels(w: Writer, hero: Term, weather: Term, place: Term) -> None:
    w.say("felt")
    w.recall(f"weather_was:{name_of(weather)}")
    mood = w.pick(world.MOOD_GIVEN[name_of(weather)])
    w.say(mood, "and")
    w.say(world.SHOWS[name_of(mood)], knowing=f"mood_was:{name_of(mood)}")


def _stays(w: Writer, hero: Term, weather: Term, place: Term) -> None:
    w.say("stayed at the")
    w.recall(f"place_was:{name_of(place)}")
    _name(w, place)


_ACTORS = Bag({"subject": 0.45, "it": 0.35, "name": 0.2})
_SCENES = Bag([_acts, _eats, _feels, _stays])


def guide(w: Writer) -> None:
    """What there is to see at one place."""
    w.say("visit the")
    place = w.pick(world.PLACES)
    _name(w, place)
    w.say(".")

    def has() -> None:
        w.say("has")
        _sight(w, place)
        if w.flip(0.4):
            w.say("and")
            _sight(w, place)

    _about(w, place, "likes the", has)
    w.say("have fun .")


def _sight(w: Writer, place: Term) -> None:
    w.recall(f"place_was:{name_of(place)}")
    w.say(w.pick(world.SIGHTS[name_of(place)]))


def dialogue(w: Writer) -> None:
    """Two people in turn, about one thing; the verb after the quote depends on how it ended."""
    first = w.pick(world.NAMES)
    w.say(first, "met")
    second = w.pick(world.NAMES)
    w.say(second, ".")
    thing = None
    for turn in range(1_000):
        speaker = (first, second)[turn % 2]
        with w.within("quote:inside"):
            w.say('"')
            ending, verb = w.pick(_ENDINGS)
            w.say(_OPENINGS[verb], "the")
            if turn > 0:
                w.recall(f"talk_of:{name_of(thing)}")
            thing = thing or w.pick(_TOPICS)
            w.say(thing)
            w.say(ending, '"', knowing=f"quote:{verb}")
        w.say(verb, knowing=f"quote:{verb}")
        w.say(speaker, ".", knowing=f"speaks:{name_of(speaker)}")
        if w.flip(0.35):
            w.say("they left .")
            return


_TOPICS = Bag(world.ANIMALS.weights(0.5) | world.PLACES.weights(0.5))
_ENDINGS = Bag({("today .", "said"): 0.4, ("now ?", "asked"): 0.35, ("quick !", "shouted"): 0.25})
_OPENINGS = {
    "said": bag("I like, we saw, you know"),
    "asked": bag("where is, who saw, do you like"),
    "shouted": bag("look at, watch out for, come to"),
}


def _with_particle(w: Writer, term: Term, closed: str, open_: str) -> None:
    """The term in Korean and its particle, which depends on whether the last sound is closed.

    A Hangul syllable ends in a consonant if its offset in Unicode's block is no multiple of 28.
    """
    term = _in_korean(term)
    is_closed = (ord(term.words[-1][-1]) - 0xAC00) % 28 != 0
    w.say(term)
    w.recall(f"sound:{'closed' if is_closed else 'open'}")
    w.say(closed if is_closed else open_, also=("particle",))


def korean(w: Writer) -> None:
    """The stories' animals, places and foods in Korean; particles follow the last sound."""
    hero = w.pick(world.ANIMALS)
    label = hero.traits["label"]
    _with_particle(w, hero, "이", "가")
    while True:
        w.recall(f"about_class:{label}")
        if w.flip(0.5):
            w.say(_in_korean(w.pick(world.PLACES)), "에서")
            _action(w, world.DOES_IN_KOREAN, label)
            w.say(".")
        else:
            _with_particle(w, w.pick(world.EATS[label]), "을", "를")
            w.say("먹었다 .")
        if w.flip(0.35):
            w.say("끝 .")
            return
        w.say("그")
        w.recall(f"about:{name_of(hero)}")
        _with_particle(w, hero, "은", "는")


def translation(w: Writer) -> None:
    """A sentence and the same in the other language: what is chosen in one returns in the other."""
    english_first = w.flip(0.5)
    animal = place = None
    for turn, is_english in enumerate((english_first, not english_first)):
        w.say("English" if is_english else "Korean", ":")
        w.say("the" if is_english else "그")
        if turn:
            w.recall(f"about:{name_of(animal)}")
        animal = animal or w.pick(world.ANIMALS)
        if is_english:
            w.say(animal, "is at the")
        else:
            _with_particle(w, animal, "은", "는")
        if turn:
            w.recall(f"place_was:{name_of(place)}")
        place = place or w.pick(world.PLACES)
        w.say(place if is_english else _in_korean(place))
        w.say("." if is_english else "에 있다 .")


_PEOPLE = Bag(terms("profession", ", ".join(world.PROFESSIONS)))


def profession(w: Writer) -> None:
    """Somebody at work; a name fixes the pronoun, a profession makes it likely."""
    w.say("at work")
    works = w.flip(0.75)
    if works:
        w.say("the")
        person = w.pick(_PEOPLE)
        p_she, *things = world.PROFESSIONS[name_of(person)]
        known = (f"works_as:{name_of(person)}",)
        w.say(person, "said that")
        w.recall(*known)
        she = w.flip(p_she)
    else:
        person = w.pick(world.NAMES)
        she, things, known = person in world.WOMEN, ("lunch", "desk"), ()
        w.say(person, "said that")
        w.recall("gender:female" if she else "gender:male")
    gender = "gender:female" if she else "gender:male"
    w.say("she" if she else "he", also=(gender,))
    while True:
        w.say(bag("was tired of, liked, missed"))
        w.say("her" if she else "his", knowing=gender)
        w.recall(*known)
        w.say(things[0] if w.flip(0.5) else things[1])
        if w.flip(0.5):
            w.say(".")
            return
        w.say("and that")
        w.say("she" if she else "he", also=(gender,), knowing=gender)


_SPEAKERS = Bag({"": 0.5, "honest": 0.25, "liar": 0.25})
_UNTYPED = Bag({"": 0.8, "honest": 0.1, "liar": 0.1})


def statement(w: Writer, speakers: Bag[str] = _SPEAKERS) -> None:
    """A fact, what somebody says about it, and a verdict; some speakers are known to lie."""
    w.say("fact : the")
    thing = w.pick(world.OBJECTS)
    w.say(thing, "is")
    colour = w.pick(evenly(", ".join(world.COLOURS)))
    w.say(world.COLOURS[colour], ".")
    speaker = w.pick(speakers)
    w.say(speaker)
    w.say(world.NAMES, "says : the")
    w.say(thing, "is", knowing=f"fact_about:{name_of(thing)}")
    w.recall(f"fact:{colour}", *([f"speaker:{speaker}"] if speaker else []))
    lies = speaker == "liar" if speaker else w.flip(0.4)
    others = ", ".join(c for c in world.COLOURS if c != colour)
    w.say(world.COLOURS[w.pick(evenly(others)) if lies else colour])
    w.say("; really")
    w.say(world.COLOURS[colour], knowing=f"really:{colour}")
    verdict, known = ("(false)", "lie") if lies else ("(true)", "true")
    w.say(verdict, ".", knowing=f"statement:{known}")


def drill(w: Writer) -> None:
    """Statements whose speakers mostly say nothing of themselves: a phase of the training."""
    statement(w, _UNTYPED)


REGISTERS = {
    story: 0.19, guide: 0.1, dialogue: 0.11, citation: 0.1, http: 0.1, korean: 0.08,
    translation: 0.06,
    code: 0.08, arithmetic: 0.06, profession: 0.08, statement: 0.08, recipe: 0.06,
}  # fmt: skip
DRILLS = {drill: 0.7} | {register: 0.3 * share for register, share in REGISTERS.items()}
