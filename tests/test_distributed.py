"""Several processes: the same run as in one, and an end with a sentence when one of them dies."""
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from self_improve.cli import main
from self_improve.distributed import Distributed, SharedTrainer, ranks, shared_candidates, tell_all
from self_improve.experiments import experiment
from self_improve.records import Run, load_tensors

COMMAND = ["-m", "self_improve", "run", "copy", "--scale", "smoke", "--device", "cpu", "--set"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def start(folder, *settings, n=2, **more):
    return subprocess.Popen([sys.executable, *(TORCHRUN if n > 1 else []), *COMMAND, *settings, "--out", str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env={**os.environ, "OMP_NUM_THREADS": "1"}, **more)


def same_run(a, b):
    """Weights within 1e-5, the same sets kept, the same accuracies."""
    a, b = Run(a), Run(b)
    assert len(a.rounds) == len(b.rounds) and [r.kept for r in a.rounds] == [r.kept for r in b.rounds] and [r.accuracy for r in a.rounds] == [r.accuracy for r in b.rounds]
    for m in range(a.config.loop.members):
        for p, q in zip(a.model(member=m).parameters(), b.model(member=m).parameters(), strict=True): torch.testing.assert_close(p, q, atol=1e-5, rtol=0)
        for r in range(1, len(a.rounds)):
            x, y = (load_tensors(run.path("labels", r, m)) for run in (a, b))
            assert x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)


@pytest.mark.parametrize("settings", [("loop.filter=vote", "loop.members=3"), ("loop.members=1", "loop.filter=length", "train.fresh=false")], ids=["a member each", "one model, its batches shared"])
def test_two_processes_come_to_what_one_comes_to(tmp_path, settings):
    """Three members on two ranks; and one model on two, with an optimiser that remembers."""
    assert main([*COMMAND[2:], *settings, "--out", str(tmp_path / "one")]) == 0
    two = start(tmp_path / "two", *settings)
    out, err = two.communicate(timeout=120)
    assert two.returncode == 0, err
    assert out.count("accuracy by level after round 2") == 1, "only the first speaks"
    same_run(tmp_path / "one", tmp_path / "two")


def test_when_one_dies_the_run_ends_with_a_sentence_and_goes_on_later(tmp_path):
    settings = ("loop.rounds=3", "loop.steps=30000", "loop.members=2")
    run = start(tmp_path / "run", *settings, start_new_session=True)
    lines, children = tmp_path / "run" / "rounds.jsonl", []
    until = time.time() + 60
    while time.time() < until and not (lines.exists() and lines.read_text().count("\n") >= 1): time.sleep(0.1)
    while time.time() < until and len(children) < 2:
        children = [int(pid) for pid in subprocess.run(["pgrep", "-P", str(run.pid)], capture_output=True, text=True).stdout.split()]
    os.kill(children[-1], signal.SIGKILL)
    _, err = run.communicate(timeout=90)
    assert run.returncode != 0 and ("another process of this run has ended" in err or "SIGKILL" in err or "Signal 9" in err)
    before = lines.read_text()
    assert before.count("\n") == 1 and json.loads(before)
    again = start(tmp_path / "run", "loop.rounds=0", *settings[1:])
    assert again.wait(timeout=90) == 0 and lines.read_text() == before, "what was finished is whole, and two processes read it"


def test_a_mistake_is_told_once(tmp_path):
    run = start(tmp_path / "run", "loop.rounds=-1")
    _, err = run.communicate(timeout=60)
    assert run.returncode != 0 and err.count("self-improve: ") == 1 and not (tmp_path / "run").exists()


def test_alone_everything_is_as_ever(monkeypatch):
    monkeypatch.delenv("RANK", raising=False), monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert ranks() == (0, 1) and tell_all({"a": 1}) == [{"a": 1}]
    e = Distributed(experiment("copy", "smoke"))
    assert [x for x in e.each(lambda m: m.number)] == [0, 1] and not isinstance(e.members[0].trainer, SharedTrainer)


def test_shares_of_prompts_are_put_together_in_order(monkeypatch):
    """Two processes played one after the other: what each finds is what the whole would have found."""
    from self_improve import distributed
    from self_improve.loop import Member, candidates
    config = experiment("copy", "smoke")
    e = Distributed(config)
    prompts = e.task.draw(4, e.members[0].stream(1), torch.arange(7)).prompt
    whole, said = candidates(e.models, 0, e.task, prompts, 9, ("votes", "logprobs")), []
    for rank in range(2):
        monkeypatch.setattr(distributed, "ranks", lambda rank=rank: (rank, 2))
        monkeypatch.setattr(distributed, "tell_all", lambda mine: said.append(mine) or [mine, mine])
        shared_candidates(e.models, 0, e.task, prompts, 9, ("votes", "logprobs"))
    monkeypatch.setattr(distributed, "tell_all", lambda mine: said)
    found = shared_candidates(e.models, 0, e.task, prompts, 9, ("votes", "logprobs"))
    assert torch.equal(found.outputs, whole.outputs) and torch.equal(found.label, whole.label) and torch.equal(found.prompts, prompts) and isinstance(e.members[0], Member)
    torch.testing.assert_close(found.logprobs, whole.logprobs)
