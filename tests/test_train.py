"""Training against autograd in float64, a textbook loop, and data whose features are known."""

from __future__ import annotations

import copy
import itertools
import math
import subprocess
import sys
import warnings
from collections.abc import Iterator

import pytest
import torch
from meddling import meddling
from torch import Tensor

from saelearn import metrics
from saelearn import train as training
from saelearn.errors import Refusal
from saelearn.sae import DECODER_NORMS, L1, SAE
from saelearn.toy import PlantedFeatures
from saelearn.train import Adam, batches, lr_factor, resample, step, train
from saelearn.train.resampling import generator_for

D, F, B = 8, 16, 64
TOY = PlantedFeatures.make(12, D, 0.15)


def rows(n: int = 256, seed: int = 0) -> Tensor:
    return TOY.sample(n, generator=torch.Generator().manual_seed(seed))[0]


def quick(data: object = None, **arguments) -> training.Trained:
    """A short training; anything can be changed."""
    settings = {"l1_coefficient": 0.3, "steps": 30, "batch_size": B, "log_every": 10}
    settings |= {"progress": False} | arguments
    return train(rows() if data is None else data, F, **settings)


def weights(sae: SAE) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in sae.named_parameters()}


def same(a: SAE, b: SAE) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def random_sae(threshold: float = 0.0, centred: bool = True) -> SAE:
    """An SAE with nothing zero or tied; a higher threshold makes its features sparser."""
    generator = torch.Generator().manual_seed(5)
    sae = SAE(D, F, apply_b_dec_to_input=centred)
    for parameter in sae.parameters():
        parameter.data.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    sae.b_enc.data -= threshold
    return sae


