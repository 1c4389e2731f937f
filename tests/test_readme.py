"""The README's example for researchers runs, on the tiny model in place of GPT-2."""

import re
from pathlib import Path

from saelearn import corpus, tiny
from saelearn.sae import SAE

README = Path(__file__).parent.parent / "README.md"
SMALLER = {  # what the page says -> what this test can afford
    '"gpt2"': '"tiny"',
    "length=128": "length=64",
    "transformer.h.6:out": tiny.SITE,
    "8 * 768": "64",
    "10_000": "20",
    "[317]": "[17]",
    '"The"': '"the"',
}


def test_the_ten_lines_run(tmp_path, monkeypatch, capsys):
    code = re.search(r"```python\n(.*?)```", README.read_text("utf-8"), re.S)[1]
    assert len(code.splitlines()) <= 14
    for said, affordable in SMALLER.items():
        assert said in code, f"the README no longer says {said}"
        code = code.replace(said, affordable)
    monkeypatch.chdir(tmp_path)
    text = " ".join(doc.text for doc in corpus.documents(60))
    Path("my_text.txt").write_text(text, "utf-8")
    exec(code, {})
    assert len(capsys.readouterr().out.split()) == 42  # <doc>, the prompt, 40 words
    assert SAE.load("my_sae").d_sae == 64
