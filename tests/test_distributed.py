"""Several processes: the same run as in one, and an end with a sentence when one of them dies."""
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import distributed_run
import pytest
import torch
from torch.nn.utils import parameters_to_vector

from self_improve import distributed
from self_improve.config import configure
from self_improve.distributed import (
    Distributed,
    SharedTrainer,
    add_gradients,
    all_gather,
    make_loop,
    on_first_rank,
    ranks,
)
from self_improve.ensemble import Ensemble
from self_improve.fast import engine_for
from self_improve.files import load_tensors
from self_improve.labelling import candidates
from self_improve.loop import SelfImprovement
from self_improve.model import Decoder
from self_improve.optimizers import TrainConfig
from self_improve.records import Run
from self_improve.streams import Stream
from self_improve.tasks import Copy
from self_improve.train import base_rows, set_gradients

PROGRAM = str(Path(distributed_run.__file__))
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
CONFIG = distributed_run.CONFIG


def start(folder, *arguments, **more):
    """Two processes; their output is read as text."""
    command = [sys.executable, *TORCHRUN, PROGRAM, str(folder), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **more)


def finish(process):
    """What a process printed, its errors, and its code."""
    out, err = process.communicate(timeout=120)
    return out, err, process.returncode


def same_run(a, b):
    """Weights within 1e-5, the same sets kept, the same accuracies."""
    a, b = Run(a), Run(b)
    assert len(a.rounds) == len(b.rounds)
    for one, other in zip(a.rounds, b.rounds, strict=True):
        assert one.kept == other.kept and one.accuracy == other.accuracy
    for m in range(a.config.loop.members):
        for p, q in zip(a.model(member=m).parameters(), b.model(member=m).parameters(), strict=True):
            torch.testing.assert_close(p, q, atol=1e-5, rtol=0)
        for r in range(1, len(a.rounds)):
            x, y = [load_tensors(run.path("labels", r, m)) for run in (a, b)]
            assert x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)


SETTINGS = {
    "a member each": ("loop.filter=vote:2/3", "loop.members=3"),
    "one model, its batches shared": ("loop.members=1", "loop.filter=length", "train.fresh=false")}


@pytest.mark.parametrize("name", SETTINGS)
def test_two_processes_come_to_what_one_comes_to(tmp_path, name):
    """Three members on two ranks; and one model on two, with an optimizer that remembers."""
    changes = dict(setting.split("=") for setting in SETTINGS[name])
    list(SelfImprovement(configure(CONFIG, changes), tmp_path / "one"))
    out, err, code = finish(start(tmp_path / "two", *SETTINGS[name]))
    assert code == 0, err
    assert sorted(out.splitlines()) == [f"rank {m}: round {r}" for m in range(2) for r in range(3)]
    same_run(tmp_path / "one", tmp_path / "two")


def test_two_processes_start_from_a_shared_base(tmp_path):
    list(SelfImprovement(configure(CONFIG, {"loop.rounds": 0}), tmp_path / "base"))
    list(SelfImprovement(configure(CONFIG, {"loop.filter": "length"}), tmp_path / "one"))
    _, err, code = finish(start(tmp_path / "two", str(tmp_path / "base"), "loop.filter=length"))
    assert code == 0, err
    assert Run(tmp_path / "two").rounds[0].base_from.startswith("base (identity ")
    same_run(tmp_path / "one", tmp_path / "two")


def test_when_one_dies_the_run_ends_with_a_sentence_and_goes_on_later(tmp_path):
    folder, settings = tmp_path / "run", ("loop.rounds=3", "loop.steps=30000")
    run = start(folder, *settings, start_new_session=True)
    lines, children = folder / "rounds.jsonl", []
    until = time.time() + 60
    # a line without accuracies is a round that waits to be measured
    while time.time() < until and not (lines.exists() and '"accuracy": {' in lines.read_text()): time.sleep(0.1)
    while time.time() < until and len(children) < 2:
        found = subprocess.run(["pgrep", "-P", str(run.pid)], capture_output=True, text=True).stdout
        children = [int(pid) for pid in found.split()]
    os.kill(children[-1], signal.SIGKILL)
    _, err, code = finish(run)
    sentence = "another process of this run has ended"
    assert code != 0 and (sentence in err or "SIGKILL" in err or "Signal 9" in err)
    before = lines.read_text()
    assert before.count("\n") == 1 and json.loads(before)
    _, err, code = finish(start(folder, "loop.rounds=0", settings[1]))
    assert code == 0 and lines.read_text() == before, "what was finished is whole, and two processes read it"