def gradients_in_float64(
    sae: SAE, x: Tensor, l1_coefficient: float, decoder_norm: str
) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients, written out once more and differentiated by autograd."""
    p = {name: w.double().requires_grad_() for name, w in weights(sae).items()}
    x = x.double()
    f = (((x - p["b_dec"]) if sae.apply_b_dec_to_input else x) @ p["W_enc"] + p["b_enc"]).clamp(0)
    norms = (p["W_dec"] ** 2).sum(1) ** 0.5 if decoder_norm == "weighted" else torch.ones(F)
    error = ((x - f @ p["W_dec"] - p["b_dec"]) ** 2).sum() / len(x)
    loss = error + l1_coefficient * (f * norms).sum() / len(x)
    loss.backward()
    return loss.item(), {name: w.grad for name, w in p.items()}


@pytest.mark.parametrize("decoder_norm", DECODER_NORMS)
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("threshold", [0.0, 1.5, 100.0], ids=["dense", "sparse", "dead"])
def test_the_gradient_of_a_step_is_autograds(
    threshold: float, centred: bool, decoder_norm: str
) -> None:
    """With plain gradient descent at rate 1, the update is the gradient."""
    sae, x = random_sae(threshold, centred), rows(B)
    if decoder_norm == "unit_norm":
        sae.W_dec.data /= sae.W_dec.data.norm(dim=1, keepdim=True)
    before = weights(sae)
    expected_loss, expected = gradients_in_float64(sae, x, 0.3, decoder_norm)
    optimizer = torch.optim.SGD(sae.parameters(), lr=1.0)
    expected_count = (sae.encode(x) > 0).sum(0)
    loss, count, *_ = step(sae, x, optimizer, L1(0.3, decoder_norm), clip_norm=math.inf)
    assert loss.total.item() == pytest.approx(expected_loss, rel=1e-5)
    assert loss.total.item() == pytest.approx(
        (loss.reconstruction + 0.3 * loss.sparsity).item(), rel=1e-6
    )
    assert torch.equal(count, expected_count) and not loss.total.requires_grad
    share = count.sum().item() / (B * F)
    assert {0.0: share > 0.3, 1.5: 0 < share < 0.1, 100.0: share == 0}[threshold]
    if decoder_norm == "unit_norm":  # the part along the row is taken out, the length restored
        rows_FD = before["W_dec"].double()
        gradient = expected["W_dec"]
        gradient = gradient - (gradient * rows_FD).sum(1, keepdim=True) * rows_FD
        moved = rows_FD - gradient
        expected["W_dec"] = rows_FD - moved / moved.norm(dim=1, keepdim=True)
    for name, after in weights(sae).items():
        change = (before[name] - after).double()
        torch.testing.assert_close(change, expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("decoder_norm", DECODER_NORMS)
@pytest.mark.parametrize("layout", ["as made", "contiguous", "transposed"])
def test_twenty_steps_follow_a_textbook_adam(decoder_norm: str, layout: str) -> None:
    """Whatever W_enc's layout in memory: the fused update takes the gradient's to be the same."""
    sae = random_sae()
    if layout == "contiguous":
        sae.W_enc.data = sae.W_enc.data.contiguous()
    if layout == "transposed":
        sae.W_enc.data = sae.W_enc.data.T.contiguous().T
    if decoder_norm == "unit_norm":
        sae.W_dec.data /= sae.W_dec.data.norm(dim=1, keepdim=True)
    textbook = copy.deepcopy(sae).double()
    m = {name: torch.zeros_like(w) for name, w in weights(textbook).items()}
    v = copy.deepcopy(m)
    optimizer = torch.optim.Adam(sae.parameters(), lr=0.01, fused=True)
    for t in range(1, 21):
        x = rows(B, seed=t)
        step(sae, x, optimizer, L1(0.3, decoder_norm), clip_norm=0.5)
        _, gradients = gradients_in_float64(textbook, x, 0.3, decoder_norm)
        if decoder_norm == "unit_norm":
            W = textbook.W_dec.data
            gradients["W_dec"] -= (gradients["W_dec"] * W).sum(1, keepdim=True) * W
        norm = math.sqrt(sum(float((g**2).sum()) for g in gradients.values()))
        for name, parameter in textbook.named_parameters():
            g = gradients[name] * min(1.0, 0.5 / (norm + 1e-6))
            m[name] = 0.9 * m[name] + 0.1 * g
            v[name] = 0.999 * v[name] + 0.001 * g * g
            m_hat, v_hat = m[name] / (1 - 0.9**t), v[name] / (1 - 0.999**t)
            parameter.data -= 0.01 * m_hat / (v_hat.sqrt() + 1e-8)
        if decoder_norm == "unit_norm":
            textbook.W_dec.data /= textbook.W_dec.data.norm(dim=1, keepdim=True)
    for name, parameter in textbook.named_parameters():
        ours = dict(sae.named_parameters())[name].double()
        torch.testing.assert_close(ours, parameter, rtol=1e-3, atol=1e-4)


def test_rows_stay_at_unit_length_or_do_not() -> None:
    lengths = {
        name: quick(decoder_norm=name, normalize=False, steps=200, lr=1e-2).sae.W_dec.norm(dim=1)
        for name in DECODER_NORMS
    }
    torch.testing.assert_close(lengths["unit_norm"], torch.ones(F))
    assert (lengths["weighted"] - 1).abs().max() > 0.05


def test_a_free_decoder_grows_to_cheat_the_penalty() -> None:
    free = quick(decoder_norm="free", normalize=False, steps=1_000, lr=1e-2, log_every=100)
    weighted = quick(decoder_norm="weighted", normalize=False, steps=1_000, lr=1e-2, log_every=100)
    norms = free.column("decoder_norm")
    assert norms[-1] > 1.5 * norms[1] and norms == sorted(norms)
    assert norms[-1] > 2 * weighted.column("decoder_norm")[-1]
    assert free.column("sparsity")[-1] < 0.7 * free.column("sparsity")[1]


# --- the loop -------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not() -> None:
    arguments = {"resample_at": (0.5,), "l1_coefficient": 2.0}
    first, again, other = (quick(seed=seed, **arguments) for seed in (3, 3, 4))
    assert same(first.sae, again.sae) and first.history == again.history
    assert not same(first.sae, other.sae)
    torch.rand(5)  # the global generator plays no part
    assert same(quick(seed=3, **arguments).sae, first.sae)


def test_an_sae_does_not_start_at_the_truth() -> None:
    """Equal seeds drew equal directions once: recovery then says nothing."""
    toy = PlantedFeatures.make(64, 32)
    for seed, d_sae in itertools.product(range(3), (64, 128)):
        start = SAE(32, d_sae, seed=seed).W_dec
        found = metrics.recovery(start, toy.directions_GD, threshold=0.9)
        assert found.n_recovered == 0 and found.max_cosine_G.mean() < 0.6


def test_planted_features_are_found() -> None:
    toy = PlantedFeatures.make(24, 16, 0.06)
    trained = train(
        toy.batches(512), 48, l1_coefficient=0.3, steps=1_200, lr=1e-2,
        decoder_norm="unit_norm", normalize=False, progress=False,
    )  # fmt: skip
    found = metrics.recovery(trained.sae.W_dec, toy.directions_GD)
    assert found.n_recovered == 24 and found.max_cosine_G.mean() > 0.98


def test_one_feature_shrinks_by_half_of_lambda() -> None:
    """x = amplitude * e1, a unit-norm decoder: the best z is max(0, amplitude - lambda / 2)."""
    amplitude = torch.rand(512, 1, generator=torch.Generator().manual_seed(0)) + 0.5
    x = amplitude * torch.nn.functional.one_hot(torch.tensor(0), D)
    trained = train(
        x, 1, l1_coefficient=0.4, steps=1_500, batch_size=512, lr=1e-2, center="zero",
        decoder_norm="unit_norm", normalize=False, progress=False, kind=without_offset,
    )  # fmt: skip
    f = trained.sae.encode(x)
    torch.testing.assert_close(f, amplitude - 0.2, rtol=0, atol=0.02)


def without_offset(*args: int, **arguments: float) -> SAE:
    """The closed form has no `b_dec`."""
    sae = SAE(*args, **arguments)
    sae.b_dec.requires_grad_(False)
    return sae


def test_folding_gives_an_sae_of_raw_activations() -> None:
    """Trained on x with a scale, or on scaled x without: the same features, the same variance."""
    x = 7 * rows(512) + 2
    scaled = quick(x)
    assert scaled.scale == pytest.approx(math.sqrt(D / (x**2).sum(1).mean().item()), rel=1e-5)
    by_hand = quick(x * scaled.scale, normalize=False)
    assert by_hand.scale == 1.0
    expected = by_hand.sae.encode(x * scaled.scale)
    torch.testing.assert_close(scaled.sae.encode(x), expected, rtol=1e-4, atol=1e-4)
    expected = by_hand.sae(x * scaled.scale).x_hat / scaled.scale
    torch.testing.assert_close(scaled.sae(x).x_hat, expected, rtol=1e-4, atol=1e-3)
    tenfold = quick(10 * x)
    torch.testing.assert_close(
        tenfold.sae.encode(10 * x), scaled.sae.encode(x), rtol=1e-3, atol=1e-3
    )


def test_the_history_says_what_happened() -> None:
    trained = quick(steps=25, log_every=10, l1_coefficient=0.3)
    assert trained.column("step") == [10, 20, 25] and trained.steps == 25
    for record in trained.history:
        assert record["loss"] == pytest.approx(record["reconstruction"] + 0.3 * record["sparsity"])
        assert 0 <= record["dead"] <= 1 and 0 <= record["l0"] <= F
    seen = []
    again = quick(
        steps=25, callback=lambda record, so_far: seen.append((record, so_far().sae.d_sae))
    )
    assert seen == [(record, F) for record in again.history]


def test_dead_features_are_counted() -> None:
    """With so strong a penalty that everything dies, the share goes to one."""
    trained = quick(l1_coefficient=100.0, steps=300, lr=1e-2)
    assert trained.history[0]["dead"] < 1 and trained.history[-1]["dead"] == 1
    assert trained.history[-1]["l0"] == 0


def test_schedules() -> None:
    factors = [lr_factor(i, 100, warmup=0.1, decay=0.2) for i in range(100)]
    assert factors[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert factors[10:80] == [1.0] * 70
    assert factors[80:] == pytest.approx([(1 - i / 20) ** 2 for i in range(20)])
    assert {lr_factor(i, 7, warmup=0, decay=0) for i in range(7)} == {1.0}
    rates = quick(steps=40, log_every=1, lr=0.5e-3, lr_warmup=0.1, lr_decay=0.2).column("lr")
    assert rates[:4] == pytest.approx([0.5e-3 * (i + 1) / 4 for i in range(4)])
    assert rates[-1] == pytest.approx(0.5e-3 / 8**2)


def test_the_penalty_rises_from_nothing() -> None:
    trained = quick(steps=40, log_every=1, l1_warmup=0.5, l1_coefficient=0.8)
    strengths = [
        (r["loss"] - r["reconstruction"]) / r["sparsity"] for r in trained.history if r["sparsity"]
    ]
    assert strengths == pytest.approx([0.8 * min(1, (i + 1) / 20) for i in range(40)], rel=1e-3)


def test_interruption_keeps_what_was_trained() -> None:
    def interrupt(record: dict, sae: SAE) -> None:
        if record["step"] == 20:
            raise KeyboardInterrupt

    stopped = quick(3 * rows(), steps=1_000, callback=interrupt, lr_warmup=0.01)
    assert stopped.steps == 20 and stopped.column("step") == [10, 20]
    x = 3 * rows()  # what there is takes raw activations, like what is finished
    assert metrics.explained_variance(x, stopped.sae(x).x_hat) > -1
    assert stopped.sae(x).x_hat.norm() > 0.3 * x.norm()


# --- Adam -----------------------------------------------------------------------------------------


def test_adam_is_pytorchs_to_the_bit() -> None:
    ours, theirs = random_sae(), random_sae()
    optimizers = (Adam(ours.parameters(), lr=0.01),
                  torch.optim.Adam(theirs.parameters(), lr=0.01, fused=True))  # fmt: skip
    for i in range(5):
        for sae, optimizer in zip((ours, theirs), optimizers, strict=True):
            step(sae, rows(B), optimizer, L1(0.1 * i))
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b) and a.stride() == b.stride()
        mine, other = (optimizer.state[p] for optimizer, p in zip(optimizers, (a, b), strict=True))
        assert all(torch.equal(mine[name], other[name]) for name in other)


def test_a_training_loads_no_compiler() -> None:
    """The first `torch.optim.Adam` of a process would, and take most of a second."""
    code = (
        "import sys, torch; from saelearn.train import train; "
        "train(torch.randn(50, 4), 8, l1_coefficient=0.1, steps=3, progress=False); "
        "assert 'torch._dynamo' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# --- resampling -----------------------------------------------------------------------------------


def test_resampling_gives_dead_features_what_the_paper_says() -> None:
    sae, x = random_sae(), rows(B)
    dead = torch.zeros(F, dtype=torch.bool)
    dead[[2, 9]] = True
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-3, fused=True)
    step(sae, x, optimizer, L1(0.1))
    before, state = weights(sae), copy.deepcopy(optimizer.state_dict())
    assert resample(sae, optimizer, dead, x, generator=torch.Generator().manual_seed(0)) == 2
    after, alive = weights(sae), ~dead
    inputs = torch.nn.functional.normalize(x - before["b_dec"], dim=1)
    decoder_length = before["W_dec"][alive].norm(dim=1).mean()
    encoder_length = 0.2 * before["W_enc"][:, alive].norm(dim=0).mean()
    for i in (2, 9):
        direction = torch.nn.functional.normalize(after["W_dec"][i], dim=0)
        assert (inputs @ direction).max() > 1 - 1e-5  # it points to one of the inputs
        torch.testing.assert_close(after["W_dec"][i], direction * decoder_length)
        torch.testing.assert_close(after["W_enc"][:, i], direction * encoder_length)
        assert after["b_enc"][i] == 0
    assert torch.equal(after["W_dec"][alive], before["W_dec"][alive])
    assert torch.equal(after["W_enc"][:, alive], before["W_enc"][:, alive])
    assert torch.equal(after["b_enc"][alive], before["b_enc"][alive])
    assert torch.equal(after["b_dec"], before["b_dec"])
    for number, (name, _) in enumerate(sae.named_parameters()):
        for moment in ("exp_avg", "exp_avg_sq"):
            old, new = (
                state["state"][number][moment],
                optimizer.state_dict()["state"][number][moment],
            )
            if name == "b_dec":
                assert torch.equal(new, old)
            else:
                old, new = (m.T if name == "W_enc" else m for m in (old, new))
                assert torch.equal(new[alive], old[alive]) and not new[dead].any()


def test_new_directions_are_drawn_by_squared_loss() -> None:
    """One input with a loss 3 times the other's is drawn 9 times as often."""
    x = torch.zeros(2, D)
    x[0, 0], x[1, 1] = math.sqrt(3), 1.0
    sae = SAE(D, 4_000)
    for parameter in sae.parameters():
        parameter.data.zero_()
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-3)
    sae.W_dec.data[0, 2] = 1.0  # one living feature, whose length the others take
    dead = torch.arange(4_000) > 0
    resample(sae, optimizer, dead, x, generator=torch.Generator().manual_seed(0))
    drawn = sae.W_dec.data[1:].argmax(1)
    assert (drawn == 0).float().mean().item() == pytest.approx(0.9, abs=0.02)


