"""Run small experiments and print a hash of every weight and label file: `python tests/golden/run.py FOLDER`.

`hashes.json` holds what this printed before the library was rewritten into smaller modules, with the instruction sets
that `tests/test_bits.py` sets. A change of these numbers is a change of what the library computes.
"""
import hashlib
import json
import sys
from pathlib import Path

from safetensors.torch import save

from self_improve.config import configure
from self_improve.experiments import EXPERIMENTS, experiment
from self_improve.files import load_tensors
from self_improve.loop import SelfImprovement
from self_improve.records import Run

# 200 optimizer steps: 100 of the base, and two rounds of 50
SHORT = {"train.steps": 100, "loop.rounds": 2, "loop.steps": 50, "loop.problems": 200, "loop.filter": "none",
         "loop.evaluate": 20, "loop.final": 20, "high": 3}


def hashes(folder):
    """The first 64 bits of SHA-256, for each file of weights and labels."""
    found = {}
    for path in sorted(folder.glob("*/*.safetensors")):
        if path.parent.name in ("weights", "labels"):
            # without the words that say whose file it is
            numbers = save(load_tensors(path))
            found[f"{path.parent.name}/{path.stem}"] = hashlib.sha256(numbers).hexdigest()[:16]
    return found


def main(folder):
    configs = {name: experiment(name, "smoke") for name in EXPERIMENTS}
    configs["copy-200-steps"] = configure(experiment("copy", "tiny"), SHORT)
    configs["copy-vote"] = configure(experiment("copy", "smoke"),
                                     {"loop.filter": "vote:1/2+confidence:0.5", "loop.problems": 64})
    out = {}
    for name, config in configs.items():
        run = Run.create(folder / name, config)
        list(SelfImprovement(config, run))
        out[name] = hashes(folder / name)
    print(json.dumps(out, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
