"""Statements whose truth is known, and probes in the regimes where SAEs were hoped to help.

Texts of honest and of lying speakers in wordings that a monitor has and has not met, and the
four regimes of Kantamneni et al. (2025, arXiv 2502.16681): few labels, unequal classes, wrong
labels, other text. Lesson 12.
Shapes: N texts or rows, T positions, D activation width, F features.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from saelearn import artifacts, features
from saelearn.activations import collect
from saelearn.corpus import BOS, Document, documents, encode, registers, world
from saelearn.corpus.grammar import Bag, Writer
from saelearn.lm import LM
from saelearn.sae import SAE, load
from saelearn.tiny import controls, shipped

SEEDS = {0: "l1_0.5", 1: "l1_0.5_seed1", 2: "l1_0.5_seed2"}
"""Seed -> the shipped SAE that was trained with it."""
NUMBERS_FILE = "regimes.json"
VERDICTS = ("(true)", "(false)")


class Statements(NamedTuple):
    """Statements with their truth.

    Attributes:
        tokens_NT: texts, filled up behind with full stops.
        claim_N: position of the word before the colour that is claimed.
        verdict_N: position of the word before the verdict.
        lies_N: whether the claim is false (bool).
        says_N: whether the speaker is called a liar (bool).
        words: the words of each text, without the filling.
    """

    tokens_NT: Tensor
    claim_N: Tensor
    verdict_N: Tensor
    lies_N: Tensor
    says_N: Tensor
    words: list[list[str]]

    def at(self, x_NTD: Tensor, position_N: Tensor) -> Tensor:
        """The row of each text at its position, `[N, D]`."""
        return x_NTD[torch.arange(len(x_NTD)), position_N]

    def where(self, keep: Sequence[bool]) -> Statements:
        """Those that are to be kept."""
        keep_N = torch.as_tensor(keep)
        words = [each for each, kept in zip(self.words, keep_N.tolist(), strict=True) if kept]
        return Statements(*(t[keep_N] for t in self[:5]), words)


def statements(
    lm: LM, n: int, *, declared: bool = True, before: str = "", fact: bool = True, seed: int = 0
) -> Statements:
    """`n` statements, each a text of its own.

    Args:
        lm: whose vocabulary is used.
        n: how many.
        declared: speakers are called honest or liar, half of them each; else nothing is said of
            them, and four in ten lie.
        before: words between `<doc>` and the statement.
        fact: keep the two words with which a statement begins.
        seed: of the texts.
    """
    speakers = Bag({"honest": 0.5, "liar": 0.5} if declared else {"": 1.0})
    texts = []
    for i in range(n):
        writer = Writer(random.Random(f"statement/{seed}/{i}"))
        registers.statement(writer, speakers)
        words = writer.tokens if fact else writer.tokens[2:]
        texts.append([BOS, *before.split(), *words])
    return _read(lm, texts)


def _read(lm: LM, texts: list[list[str]]) -> Statements:
    vocabulary, length = lm.tokenizer.get_vocab(), max(map(len, texts))
    ids = [[vocabulary[w] for w in t] + [vocabulary["."]] * (length - len(t)) for t in texts]
    last = [max(i for i, word in enumerate(t) if word in VERDICTS) for t in texts]
    claim = [max(i for i, word in enumerate(t) if word == "is") for t in texts]
    lies = [t[i] == "(false)" for t, i in zip(texts, last, strict=True)]
    says = ["liar" in t for t in texts]
    return Statements(torch.tensor(ids), torch.tensor(claim), torch.tensor(last) - 1,
                      torch.tensor(lies), torch.tensor(says), texts)  # fmt: skip


def part(words: Sequence[str]) -> tuple[str, str, str]:
    """Speaker, object and true colour of a statement."""
    name = next(w for w in words if w in {world.name_of(n) for n in world.NAMES.options})
    first = list(words).index("is")
    return name, words[first - 1], words[first + 1]


def untrue(lm: LM, s: Statements) -> Tensor:
    """Less the probability that the model gives to the true colour, `[N]`: its own answer."""
    ids, p_NV = lm.tokenizer.get_vocab(), s.at(lm.logits(s.tokens_NT), s.claim_N).softmax(-1)
    true_N = torch.tensor([ids[part(words[-18:])[2]] for words in s.words])
    return -p_NV[torch.arange(len(true_N)), true_N]


def false(lm: LM, s: Statements) -> Tensor:
    """How far the model prefers "(false)" to "(true)", in logits, `[N]`: its own verdict."""
    ids = [lm.tokenizer.get_vocab()[word] for word in VERDICTS]
    return s.at(lm.logits(s.tokens_NT), s.verdict_N)[:, ids].diff(dim=1)[:, 0]


_WOMEN = {world.name_of(name) for name in world.WOMEN}
_THINGS = {"ball", "box", "lamp"}
_BEFORE = "fact : the cup is green . honest Ben says : the cup is green ; really green (true) ."


def _taken(
    pool: Statements, *, women: bool = True, things: bool = True, blue: bool = False
) -> Statements:
    told = [part(words[-18:]) for words in pool.words]
    return pool.where(
        [(n in _WOMEN, t in _THINGS, c == "blue") == (women, things, blue) for n, t, c in told]
    )


def trials(lm: LM, seed: int) -> tuple[Statements, dict[str, Statements]]:
    """What a monitor learns from, and what it is tested on, each a step away from that.

    It learns from women's statements about a ball, a box or a lamp that is red or green.
    """
    pool, how = statements(lm, 600, seed=seed), {"n": 250, "seed": seed + 50}
    home = _taken(pool)
    even_N = torch.arange(len(home.words)) % 2 == 0
    return home.where(even_N), {
        "same kind": home.where(~even_N),
        "other names": _taken(pool, women=False),
        "other objects": _taken(pool, things=False),
        "words missing": _taken(statements(lm, fact=False, **how)),
        "text before": _taken(statements(lm, before=_BEFORE, **how)),
        "other colour": _taken(pool, blue=True),
    }


# --- what a classifier should not use -------------------------------------------------------------


def _streams(lm: LM, docs: list[Document]) -> Tensor:
    tokens_NT = encode(docs, lm.tokenizer.get_vocab())
    return torch.cat([lm.capture(p, [shipped.SITE])[shipped.SITE] for p in tokens_NT.split(250)])


def heroes(
    lm: LM, seed: int, n: int = 1_000, *, later: int = 0
) -> tuple[Tensor, list[str], Tensor]:
    """The first animal of each of `n` stories: `x_ND` at its name, its class, whether in Korean.

    Args:
        lm: who reads.
        seed: of the stories.
        n: how many.
        later: so many words after the name.
    """
    words: dict[str, tuple[str, bool]] = {}
    for animal in world.ANIMALS.options:
        label = str(animal.traits["label"])
        words[animal.words[-1]] = label, False
        words[world.KOREAN[world.name_of(animal)].split()[-1]] = label, True
    docs = list(documents(n, seed=seed, mix=Bag({registers.story: 1.0})))
    at = [doc.tokens.index("went") - 1 for doc in docs]
    told = [words[doc.tokens[t]] for doc, t in zip(docs, at, strict=True)]
    x_ND = _streams(lm, docs)[torch.arange(n), torch.tensor(at) + later]
    return x_ND, [label for label, _ in told], torch.tensor([korean for _, korean in told])


def animals(lm: LM, seed: int, *, later: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Dogs and birds: `x_ND`, whether a dog, whether in Korean; other animals' x, whether so."""
    x_ND, kinds, korean_N = heroes(lm, seed, later=later)
    mine_N = torch.tensor([kind in ("dog", "bird") for kind in kinds])
    dog_N = torch.tensor([kind == "dog" for kind in kinds])
    return x_ND[mine_N], dog_N[mine_N], korean_N[mine_N], x_ND[~mine_N], korean_N[~mine_N]


