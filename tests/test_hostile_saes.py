"""SAE files that lie, are damaged, or want to run: refused in words, or read right."""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from saelearn import artifacts
from saelearn.errors import ArtifactError, Refusal
from saelearn.sae import SAE, load

DATA = Path(__file__).parent / "data"
GEMMA = "gemma_scope/gemma-scope-2b-pt-res/layer_20/width_16k"
FILES = {  # what is damaged, by the file of each kind
    "cfg.json": "saelens_topk_rescaled",
    "sae_weights.safetensors": "saelens_jumprelu",
    "params.npz": GEMMA,
    "ae.pt": "dictionary_learning_batchtopk",
    "config.json": "dictionary_learning_topk",
    "7.pt": "openai_topk",
}
X_BD = torch.randn(5, 8, generator=torch.Generator().manual_seed(7))


def attempt(folder: Path) -> SAE | None:
    """The SAE of a folder; None if it was refused in words. Anything else is an error."""
    try:
        sae = load(folder)
    except Refusal as refusal:
        assert "expected" in str(refusal) and len(str(refusal)) < 4_000
        return None
    assert all(tensor.isfinite().all() for tensor in sae.state_dict().values())
    assert all(tensor.is_floating_point() for tensor in sae.parameters())
    return sae


def copy(name: str, to: Path) -> Path:
    shutil.copytree(DATA / name, to, dirs_exist_ok=True)
    return to


def edited(folder: Path, file: str, **entries: Any) -> Path:
    value = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(value | entries))
    return folder


# --- settings -------------------------------------------------------------------------------------

LIES = [
    ("apply_b_dec_to_input", ["false", "true", 0, 1, [], {}, 1.0]),
    ("rescale_acts_by_decoder_norm", ["false", 0, 1, [True]]),
    ("d_in", ["8", 8.0, 8.5, True, -8, 0, 10**12, 1e12, [8], {"8": 8}, float("nan"), 2**80]),
    ("d_sae", ["16", 16.0, 10**12, [16], float("inf"), None]),
    ("k", [2.5, "3", True, 0, -1, 17, 10**12, [3], float("nan")]),
    ("architecture", [["topk"], {"topk": 1}, 3, True, "TopK", "topk ", "__init__", None]),
    ("normalize_activations", [["none"], {"none": 1}, 3, "None", "layernorm"]),
    ("reshape_activations", [["none"], 3, True, "reshape"]),
    ("metadata", [[], "tiny", 3, [["model_name", "tiny"]]]),
    ("activation_fn", [["relu"], 3, "exec", {"relu": 1}]),
    ("activation_fn_kwargs", [[3], "k", 3, {"k": 3, "signed": True}]),
    ("dtype", [["float32"], 3, {}]),
    ("hook_point", [3, ["a"], {}]),
]


@pytest.mark.parametrize(("name", "values"), LIES, ids=[name for name, _ in LIES])
def test_a_setting_of_another_kind_is_refused(name: str, values: list, tmp_path: Path) -> None:
    for number, value in enumerate(values):
        folder = copy("saelens_topk_rescaled", tmp_path / str(number))
        edited(folder, "cfg.json", **{name: value})
        if name == "hook_point":  # what is remembered may be anything
            assert attempt(folder) is not None
            continue
        with pytest.raises(Refusal) as refused:
            load(folder)
        assert name.removesuffix("_fn_kwargs") in str(refused.value)


