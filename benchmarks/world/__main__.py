"""`python -m benchmarks.world [--json] [--quick] [--write]`: the world's figures, with controls.

The full run chooses features and settings anew on text of their own, then scores them; with
`--write` it leaves choices and figures in data/world.json. `--quick` takes the choices from there
and scores them on fewer samples, in under 50 seconds.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from benchmarks.world import bias, choices, detectors, hierarchy, lies, model, neurons, steering
from benchmarks.world.sample import REPRESENTED, Sample, is_concept, mean_sd
from saelearn import artifacts, tiny


class Size(NamedTuple):
    """How much is sampled."""

    seeds: int
    documents: int
    documents_of_people: int  # for bias and lies, which few documents hold
    texts: int
    saes: int  # seeds of the default SAE
    both_ways: bool  # steering at every position too


FULL, QUICK = Size(3, 2_000, 6_000, 200, 3, True), Size(2, 400, 1_200, 60, 1, False)


def measure(size: Size, chosen: dict, say: Callable[[str], None] = lambda text: None) -> dict:
    """Every figure in one flat object."""
    sample, default = Sample(size.documents), tiny.name_of(tiny.L1_DEFAULT)
    say("model")
    found = model.measure(size.seeds, size.documents, size.texts)
    probe = {name: f1 for name, f1 in tiny.probe_f1().items() if is_concept(name)}
    found |= {
        "concepts": len(probe),
        "registers": len(sample.held.registers),
        "represented": sum(value >= REPRESENTED for value in probe.values()),
        "scored": len(sample.scored),
    }
    say("detectors")
    found |= detectors.of_saes(sample, detectors.SEEDS[: size.saes])
    found |= {"best_l1": chosen["best_l1"], "best_sae": chosen["best_sae"]}
    found["f1_best_any"] = detectors.of_all(sample, [chosen["best_sae"]])[chosen["best_sae"]][0]
    found |= detectors.controls(sample, size.seeds)
    rivals = ("f1_neuron", "f1_raw", "f1_pca", "f1_random", "f1_random_init")
    found["f1_over_best_control"] = found["f1_sae"] / max(found[name] for name in rivals)
    say("neurons")
    spread_S = neurons.spread(sample)
    found["polysemantic_neurons"] = int((spread_S >= neurons.UNRELATED).sum())
    found["widest_neuron"] = int(spread_S.argmax())
    say("steering")
    found["steering"] = {}
    for name, settings in chosen["steering"].items():
        for way, setting in settings.items():
            if way == "first" or size.both_ways:
                key = name if way == "first" else f"{name}_everywhere"
                setting = steering.Setting(*setting)
                found["steering"][key] = {
                    **steering.score(sample, name, setting, n=size.texts),
                    **setting._asdict(),
                }
    say("bias")
    people = Sample(size.documents_of_people)
    found["bias"] = bias.score(people, [tuple(each) for each in chosen["bias"]])
    found["bias"]["chosen"] = chosen["bias"]
    say("lies")
    found["lie"] = lies.measure(people, choices.READERS, choices.STEERING_SAES)
    say("hierarchy")
    found |= mean_sd("absorption", list(hierarchy.absorption(sample, default).values()))
    sizes = {"small": "small", "middle": default} | ({"large": "large"} if size.both_ways else {})
    found["splitting"] = hierarchy.splitting(sample, sizes)
    return found | {"mb_model": _megabytes("lm/"), "mb_saes": _megabytes("saes/")}


def _megabytes(prefix: str) -> float:
    root = artifacts.data_dir()
    files = [root / name for name in artifacts.read_json(root / "manifest.json")]
    inside = [f for f in files if f.relative_to(root).as_posix().startswith(prefix)]
    return sum(f.stat().st_size for f in inside) / 1e6


def rounded(value: object) -> object:
    """Numbers to four digits, inside objects too."""
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def describe(found: dict) -> None:
    """The figures for people, and the widest neuron taken apart."""
    for key, value in found.items():
        if isinstance(value, dict):
            print(f"{key}:")
            for name, each in value.items():
                print(f"    {name}: {each}")
        elif not key.endswith("_sd"):
            spread = f" ± {found[key + '_sd']:.4g}" if found.get(key + "_sd") else ""
            print(f"{key}: {value}{spread}")
    sample = Sample(320)
    print(f"\nneuron {found['widest_neuron']}, strongest text of each register, the feature there:")
    parts = neurons.taken_apart(sample, found["widest_neuron"], found["best_l1"])
    for register, (text, feature, spread) in parts.items():
        print(f"    {register:<12} {text:<60} feature {feature} ({spread:.1f} registers)")


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.world", description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="one object on stdout")
    parser.add_argument("--quick", action="store_true", help="fewer samples, stored choices")
    parser.add_argument("--write", action="store_true", help="keep a full run in data/world.json")
    arguments = parser.parse_args()
    torch.set_grad_enabled(False)
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - started:6.1f} s  {text}", file=sys.stderr)

    say("choices")
    if arguments.quick:
        chosen = choices.load()
    else:
        with torch.enable_grad():
            chosen = choices.make(FULL.documents)
    found = rounded(measure(QUICK if arguments.quick else FULL, chosen, say))
    found["seconds"] = round(time.monotonic() - started, 1)
    if arguments.write and not arguments.quick:
        artifacts.write_json(choices.path(), {"figures": found, "choices": chosen})
        artifacts.write_manifest(artifacts.data_dir())
    if arguments.json:
        print(json.dumps(found, ensure_ascii=False))
    else:
        describe(found)


if __name__ == "__main__":
    main()