def test_resampling_revives() -> None:
    """Features that a huge bias killed live again, and nothing else brings them back."""

    def kill(record: dict, sae: SAE) -> None:
        if record["step"] == 10:
            sae.b_enc.data[: F // 2] = -100.0

    arguments = {"steps": 200, "l1_coefficient": 0.05, "lr": 3e-3}
    with meddling(kill):
        left = quick(**arguments)
        revived = quick(resample_at=(0.5,), **arguments)
    assert left.history[-1]["dead"] >= 0.5
    assert revived.history[9]["dead"] >= 0.5 > 0.2 > revived.history[-1]["dead"]


def test_nobody_dead_nobody_resampled() -> None:
    sae = random_sae()
    before = weights(sae)
    optimizer = torch.optim.Adam(sae.parameters())
    nobody = torch.zeros(F, dtype=torch.bool)
    assert resample(sae, optimizer, nobody, rows(B), generator=torch.Generator()) == 0
    assert all(torch.equal(before[name], w) for name, w in weights(sae).items())


def test_nothing_left_to_explain_nobody_resampled() -> None:
    """All are dead, and `b_dec` alone is each row: there is no error to draw by."""
    sae = random_sae()
    sae.b_enc.data.fill_(-100.0)
    before, everyone = weights(sae), torch.ones(F, dtype=torch.bool)
    optimizer, x = torch.optim.Adam(sae.parameters()), sae.b_dec.data.expand(B, -1).clone()
    assert resample(sae, optimizer, everyone, x, generator=torch.Generator()) == 0
    assert all(torch.equal(before[name], w) for name, w in weights(sae).items())


# --- batches --------------------------------------------------------------------------------------


def test_an_epoch_visits_each_row_once() -> None:
    x = torch.arange(60.0)[:, None]
    stream = batches.shuffled(x, 20, seed=1)
    epochs = [torch.cat([next(stream) for _ in range(3)]).flatten().tolist() for _ in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(60)) and epoch != list(range(60))
    assert epochs[0] != epochs[1] != epochs[2]
    again = batches.shuffled(x, 20, seed=1)
    assert torch.cat([next(again) for _ in range(3)]).flatten().tolist() == epochs[0]


def test_what_does_not_fill_a_batch_is_left_out_of_an_epoch() -> None:
    x = torch.arange(50.0)[:, None]
    stream = batches.shuffled(x, 20)
    epochs = [torch.cat([next(stream), next(stream)]).flatten().tolist() for _ in range(30)]
    assert all(len(set(epoch)) == 40 for epoch in epochs)
    assert {row for epoch in epochs for row in epoch} == set(range(50))  # but never for ever
    assert len(next(batches.shuffled(x, 1_000))) == 50


def test_a_shuffled_tensor_finds_its_place_again() -> None:
    x = torch.arange(47.0)[:, None]
    for drawn in (0, 1, 4, 5, 12):
        first, second = batches.shuffled(x, 10, seed=2), batches.shuffled(x, 10, seed=9)
        for _ in range(drawn):
            next(first)
        second.load_state_dict(first.state_dict())
        assert all(torch.equal(next(first), next(second)) for _ in range(9))


def test_orders_that_a_thread_draws_are_the_same() -> None:
    """As for a GPU, which would wait; where a place is found again, what was drawn is discarded."""
    x = torch.arange(47.0)[:, None]
    for drawn in (0, 1, 4, 5, 12):
        first, second, meanwhile = (batches.shuffled(x, 10, seed=2) for _ in range(3))
        meanwhile._waits = True
        for _ in range(drawn):
            assert torch.equal(next(first), next(meanwhile))
        second._waits = True
        for _ in range(7):
            next(second)
        second.load_state_dict(meanwhile.state_dict())
        expected = [next(first) for _ in range(12)]
        assert all(torch.equal(next(second), x_BD) for x_BD in expected)
        assert all(torch.equal(next(meanwhile), x_BD) for x_BD in expected)
        assert second._drawn and meanwhile._drawn


def test_a_stream_that_knows_its_place_is_not_read_again() -> None:
    """Its own state is used; any other stream is read forward."""

    class Knowing:
        drawn, at = 0, 0

        def __iter__(self) -> Iterator[Tensor]:
            while True:
                self.at, self.drawn = self.at + 1, self.drawn + 1
                yield torch.full((4, D), float(self.at))

        def state_dict(self) -> dict:
            return {"at": self.at}

        def load_state_dict(self, state: dict) -> None:
            self.at = state["at"]

    first, second = Knowing(), Knowing()
    source, other = batches.batches(first, 1), batches.batches(second, 1)
    for _ in range(50):
        next(source)
    other.load_state_dict(source.state_dict())
    assert next(other)[0, 0] == 51 and second.drawn == 2


def test_purposes_do_not_share_a_random_stream() -> None:
    streams = [
        torch.rand(1_000, generator=generator)
        for generator in (
            torch.Generator().manual_seed(0),
            generator_for(0, "resampling"),
            generator_for(0, "another"),
            generator_for(1, "resampling"),
        )
    ]
    for a, b in itertools.combinations(streams, 2):
        assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1]) < 0.1
    assert torch.equal(streams[1], torch.rand(1_000, generator=generator_for(0, "resampling")))


