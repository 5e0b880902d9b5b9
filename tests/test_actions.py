"""What the commands do: settings and seeds from text, runs by name, an order for each seed."""

import pytest
import torch

from self_improve.actions import (
    Asked,
    Order,
    find,
    judge,
    make_orders,
    parse_seeds,
    parse_settings,
    pick_device,
    short_of,
)
from self_improve.config import LoopConfig
from self_improve.records import Round, recorded
from self_improve.tasks import make_task


def test_settings_from_text():
    assert parse_settings(["a=1", "b.c=x=y", "d="]) == {"a": "1", "b.c": "x=y", "d": ""}
    with pytest.raises(ValueError, match="--set a: write key=value"): parse_settings(["a"])


def test_seeds_from_text():
    assert (parse_seeds(None), parse_seeds("3"), parse_seeds("0,1,2")) == ([None], [3], [0, 1, 2])
    for text in ("", "x", "1,", "1.5", "2,2"):
        with pytest.raises(ValueError, match="--seed"): parse_seeds(text)


def test_devices():
    assert pick_device("cpu") == "cpu" and pick_device() in ("cpu", "cuda")
    with pytest.raises(ValueError, match="'tpu'"): pick_device("tpu")


def test_an_order_for_each_seed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    orders = make_orders("copy", "smoke", {"loop.rounds": "1"}, [0, 5], None)
    assert [order.config.data_seed for order in orders] == [0, 5] and len({order.folder for order in orders}) == 2
    orders = make_orders("copy", "smoke", {}, [0, 5], "here", quiet=True)
    assert [str(order.folder) for order in orders] == ["here/seed-0", "here/seed-5"] and orders[0].quiet
    order, = make_orders("copy", "smoke", {}, [None], "here")
    assert isinstance(order, Order) and str(order.folder) == "here" and order.config.data_seed == 0
    assert not any(tmp_path.iterdir()), "nothing is written yet"


def test_a_run_by_its_recorded_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    entry = recorded()[0]
    assert find(entry["folder"].name).folder == entry["folder"]
    # a folder of that name comes first
    (tmp_path / entry["folder"].name).mkdir()
    with pytest.raises(ValueError, match="no run folder"): find(entry["folder"].name)


def test_the_answer_that_most_models_give():
    task = make_task("copy")
    right, wrong = task.parse("12=12"), task.parse("12=13")
    outputs = [wrong.answer[0], right.answer[0], right.answer[0]]
    asked = Asked(task, right.prompt[0], torch.stack(outputs), [0.9, 0.8, 0.7], right.answer[0])
    document, best = judge(asked)
    assert best == 1 and document["answer"] == "12" and document["right"] and document["votes"] == 2
    assert [m["answer"] for m in document["models"]] == ["13", "12", "12"] and document["confidence"] == 0.8
    unknown = Asked(task, right.prompt[0], torch.stack(outputs), [0.9, 0.8, 0.7], None)
    assert judge(unknown)[0]["right"] is None


@pytest.mark.parametrize("until, round, frontier, told", [
    (0, 5, 7, ""), (9, 5, 7, " at level 7, short of 9: a larger loop.rounds goes on"), (9, 4, 7, ""), (9, 5, 9, "")])
def test_a_run_that_ends_before_its_level_says_so(until, round, frontier, told):
    loop = LoopConfig(rounds=5, until=until)
    assert short_of(loop, Round(round, [frontier], frontier, 1)) == told
