"""Many SAEs at once are those that `train` gives one by one."""

import itertools

import pytest
import torch

from saelearn.errors import Refusal
from saelearn.toy import PlantedFeatures
from saelearn.train import sweep, train
from saelearn.train.fast import tuning

TOY = PlantedFeatures.make()
F, B = 96, 128


def rows(n: int = 2_000) -> torch.Tensor:
    return TOY.sample(n, generator=torch.Generator().manual_seed(0))[0]


def assert_same(one, other) -> None:
    for p, q in zip(one.sae.parameters(), other.sae.parameters(), strict=True):
        assert torch.equal(p, q)
    assert one.history == other.history and one.scale == other.scale


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"decoder_norm": "unit_norm", "normalize": False, "lr": 3e-3},
        {"resample_at": (0.5, 0.8), "center": "geometric_median", "l1_warmup": 0.0, "lr": 1e-2},
        {"clip_norm": 0.05, "decoder_norm": "free"},
    ],
    ids=str,
)
@pytest.mark.parametrize("small", [0, 2**40], ids=["sparse", "dense"])
def test_each_equals_its_separate_training_to_the_bit(arguments, small, monkeypatch):
    """From a stream and, for two seeds, from one tensor that each seed shuffles in its own way."""
    monkeypatch.setattr(tuning, "SMALL", small)
    common = {"steps": 200, "log_every": 60, "progress": False, **arguments}
    coefficients = [0.02, 0.3, 3.0]
    together = sweep(lambda: TOY.batches(B), F, coefficients, **common)
    for coefficient, one in zip(coefficients, together, strict=True):
        assert_same(one, train(TOY.batches(B), F, l1_coefficient=coefficient, **common))
    common["steps"] = 60
    together = sweep(rows(), F, coefficients[1:], seeds=[3, 4], batch_size=B, **common)
    for (coefficient, seed), one in zip(
        itertools.product(coefficients[1:], [3, 4]), together, strict=True
    ):
        alone = train(rows(), F, l1_coefficient=coefficient, seed=seed, batch_size=B, **common)
        assert_same(one, alone)


def test_results_stream_while_they_train():
    seen = []

    def watch(coefficient, seed, so_far):
        seen.append((so_far.steps, coefficient))
        so_far.sae.W_dec.data.zero_()  # what is handed out is the reader's own

    done = sweep(
        lambda: TOY.batches(B),
        F,
        [0.1, 1.0],
        steps=30,
        log_every=10,
        progress=False,
        callback=watch,
    )
    assert seen == [(s, c) for s in (10, 20, 30) for c in (0.1, 1.0)]
    assert all(one.sae.W_dec.norm() > 0 for one in done)


def test_interrupted_it_returns_what_there_is():
    def interrupt(coefficient, seed, so_far):
        if so_far.steps == 20:
            raise KeyboardInterrupt

    done = sweep(
        rows(), F, [0.1, 1.0], seeds=[0, 1], steps=40, log_every=10, batch_size=B,
        progress=False, callback=interrupt,
    )  # fmt: skip
    assert [one.steps for one in done] == [20, 20]  # both of the first seed


def test_each_result_can_be_saved_by_itself(tmp_path):
    for number, one in enumerate(sweep(rows(), F, [0.1, 1.0], steps=5, progress=False)):
        one.sae.save(tmp_path / str(number))
        assert one.sae.W_dec.untyped_storage().nbytes() == one.sae.W_dec.nbytes


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"l1_coefficients": []}, "coefficient"),
        ({"l1_coefficients": [0.1, -1.0]}, "l1_coefficient"),
        ({"l1_coefficients": [0.1], "seeds": []}, "seed"),
        ({"l1_coefficients": [0.1], "decoder_norm": "none"}, "decoder_norm"),
    ],
)
def test_what_cannot_be_trained_is_refused(arguments, word):
    with pytest.raises(Refusal, match=word):
        sweep(rows(), F, steps=5, progress=False, **arguments)