def test_sizes_are_compared_before_memory_is_taken(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number, (name, settings_) in enumerate([
        ("saelens_topk", {"d_in": 2**30, "d_sae": 2**30}),
        ("saelens_transcoder", {"d_out": 2**31 - 1}),
        ("saelens_skip_transcoder", {"d_out": 2**31 - 1}),
        ("saelens_gated", {"d_sae": 2**31 - 1}),
    ]):  # fmt: skip
        folder = edited(copy(name, tmp_path / str(number)), "cfg.json", **settings_)
        with pytest.raises(Refusal):
            load(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


@pytest.mark.parametrize("text", [
    '{"d_in": 8, "d_in": 8, "d_sae": 16}', '{"metadata": {"a": 1, "a": 2}, "d_in": 8, "d_sae": 16}',
    "[" * 100_000, '{"a":' * 100_000, "null", "[]", "3", '"text"', "", "\x00", "{]", "9" * 10_000,
    '{"d_in": 8, "d_sae": 16', '{"d_in": NaN, "d_sae": Infinity}', "{}", '{"architecture": null}',
], ids=range(16))  # fmt: skip
def test_json_that_is_no_settings(text: str, tmp_path: Path) -> None:
    folder = copy("saelens_standard", tmp_path / "sae")
    (folder / "cfg.json").write_text(text)
    assert attempt(folder) is None
    folder = copy("dictionary_learning_topk", tmp_path / "other")
    (folder / "config.json").write_text(text)
    assert attempt(folder) is None


def test_a_name_given_twice_is_refused(tmp_path: Path) -> None:
    folder = copy("saelens_standard", tmp_path / "sae")
    text = (folder / "cfg.json").read_text().rstrip().rstrip("}")
    (folder / "cfg.json").write_text(text + ', "apply_b_dec_to_input": false}')
    with pytest.raises(ArtifactError, match="more than once: apply_b_dec_to_input"):
        load(folder)


def test_half_a_character_can_be_remembered_and_saved(tmp_path: Path) -> None:
    folder = edited(copy("saelens_standard", tmp_path / "sae"), "cfg.json",
                    metadata={"model_name": "\ud800"})  # fmt: skip
    load(folder).save(tmp_path / "again")
    assert load(tmp_path / "again").metadata["model_name"] == "\ud800"


# --- weights --------------------------------------------------------------------------------------


def lies_about(weights: dict[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """Weights that are no weights, by what is wrong with them."""
    name = "W_dec" if "W_dec" in weights else "decoder.weight"
    w = weights[name]
    nan, inf = w.clone(), w.clone()
    nan[1, 2], inf[1, 2] = torch.nan, -torch.inf
    changed = {
        "nan": nan, "inf": inf, "complex": w.to(torch.complex64), "whole": w.long(),
        "flags": w > 0, "eight bits": w.to(torch.float8_e4m3fn), "turned": w.T.contiguous(),
        "flat": w.flatten(), "number": w.sum(), "empty": w[:0], "short": w[1:].contiguous(),
    }  # fmt: skip
    lies = {said: weights | {name: tensor} for said, tensor in changed.items()}
    lies |= {f"no {name}": {n: t for n, t in weights.items() if n != name} for name in weights}
    return lies | {"more": weights | {"surplus": torch.zeros(3)}}


HARMLESS = {"latents_mean_square", "stats_last_nonzero"}


@pytest.mark.parametrize("name", ["saelens_jumprelu", "saelens_gated", "saelens3_topk"])
def test_safetensors_that_are_no_weights(name: str, tmp_path: Path) -> None:
    folder = copy(name, tmp_path / "sae")
    for said, lie in lies_about(load_file(folder / "sae_weights.safetensors")).items():
        save_file(lie, folder / "sae_weights.safetensors")
        assert attempt(folder) is None, said


def test_arrays_that_are_no_weights(tmp_path: Path) -> None:
    folder = copy(GEMMA, tmp_path / "sae")
    lies = lies_about(artifacts.read_npz(folder / "params.npz"))
    lies.pop("eight bits")  # numpy has none
    for said, lie in lies.items():
        np.savez(folder / "params.npz", **{n: t.numpy() for n, t in lie.items()})
        assert attempt(folder) is None, said
    objects = {"W_enc": np.array([{}, []], dtype=object)}
    np.savez(folder / "params.npz", **objects)
    with pytest.raises(ArtifactError, match="allow_pickle"):
        load(folder)


@pytest.mark.parametrize(("name", "file"), [
    ("openai_topk", "7.pt"), ("dictionary_learning_topk", "ae.pt"),
    ("dictionary_learning_jumprelu", "ae.pt"), ("dictionary_learning_new", "ae.pt"),
])  # fmt: skip
def test_state_dicts_that_are_no_weights(name: str, file: str, tmp_path: Path) -> None:
    folder = copy(name, tmp_path / "sae")
    state = torch.load(folder / file, weights_only=True)
    lies = lies_about({n: t for n, t in state.items() if isinstance(t, torch.Tensor)})
    others = {n: t for n, t in state.items() if not isinstance(t, torch.Tensor)}
    lies = {said: lie | others for said, lie in lies.items() if said != "no stats_last_nonzero"}
    w = next(n for n in state if n in ("W_dec", "decoder.weight"))
    huge = torch.zeros(1).expand(2**40, 2**20)  # eight bytes on disk
    lies |= {
        "huge": state | {w: huge}, "sparse": state | {w: state[w].to_sparse()}, "text": {w: "x"},
        "list": [state], "numbers": {3: state[w]}, "nothing": {}, "none": None,
        "meta": state | {w: state[w].to("meta")}, "a number": state | {w: 3.0},
        "quantised": state | {w: torch.quantize_per_tensor(state[w], 0.1, 0, torch.qint8)},
    }  # fmt: skip
    for said, lie in lies.items():
        torch.save(lie, folder / file)
        assert attempt(folder) is None, said


@pytest.mark.parametrize("k", [2.5, "3", True, None, 0, 10**12, torch.tensor(3), [3]])
def test_openais_k_is_a_whole_number(k: object, tmp_path: Path) -> None:
    folder = copy("openai_topk", tmp_path / "sae")
    state = torch.load(folder / "7.pt", weights_only=True)
    torch.save(state | {"activation_state_dict": {"k": k, "postact_fn": "ReLU"}}, folder / "7.pt")
    with pytest.raises(Refusal, match="k "):
        load(folder)


@pytest.mark.parametrize("activation", ["Identity", "Sigmoid", 3, None, ["ReLU"], "relu"])
def test_openais_other_activations_are_refused(activation: object, tmp_path: Path) -> None:
    folder = copy("openai_relu", tmp_path / "sae")
    state = torch.load(folder / "7.pt", weights_only=True)
    torch.save(state | {"activation": activation}, folder / "7.pt")
    with pytest.raises(Refusal, match="wrong features"):
        load(folder)


class Trace:
    """What leaves a trace when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(("name", "file"), [("openai_topk", "7.pt"),
                                            ("dictionary_learning_topk", "ae.pt")])  # fmt: skip
def test_nothing_in_a_file_is_run(name: str, file: str, tmp_path: Path) -> None:
    folder, trace = copy(name, tmp_path / "sae"), tmp_path / "trace"
    torch.save({"encoder.weight": Trace(trace)}, folder / file)
    with pytest.raises(ArtifactError, match="it would run code") as refused:
        load(folder)
    (folder / file).write_bytes(pickle.dumps(Trace(trace)))
    with pytest.raises(ArtifactError):
        load(folder)
    assert not trace.exists() and "weights_only=False" not in str(refused.value)
    gemma = copy(GEMMA, tmp_path / "gemma")
    (gemma / "params.npz").write_bytes(pickle.dumps(Trace(trace)))
    with pytest.raises(ArtifactError):
        load(gemma)
    np.savez(gemma / "params.npz", W_enc=np.array([Trace(trace)], dtype=object))
    with pytest.raises(ArtifactError):
        load(gemma)
    assert not trace.exists()


def test_a_packed_file_that_unpacks_to_more_than_there_is(tmp_path: Path) -> None:
    """A header that promises 8 TB is believed, and refused, before anything is unpacked."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f8", "fortran_order": False, "shape": (10**6, 10**6)}
    )
    folder = copy(GEMMA, tmp_path / "sae")
    with zipfile.ZipFile(folder / "params.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("W_enc.npy", header.getvalue() + bytes(10_000))
    with pytest.raises(ArtifactError, match=r"8,000\.0 GB"):
        load(folder)


# --- whatever comes -------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda of: st.lists(of, max_size=3) | st.dictionaries(st.text(max_size=8), of, max_size=3),
    max_leaves=5,
)
NAMES = ["d_in", "d_sae", "k", "architecture", "metadata", "apply_b_dec_to_input", "dtype",
         "normalize_activations", "rescale_acts_by_decoder_norm", "activation_fn_str",
         "activation_fn_kwargs", "hook_point", "finetuning_scaling_factor", "d_out"]  # fmt: skip


def cases(n: int) -> settings:
    """So many of them."""
    quiet = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(deadline=None, max_examples=n, suppress_health_check=quiet)


def settings_are_refused_or_leave_the_features_as_they_were(
    tmp_path: Path, name: str, entries: dict
) -> None:
    folder = copy(name, tmp_path / name)
    original = load(folder)
    edited(folder, "cfg.json", **entries)
    sae = attempt(folder)
    meant = {"k", "apply_b_dec_to_input", "normalize_activations", "rescale_acts_by_decoder_norm"}
    if sae is not None and not meant & entries.keys():
        assert torch.equal(sae.encode(X_BD), original.encode(X_BD))
        sae.save(tmp_path / "again")


def damage_is_refused_or_read_as_numbers(tmp_path: Path, file: str, data: st.DataObject) -> None:
    """Bytes that are changed, cut out or put in; a changed number is one more number."""
    folder = copy(FILES[file], tmp_path / file)
    whole = bytearray((folder / file).read_bytes())
    head = data.draw(st.booleans())  # formats say what they hold at their beginning and end
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, min(len(whole), 400) if head else len(whole)))
        kind = data.draw(st.sampled_from(["change", "cut", "insert", "end"]))
        if kind == "change" and at < len(whole):
            whole[at] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "cut":
            del whole[at : at + data.draw(st.integers(1, 64))]
        elif kind == "insert":
            whole[at:at] = data.draw(st.binary(max_size=16))
        else:
            del whole[at:]
    (folder / file).write_bytes(whole)
    attempt(folder)


KINDS = ["saelens_topk_rescaled", "saelens3_jumprelu", "saelens2_standard",
         "saelens_skip_transcoder"]  # fmt: skip
SETTINGS = (st.sampled_from(KINDS),
            st.dictionaries(st.sampled_from(NAMES), JSON, min_size=1, max_size=3))  # fmt: skip
DAMAGE = (st.sampled_from(list(FILES)), st.data())

test_some_settings = cases(60)(
    example("saelens2_standard", {"metadata": None})(
        given(*SETTINGS)(settings_are_refused_or_leave_the_features_as_they_were)
    )
)
test_some_damage = cases(120)(given(*DAMAGE)(damage_is_refused_or_read_as_numbers))
test_many_settings = pytest.mark.slow(
    cases(1_000)(given(*SETTINGS)(settings_are_refused_or_leave_the_features_as_they_were))
)
test_much_damage = pytest.mark.slow(
    cases(2_000)(given(*DAMAGE)(damage_is_refused_or_read_as_numbers))
)
