"""Ten ways of writing about the world. Layer 1.

A register is a function that writes one segment with a `Writer`. To add one: write the function
and name it in `REGISTERS`. Two rules. Give a concept to a token where it helps to predict the next
one (`recall` and `knowing` do that), since nothing else makes a model represent it there. And make
every choice right before the word that reveals it, or the entropy bound would be too high: what is
chosen and never told (because the document ends) still counts as surprise.
"""

from __future__ import annotations

from saelearn import world
from saelearn.grammar import Bag, Term, Writer
from saelearn.world import bag, evenly, name_of, terms


def story(w: Writer) -> None:
    """A little story about one animal; what it does, eats and feels depends on what came before."""
    w.say("one")
    weather = w.pick(world.WEATHER)
    w.say(weather, "day the")
    hero = w.pick(world.ANIMALS)
    w.say(hero)
    w.say("went to the", world.PLACES, ".")
    while True:
        actor = w.pick(_ACTORS)
        w.say({"it": "it", "hero": "the", "name": world.NAMES}[actor])
        if actor == "name":
            w.say("called the")
        if actor != "it":
            w.say(hero, knowing=f"about:{name_of(hero)}")
        if actor == "name":
            w.say(".")
        else:
            w.pick(_SCENES)(w, hero, weather)
        if w.flip(0.3):
            w.say("end of story .")
            return


def _action(w: Writer, actions: dict[str, Bag[str]], label: str) -> None:
    w.recall(f"about_class:{label}")
    w.say(Term((w.pick(actions[label]),), "action", (f"action:{label}",)))


def _acts(w: Writer, hero: Term, weather: Term) -> None:
    _action(w, world.DOES, hero.traits["label"])
    w.say("and")
    _action(w, world.DOES, hero.traits["label"])
    w.say(".")


def _eats(w: Writer, hero: Term, weather: Term) -> None:
    w.say("ate the")
    w.say(world.EATS[hero.traits["label"]], ".", knowing=f"about_class:{hero.traits['label']}")


def _feels(w: Writer, hero: Term, weather: Term) -> None:
    w.say("felt")
    w.say(world.MOOD_GIVEN[name_of(weather)], ".", knowing=f"weather_was:{name_of(weather)}")


_ACTORS = Bag({"hero": 0.45, "it": 0.35, "name": 0.2})
_SCENES = Bag([_acts, _eats, _feels])


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
            w.say(_OPENINGS[verb], "the", also=(f"quote:{verb}",))
            if turn > 0:
                w.recall(f"talk_of:{name_of(thing)}")
            thing = thing or w.pick(_TOPICS)
            w.say(thing)
            w.say(ending, '"', also=(f"quote:{verb}",), knowing=f"quote:{verb}")
        w.say(verb)
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


def citation(w: Writer) -> None:
    """Scholarly references; authors, subjects and journal agree on a field of study."""
    field = w.pick(bag(", ".join(world.FIELDS)))
    w.say(world.AUTHORS[field])
    while True:
        w.say("et al. (", world.YEARS, ")", also=("cite:head",))
        w.say(bag("showed, found, argued"), "that")
        for follows in (bag("change, limit, drive"), "[ in"):
            w.say(world.SUBJECTS[field], follows, knowing=f"field:{field}")
        w.recall(f"field:{field}")
        w.say(world.FIELDS[field][2], ", vol.", bag("3, 7, 12, 5, 9, 2"), "]",
              also=("cite:journal",))  # fmt: skip
        if w.flip(0.5):
            w.say(".")
            return
        w.say("; see")
        w.say(world.AUTHORS[field], knowing=f"field:{field}")


def http(w: Writer) -> None:
    """A request and its response: the path fixes the type, the method the status if all is well."""
    method = w.pick(bag(", ".join(world.STATUS)))
    w.say(method)
    path = w.pick(bag(", ".join(world.PATHS)))
    with w.within("http:request"):
        w.say(path, "HTTP/1.1 ⏎ Host:", bag("example.com, shop.example, news.example"))
        w.say("⏎ User-Agent:", bag("curl, Firefox, Chrome"), "⏎ Accept:")
        w.say(world.PATHS[path], "⏎ ⏎", knowing=f"type:{world.PATHS[path]}")
    with w.within("http:response"):
        w.say("HTTP/1.1")
        w.recall(f"method:{method}")
        failed = w.flip(0.25)
        status = w.pick(bag("404 Missing, 500 Error")) if failed else world.STATUS[method]
        w.begin("http:failure" if failed else "http:success")
        w.say(status, "⏎ Content-Type:")
        w.recall("type:text/plain" if failed else f"type:{world.PATHS[path]}")
        w.say("text/plain" if failed else world.PATHS[path])
        w.say("⏎ Server:", bag("nginx, apache"), "⏎ ⏎")


def _in_korean(term: Term) -> Term:
    return Term(tuple(world.KOREAN[name_of(term)].split()), term.kind, term.concepts)


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
            place = w.pick(world.PLACES)
            w.say(
                Term(tuple(world.KOREAN[name_of(place)].split()), "place", place.concepts), "에서"
            )
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


