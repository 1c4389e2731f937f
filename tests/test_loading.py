"""Folders that are hostile, damaged or not whole: nothing of theirs runs, and they are refused."""

from __future__ import annotations

import json
import os
import pickle
import pty
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import make, some_tokens
from transformers import BertConfig, BertLMHeadModel, T5Config, T5ForConditionalGeneration

from saelearn.errors import Refusal
from saelearn.lm import LM

TOKENS = some_tokens()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole model and its tokenizer."""
    lm = make("llama")
    lm.model.save_pretrained(tmp_path / "model")
    lm.tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def change(path: Path, **entries: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


CODE = """
from pathlib import Path
Path({trace!r}).write_text("ran")
from transformers import {config}, {model}, PreTrainedTokenizerFast
class OwnConfig({config}):
    model_type = "own"
class OwnModel({model}):
    config_class = OwnConfig
class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""


def with_code(folder: Path, trace: Path, *, model_type: str) -> None:
    """Code beside the weights, which the folder asks to be used; it leaves a trace when it runs."""
    code = CODE.format(trace=str(trace), config="LlamaConfig", model="LlamaForCausalLM")
    (folder / "own.py").write_text(code)
    own = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    change(folder / "config.json", model_type=model_type, auto_map=own)
    tokenizer = {"AutoTokenizer": ["own.OwnTokenizer", "own.OwnTokenizer"]}
    change(folder / "tokenizer_config.json", auto_map=tokenizer, tokenizer_class="OwnTokenizer")


def test_a_folders_own_code_never_runs(folder: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    with_code(folder, trace, model_type="own")
    with pytest.raises(Refusal, match="code of its own, which is never run"):
        LM.load(folder)
    with_code(folder, trace, model_type="llama")  # an architecture that is known: ours is taken
    lm = LM.load(folder)
    assert type(lm.model).__module__.startswith("transformers.")
    assert torch.equal(lm.logits(TOKENS), make("llama").logits(TOKENS))
    assert not trace.exists()


def test_nobody_is_asked_on_a_terminal(folder: Path, tmp_path: Path) -> None:
    """With a terminal on which everything is answered by "y"."""
    trace = tmp_path / "trace"
    with_code(folder, trace, model_type="own")
    script = (
        "import sys\nfrom saelearn.lm import LM\n"
        "try:\n    LM.load(sys.argv[1])\n"
        "except Exception as error:\n    print(type(error).__name__)\n"
    )
    leader, follower = pty.openpty()
    os.write(leader, b"y\ny\ny\n")
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)],
        stdin=follower, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    os.close(leader)
    os.close(follower)
    assert done.stdout.strip().endswith("Refusal"), done.stderr
    assert not trace.exists()


class Bomb:
    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self) -> tuple:
        return Path.write_text, (self.trace, "ran")


def test_hostile_weights_are_refused_and_do_not_run(folder: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    (folder / "model.safetensors").unlink()
    for save in (
        lambda file: torch.save({"lm_head.weight": Bomb(trace)}, file),
        lambda file: pickle.dump({"lm_head.weight": Bomb(trace)}, file),
    ):
        with (folder / "pytorch_model.bin").open("wb") as file:
            save(file)
        with pytest.raises(Refusal, match="would run code") as caught:
            LM.load(folder)
        assert "weights_only" not in str(caught.value)
        assert not trace.exists()


def test_missing_tensors_are_named(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    for gone in (["model.norm.weight"], [f"model.layers.{i}.mlp.up_proj.weight" for i in range(3)]):
        rest = {name: tensor for name, tensor in tensors.items() if name not in gone}
        save_file(rest, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(Refusal) as caught:
            LM.load(folder)
        assert all(name in caught.value.received for name in gone)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(LM.load(folder).logits(TOKENS), make("llama").logits(TOKENS))


def test_tied_weights_are_not_missing(tmp_path: Path) -> None:
    lm = make("gpt2")  # its head is its embedding, and stands once in the file
    lm.model.save_pretrained(tmp_path)
    assert torch.equal(LM.load(tmp_path).logits(TOKENS), lm.logits(TOKENS))


def test_tensors_of_another_shape_are_refused(folder: Path) -> None:
    change(folder / "config.json", vocab_size=41)
    with pytest.raises(Refusal, match="a causal language model"):
        LM.load(folder)


@pytest.mark.parametrize("damage", ["none", "no files", "broken", "one word"])
def test_without_a_usable_tokenizer_ids_work_and_text_is_refused(folder: Path, damage: str) -> None:
    if damage == "broken":
        (folder / "tokenizer.json").write_text("{")
    if damage == "no files":
        for path in folder.glob("tokenizer*"):
            path.unlink()
    if damage == "one word":
        whole = json.loads((folder / "tokenizer.json").read_text())
        whole["model"]["vocab"] = {"<doc>": 0, "<unk>": 1}
        (folder / "tokenizer.json").write_text(json.dumps(whole))
    lm = LM.load(folder)
    assert torch.equal(lm.logits(TOKENS), make("llama").logits(TOKENS))
    if damage == "none":
        assert lm.tokenize("w7").tolist() == [[0, 7]]
    else:
        with pytest.raises(Refusal, match="a model with a tokenizer"):
            lm.tokenize("w7")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"dtype": "float31"}, "float31"),
        ({"dtype": "int8"}, "int8"),
        ({"dtype": "complex64"}, "complex64"),
        ({"device": "gpu"}, "'gpu'"),
        ({"device": "cuda:99"}, "'cuda:99'"),
        ({"device": "nothing:0"}, "'nothing:0'"),
    ],
)
def test_dtypes_and_devices_that_are_not_there_are_refused(
    folder: Path, how: dict, said: str
) -> None:
    with pytest.raises(Refusal) as caught:
        LM.load(folder, **how)
    assert said in caught.value.received
    assert "cpu" in caught.value.expected or "float32" in caught.value.expected


def test_a_dtype_may_be_torchs(folder: Path) -> None:
    assert LM.load(folder, dtype=torch.bfloat16).model.dtype == torch.bfloat16


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"model_type": "llama"', '{"model_type": "none"}', '{"a": 1}', "null"]
)
def test_damaged_settings_are_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(Refusal, match="a causal language model"):
        LM.load(folder)


def test_models_of_other_kinds_are_refused(tmp_path: Path) -> None:
    size = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 16}
    bert = BertConfig(**size, num_hidden_layers=2, num_attention_heads=2)
    with pytest.raises(Refusal, match="sees only what comes before"):
        LM(BertLMHeadModel(bert))
    bert.is_decoder = True
    assert LM(BertLMHeadModel(bert)).residual_sites()[0] == "bert.encoder.layer.0:out"
    t5 = T5ForConditionalGeneration(
        T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    )
    with pytest.raises(Refusal, match="in two parts"):
        LM(t5)
    t5.save_pretrained(tmp_path)
    with pytest.raises(Refusal, match="a causal language model"):
        LM.load(tmp_path)