# --- refusals -------------------------------------------------------------------------------------

NAN = rows()
NAN[17, 3] = torch.nan


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (NAN, "1 NaN"),
        (rows() / 0, "infinite"),
        (torch.zeros(0, D), "empty dataset"),
        (torch.zeros(20, D), "not all zero"),
        (rows()[0], r"\[N, D\]"),
        (rows().long(), "floating"),
        ([], "empty stream"),
        ([rows(), NAN] * 100, "finite a batch"),
        ([rows(), rows()[:, 1:]] * 100, rf"width {D}"),
        ([rows(), rows()[:0]] * 100, "at least one row"),
        ([rows()] * 29, "ended early"),
        ([rows().numpy()] * 99, "as_tensor"),
    ],
)
def test_unusable_data_is_refused(data: object, words: str) -> None:
    with pytest.raises(Refusal, match=words):
        quick(data)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"l1_coefficient": -0.1}, "l1_coefficient >= 0"),
        ({"l1_coefficient": math.nan}, "l1_coefficient"),
        ({"steps": 0}, "steps >= 1"),
        ({"log_every": 0}, "log_every >= 1"),
        ({"batch_size": 0}, "batch_size >= 1"),
        ({"lr": -1.0}, "lr >= 0"),
        ({"decoder_norm": "unit"}, "weighted, unit_norm, free"),
        ({"precision": "fp16"}, "fp32, tf32, bf16"),
        ({"precision": "tf32"}, "fp32 or bf16 on cpu"),
        ({"center": "median"}, "geometric_median"),
        ({"device": "gpu"}, "cpu, cuda, mps"),
        ({"checkpoint_every": 0}, "above 0"),
    ],
)
def test_unusable_arguments_are_refused(arguments: dict, words: str) -> None:
    with pytest.raises(Refusal, match=words):
        quick(**arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_a_device_that_is_missing_is_told() -> None:
    with pytest.raises(Refusal, match="device that there is"):
        quick(device="cuda")


def test_nan_is_found_wherever_it_is_in_large_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "SAMPLE_ROWS", 100)
    for row in (0, 99, 100, 255):
        x = rows()
        x[row, 2] = torch.inf
        with pytest.raises(Refusal, match="1 infinite"):
            quick(x)