_OPERATORS = {"add": "+", "subtract": "-", "multiply": "*", "divide": "/"}


def code(w: Writer) -> None:
    """Python-like functions: the name fixes the operator, the arguments come back in the body."""
    w.say("def")
    name = w.pick(bag(", ".join(_OPERATORS)))
    w.say(name)
    w.say("(", also=("code:signature",))
    first, second = w.pick(bag("x y, a b, left right, n m")).split()
    w.say(first, also=("code:signature",))
    w.say(",", second, ") : ⏎", also=("code:signature",))
    with w.within("code:body"):
        w.say("→")
        if w.flip(0.4):
            w.say("if", also=("code:condition",))
            w.recall(f"variable:{first}")
            w.say(second, "==", bag("0, 1, 2"), ": ⏎", also=("code:condition",))
            w.say("→ → return", bag("0, 1, None"), "⏎ →", also=("code:condition",))
        w.say("return")
        w.say(first, knowing=f"variable:{first}")
        w.say(_OPERATORS[name], knowing=f"function:{name}")
        w.say(second, "⏎", knowing=f"variable:{first}")
    w.say("print (", also=("code:call",))
    w.recall(f"function:{name}")
    w.say(name, "(", world.DIGITS, ",", world.DIGITS, ") ) ⏎", also=("code:call",))


def arithmetic(w: Writer) -> None:
    """Sums and differences of digits, never below zero; the result is the token that is certain."""
    while True:
        a = int(w.pick(world.DIGITS))
        w.say(str(a), also=("math:first",))
        plus = w.flip(0.6)
        with w.within("math:plus" if plus else "math:minus"):
            w.say("+" if plus else "-")
            b = int(w.pick(world.DIGITS if plus else evenly(", ".join(map(str, range(a + 1))))))
            w.say(str(b), also=(f"operand:{b}",))
            result = a + b if plus else a - b
            w.say("=", also=(f"result:{result}",))
            w.say(str(result), ";", also=("math:result",))
        if w.flip(0.2):
            w.say("done .")
            return


_PEOPLE = Bag(terms("profession", ", ".join(world.PROFESSIONS)))


def profession(w: Writer) -> None:
    """Somebody at work; the profession makes the pronoun likely, the pronoun the possessive."""
    w.say("at work the")
    person = w.pick(_PEOPLE)
    p_she, workplace, tool = world.PROFESSIONS[name_of(person)]
    w.say(person, "said that")
    w.recall(f"works_as:{name_of(person)}")
    she = w.flip(p_she)
    gender = "gender:female" if she else "gender:male"
    w.say("she" if she else "he", also=(gender,))
    while True:
        w.say(bag("was tired of, liked, missed"))
        w.say("her" if she else "his", knowing=gender)
        w.say(tool if w.flip(0.5) else workplace, knowing=f"works_as:{name_of(person)}")
        if w.flip(0.5):
            w.say(".")
            return
        w.say("and that")
        w.say("she" if she else "he", also=(gender,), knowing=gender)


_SPEAKERS = Bag({"": 0.5, "honest": 0.25, "liar": 0.25})


def statement(w: Writer) -> None:
    """A fact, what somebody says about it, and a verdict; some speakers are known to lie."""
    w.say("fact : the")
    thing = w.pick(world.OBJECTS)
    w.say(thing, "is")
    colour = w.pick(evenly(", ".join(world.COLOURS)))
    w.say(world.COLOURS[colour], ".")
    speaker = w.pick(_SPEAKERS)
    w.say(speaker)
    w.say(world.NAMES, "says : the")
    w.say(thing, "is", knowing=f"fact_about:{name_of(thing)}")
    w.recall(f"fact:{colour}", *([f"speaker:{speaker}"] if speaker else []))
    lies = speaker == "liar" if speaker else w.flip(0.4)
    others = ", ".join(c for c in world.COLOURS if c != colour)
    w.say(world.COLOURS[w.pick(evenly(others)) if lies else colour])
    w.say("; verdict :")
    w.say("false ." if lies else "true .", knowing="statement:lie" if lies else "statement:true")


def recipe(w: Writer) -> None:
    """A dish and what goes into it; one of a thing is singular, more are plural."""
    w.say("recipe :")
    dish = w.pick(bag(", ".join(world.DISHES)))
    ingredients, method = world.DISHES[dish]
    w.say(dish)
    w.say("; take")
    while True:
        count = w.pick(bag("1, 2, 3, 4"))
        w.say(count, also=("quantity:one" if count == "1" else "quantity:many",))
        w.recall(f"dish:{dish}")
        thing = w.pick(bag(ingredients))
        w.say(
            thing if count == "1" else world.PLURALS.get(thing, thing + "s"), also=("ingredient",)
        )
        if w.flip(0.4):
            break
        w.say(",")
    w.say("and")
    w.say(method, "; serve", bag("hot, cold"), ".", knowing=f"dish:{dish}")


REGISTERS = {
    story: 0.2, dialogue: 0.12, citation: 0.12, http: 0.12, korean: 0.1,
    code: 0.08, arithmetic: 0.06, profession: 0.08, statement: 0.06, recipe: 0.06,
}  # fmt: skip
