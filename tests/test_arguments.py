"""Every public function, every kind of wrong value: a refusal, and nothing else.

The table holds calls that work. From each of their arguments follows what is wrong in its place:
another kind of number for a number, another shape, type or width for a tensor, and so on.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_models import make, some_tokens
from torch import Tensor

from saelearn import activations, artifacts, corpus, features, lm, metrics, sae, steer, tiny, train
from saelearn.errors import (
    Refusal,
    brief,
    check_flag,
    check_range,
    check_whole,
    checked,
    number,
    whole,
)
from saelearn.toy import linear, pairs, sparse_coding, superposition

D, F, N = 4, 6, 8
SITE = "transformer.h.1:out"
GENERATOR = torch.Generator().manual_seed(0)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR)


X_ND, W_FD, F_NF = normal(N, D), normal(F, D), normal(N, F).relu()
HOLDS_NC = torch.arange(2 * N).reshape(N, 2) % 3 == 0
TOKENS = some_tokens(3, 10)
EDIT = steer.add(torch.ones(16), 1.0)


@functools.cache
def model() -> lm.LM:
    return make("gpt2")


@functools.cache
def an_sae(width: int = D) -> sae.SAE:
    return sae.SAE(width, F)


@functools.cache
def collected() -> activations.Activations:
    return activations.collect(model(), TOKENS, SITE)


class Case(NamedTuple):
    """A call that works.

    call: the function; given: its arguments by name; free: names of arguments in whose place
    anything of the right type is right (a number of either sign, a name to print).
    """

    call: Callable[..., Any]
    given: dict[str, Any]
    free: tuple[str, ...] = ()


def case(call: Callable[..., Any], free: str = "", **given: Any) -> Case:
    return Case(call, given, tuple(free.split()))


TRAIN = {"data": X_ND, "d_sae": F, "steps": 2, "l1_coefficient": 0.1, "batch_size": 4, "lr": 1e-3,
         "bias_lr": 1.0, "lr_warmup": 0.1, "lr_decay": 0.1, "l1_warmup": 0.1, "clip_norm": 1.0,
         "center": "mean", "basis": "given", "decoder_norm": "weighted", "device": "cpu",
         "precision": "fp32",
         "normalize": True, "seed": 0, "log_every": 1, "progress": False}  # fmt: skip
SWEEP = {n: v for n, v in TRAIN.items() if n not in ("l1_coefficient", "seed")}


@functools.cache
def the_table() -> list[Case]:
    """Calls that work, of every public function that takes something to be wrong about."""
    run = {"lm": model(), "site": SITE}
    between = {"lm": model(), "tokens_T": TOKENS[0], "source": SITE,
               "reader": "transformer.h.2:out"}  # fmt: skip
    steering = {"lm": model(), "site": SITE, "directions": {"a": torch.ones(16)},
                "strengths": [1.0], "measure": lambda t: {"n": len(t)}, "unit": 1.0,
                "prompt": TOKENS[:1, :3], "n": 1, "max_new_tokens": 1, "seed": 0}  # fmt: skip
    kinds = [
        case(kind, d_in=D, d_sae=F, seed=0, decoder_init_norm=0.1, apply_b_dec_to_input=True, **own)
        for kind, own in (
            (sae.SAE, {}), (sae.TopK, {"k": 2}), (sae.BatchTopK, {"k": 2}), (sae.Gated, {}),
            (sae.JumpReLU, {"init_threshold": 0.1, "bandwidth": 0.1}),
            (sae.MatchingPursuit, {"residual_threshold": 0.1, "max_iterations": 3}),
        )
    ]  # fmt: skip
    kinds += [
        case(kind, d_in=D, d_sae=F, d_out=3)
        for kind in (sae.Transcoder, sae.SkipTranscoder, sae.JumpReLUTranscoder,
                     sae.JumpReLUSkipTranscoder)
    ]  # fmt: skip
    return [
        *kinds,
        case(metrics.l0, f_NF=F_NF),
        case(metrics.firing_frequency, f_NF=F_NF),
        case(metrics.dead_fraction, f_NF=F_NF),
        case(metrics.explained_variance, x_ND=X_ND, x_hat_ND=X_ND / 2),
        case(metrics.shrinkage, x_ND=X_ND, x_hat_ND=X_ND / 2),
        case(metrics.loss_recovered, "clean spliced ablated kl",
             clean=1.0, spliced=1.5, ablated=2.0, ablation="zero", kl=0.1),
        case(metrics.cosine_matrix, a_FD=W_FD, b_GD=W_FD[:2]),
        case(metrics.recovery, "threshold", W_dec_FD=W_FD, true_GD=W_FD[:2], threshold=0.5),
        case(metrics.encoder_decoder_cosine, W_enc_DF=W_FD.T, W_dec_FD=W_FD),
        case(metrics.surprise, logits_TV=normal(5, 7), tokens_T=torch.arange(5)),
        case(metrics.best_f1, scores_NS=F_NF, labels_NC=HOLDS_NC, n_thresholds=3, both_signs=True),
        case(metrics.f1, fires_NC=HOLDS_NC, labels_NC=~HOLDS_NC),
        case(metrics.token_identity_f1, tokens_N=torch.arange(N), labels_NC=HOLDS_NC),
        case(metrics.effective_number, mass=torch.ones(2, 3)),
        case(corpus.document, index=0, seed=0, length=8),
        case(corpus.documents, n=2, seed=0, start=0),
        case(corpus.vocabulary, n=2),
        case(corpus.concept_names, n=2, minimum=1),
        case(corpus.entropy_bound, n=2, seed=0),
        case(corpus.fourgrams, tokens_NT=TOKENS, n_words=40),
        case(corpus.validity, tokens_NT=TOKENS, known=torch.arange(9), n_words=40),
        case(superposition.sample_features, n=2, n_features=3, p=0.5, generator=GENERATOR,
             correlated=False),
        case(superposition.sample_features, n=2, n_features=3, p=torch.full((3,), 0.5),
             generator=GENERATOR),
        case(superposition.ToyModel, n_features=3, d_hidden=2, n_instances=1, seed=0),
        case(superposition.toy_loss, f_BG=F_NF, f_hat_KBG=F_NF[None], importance_G=torch.ones(F)),
        case(superposition.train_toy, n_features=3, d_hidden=2, p=0.5, importance_G=torch.ones(3),
             n_instances=1, steps=2, batch_size=4, lr=0.1, correlated=False, seed=0),
        case(superposition.dimensionality, W_GD=W_FD),
        case(superposition.PlantedFeatures.make, n_features=3, d_in=2, p=0.1, seed=0),
        case(pairs.PlantedPairs.make, n_pairs=2, d_in=3, p=0.1, given=0.5, otherwise=0.1, seed=0),
        case(pairs.PlantedPairs.make(2, 3, given=0.5).sample, n=2, generator=GENERATOR),
        case(pairs.PlantedPairs.make(2, 3, given=0.5).batches, batch_size=2, seed=0),
        case(linear.LinearAutoencoder, d_in=3, d_hidden=2, seed=0),
        case(linear.reconstruction_loss, x_BD=X_ND, x_hat_BD=X_ND),
        case(linear.train_linear, x_ND=X_ND, d_hidden=2, steps=2, lr=0.1, seed=0),
        case(linear.pca, x_ND=X_ND),
        case(linear.pca(X_ND).loss, n_components=2),
        case(linear.principal_cosines, a_HD=W_FD[:2], b_GD=W_FD[2:4]),
        case(sparse_coding.objective, x_BD=X_ND, f_BF=F_NF, W_dec_FD=W_FD, l1_coefficient=0.1),
        case(sparse_coding.curvature, W_dec_FD=W_FD),
        case(sparse_coding.soft_threshold, a=X_ND, threshold=0.1, nonnegative=True),
        case(sparse_coding.ista_step, x_BD=X_ND, f_BF=F_NF, W_dec_FD=W_FD, l1_coefficient=0.1,
             curvature=9.0, nonnegative=True),
        case(sparse_coding.ista_steps, x_BD=X_ND, W_dec_FD=W_FD, l1_coefficient=0.1,
             nonnegative=True, accelerate=True),
        case(sparse_coding.ista, x_BD=X_ND, W_dec_FD=W_FD, l1_coefficient=0.1, steps=2),
        case(sparse_coding.fista, x_BD=X_ND, W_dec_FD=W_FD, l1_coefficient=0.1, steps=2),
        case(sparse_coding.one_step_encoder, W_dec_FD=W_FD, l1_coefficient=0.1),
        case(sparse_coding.dictionary_step, W_dec_FD=W_FD, x_BD=X_ND, f_BF=F_NF, rate=0.5),
        case(lambda **given: sparse_coding.learn_dictionary(itertools.repeat(X_ND), **given),
             n_atoms=3, l1_coefficient=0.1, steps=1, code_steps=1, nonnegative=False, seed=0),
        case(sparse_coding.draw_patches, images=[normal(6, 6)], size=2, n=3, generator=GENERATOR),
        case(sparse_coding.phase_scrambled, image_HW=normal(4, 4), generator=GENERATOR),
        case(sparse_coding.whiten, x_ND=X_ND, floor=0.1),
        case(sparse_coding.random_batches, x_ND=X_ND, batch_size=2, seed=0),
        case(sae.L1, coefficient=0.1, decoder_norm="free"),
        case(sae.GatedL1, coefficient=0.1),
        case(sae.JumpL0, coefficient=0.1, target_l0=2.0, tanh_scale=1.0, pre_act=0.1),
        case(sae.Squared, aux_k=1, aux_coefficient=0.1, dead_after=2, decoder_norm="free"),
        case(sae.Matryoshka, aux_k=1, aux_coefficient=0.1, dead_after=2, widths=[2, 3]),
        case(sae.geometric_median, x_ND=X_ND, iterations=3, tolerance=0.1),
        case(sae.SAE.from_data, x_ND=X_ND, d_sae=F, center="mean"),
        case(an_sae().encode, x_BD=X_ND),
        case(an_sae().decode, f_BF=F_NF),
        case(sae.SAE(D, F).fold_scale_, scale=1.0, target_scale=1.0),
        case(sae.SAE(D, F).turn_, basis_DD=torch.eye(D)),
        case(model().logits, tokens_BT=TOKENS, gradients=False),
        case(model().loss, tokens_NT=TOKENS, pass_size=2),
        case(model().compare, tokens_NT=TOKENS, edits={SITE: EDIT}, pass_size=2),
        case(model().capture, tokens_BT=TOKENS, sites=[SITE], gradients=False),
        case(model().generate, prompt=TOKENS[:1], max_new_tokens=1, n=1, temperature=1.0, seed=0),
        case(model().generate_all, prompts=["w2", "w3"], max_new_tokens=1, n=1, temperature=1.0,
             seed=0, stop_at_eos=True),
        case(activations.chunk, lm=model(), text="w2 w3 w4 w5", length=2),
        case(lambda **given: list(activations.chunks(**given)), lm=model(), text="w2 w3 w4 w5",
             length=2, batch_size=1),
        case(activations.slopes, **between, directions_JO=torch.ones(2, 16), position=3),
        case(activations.readings, **between, changes_SD=torch.ones(2, 16),
             at_S=torch.tensor([1, 2]), position=3),
        case(activations.collect, **run, tokens_NT=TOKENS, pass_size=2, skip=1, leave_tokens=[3],
             max_norm=9.0),
        case(activations.collect_all, lm=model(), tokens_NT=TOKENS, sites=[SITE], pass_size=2),
        case(activations.gather, **run, documents=TOKENS, memory_limit=2**20, dtype="float32",
             skip=1, padding=0, pass_size=2, batch_size=2, epochs=1, seed=0),
        case(lambda **given: list(activations.stream(**given)), **run, documents=[TOKENS],
             batch_size=2, buffer_size=3, skip=1, max_norm=9.0, seed=0),
        case(activations.ActivationStore, data=X_ND, batch_size=2, epochs=1, seed=0,
             drop_last=True, memory_limit=2**20),
        case(activations.measure_loss_recovered, **run, sae=an_sae(16), tokens_NT=TOKENS,
             ablation_name="zero", pass_size=2),
        case(lambda mean_D: model().logits(TOKENS, {SITE: activations.ablation(mean_D)}),
             mean_D=torch.ones(16)),
        case(activations.patch_map, lm=model(), donor_BT=TOKENS[:, :2], into_BT=TOKENS[:, :2],
             sites=[SITE], measure=lambda logits: 1.0),
        case(steer.typical_norm, x_ND=X_ND),
        case(steer.add, "amount", direction_D=torch.ones(D), amount=1.0, positions=range(1, 3)),
        case(steer.clamp, "value", sae=an_sae(), feature=1, value=1.0, positions=range(1, 3)),
        case(steer.ablate, sae=an_sae(), features=[1], positions=range(1, 3)),
        case(steer.difference_of_means, x_ND=X_ND, labels_N=HOLDS_NC[:, 0]),
        case(steer.dose_response, **steering),
        case(features.encode, sae=an_sae(), x_ND=X_ND, batch_size=2),
        case(features.search, sae=an_sae(), x=X_ND),
        case(features.search(an_sae(), X_ND).top, k=2),
        case(features.search(an_sae(), X_ND).best_f1, labels_NC=HOLDS_NC, n_thresholds=3),
        case(features.absorption, f_NF=F_NF, W_dec_FD=W_FD, x_ND=X_ND, holds_N=HOLDS_NC[:, 0],
             reads_N=X_ND[:, 0]),
        case(features.main_features, f_NF=F_NF, holds_N=HOLDS_NC[:, 0], most=2, gain=0.1),
        case(features.probe_direction, x_ND=X_ND, reads_N=X_ND[:, 0]),
        case(features.contexts, f_N=collected().x_ND[:, 0], source=collected(), lm=model(), k=2,
             window=1, quantile=0.5),
        case(features.logit_effect, **run, direction_D=torch.ones(16), tokens_NT=TOKENS, k=2),
        case(features.effective_registers, f_NF=F_NF, register_N=torch.arange(N) % 2),
        case(features.register_shares, f_NF=F_NF, register_N=torch.arange(N) % 2),
        case(features.linear_probe, x_ND=X_ND, labels_NC=HOLDS_NC, iterations=2),
        case(features.random_directions, n=2, d=3, seed=0),
        case(features.most_telling, scores_NS=F_NF, labels_NC=HOLDS_NC, k=2),
        case(features.sparse_probe_f1, scores_NS=F_NF, labels_NC=HOLDS_NC, k=2),
        case(train.train, **TRAIN),
        case(lambda **given: train.sweep(l1_coefficients=[0.1], **given), **SWEEP),
        case(train.usual_lr, batch_size=4, d_in=4),
        case(train.lr_factor, i=0, steps=2, warmup=0.1, decay=0.1),
        case(train.l1_factor, i=0, steps=2, warmup=0.1),
        case(train.mean_norm_scale, x_ND=X_ND),
        case(train.principal_basis, x_ND=X_ND),
        case(train.shuffled, x_ND=X_ND, batch_size=2, seed=0),
        case(tiny.load_sae, l1_coefficient=0.5),
        case(tiny.load_named, name="topk"),
        case(tiny.name_of, l1_coefficient=0.5),
        case(tiny.mention_rate, tokens_NT=TOKENS, name="tiger"),
        case(tiny.mentions, tokens_NT=TOKENS, name="tiger"),
        case(tiny.validity, tokens_NT=TOKENS),
        case(tiny.held_out, n=2, start=0),
        case(artifacts.find, name="lm"),
        case(artifacts.check_room, size=8),
    ]  # fmt: skip


ELSEWHERE = {
    "sae.load": "test_hostile_saes", "sae.EndToEnd": "test_architectures", "lm.LM": "test_loading",
    "corpus.encode": "test_corpus", "corpus.labels": "test_corpus",
    "activations.verify": "test_store",
    "activations.write": "test_store", "activations.write_all": "test_store",
    "features.Firings": "", "features.Context": "", "steer.DoseResponse": "",
    "activations.Activations": "", "corpus.Document": "",
}  # fmt: skip
"""Tested where their files are, or records that nobody but us makes."""
PLUMBING = {
    "artifacts": {"data_dir", "sha256", "replacing", "shapes", "to_free", "exchange",
                  "write_manifest", "write_json", "read_json", "write_tensors", "read_tensors",
                  "read_pt", "read_npz"},
    "sae": {"Objective", "output_of", "squared_error", "l1_loss"},
    "lm": {"align", "checked_mask", "made_for", "warn_if_others"},
    "activations": {"splice", "swap"},
    "train": {"Adam", "Autograd", "Settings", "Trained", "engine_for", "resample", "step"},
    "tiny": {"recipes", "load_lm", "load_random_lm", "load_random_sae", "training_record",
             "gpu_record", "probe_f1"},
}  # fmt: skip
"""Paths and files (test_artifacts); and parts that what is in the table is made of."""


def public() -> Iterator[str]:
    """Functions and classes of the rooms up to `tiny`; tuples are results."""
    for name in (*PLUMBING, "metrics", "corpus", "steer", "features"):
        module = importlib.import_module(f"saelearn.{name}")
        for each in getattr(module, "__all__", None) or vars(module):
            found = getattr(module, each)
            own = getattr(found, "__module__", "").startswith(module.__name__)
            tuples = isinstance(found, type) and issubclass(found, tuple)
            if own and callable(found) and not each.startswith("_") and not tuples:
                yield f"{name}.{each}"


def wrong(value: Any, free: bool) -> list[Any]:
    """What is wrong in the place of a value, by its kind."""
    nothing = [object(), 1j, {}, b"1"]
    if isinstance(value, bool):
        return ["false", 2, [], *nothing[:2]]
    if isinstance(value, int | float):
        found = ["3", torch.nan, torch.inf, -torch.inf, 10**400, [], np.ones(2), torch.ones(2)]
        found += [] if free else [-1, -1e9]
        return [*found, *nothing, *([2.5, True] if isinstance(value, int) else [])]
    if isinstance(value, str):
        return [3, ["a"], object(), "\0 no such thing"]
    if isinstance(value, Tensor):
        others = [value.tolist(), "abc", 3, object(), value[None, None], value.flatten()[0]]
        others += [value[:0], value.to(torch.complex64), value.float() * torch.nan]
        return others
    if isinstance(value, list | range):
        return [3, 2.5, object(), *([[object()], [-1]] if not free else [])]
    return []


def names_of(call: Callable) -> str:
    inner = getattr(call, "__qualname__", "")
    return inner.split("<locals>.")[-1]


RIGHT_ALL_THE_SAME = {  # and what is right about it
    ("chunk", "text", str): "any text is one",
    ("chunk", "text", list): "texts of documents",
    ("<lambda>", "text", str): "the same in batches",
    ("<lambda>", "text", list): "the same in batches",
    ("dose_response", "strengths", list): "less than nothing pushes back",
    ("train", "clip_norm", float): "infinity clips nothing",
    ("<lambda>", "clip_norm", float): "the same of a sweep",
    ("SAE.encode", "x_BD", Tensor): "any leading dimensions; NaN gives NaN",
    ("SAE.decode", "f_BF", Tensor): "any leading dimensions; NaN gives NaN",
    ("effective_number", "mass", Tensor): "any leading dimensions",
    ("dimensionality", "W_GD", Tensor): "any leading dimensions",
    ("soft_threshold", "a", Tensor): "any leading dimensions",
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def attempt(case: Case, name: str, value: Any) -> str:
    """What became of a call with this in the place of one argument; "" if it was refused."""
    try:
        result = case.call(**case.given | {name: value})
        if inspect.isgenerator(result):
            next(result, None)
    except Refusal:
        return ""
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:80]}"
    if (names_of(case.call), name, type(value)) in RIGHT_ALL_THE_SAME:
        return ""
    return f"gave {type(result).__name__}"


def test_every_call_of_the_table_works():
    for each in the_table():
        result = each.call(**each.given)
        assert result is not None or each.call is artifacts.check_room, names_of(each.call)


def test_every_public_function_is_in_the_table():
    source = inspect.getsource(the_table)
    missing = [
        name
        for name in public()
        if name not in ELSEWHERE
        and name.split(".")[1] not in PLUMBING.get(name.split(".")[0], ())
        and name.split(".")[1] not in source
    ]
    assert not missing


# --- the checks themselves ------------------------------------------------------------------------


@checked(k=whole(1, 4), share=number(0, 1))
def example(x_ND: Tensor, y_ND: Tensor, k: int, share: float | None = None, fast: bool = False):
    """An example."""
    return "right"


def test_what_is_checked_is_said_in_the_docstring():
    assert "Checked: k between 1 and 4, share between 0 and 1." in example.__doc__
    assert inspect.signature(example).parameters["k"].annotation == "int"


def test_right_values_pass_whatever_their_type():
    for k, share in ((1, 0), (np.int64(4), np.float32(0.5)), (torch.tensor(2), None)):
        assert example(X_ND, X_ND, k, share=share, fast=np.bool_(True)) == "right"
    assert example(X_ND.double(), X_ND.half(), 1) == "right"
    assert example(X_ND.bfloat16(), X_ND, 1)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"k": 5}, "k between 1 and 4"),
        ({"k": 2.0}, "k as a whole number"),
        ({"k": True}, "k as a whole number"),
        ({"share": True}, "share between 0 and 1"),
        ({"share": 10**400}, "share between"),
        ({"share": 10**5000}, "received int$"),  # more digits than Python writes
        ({"fast": "false"}, "fast as True or False"),
        ({"y_ND": X_ND[:3]}, "the same N, 8"),
        ({"y_ND": X_ND[:, :3]}, "the same D, 4"),
        ({"x_ND": X_ND.to("meta")}, "device 'meta'"),
        ({"x_ND": X_ND.int()}, "floating dtype"),
        ({"x_ND": X_ND.sparse_mask(X_ND.to_sparse())}, "dense"),
    ],
)
def test_what_is_wrong_is_said(wrong, said):
    with pytest.raises(Refusal) as caught:
        example(**{"x_ND": X_ND, "y_ND": X_ND, "k": 1} | wrong)
    assert re.search(said, str(caught.value).split("\n  try")[0])


def test_one_stands_for_many_where_that_is_said():
    one_N1, many_NC = HOLDS_NC[:, :1], HOLDS_NC
    assert torch.equal(metrics.f1(one_N1, many_NC), metrics.f1(one_N1.expand(-1, 2), many_NC))
    assert len(sparse_coding.objective(X_ND[:1], F_NF, W_FD, 0.1)) == N
    with pytest.raises(Refusal, match="the same N"):
        metrics.f1(one_N1[:1], many_NC)


def test_numbers_have_no_size_to_speak_of_but_an_end():
    assert check_whole(2**63 - 1, "n", 0) == 2**63 - 1
    with pytest.raises(Refusal, match="n >= 0"):
        check_whole(2**63, "n", 0)
    assert check_flag(True, "f") is True
    assert check_range(10**300, "x", 0) == 10**300


# --- every public function ------------------------------------------------------------------------


def test_wrong_values_are_refused():
    failed = []
    n = 0
    for each in the_table():
        for name, good in each.given.items():
            for value in wrong(good, name in each.free):
                n += 1
                if said := attempt(each, name, value):
                    failed.append(f"{names_of(each.call)}({name}={value!r:.40}): {said}")
    assert not failed, f"{len(failed)} of {n}:\n" + "\n".join(failed)


class Hostile:
    """Nothing can be asked of it."""

    def __len__(self) -> int:
        raise RuntimeError("no length")

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


ODD = [
    None, True, 3, 2.5, 0, -1, 10**400, torch.nan, torch.inf, 1j, "abc", "", b"ab", [], [1], [None],
    ["a"], [[1]], {}, {"a": 1}, {1: 2}, {1}, range(3), iter([1]), Exception, object(), Hostile(),
    np.zeros(()), np.zeros(0), np.zeros((1, 1)), np.float64(1), torch.ones(()), torch.ones(0),
    torch.ones(1, 1), torch.ones(2, 2, 2), torch.ones(2, dtype=torch.bool), torch.tensor(True),
    torch.ones(2, 2, dtype=torch.int64), torch.ones(1, 1, 1, 1, dtype=torch.complex64),
    torch.ones(2, dtype=torch.float16), lambda: 1,
]  # fmt: skip


def test_nothing_whatever_brings_a_raw_error():
    """Everything odd in the place of every argument; sizes that are right but long aside."""
    failed, n = [], 0
    for each in the_table():
        for name, value in itertools.product(each.given, ODD):
            if name == "measure" and callable(value):
                continue  # what a function of the caller's raises is the caller's
            n += 1
            if (said := attempt(each, name, value)) and not said.startswith("gave"):
                failed.append(f"{names_of(each.call)}({name}={brief(value)}): {said}")
    assert n > 15_000
    assert not failed, f"{len(failed)} of {n}:\n" + "\n".join(failed)


NUMBERS = st.one_of(st.integers(), st.floats(), st.booleans(), st.complex_numbers())
DTYPES = st.sampled_from([torch.float32, torch.float16, torch.int64, torch.bool, torch.complex64,
                          torch.uint8, torch.float64])  # fmt: skip
SHAPES = st.lists(st.integers(0, 4), max_size=4)
VALUES = st.one_of(
    st.none(), NUMBERS, st.text(max_size=5), st.binary(max_size=3),
    st.lists(NUMBERS, max_size=3), st.dictionaries(st.text(max_size=2), NUMBERS, max_size=2),
    st.builds(lambda shape, dtype: torch.ones(shape).to(dtype), SHAPES, DTYPES),
    st.builds(np.zeros, SHAPES.map(tuple)), st.just(Exception), st.just(range(3)),
)  # fmt: skip
SIZES = {"d_in", "d_sae", "n", "n_features", "d_hidden", "n_instances", "steps", "batch_size",
         "max_new_tokens", "length", "n_atoms", "code_steps", "iterations", "index", "start",
         "n_pairs", "d", "d_out", "k", "max_iterations", "n_words"}  # fmt: skip


def anything_is_refused_or_used(data: st.DataObject) -> None:
    """No raw error, whatever comes; sizes are kept small, since those are right and take long."""
    cases = the_table()
    each = cases[data.draw(st.integers(0, len(cases) - 1))]
    name = data.draw(st.sampled_from(sorted(each.given)))
    value = data.draw(VALUES)
    if name in SIZES and isinstance(value, int):
        value = min(value, 5)
    said = attempt(each, name, value)
    assert not said or said.startswith("gave"), f"{names_of(each.call)}({name}={value!r}): {said}"


def cases(n: int) -> settings:
    """So many of them."""
    quiet = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(deadline=10_000, max_examples=n, suppress_health_check=quiet)


test_some_values = cases(60)(given(st.data())(anything_is_refused_or_used))
test_many_values = pytest.mark.slow(cases(2_000)(given(st.data())(anything_is_refused_or_used)))