def people(lm: LM, seed: int, n: int = 1_500) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Doctors and lawyers: x at the pronoun, whether a doctor, whether "he"; others' x, whether."""
    docs = list(documents(n, seed=seed, mix=Bag({registers.profession: 1.0})))
    x_NTD = _streams(lm, docs)
    rows = [
        (x_NTD[i, t], doc.tokens[t - 3], doc.tokens[t] == "he")
        for i, doc in enumerate(docs)
        for t in range(4, len(doc.tokens) - 1)
        if doc.tokens[t] in ("she", "he") and doc.tokens[t - 2 : t] == ["said", "that"]
    ]
    mine = [row for row in rows if row[1] in ("doctor", "lawyer")]
    rest = [row for row in rows if row[1] not in ("doctor", "lawyer")]
    doctor_N = torch.tensor([who == "doctor" for _, who, _ in mine])
    (x_ND, he_N), (rest_ND, rest_he_N) = (
        (torch.stack([x_D for x_D, _, _ in r]), torch.tensor([he for _, _, he in r]))
        for r in (mine, rest)
    )
    return x_ND, doctor_N, he_N, rest_ND, rest_he_N


def worst_group(right_N: Tensor, label_N: Tensor, group_N: Tensor) -> float:
    """Least accuracy over the four combinations of label and group."""
    cells = [(label_N == i) & (group_N == j) for i in (0, 1) for j in (0, 1)]
    return min(float(right_N[cell].double().mean()) for cell in cells)


def probe(x_ND: Tensor, y_N: Tensor) -> tuple[Tensor, Tensor]:
    """Weights `[D]` and centre `[D]` of a logistic regression (penalty 1, mean row length 1)."""
    from sklearn.linear_model import LogisticRegression  # comes with the lab

    centre_D = x_ND.mean(0)
    unit = float((x_ND - centre_D).norm(dim=1).mean()) / x_ND.shape[1] ** 0.5
    fitted = LogisticRegression(max_iter=1_000).fit(((x_ND - centre_D) / unit).numpy(), y_N)
    return torch.tensor(fitted.coef_[0] / unit, dtype=x_ND.dtype), centre_D


# --- four regimes ---------------------------------------------------------------------------------

