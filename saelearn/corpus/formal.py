"""Registers with a strict form: references, HTTP, code, sums, recipes.

`registers.py` says what a register is and has the others.
"""

from __future__ import annotations

from saelearn.corpus import world
from saelearn.corpus.grammar import Bag, Term, Writer
from saelearn.corpus.world import bag, evenly, name_of


def citation(w: Writer) -> None:
    """Scholarly references; authors, subjects and journal agree on a field, the last returns."""
    field = w.pick(bag(", ".join(world.FIELDS)))
    author = w.pick(world.AUTHORS[field])
    w.say(author)
    while True:
        year = w.pick(world.YEARS)
        w.say("et al. (", year, ")", bag("showed, found, argued"), "that")
        for follows in (bag("change, limit, drive"), "[ in"):
            w.say(world.SUBJECTS[field], follows, knowing=f"field:{field}")
        w.recall(f"field:{field}")
        w.say(world.FIELDS[field][2], ", vol.", bag("3, 7, 12, 5, 9, 2"), "]")
        if w.flip(0.5):
            break
        w.say("; see")
        w.recall(f"field:{field}")
        author = w.pick(world.AUTHORS[field])
        w.say(author)
    w.say("; cf.")
    w.say(author, "(", knowing=f"author_was:{name_of(author)}")
    w.say(year, ") .", knowing=f"year_was:{name_of(year)}")


def _header(w: Writer, name: str, value: str | Bag, *known: str) -> None:
    """A line of a head; after a line break one has to know which header comes."""
    w.say(f"{name}:", knowing=f"header:{name}")
    w.recall(*known)
    w.say(value, "⏎")


def http(w: Writer) -> None:
    """A request and its response: the path fixes the type, the method the status if all is well."""
    method = w.pick(bag(", ".join(world.STATUS)))
    w.say(method)
    path = w.pick(bag(", ".join(world.PATHS)))
    kind = world.PATHS[path]
    w.say(Term((path,), "path", (f"path:{path}",)), "HTTP/1.1 ⏎")
    _header(w, "Host", bag("example.com, shop.example, news.example"))
    _header(w, "User-Agent", bag("curl, Firefox, Chrome"))
    _header(w, "Accept", kind, f"type:{kind}")
    w.say("⏎", knowing="header:none")
    w.say("HTTP/1.1")
    w.recall(f"method:{method}")
    failed = w.flip(0.25)
    status = w.pick(bag("404 Missing, 500 Error")) if failed else world.STATUS[method]
    with w.within("http:failure" if failed else "http:success"):
        w.say(status, "⏎")
        w.say("Content-Type:", knowing="header:Content-Type")
    w.recall("type:text/plain" if failed else f"type:{kind}")
    w.say("text/plain" if failed else kind, "⏎")
    _header(w, "Location", path, f"path_was:{path}")
    _header(w, "Server", bag("nginx, apache"))
    w.say("⏎", knowing="header:none")


_OPERATORS = {"add": "+", "subtract": "-", "multiply": "*", "divide": "/"}


def code(w: Writer) -> None:
    """Python-like functions: the name fixes the operator, the arguments come back in the body."""
    w.say("def")
    name = w.pick(bag(", ".join(_OPERATORS)))
    w.say(name)
    first, second = w.pick(bag("x y, a b, left right, n m")).split()
    w.say("(")
    w.say(first, ",")
    w.say(second, knowing=f"variable:{first}")
    w.say(") : ⏎")
    w.say("→", knowing="indent:1")
    if w.flip(0.4):
        w.say("if")
        w.say(second, "==", bag("0, 1, 2"), ": ⏎", knowing=f"variable:{first}")
        w.say("→", knowing="indent:2")
        w.say("→ return", bag("0, 1, None"), "⏎")
        w.say("→", knowing="indent:1")
    w.say("return")
    w.say(first, knowing=f"variable:{first}")
    w.say(_OPERATORS[name], knowing=f"function:{name}")
    w.say(second, "⏎", knowing=f"variable:{first}")
    w.say("print (", knowing="indent:0")
    w.say(name, "(", world.DIGITS, ",", world.DIGITS, knowing=f"function:{name}")
    w.say(")", knowing="brackets:2")
    w.say(") ⏎", knowing="brackets:1")


def arithmetic(w: Writer) -> None:
    """Sums and differences of digits, never below zero; the result is the token that is certain."""
    while True:
        a = int(w.pick(world.DIGITS))
        w.say(str(a), also=("math:first",))
        plus = w.flip(0.6)
        with w.within("math:plus" if plus else "math:minus"):
            w.say("+" if plus else "-")
            b = int(w.pick(world.DIGITS if plus else evenly(", ".join(map(str, range(a + 1))))))
            w.say(str(b))
            result = a + b if plus else a - b
            w.say("=", also=(f"result:{result}",))
            w.say(str(result), ";", also=("math:result",))
        if w.flip(0.2):
            w.say("done .")
            return


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
