"""A stream goes on where it was, to the bit, and the model does not run again from the start."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch
from tiny_models import WIDTH, make, some_tokens
from torch import Tensor

from saelearn.activations import stream
from saelearn.errors import Refusal
from saelearn.lm import LM
from saelearn.train import train

SITE = "blocks.1.hook_resid_post"
DOCUMENTS = some_tokens(90, 10, seed=3).split(3)  # 30 batches of 27 rows: 810
HOW = {"batch_size": 10, "buffer_size": 65}  # windows of 60 rows


@pytest.fixture
def passes(monkeypatch) -> list[int]:
    found, capture = [], LM.capture

    def count(self, tokens_BT, sites, **how):
        found.append(len(tokens_BT))
        return capture(self, tokens_BT, sites, **how)

    monkeypatch.setattr(LM, "capture", count)
    return found


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(map(torch.equal, a, b))


@pytest.mark.parametrize("given", [0, 1, 5, 6, 7, 29, 30, 77, 80, 81])
@pytest.mark.parametrize("ahead", [0, 1])
def test_a_stream_goes_on_where_it_was(given: int, ahead: int, passes: list[int]) -> None:
    """Also one that has given out a batch already, as in a training that was begun again."""
    lm = make("gpt2")
    whole = list(stream(lm, DOCUMENTS, SITE, **HOW))
    assert len(whole) == 81 and passes.count(3) == 30
    first = stream(lm, iter(DOCUMENTS), SITE, **HOW)
    before = list(islice(first, given))
    assert same(before, whole[:given])
    state = json.loads(json.dumps(first.state_dict()))
    assert same(list(first), whole[given:])
    passes.clear()
    again = stream(lm, iter(DOCUMENTS), SITE, **HOW)
    if ahead > given:
        return
    list(islice(again, ahead))
    again.load_state_dict(state)
    assert again.state_dict() == state
    rest = list(again)
    assert same(rest, whole[given:])
    left = (810 - given * 10) / 27
    assert passes.count(3) <= left + (1 + ahead) * (60 / 27 + 2)


def test_a_state_of_another_stream_is_refused() -> None:
    lm = make("gpt2")
    first = stream(lm, DOCUMENTS, SITE, **HOW)
    list(islice(first, 20))
    state = first.state_dict()
    for name, change in (
        ("seed", {"seed": 1}), ("batch_size", {"batch_size": 9}), ("skip", {"skip": 2}),
        ("buffer_size", {"buffer_size": 30}), ("max_norm", {"max_norm": 10.0}),
        ("leave_tokens", {"leave_tokens": [5]}),
    ):  # fmt: skip
        with pytest.raises(Refusal, match=name):
            stream(lm, DOCUMENTS, SITE, **HOW | change).load_state_dict(state)
    with pytest.raises(Refusal, match="model"):
        stream(make("gpt2", seed=1), DOCUMENTS, SITE, **HOW).load_state_dict(state)
    for others in (DOCUMENTS[1:], DOCUMENTS[:3], some_tokens(90, 10).split(3)):
        with pytest.raises(Refusal, match="documents"):
            stream(lm, others, SITE, **HOW).load_state_dict(state)
    later = stream(lm, DOCUMENTS, SITE, **HOW)
    list(islice(later, 50))
    with pytest.raises(Refusal, match="ahead of what was read"):
        later.load_state_dict(state)


def test_a_training_goes_on_without_running_the_model_from_the_start(
    tmp_path: Path, passes: list[int]
) -> None:
    lm = make("gpt2")
    how = {"l1_coefficient": 1.0, "steps": 70, "progress": False, "checkpoint_every": 60}

    def from_stream() -> Iterator[Tensor]:
        return stream(lm, iter(DOCUMENTS), SITE, **HOW)

    whole = train(from_stream(), 2 * WIDTH, **how).sae
    assert whole.metadata["hook_name"] == SITE
    passes.clear()

    def stop(record, sae) -> None:
        if record["step"] >= 65:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        train(from_stream(), 2 * WIDTH, **how, checkpoint=tmp_path, callback=stop, log_every=1)
    passes.clear()
    again = train(from_stream(), 2 * WIDTH, **how, checkpoint=tmp_path, log_every=1)
    assert again.steps == 70 and torch.equal(again.sae.W_dec, whole.W_dec)
    assert 0 < passes.count(3) <= 12  # of 26: two windows, one to look at and one to go on in


def test_rows_of_a_model_on_the_cpu_stay_there() -> None:
    """Wherever the training is: it sends for each batch."""
    lm = make("gpt2")
    expected = list(stream(lm, DOCUMENTS, SITE, **HOW))
    there = stream(lm, DOCUMENTS, SITE, **HOW).on_device("cuda", 2**40)
    assert there.taken == 0 and there.d_in == expected[0].shape[1]
    assert same(list(there), expected)