def test_a_folder_that_another_run_writes_is_refused(tmp_path):
    run = Run.create(tmp_path / "run", CONFIG)
    with run.writing(): _, err, code = finish(start(run.folder))
    assert code != 0 and f"run is being written by process {os.getpid()}: wait for its end" in err
    assert not (run.folder / "rounds.jsonl").exists()


# one process

@pytest.fixture
def alone(monkeypatch):
    """No torchrun."""
    for name in ("RANK", "WORLD_SIZE"): monkeypatch.delenv(name, raising=False)


def test_alone_everything_is_as_ever(alone, tmp_path):
    assert ranks() == (0, 1) and all_gather({"a": 1}) == [{"a": 1}]
    e = Distributed(CONFIG)
    assert e.each(lambda m: m.number) == [0, 1] and not isinstance(e.members[0].trainer, SharedTrainer)
    loop = make_loop(CONFIG, None, threads="all")
    assert type(loop.ensemble) is Ensemble and loop.threads == "all"


def test_an_error_in_the_first_process_reaches_all(alone):
    def full(): raise OSError(28, "No space left on device", "/runs/x")

    def wrong(): raise ValueError("such and such")

    with pytest.raises(ValueError, match="^No space left on device: /runs/x$"): on_first_rank(full)
    with pytest.raises(ValueError, match="^such and such$"): on_first_rank(wrong)
    on_first_rank(partial(int, 3))


def test_gradients_of_parts_add_up_to_that_of_the_batch(monkeypatch):
    """Each divided by the labels of the whole; a process without rows adds nothing."""
    batch = base_rows(Copy(), list(range(1, 8)), Stream(0, "base"), torch.arange(64))
    labels = int((batch.length - batch.start).sum())
    model = Decoder(CONFIG.model)

    def gradient(rows):
        model.zero_grad()
        loss = torch.zeros(())
        if len(rows): loss = set_gradients(model, rows, labels)
        monkeypatch.setattr(distributed.dist, "all_reduce", lambda flat: None)
        loss = add_gradients(model, loss)
        return parameters_to_vector([p.grad for p in model.parameters()]), loss

    whole, loss = gradient(batch)
    parts = [gradient(batch.take(slice(rank, None, 3))) for rank in range(3)] + [gradient(batch.take(slice(0, 0)))]
    torch.testing.assert_close(sum(g for g, _ in parts), whole, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(sum(loss for _, loss in parts), loss)
    assert parts[-1][0].abs().max() == 0


@pytest.mark.parametrize("prompts", [False, True])
def test_a_shared_step_is_the_step_of_the_whole(monkeypatch, prompts):
    """Two processes played one after the other: their gradients are added before either of them steps."""
    config = TrainConfig(batch=8, prompts=prompts)
    batch = base_rows(Copy(), list(range(1, 8)), Stream(0, "base"), torch.arange(8))
    alone = distributed.Trainer(Decoder(CONFIG.model), config)
    expected = alone.step(batch, 1e-3)
    kept = []
    for keep in (True, False):
        for rank in range(2):
            monkeypatch.setattr(distributed, "ranks", lambda rank=rank: (rank, 2))

            def reduce(flat, keep=keep):
                if keep: kept.append(flat.clone())
                else: flat.copy_(kept[0] + kept[1])

            monkeypatch.setattr(distributed.dist, "all_reduce", reduce)
            shared = SharedTrainer(Decoder(CONFIG.model), config)
            loss = shared.step(batch, 1e-3)
    torch.testing.assert_close(loss, expected)
    for p, q in zip(shared.model.parameters(), alone.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-6, rtol=0)


def test_shares_of_prompts_are_put_together_in_order(monkeypatch):
    """Two processes played one after the other: what each finds is what the whole would have found."""
    e = Distributed(CONFIG)
    prompts = e.task.draw(4, e.members[0].stream(1), torch.arange(7)).prompt
    asked = (e.models, 0, e.task, prompts, 9, ("votes", "logprobs"), engine_for(e.models[0]))
    whole, said = candidates(*asked), []
    for rank in range(2):
        monkeypatch.setattr(distributed, "ranks", lambda rank=rank: (rank, 2))
        monkeypatch.setattr(distributed, "all_gather", lambda mine: said.append(mine) or [mine, mine])
        distributed.shared_candidates(*asked)
    monkeypatch.setattr(distributed, "all_gather", lambda mine: said)
    found = distributed.shared_candidates(*asked)
    assert torch.equal(found.outputs, whole.outputs) and torch.equal(found.label, whole.label)
    assert torch.equal(found.prompts, prompts) and torch.equal(found.ask(prompts, 5), whole.ask(prompts, 5))
    torch.testing.assert_close(found.logprobs, whole.logprobs)