def test_exactly_enough_batches_are_enough() -> None:
    assert quick([rows(B)] * 30).steps == 30


def test_a_loss_that_explodes_is_told() -> None:
    with pytest.raises(Refusal, match=r"(?s)finite loss.*lower lr"):
        quick(lr=1e30, clip_norm=math.inf, steps=200, lr_warmup=0.0, normalize=False)


# --- other precisions and devices -----------------------------------------------------------------


def agrees(**arguments) -> None:
    """A training elsewhere ends about where one on the CPU in fp32 does, in fp32 on the CPU."""
    other, plain = (quick(steps=100, **more) for more in (arguments, {}))
    x = rows()
    assert {p.dtype for p in other.sae.parameters()} == {torch.float32}
    assert {p.device.type for p in other.sae.parameters()} == {"cpu"}
    ours, theirs = (metrics.explained_variance(x, t.sae(x).x_hat) for t in (other, plain))
    assert ours == pytest.approx(theirs, abs=0.03)


def test_bf16_ends_where_fp32_does() -> None:
    agrees(precision="bf16")
    assert not same(quick(precision="bf16").sae, quick().sae)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")
@pytest.mark.parametrize("precision", training.PRECISIONS)
def test_cuda_ends_where_the_cpu_does(precision: str) -> None:
    agrees(device="cuda", precision=precision, resample_at=(0.5,))


@pytest.mark.skipif(not torch.backends.mps.is_available(), reason="no Apple GPU here")
def test_apples_gpu_ends_where_the_cpu_does() -> None:
    agrees(device="mps")


def test_a_few_rows_that_carry_the_scale_are_told():
    """20 of 20,000 rows a hundred times as long have 91 % of all squares."""
    x_ND = torch.randn(20_000, D, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quick(x_ND, steps=1)
    sinks_ND = x_ND.clone()
    sinks_ND[::1_000] *= 100
    squares_N = sinks_ND.square().sum(1)
    carried = float(squares_N[::1_000].sum() / squares_N.sum())
    with pytest.warns(UserWarning, match="20 of 20,000 rows") as told:
        quick(sinks_ND, steps=1)
    said = str(told[0].message)
    assert f"{carried:.0%}" in said and f"{(1 - carried) ** -0.5:.3g} times too small" in said
    sinks_ND[::3] *= 100  # a third of the rows are no few
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quick(sinks_ND, steps=1)
        quick(sinks_ND, steps=1, normalize=False)
