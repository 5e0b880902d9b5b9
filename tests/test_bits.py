"""Small runs give the same weights and labels, bit for bit, as before the library was rewritten."""
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from self_improve.files import code_hash

GOLDEN = Path(__file__).parent / "golden"
STORED = json.loads((GOLDEN / "hashes.json").read_text())
# One thread, and the instructions that every x86-64 processor has: without these settings torch and MKL
# choose kernels by processor, and kernels differ in the last bits.
PORTABLE = {"OMP_NUM_THREADS": "1", "ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE"}


@pytest.mark.skipif(not torch.__version__.startswith(STORED["torch"] + "."),
                    reason=f"the hashes are of torch {STORED['torch']}, whose kernels other versions need not have")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the hashes are of an x86-64 processor")
def test_weights_and_labels_are_the_same_bits(tmp_path):
    env = os.environ | PORTABLE
    done = subprocess.run([sys.executable, GOLDEN / "run.py", tmp_path], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == STORED["files"]


def test_the_code_that_computes_is_listed():
    """The hash of the present code stands among those that gave these bits; add it once the test above passes."""
    stored = json.loads((GOLDEN.parent.parent / "data" / "same_bits.json").read_text())
    assert code_hash() in stored["hashes"], f"add {code_hash()} to data/same_bits.json"
