"""SAEs that others published: what is folded, what is refused, and the hub, imitated here."""

from __future__ import annotations

import hashlib
import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from saelearn import artifacts, steer
from saelearn.errors import ArtifactError, Refusal
from saelearn.sae import SAE, JumpReLU, TopK, load
from saelearn.sae.formats import FORMATS

DATA = Path(__file__).parent / "data"


def copy(name: str, to: Path) -> Path:
    shutil.copytree(DATA / name, to)
    return to


def change(folder: Path, **settings: object) -> None:
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(config | settings))


# --- folded, or refused with the reason -----------------------------------------------------------


def test_a_scale_that_the_file_does_not_hold_is_asked_for_and_folded(tmp_path: Path) -> None:
    folder = copy("saelens3_jumprelu", tmp_path / "sae")
    plain, x = load(folder), torch.randn(9, 8, generator=torch.Generator().manual_seed(3))
    change(folder, normalize_activations="expected_average_only_in")
    with pytest.raises(Refusal, match=r"(?s)no file: it was measured.*scale=s"):
        load(folder)
    (folder / "activation_scaler.json").write_text('{"scaling_factor": 0.25}')
    for sae in (load(folder, scale=0.25), load(folder)):
        torch.testing.assert_close(sae.encode(x), plain.encode(0.25 * x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(sae(x).x_hat, 4 * plain(0.25 * x).x_hat, rtol=1e-5, atol=1e-4)
    for scale in (0.0, -1, float("nan"), True):
        with pytest.raises(Refusal, match="above 0"):
            load(folder, scale=scale)
    for name in ("saelens3_topk", "gemma_scope/gemma-scope-2b-pt-res/layer_20/width_16k",
                 "dictionary_learning_topk", "openai_relu"):  # fmt: skip
        with pytest.raises(Refusal, match="raw activations"):
            load(DATA / name, scale=0.25)


def test_rows_normalised_one_by_one_are_steered_in_their_own_units() -> None:
    """Setting a feature moves x by what its row adds to the reconstruction, times the row's std."""
    for name in ("openai_topk", "saelens5_constant_norm"):
        sae = load(DATA / name)
        x_BTD = 3 * torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(1)) + 1
        with torch.no_grad():
            f_BTF = sae.encode(x_BTD)
            other_BTF = f_BTF.clone()
            other_BTF[..., 5] = 7.0
            moved_BTD = sae.reconstruct(x_BTD, other_BTF) - sae.reconstruct(x_BTD, f_BTF)
            edit = steer.clamp(sae, 5, 7.0, positions=range(0, 9))
            torch.testing.assert_close(edit(x_BTD, torch.arange(4)) - x_BTD, moved_BTD)
            gone_BTF = f_BTF.clone()
            gone_BTF[..., [2, 5]] = 0.0
            moved_BTD = sae.reconstruct(x_BTD, gone_BTF) - sae.reconstruct(x_BTD, f_BTF)
            edit = steer.ablate(sae, [2, 5], positions=range(0, 9))
            torch.testing.assert_close(edit(x_BTD, torch.arange(4)) - x_BTD, moved_BTD)
        with pytest.raises(Refusal, match="rows as they are"):
            sae.fold_scale_(2.0)


def test_an_sae_in_16_bits_leaves_what_it_does_not_move_as_it_was() -> None:
    sae, x_BTD = load(DATA / "saelens_standard").bfloat16(), torch.randn(2, 4, 8)
    for edit in (steer.clamp(sae, 5, 7.0), steer.ablate(sae, [5])):
        moved_BTD = edit(x_BTD, torch.arange(4))
        assert torch.equal(moved_BTD[:, 0], x_BTD[:, 0])  # position 0 is not edited
    silent_BT = sae.encode(x_BTD.bfloat16())[..., 5] == 0
    assert torch.equal(moved_BTD[silent_BT], x_BTD[silent_BT]) and silent_BT.any()


def test_fine_tuned_factors_have_to_be_meant(tmp_path: Path) -> None:
    folder = copy("saelens3_scaled", tmp_path / "sae")
    change(folder, finetuning_scaling_factor=False)
    with pytest.raises(Refusal, match="contradict"):
        load(folder)


def test_a_training_that_chose_by_batch_has_one_threshold(tmp_path: Path) -> None:
    """A checkpoint, which its own library turns into a JumpReLU when it saves the result."""
    final, folder = load(DATA / "saelens_batchtopk"), copy("saelens_batchtopk", tmp_path / "sae")
    weights = load_file(folder / "sae_weights.safetensors")
    threshold = weights.pop("threshold")
    weights["topk_threshold"] = threshold[0].double()
    save_file(weights, folder / "sae_weights.safetensors")
    change(folder, architecture="batchtopk", k=3)
    assert type(load(folder)) is JumpReLU and threshold.unique().numel() == 1
    x = torch.randn(50, 8, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(load(folder)(x).x_hat.float(), final(x).x_hat)


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("saelens_standard", {"architecture": "temporal"}, "positions before"),
        ("saelens_standard", {"architecture": "matching_pursuit"}, "does not fit its settings"),
        ("saelens_matching_pursuit", {"normalize_activations": True}, "was measured"),
        ("saelens_matching_pursuit", {"max_iterations": 2.5}, "max_iterations"),
        ("saelens_matching_pursuit", {"stop_on_duplicate_support": "false"}, "true or false"),
        ("saelens_standard", {"normalize_activations": "covariance_whitening"}, "wrong features"),
        ("saelens_transcoder", {"normalize_activations": "layer_norm"}, "wrong features"),
        ("saelens3_topk", {"activation_fn_kwargs": {"k": 3, "signed": True}}, "signed"),
        ("saelens3_gated", {"activation_fn_str": "topk"}, "wrong features"),
        ("saelens3_topk", {"hook_point": "blocks.9.hook_mlp_out"}, "one value for hook_name"),
    ],
)
def test_what_would_change_the_features_is_refused(name, settings, said, tmp_path: Path) -> None:
    folder = copy(name, tmp_path / "sae")
    change(folder, **settings)
    with pytest.raises(Refusal, match=said):
        load(folder)