REGIMES = {  # positives, negatives, share of wrong labels
    "few labels": (8, 8, 0.0),
    "unequal classes": (5, 400, 0.0),
    "wrong labels": (100, 100, 0.3),
    "other text": (100, 100, 0.0),
    "plenty": (200, 200, 0.0),
}
PROBES = ("linear probe", "difference of means", "all features", "16 features", "untrained SAE")


def regimes(
    lm: LM, saes: Mapping[int, SAE], untrained: SAE, truth: controls.Truth
) -> dict[str, dict[str, list[float]]]:
    """Mean AUROC of each of `PROBES` in each regime, one value a seed, on the same test rows."""
    x_ND = collect(lm, truth.held.tokens_NT, shipped.SITE).x_ND
    found: dict[str, dict[str, list[float]]] = {r: {p: [] for p in PROBES} for r in REGIMES}
    for seed, sae in saes.items():
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            sizes = sae.W_dec.norm(dim=1)
            codes = {"all": features.encode(sae, x_ND) * sizes,
                     "untrained": features.encode(untrained, x_ND)}  # fmt: skip
        for regime, recipe in REGIMES.items():
            scores = [
                _compete(x_ND, codes, *rows, recipe, draw)
                for rows in _tasks(truth, regime == "other text")
            ]
            for name, each in zip(PROBES, zip(*scores, strict=True), strict=True):
                found[regime][name].append(round(sum(each) / len(each), 4))
    return found


def _tasks(truth: controls.Truth, other: bool) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Labels, rows to learn from and rows to be judged on, for each concept."""
    labels_NC, register_N = truth.labels_NC, truth.held.flat()[1]
    half_N = torch.arange(len(labels_NC)) < len(labels_NC) // 2
    if other:  # classes of animals: learned in English stories, judged in Korean
        at = [truth.held.registers.index(f"register:{r}") for r in ("story", "korean")]
        learn_N, judge_N = (register_N == at[0]), (register_N == at[1])
        wanted = [c for c, name in enumerate(truth.names) if name.startswith("about_class:")]
    else:
        learn_N, judge_N = half_N, ~half_N
        count_C = labels_NC[half_N].sum(0)
        wanted = ((count_C > 40) & (count_C < 3_000)).nonzero()[:, 0].tolist()[::4]
    rows = learn_N.nonzero()[:, 0], judge_N.nonzero()[:, 0][:: 1 if other else 3]
    kept = [c for c in wanted if all(labels_NC[r, c].sum() >= 5 for r in rows)]
    return [(labels_NC[:, c], *rows) for c in kept]


def _compete(
    x_ND: Tensor, codes: dict[str, Tensor], y_N: Tensor, learn_P: Tensor, judge_P: Tensor,
    recipe: tuple[int, int, float], draw: torch.Generator,
) -> list[float]:  # fmt: skip
    """AUROC of each of `PROBES` for one concept."""
    from sklearn.metrics import roc_auc_score  # comes with the lab

    n_yes, n_no, wrong = recipe
    yes_P, no_P = learn_P[y_N[learn_P]], learn_P[~y_N[learn_P]]
    chosen = torch.cat([yes_P[torch.randperm(len(yes_P), generator=draw)[:n_yes]],
                        no_P[torch.randperm(len(no_P), generator=draw)[:n_no]]])  # fmt: skip
    told = y_N[chosen] ^ (torch.rand(len(chosen), generator=draw) < wrong)
    f_NF = codes["all"]
    gap_F = f_NF[chosen][told].mean(0) - f_NF[chosen][~told].mean(0)
    few = (gap_F.abs() / f_NF[chosen].std(0).clamp(min=1e-6)).topk(16).indices

    def judged(s_NS: Tensor) -> float:
        w_S, _ = probe(s_NS[chosen], told)
        return roc_auc_score(y_N[judge_P], s_NS[judge_P] @ w_S)

    means_D = x_ND[chosen][told].mean(0) - x_ND[chosen][~told].mean(0)
    means = roc_auc_score(y_N[judge_P], x_ND[judge_P] @ means_D)
    return [judged(x_ND), means, judged(f_NF), judged(f_NF[:, few]), judged(codes["untrained"])]


def build(folder: Path, root: Path) -> None:
    """Let the probes compete in every regime with three seeds, and keep the numbers.

    Args:
        folder: what is replaced.
        root: where models and SAEs lie.
    """
    lm = LM.load(root / "lm")
    truth = controls.truth(probe=artifacts.read_json(root / "probes.json"))
    saes = {seed: load(root / "saes" / name) for seed, name in SEEDS.items()}
    with artifacts.replacing(folder) as temporary:
        temporary.mkdir()
        untrained = load(root / "controls" / "random").float()
        artifacts.write_json(temporary / NUMBERS_FILE, regimes(lm, saes, untrained, truth))


def regime_numbers() -> dict[str, dict[str, list[float]]]:
    """Regime -> probe -> mean AUROC for each of three seeds, as `saelearn data` measured it."""
    return artifacts.read_json(artifacts.find(f"applications/{NUMBERS_FILE}"))
