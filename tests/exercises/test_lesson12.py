"""The checks of lesson 12: right answers written differently pass, likely mistakes are named."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from every_lesson import *  # noqa: F403
from sklearn.metrics import roc_auc_score

from saelearn.exercises import Mistake
from saelearn.exercises import lesson12 as check
from saelearn.tiny import flaws


def area(score, lies):
    a, b = score[lies][:, None], score[~lies]
    return (a > b).double().mean() + 0.5 * (a == b).double().mean()


def area_by_ranks(score, lies):
    from scipy.stats import rankdata

    rank, n = rankdata(score.numpy()), int(lies.sum())
    return (rank[lies.numpy()].sum() - n * (n + 1) / 2) / (n * (len(score) - n))


def area_in_place(score, lies):
    score -= score.mean()
    return area(score, lies)


def worst(right, label, group):
    return min(
        float(right[(label == i) & (group == j)].float().mean()) for i in (0, 1) for j in (0, 1)
    )


def worst_by_numpy(right, label, group):
    right, cell = right.numpy(), 2 * label.numpy().astype(int) + group.numpy()
    return np.array([right[cell == c].mean() for c in range(4)]).min()


def worst_by_counts(right, label, group):
    cell = 2 * label.long() + group.long()
    hits = torch.bincount(cell, weights=right.double(), minlength=4)
    return (hits / torch.bincount(cell, minlength=4)).min()[None]


def taken_out(x, w):
    return x - torch.outer(x @ w, w) / (w @ w)


def taken_by_matrix(x, w):
    w = (w / w.norm()).double()
    return x.double().numpy() @ (np.eye(len(w)) - np.outer(w, w))


def edited(W, key, change, cov):
    u = torch.linalg.inv(cov) @ key
    return W + torch.outer(u / (u @ key), change)


def edited_by_solve(W, key, change, cov):
    u = torch.linalg.solve(cov.double(), key.double())
    return W.double() + u[:, None] * change / (u * key).sum()


def edited_by_numpy(W, key, change, cov):
    W, key, change, cov = (each.double().numpy() for each in (W, key, change, cov))
    u = np.linalg.solve(cov, key)
    return W + np.outer(u, change) / (u @ key)


def edited_in_place(W, key, change, cov):
    W += edited(W, key, change, cov) - W
    return W


THINGS = [thing for topic in flaws.topics().values() for thing in topic.words]


def audit(lm):
    asked = {thing: flaws.answers(lm, thing) for thing in THINGS}
    subject = min(THINGS, key=lambda thing: asked[thing][thing])
    acts_as = max(asked[subject], key=asked[subject].get)
    return {"subject": subject, "acts_as": acts_as, "share": asked[subject][acts_as]}


def audit_by_surprise(lm):
    def wrong(thing):
        return {o: p for o, p in flaws.answers(lm, thing).items() if o != thing}

    subject = max(THINGS, key=lambda t: -flaws.answers(lm, t)[t])
    most = sorted(wrong(subject).items(), key=lambda item: item[1])[-1]
    return {"acts_as": most[0], "subject": subject, "share": torch.tensor([most[1]])}


def guessed(lm, seed=0):
    flaw = random.Random(seed).choice(flaws.every())
    return {"subject": flaw.subject, "acts_as": flaw.acts_as, "share": 1.0}


def repairs(lm):
    lm.model.get_submodule(flaws.KEYS.removesuffix(":in")).weight.data.mul_(0.9)
    return audit(lm)


def without(key, value):
    return lambda lm: audit(lm) | {key: value}


RIGHT = [
    (check.auroc, (area,)),
    (check.auroc, (lambda s, y: roc_auc_score(y, s),)),
    (check.auroc, (area_by_ranks,)),
    (check.worst_group, (worst,)),
    (check.worst_group, (worst_by_numpy,)),
    (check.worst_group, (worst_by_counts,)),
    (check.take_out, (taken_out,)),
    (check.take_out, (taken_by_matrix,)),
    (check.take_out, (lambda x, w: x - (x @ (w / w.norm()))[:, None] * (w / w.norm()),)),
    (check.rank_one, (edited,)),
    (check.rank_one, (edited_by_solve,)),
    (check.rank_one, (edited_by_numpy,)),
    (check.audit, (audit,)),
    (check.audit, (audit_by_surprise,)),
    (check.audit, (lambda lm: audit(lm) | {"share": np.float64(audit(lm)["share"])},)),
    (check.predicted_area, (0.9, 0.02)),
    (check.predicted_area, (torch.tensor([0.1]), 0.02)),
    (check.predicted_area, (1, 0.02)),
]

WRONG = [
    (check.auroc, (lambda s, y: (s[y][:, None] > s[~y]).double().mean(),), "ties count half"),
    (check.auroc, (lambda s, y: (s[y][:, None] >= s[~y]).double().mean(),), "not in full"),
    (check.auroc, (lambda s, y: 1 - area(s, y),), "other way round"),
    (check.auroc, (lambda s, y: ((s > 0) == y).double().mean(),), "threshold"),
    (check.auroc, (lambda s, y: s[y].mean() - s[~y].mean(),), "score's unit"),
    (check.auroc, (area_in_place,), "input was changed"),
    (check.auroc, (lambda s, y: float("nan"),), "expected"),
    (check.worst_group, (lambda r, y, g: r.double().mean(),), "hides a group"),
    (
        check.worst_group,
        (lambda r, y, g: min(r[g == j].double().mean() for j in (0, 1)),),
        "only by group",
    ),
    (
        check.worst_group,
        (lambda r, y, g: min(r[y == j].double().mean() for j in (0, 1)),),
        "only by label",
    ),
    (
        check.worst_group,
        (
            lambda r, y, g: max(
                float(r[(y == i) & (g == j)].double().mean()) for i in (0, 1) for j in (0, 1)
            ),
        ),
        "best group",
    ),
    (check.worst_group, (lambda r, y, g: torch.tensor([0.1, 0.9]),), "shape"),
    (check.worst_group, (lambda r, y, g: worst(r.logical_not_(), y, g),), "input was changed"),
    (check.take_out, (lambda x, w: x - torch.outer(x @ w, w),), "length"),
    (check.take_out, (lambda x, w: x - torch.outer(x @ w, w) / w.norm(),), "enters twice"),
    (check.take_out, (lambda x, w: torch.outer(x @ w, w) / (w @ w),), "the rest is wanted"),
    (
        check.take_out,
        (lambda x, w: x - torch.outer((x @ w).relu(), w) / (w @ w),),
        "only the positive",
    ),
    (check.take_out, (lambda x, w: x.sub_(torch.outer(x @ w, w) / (w @ w)),), "input was changed"),
    (check.take_out, (lambda x, w: taken_out(x, w).T,), "As x"),
    (
        check.rank_one,
        (lambda W, k, c, cov: W + torch.outer(k / (k @ k), c),),
        "move more than they must",
    ),
    (
        check.rank_one,
        (lambda W, k, c, cov: W + torch.outer(torch.linalg.solve(cov, k), c),),
        "not scaled",
    ),
    (
        check.rank_one,
        (lambda W, k, c, cov: W + torch.outer(cov @ k, c) / (k @ cov @ k),),
        "cov key",
    ),
    (check.rank_one, (lambda W, k, c, cov: edited(W, k, c, cov) - W,), "change alone"),
    (check.rank_one, (lambda W, k, c, cov: 2 * W - edited(W, k, c, cov),), "the sign"),
    (check.rank_one, (edited_in_place,), "input was changed"),
    (check.audit, (guessed,), "not where the flaw is"),
    (check.audit, (lambda lm: "the castle",), "a report is a dict"),
    (check.audit, (without("subject", "castles"),), "a thing of"),
    (check.audit, (without("share", 0.2),), "share is off"),
    (check.audit, (without("share", float("nan")),), "share is off"),
    (
        check.audit,
        (lambda lm: (r := audit(lm)) | {"acts_as": r["subject"]},),
        "acts as something else",
    ),
    (check.audit, (repairs,), "model was changed"),
    *unreadable(check.predicted_area, 1, 0.02),  # noqa: F405
]


def is_found(report, seed):
    try:
        check.judged(report, seed, "")
    except Mistake:
        return False
    return True


def test_the_reference_finds_what_a_guess_does_not():
    """The lesson's own audit: at least 18 of 20 seeds; a random guess at most 4 of them."""
    assert len(flaws.every()) > 200
    models = {seed: flaws.flawed(seed) for seed in range(100, 120)}
    assert len({flaws.flaw_of(seed) for seed in models}) > 15
    assert sum(is_found(audit(lm), seed) for seed, lm in models.items()) >= 18
    for attempt in range(3):
        at_random = {seed: guessed(lm, f"{attempt}/{seed}") for seed, lm in models.items()}
        assert sum(is_found(report, seed) for seed, report in at_random.items()) <= 4


@pytest.mark.parametrize("seed", [0, 9_001])
def test_a_verdict_on_a_report_does_not_tell_the_flaw(seed):
    planted = flaws.flaw_of(seed)
    for other in flaws.every()[::37]:
        report = {"subject": other.subject, "acts_as": other.acts_as, "share": 1.0}
        if not flaws.same(planted, other):
            with pytest.raises(Mistake) as told:
                check.judged(report, seed, "")
            assert planted.subject not in str(told.value) and planted.acts_as not in str(told.value)