def test_what_a_file_says_of_model_and_site_is_kept() -> None:
    old = load(DATA / "saelens2_standard").metadata
    assert old["hook_name"] == "blocks.1.hook_resid_pre" and old["model_name"] == "gpt2-small"
    assert old["prepend_bos"] is True and old["context_size"] == 64 and "hook_point" not in old
    gemma = load(DATA / "gemma_scope/gemma-scope-2b-pt-res/layer_20/width_16k").metadata
    assert gemma["model_name"] == "gemma-2-2b"
    assert gemma["hook_name"] == "blocks.20.hook_resid_post"
    learnt = load(DATA / "dictionary_learning_topk").metadata
    assert learnt["model_name"] == "EleutherAI/pythia-70m-deduped" and learnt["context_size"] == 128
    assert learnt["hook_name"] == "blocks.3.hook_resid_post"


def test_an_sae_for_heads_is_saved_so_that_they_are_flattened_there(tmp_path: Path) -> None:
    for hook, expected in (("blocks.1.attn.hook_z", "hook_z"), ("blocks.1.hook_mlp_out", "none")):
        SAE(4, 8, metadata={"hook_name": hook}).save(tmp_path / "sae")
        assert (
            json.loads((tmp_path / "sae/cfg.json").read_text())["reshape_activations"] == expected
        )


def test_a_file_can_be_named_in_place_of_its_folder() -> None:
    x = torch.randn(3, 8)
    for folder, file in (
        (DATA / "openai_topk", "7.pt"),
        (DATA / "dictionary_learning_gated", "ae.pt"),
        (DATA / "gemma_scope/gemma-scope-2b-pt-res/layer_20/width_16k", "params.npz"),
    ):
        assert torch.equal(load(folder)(x).x_hat, load(folder / file)(x).x_hat)


def test_what_is_no_sae_is_told_with_what_could_be_one(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"(?s)SAELens.*Gemma Scope.*OpenAI.*model\.bin"):
        load(tmp_path)
    with pytest.raises(ArtifactError, match="No such file"):
        load(tmp_path / "nowhere")
    both = copy("openai_topk", tmp_path / "both")
    shutil.copy(DATA / "saelens_topk/cfg.json", both)
    shutil.copy(DATA / "saelens_topk/sae_weights.safetensors", both)
    with pytest.raises(Refusal, match="SAELens and OpenAI"):
        load(both)
    with pytest.raises(Refusal, match="an architecture of topk"):
        TopK.load(DATA / "saelens_jumprelu")
    for path in (3, None, "a\0b"):
        with pytest.raises(Refusal):
            load(path)
    with pytest.raises(Refusal, match="device of this machine"):
        load(DATA / "saelens_topk", device="abacus")
    assert len({format.name for format in FORMATS}) == len(FORMATS)


# --- the hub --------------------------------------------------------------------------------------

COMMITS = {"main": "a" * 40, "v1": "b" * 40}


class Hub:
    """What the hub answers for one repository `them/saes`, whose files lie in a folder."""

    def __init__(self, root: Path):
        self.root, self.asked = root, []
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer(body=True)

            def do_HEAD(self) -> None:
                self.answer(body=False)

            def log_message(self, *args: object) -> None:
                pass

            def answer(self, *, body: bool) -> None:
                status, headers, content = hub.reply(unquote(urlsplit(self.path).path))
                hub.asked.append((self.command, self.path))
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if body:
                    self.wfile.write(content)

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def reply(self, path: str) -> tuple[int, dict[str, str], bytes]:
        if path.startswith("/api/models/them/saes"):
            kind, _, rest = path.removeprefix("/api/models/them/saes").strip("/").partition("/")
            revision, _, inner = rest.partition("/")
            if kind == "tree":
                return self.tree(inner)
            sha = next((c for n, c in COMMITS.items() if (revision or "main") in (n, c)), None)
            if sha is None:
                return 404, {"X-Error-Code": "RevisionNotFound"}, b""
            siblings = [{"rfilename": name} for name in self.names()]
            info = {"id": "them/saes", "sha": sha, "siblings": siblings}
            return 200, {"Content-Type": "application/json"}, json.dumps(info).encode()
        if path.startswith("/them/saes/resolve/"):
            revision, _, name = path.removeprefix("/them/saes/resolve/").partition("/")
            if name in self.names():
                content = (self.root / name).read_bytes()
                etag = hashlib.sha256(content).hexdigest()
                return (
                    200,
                    {"ETag": f'"{etag}"', "X-Repo-Commit": COMMITS.get(revision, revision)},
                    content,
                )
        return 404, {"X-Error-Code": "RepoNotFound"}, b""

    def names(self) -> list[str]:
        return [p.relative_to(self.root).as_posix() for p in self.root.rglob("*") if p.is_file()]

    def tree(self, inner: str) -> tuple[int, dict[str, str], bytes]:
        if not (self.root / inner).is_dir():
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        entries = [
            {"type": "directory", "path": p.relative_to(self.root).as_posix(), "oid": "c" * 40}
            if p.is_dir()
            else {"type": "file", "path": p.relative_to(self.root).as_posix(), "oid": "c" * 40,
                  "size": p.stat().st_size}
            for p in sorted((self.root / inner).iterdir())
        ]  # fmt: skip
        return 200, {"Content-Type": "application/json"}, json.dumps(entries).encode()

    def fetched(self) -> list[str]:
        return [
            path.split("/")[-1] for way, path in self.asked if way == "GET" and "resolve" in path
        ]

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    root = tmp_path / "there"
    shutil.copytree(DATA / "saelens2_standard", root / "layer_1" / "small")
    shutil.copytree(DATA / "openai_topk", root / "openai")
    shutil.copytree(DATA / "openai_topk", root / "several")
    shutil.copy(DATA / "openai_relu" / "7.pt", root / "several" / "8.pt")
    (root / "README.md").write_text("what this is")
    (root / "layer_1" / "small" / "training.log").write_bytes(bytes(10_000))
    hub = Hub(root)
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    yield hub
    hub.close()


def test_by_name_from_the_hub_once(hub: Hub, capsys: pytest.CaptureFixture) -> None:
    name, x = "hub:them/saes/layer_1/small", torch.randn(3, 8)
    expected = load(DATA / "saelens2_standard")(x).x_hat
    assert torch.equal(load(name)(x).x_hat, expected)
    assert sorted(hub.fetched()) == ["cfg.json", "sae_weights.safetensors"]
    size = sum((hub.root / "layer_1/small" / file).stat().st_size for file in hub.fetched())
    assert f"{size / 1e6:,.1f} MB to fetch" in capsys.readouterr().out
    assert torch.equal(load(name)(x).x_hat, expected)
    assert len(hub.fetched()) == 2 and not capsys.readouterr().out
    assert torch.equal(load(name, revision="v1")(x).x_hat, expected)
    assert any(COMMITS["v1"] in path for _, path in hub.asked)
    one = load("hub:them/saes/openai/7.pt")
    assert torch.equal(one(x).x_hat, load(DATA / "openai_topk")(x).x_hat)


def test_without_the_hub_what_was_fetched_is_used(hub: Hub) -> None:
    x = torch.randn(3, 8)
    expected = load("hub:them/saes/layer_1/small")(x).x_hat
    hub.close()
    assert torch.equal(load("hub:them/saes/layer_1/small")(x).x_hat, expected)
    for name in ("hub:them/saes/openai", "hub:others/saes/layer_1"):
        with pytest.raises(Refusal, match=r"(?s)fetched before.*not in.*offline"):
            load(name)


@pytest.mark.parametrize(
    ("name", "revision", "said"),
    [
        ("hub:them/others/layer_1", None, "no such place"),
        ("hub:them/saes/layer_7", None, "no such place"),
        ("hub:them/saes/openai/8.pt", None, "no such place"),
        ("hub:them/saes/layer_1/small", "v9", "at 'v9': no such place"),
        ("hub:them/saes/layer_1", None, "one SAE there"),
        ("hub:them/saes", None, "one SAE there"),
        ("hub:them/saes/several", None, r"several/7\.pt, several/8\.pt"),
        ("hub:saes", None, "hub:owner/repo"),
        ("hub:them/../saes/openai", None, "hub:owner/repo"),
        ("hub:a b/c d/e", None, "hub:owner/repo"),
    ],
)
def test_a_name_that_the_hub_does_not_know(hub: Hub, name, revision, said) -> None:
    with pytest.raises(Refusal, match=said):
        load(name, revision=revision)


def test_a_revision_is_for_the_hub_alone() -> None:
    with pytest.raises(Refusal, match="no revision"):
        load(DATA / "saelens_topk", revision="main")
    assert artifacts.shapes(DATA / "saelens_topk/sae_weights.safetensors")["W_enc"] == (8, 16)


def gemma_scope_2(folder: Path, weights: dict[str, Tensor], **config: object) -> Path:
    """By the layout that others read: names in small letters, and a config beside them."""
    folder.mkdir(parents=True)
    save_file({name: t.contiguous() for name, t in weights.items()}, folder / "params.safetensors")
    common = {"architecture": "jump_relu", "model_name": "google/gemma-3-1b-pt", "width": 24}
    (folder / "config.json").write_text(json.dumps(common | {"l0": 7} | config))
    return folder


@pytest.mark.parametrize("kind", ["resid_post", "attn_out", "mlp_out", "transcoder", "affine"])
def test_gemma_scope_2_says_what_it_belongs_to(tmp_path: Path, kind: str) -> None:
    g = torch.Generator().manual_seed(5)
    shapes = {"w_enc": (8, 24), "b_enc": (24,), "threshold": (24,), "w_dec": (24, 8), "b_dec": (8,)}
    shapes |= {"affine_skip_connection": (8, 8)} if kind == "affine" else {}
    weights = {name: torch.randn(shape, generator=g) for name, shape in shapes.items()}
    weights["threshold"].abs_()
    module, side, hook = {
        "resid_post": ("model.layers.5", "output", "hook_resid_post"),
        "attn_out": ("model.layers.5.self_attn.o_proj", "input", "attn.hook_z"),
        "mlp_out": ("model.layers.5.post_feedforward_layernorm", "output", "hook_mlp_out"),
    }.get(kind, ("model.layers.5.pre_feedforward_layernorm", "output", "hook_mlp_in"))
    site = f"{module}:{side.removesuffix('put')}"
    config = {"hf_hook_point_in": f"{module}.{side}"}
    if kind in ("transcoder", "affine"):
        config |= {"hf_hook_point_out": "model.layers.5.post_feedforward_layernorm.output"}
        config |= {"affine_connection": kind == "affine"}
    sae = load(gemma_scope_2(tmp_path / "layer_5_width_16k_l0_small", weights, **config))
    x_ND = torch.randn(9, 8, generator=g)
    pre_NF = x_ND @ weights["w_enc"] + weights["b_enc"]
    f_NF = pre_NF.relu() * (pre_NF > weights["threshold"])
    y_ND = f_NF @ weights["w_dec"] + weights["b_dec"]
    if kind == "affine":
        y_ND = y_ND + x_ND @ weights["affine_skip_connection"]
    torch.testing.assert_close(sae.encode(x_ND), f_NF)
    torch.testing.assert_close(sae(x_ND).x_hat, y_ND)
    expected = {"model_name": "google/gemma-3-1b-pt", "hook_name": f"blocks.5.{hook}", "site": site}
    if "hf_hook_point_out" in config:
        expected["hook_name_out"] = "blocks.5.hook_mlp_out"
    assert sae.metadata.items() >= expected.items()
    for wrong in ("relu", None, 3):
        other = gemma_scope_2(tmp_path / f"{wrong}", weights, architecture=wrong)
        with pytest.raises(Refusal, match="jump_relu"):
            load(other)
    odd = gemma_scope_2(tmp_path / "odd", weights, hf_hook_point_in=["model"], model_name=7)
    assert not {"hook_name", "site", "model_name"} & load(odd).metadata.keys()
