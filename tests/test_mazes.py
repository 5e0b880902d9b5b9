"""Mazes: the sampler beside the process it stands for, the solver, the verifier, reading, pictures."""
import itertools
import math
import random
from collections import Counter
from fractions import Fraction

import networkx as nx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from self_improve.tasks import (CHECKS, EOS, MAZE, PAD, TASKS, MazeHops, MazeNodes, Stream, find_paths, first_fault, grow_trees, judge_paths,
                                lay_out, make_task, read_maze, same_rows)

TEXT, PATH = "98>16#33:16,9-64:9,58-98:9-9:64,98,33-58:64-16:33=", "98>9>33>16"   # the paper's format, worked by hand
MAZES = MazeHops()                                                                 # what mazes of any shape are drawn, solved and checked with
shapes = st.integers(2, 99).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n - 1)))


def rows(*texts, width=0, end=(EOS,)):
    """Texts as rows of one width."""
    ids = [MAZE.encode(t) + list(end) for t in texts]
    width = max([width, *map(len, ids)])
    return torch.tensor([i + [PAD] * (width - len(i)) for i in ids], dtype=torch.uint8)


def read(text):
    """Start, goal, and the list of a prompt as (node, neighbours), read by splitting."""
    ends, items = text.removesuffix("=").split("#")
    items = [(a, near.split(",")) for a, near in (item.split(":") for item in items.split("-"))]
    return *map(int, ends.split(">")), [(int(a), [int(b) for b in near]) for a, near in items]


def graph(text):
    return nx.Graph([(a, b) for a, near in read(text)[2] for b in near])


def spread(counts, expected):
    """Chi-square in standard deviations from its mean."""
    chi = sum((counts.get(k, 0) - e) ** 2 / e for k, e in expected.items())
    assert set(counts) <= set(expected)
    return (chi - (len(expected) - 1)) / math.sqrt(2 * (len(expected) - 1))


# formats

def test_vocabulary():
    assert [MAZE.ids[str(i)] for i in range(1, 100)] == list(range(EOS + 1, EOS + 100))
    assert len(MAZE) == 3 + 99 + 6 and MAZE.encode("10>1") == [EOS + 10, MAZE.ids[">"], EOS + 1]


def test_worked_example():
    row = MAZES.parse(f"{TEXT}{PATH}")
    assert row.prompt.shape == (1, 36) and row.answer.shape == (1, 8) == (1, MAZES.width((6, 3))) and row.answer[0, -1] == EOS
    assert MAZES.show(row.prompt[0], row.answer[0]) == TEXT + PATH
    assert torch.equal(MAZES.solve(row.prompt), row.answer)
    assert MAZES.check(row, MAZES.solve(row.prompt)).all() and MAZES.verify(row.prompt, row.answer).all()


@given(shapes, st.integers(0, 2**40))
@settings(deadline=None, max_examples=60)
def test_mazes_are_what_the_format_says(shape, row):
    nodes, hops = shape
    block = MAZES.draw(shape, Stream(0, "self", level=hops), torch.arange(row, row + 3))
    assert block.prompt.shape == (3, 6 * nodes) and block.answer.shape == (3, 2 * hops + 2) and block.prompt.dtype == block.answer.dtype == torch.uint8
    assert MAZES.width(shape) == 2 * hops + 2 and (block.answer[:, -1] == EOS).all()
    for p, a in zip(block.prompt, block.answer):
        text = MAZES.show(p)
        start, goal, items = read(text)
        g = graph(text)
        labels = [a for a, _ in items]
        assert len(set(labels)) == nodes == g.number_of_nodes() and set(labels) <= set(range(1, 100))
        assert nx.is_tree(g) and Counter((a, b) for a, near in items for b in near) == Counter(pair for e in g.edges for pair in (e, e[::-1]))
        assert nx.shortest_path(g, start, goal) == [int(x) for x in MAZES.show(a).split(">")]
        assert nx.shortest_path_length(g, start, goal) == hops
        again = MAZES.parse(MAZES.show(p, a))
        assert torch.equal(again.prompt[0], p) and torch.equal(again.answer[0], a)
    assert torch.equal(MAZES.solve(block.prompt), block.answer) and MAZES.verify(block.prompt, block.answer).all()


def test_solver_takes_mazes_of_other_makers():
    """Uniform trees of networkx, start and goal anywhere: paths of different lengths, beyond one chunk."""
    texts, answers = [], []
    for seed in range(1100):
        tree = nx.relabel_nodes(nx.random_labeled_tree(9, seed=seed), dict(enumerate(random.Random(seed).sample(range(1, 100), 9))))
        start, goal = list(tree)[:2]
        texts.append(f"{start}>{goal}#" + "-".join(f"{a}:{','.join(map(str, tree[a]))}" for a in tree) + "=")
        answers.append(">".join(map(str, nx.shortest_path(tree, start, goal))))
    prompts, right = rows(*texts, end=()), rows(*answers)
    assert torch.equal(MAZES.solve(prompts), right) and MAZES.verify(prompts, right).all()
    assert len({len(a.split(">")) for a in answers}) > 4
    assert find_paths(prompts).shape == (1100, 9)


@given(shapes, st.lists(st.integers(0, 10_000), min_size=1, max_size=8))
@settings(deadline=None, max_examples=25)
def test_mazes_do_not_depend_on_their_neighbours(shape, numbers):
    stream = Stream(0, "self", level=12, round=2)
    some, one = MAZES.draw(shape, stream, torch.tensor(numbers)), MAZES.draw(shape, stream, torch.tensor(numbers[-1:]))
    assert torch.equal(some.prompt[-1:], one.prompt) and torch.equal(some.answer[-1:], one.answer)


def test_chunks_make_no_difference():
    block = MAZES.draw((7, 4), Stream(0, "base"), 2500)
    for i in (0, 1023, 1024, 2499):
        one = MAZES.draw((7, 4), Stream(0, "base"), torch.tensor([i]))
        assert torch.equal(one.prompt[0], block.prompt[i]) and torch.equal(one.answer[0], block.answer[i])
    outputs = block.answer.clone()
    outputs[::3, 2] = block.prompt[::3, 0]                     # the start once more, in second place
    assert (MAZES.verify(block.prompt, outputs) == (torch.arange(2500) % 3 > 0)).all()
    assert len(MAZES.draw((7, 4), Stream(0, "base"), 0)) == 0


def test_other_streams_make_other_mazes():
    prompts = [MAZES.draw((8, 3), Stream(*name), 2).prompt.tolist() for name in ((0, "base"), (1, "base"), (0, "eval"), (0, "base", 1), (0, "base", 0, 3))]
    assert len({str(p) for pair in prompts for p in pair}) == 10


def test_drawing_and_checking_stay_on_their_device():
    """The meta device has no data, so whatever waits for a number or brings an array from elsewhere fails there."""
    block = MAZES.draw((30, 9), Stream(0, "base"), torch.arange(1500, device="meta"))
    assert block.prompt.shape == (1500, 180) and block.prompt.device.type == block.answer.device.type == "meta"
    assert MAZES.verify(block.prompt, block.answer).device.type == "meta"


def test_golden_mazes():
    """A record stores row numbers instead of problems: these mazes may never change."""
    block = MAZES.draw((6, 3), Stream(1, "self", level=3), 2)
    assert [MAZES.show(p, a) for p, a in zip(block.prompt, block.answer)] == GOLDEN


GOLDEN = ["20>58#59:79,58,34-71:20-34:59-79:20,59-20:71,79-58:59=20>79>59>58",
          "32>28#28:90-20:13-13:20,32-32:13,65-65:90,32-90:65,28=32>65>90>28"]


# the process

def walk_by_walk(nodes, hops, rng):
    """One tree by the process in words: walks over the unused nodes, of which only the first becomes a landing place."""
    edges, landing, fresh = [(i, i + 1) for i in range(hops)], list(range(hops + 1)), list(range(hops + 1, nodes))
    while fresh:
        first = at = fresh.pop(rng.randrange(len(fresh)))
        while at not in landing:
            to = rng.choice(landing + fresh)
            edges.append((at, to))
            if to in fresh: fresh.remove(to)
            at = to
        landing.append(first)
    return edges


def shape_of(edges, nodes, hops):
    """A tree up to the names of the nodes that are not on its path."""
    forms = []
    for names in itertools.permutations(range(hops + 1, nodes)):
        name = [*range(hops + 1), *names]
        forms.append(tuple(sorted(tuple(sorted((name[a], name[b]))) for a, b in edges)))
    return min(forms)


def chances(nodes, hops):
    """Each tree's probability, by following every choice of the process."""
    total = Counter()

    def go(p, edges, landing, fresh, first, at):
        if at in landing: landing, at = landing + [first], None
        if at is None:
            if not fresh: total[shape_of(edges, nodes, hops)] += p
            for v in fresh: go(p / len(fresh), edges, landing, [f for f in fresh if f != v], v, v)
        else:
            for to in landing + fresh:
                go(p / len(landing + fresh), edges + [(at, to)], landing, [f for f in fresh if f != to], first, to)

    go(Fraction(1), [(i, i + 1) for i in range(hops)], list(range(hops + 1)), list(range(hops + 1, nodes)), None, None)
    return total


def test_chances_by_hand():
    """Four nodes, one hop: worked out on paper."""
    both, apart, chain = Fraction(1, 9), Fraction(2, 9), Fraction(5, 18)
    assert sorted(chances(4, 1).values()) == sorted([both, both, apart, chain, chain])
    assert chances(4, 1)[((0, 1), (0, 2), (2, 3))] == chain and chances(4, 1)[((0, 1), (0, 2), (1, 3))] == apart


def array_trees(nodes, hops, n):
    trees = grow_trees(Stream(0, "eval", level=(nodes, hops)).words(n, nodes - hops - 1), nodes, hops)
    return [list(enumerate(t, 1)) for t in trees.tolist()]


@pytest.mark.parametrize("nodes, hops", [(4, 1), (5, 1), (5, 2), (6, 2)])
def test_every_tree_has_its_probability(nodes, hops):
    n, expected = 9000, chances(nodes, hops)
    assert sum(expected.values()) == 1
    counts = Counter(shape_of(edges, nodes, hops) for edges in array_trees(nodes, hops, n))
    assert spread(counts, {k: float(n * p) for k, p in expected.items()}) < 3.5


def test_mazes_are_these_trees():
    """The same for whole mazes, told apart by the degrees of start and goal: labels and lists change nothing."""
    block = MAZES.draw((4, 1), Stream(3, "eval"), 6000)
    counts = Counter()
    for p in block.prompt:
        start, goal, items = read(MAZES.show(p))
        degree = {a: len(near) for a, near in items}
        counts[degree[start], degree[goal]] += 1
    assert spread(counts, {k: 6000 * p for k, p in {(3, 1): 1 / 9, (1, 3): 1 / 9, (2, 2): 2 / 9, (2, 1): 5 / 18, (1, 2): 5 / 18}.items()}) < 3.5


def test_same_process_at_full_size():
    """30 nodes, 9 hops: degrees, and distances from the start, of 2,000 trees each way; standard errors by maze."""
    def facts(edges):
        g = nx.Graph(edges)
        degrees, far = Counter(dict(g.degree).values()), Counter(nx.single_source_shortest_path_length(g, 0).values())
        return [degrees[k] for k in range(1, 6)] + [far[k] for k in range(1, 15)] + [degrees[1] ** 2]
    rng = random.Random(0)
    one = torch.tensor([facts(walk_by_walk(30, 9, rng)) for _ in range(2000)]).double()
    other = torch.tensor([facts(edges) for edges in array_trees(30, 9, 2000)]).double()
    z = (one.mean(0) - other.mean(0)) / ((one.var(0) + other.var(0)) / 2000).sqrt().clamp(min=1e-9)
    assert z.abs().max() < 4, z


def test_labels_and_places_are_fair():
    """Start and goal are called anything, and stand anywhere in the list; the way on is anywhere among a node's neighbours."""
    n = 6000
    block = MAZES.draw((6, 3), Stream(5, "eval"), n)
    names, places, order, pairs, sides = (Counter() for _ in range(5))
    for p, a in zip(block.prompt, block.answer):
        start, goal, items = read(MAZES.show(p))
        path, near = [int(x) for x in MAZES.show(a).split(">")], dict(items)
        names[start] += 1; names[goal + 100] += 1
        listed = [a for a, _ in items]
        places[listed.index(start)] += 1; places[10 + listed.index(goal)] += 1; places[20 + listed.index(path[1])] += 1
        pairs[listed.index(path[1]) > listed.index(path[2]), path[1] > path[2]] += 1
        if len(near[path[1]]) == 3: order[near[path[1]].index(path[2])] += 1
        sides[near[path[1]].index(path[0]) < near[path[1]].index(path[2]), path[0] < path[2]] += 1
    assert spread(names, {k + 100 * i: n / 99 for k in range(1, 100) for i in (0, 1)}) < 4
    assert spread(places, {k + 10 * i: n / 6 for k in range(6) for i in range(3)}) < 4
    assert spread(order, {k: order.total() / 3 for k in range(3)}) < 4
    for counts in (pairs, sides): assert spread(counts, {k: n / 4 for k in itertools.product((False, True), repeat=2)}) < 4   # not by label


# the verifier

def by_hand(text, said):
    """The four checks, on tokens, in plain Python."""
    start, goal, items = read(text)
    end = said.index(EOS) if EOS in said else None
    body = said[:end]
    fits = end is not None and not any(said[end:][1:]) and len(body) % 2 == 1 and all(
        t == MAZE.ids[">"] if i % 2 else EOS < t <= EOS + 99 for i, t in enumerate(body))
    if not fits: return dict.fromkeys(CHECKS, False)
    path = [t - EOS for t in body[::2]]
    return {"format": True, "moves": all(b in dict(items).get(a, ()) for a, b in zip(path, path[1:])),
            "ends": (path[0], path[-1]) == (start, goal), "repeats": len(set(path)) == len(path)}


tokens = st.sampled_from([*MAZE.encode("98>9>33>16>64>58>57"), MAZE.ids[","], EOS, PAD])


@given(st.lists(tokens, max_size=10) | st.lists(st.sampled_from([98, 9, 33, 16, 64, 58]), min_size=1, max_size=6).map(
    lambda labels: MAZE.encode(">".join(map(str, labels))) + [EOS, PAD]))
@settings(deadline=None, max_examples=300)
def test_checks_are_what_their_names_say(said):
    outputs = torch.tensor([said], dtype=torch.uint8).reshape(1, -1)
    marks = judge_paths(rows(TEXT, end=()), outputs)
    assert {c: bool(m) for c, m in marks.items()} == by_hand(TEXT, said)
    for checks in itertools.chain.from_iterable(itertools.combinations(CHECKS, k) for k in range(1, 5)):
        assert MAZES.verify(rows(TEXT, end=()), outputs, checks).item() == all(marks[c].item() for c in checks)


def test_all_checks_together_leave_the_right_path():
    """Every sequence of up to five of six labels, one of which is not in the maze."""
    text = "1>3#1:2-2:1,3,5-3:2,4-4:3-5:2="
    said = [">".join(map(str, labels)) for k in range(1, 6) for labels in itertools.product((1, 2, 3, 4, 5, 6), repeat=k)]
    outputs = rows(*said, width=13)
    prompts = rows(text, end=()).expand(len(said), -1)
    passed = MAZES.verify(prompts, outputs)
    assert [s for s, ok in zip(said, passed.tolist()) if ok] == ["1>2>3"]
    assert torch.equal(passed, same_rows(rows("1>2>3").expand(len(said), -1), outputs))
    for leave_out in CHECKS[1:]:                               # without any one of them, others come through
        assert MAZES.verify(prompts, outputs, [c for c in CHECKS if c != leave_out]).sum() > 1


def mutate(kind, path, nodes):
    """An output's ids with one thing wrong, and the checks that must notice."""
    away = next(x for x in range(1, 100) if x not in nodes)
    def say(labels): return MAZE.encode(">".join(map(str, labels))) + [EOS]
    right, middle = say(path), len(path) // 2
    return {"skips a node": (say(path[:middle] + path[middle + 1:]), {"moves"}),
            "stops short": (say(path[:-1]), {"ends"}),
            "starts late": (say(path[1:]), {"ends"}),
            "walks backwards": (say(path[::-1]), {"ends"}),
            "goes back and forth": (say(path[:2] + path), {"repeats"}),
            "stands still": (say(path[:1] + path), {"moves", "repeats"}),
            "invents a node": (say(path[:middle] + [away] + path[middle + 1:]), {"moves"}),
            "starts elsewhere": (say([away] + path[1:]), {"moves", "ends"}),
            "ends on a sign": (right[:-1] + MAZE.encode(">") + [EOS], set(CHECKS)),
            "uses another sign": (right[:1] + MAZE.encode(",") + right[2:], set(CHECKS)),
            "says a sign for a label": (right[:2] + MAZE.encode(">") + right[3:], set(CHECKS)),
            "leaves out a sign": (right[:1] + right[2:], set(CHECKS)),
            "does not end": (right[:-1], set(CHECKS)),
            "does not end, is filled": (right[:-1] + [PAD, PAD], set(CHECKS)),
            "goes on after the end": (right + right[:1], set(CHECKS)),
            "ends twice": (right + [EOS], set(CHECKS)),
            "ends again later": (right + [PAD, EOS], set(CHECKS)),
            "says nothing": ([EOS], set(CHECKS))}[kind]


KINDS = ["skips a node", "stops short", "starts late", "walks backwards", "goes back and forth", "stands still", "invents a node", "starts elsewhere",
         "ends on a sign", "uses another sign", "says a sign for a label", "leaves out a sign", "does not end", "does not end, is filled",
         "goes on after the end", "ends twice", "ends again later", "says nothing"]


@pytest.mark.parametrize("kind", KINDS)
@given(st.tuples(st.integers(3, 98), st.integers(2, 40)).filter(lambda s: s[1] < s[0]), st.integers(0, 1000), st.integers(0, 5))
@settings(deadline=None, max_examples=10)
def test_each_mistake_is_noticed_by_the_checks_that_should(kind, shape, row, padding):
    block = MAZES.draw(shape, Stream(0, "eval"), torch.tensor([row]))
    path = [int(x) for x in MAZES.show(block.answer[0]).split(">")]
    said, noticed = mutate(kind, path, dict(read(MAZES.show(block.prompt[0]))[2]))
    outputs = torch.tensor([said + [PAD] * padding], dtype=torch.uint8)
    assert {c for c in CHECKS if not MAZES.verify(block.prompt, outputs, (c,))} == noticed
    assert MAZES.verify(block.prompt, block.answer).all() and not MAZES.verify(block.prompt, outputs).any()
    assert first_fault(*read_maze(MAZES.show(block.prompt[0]))[2:3], path, said + [PAD] * padding) or kind in ("goes on after the end", "ends twice", "ends again later")


def test_checks_have_names():
    row = MAZES.parse(TEXT + PATH)
    assert MAZES.verify(row.prompt, row.answer, "moves").tolist() == [True]
    for wrong in (("moves", "speed"), "speed", ()):
        with pytest.raises(ValueError, match="choose among format, moves, ends, repeats"): MAZES.verify(row.prompt, row.answer, wrong)


# reading

@pytest.mark.parametrize("text, piece, at, due", [
    ("", "the text ends", 1, "a label from 1 to 99"), ("98", "the text ends", 3, "'>'"), ("98-16#", "'-'", 3, "'>'"), ("98>16>", "'>'", 6, "'#'"),
    ("98>16#33,16=", "','", 9, "':'"), ("98>16#33:16;9", "';'", 12, "',' or '-' or '='"), ("98>16#33:16,100-", "'100'", 13, "a label from 1 to 99"),
    ("0>16#", "'0'", 1, "a label"), ("07>16#", "'07'", 1, "a label"), ("98>16#33:-", "'-'", 10, "a label"), ("98>16#33:16,=", "'='", 13, "a label"),
    ("98>16#33:16 ,9=", "' '", 12, "','"), ("98>16#33:16,9-64:9,58", "the text ends", 22, "'='"), ("98>16#=", "'='", 7, "a label"), ("²>1#", "'²'", 1, "a label"),
])
def test_what_is_no_maze_is_refused_where_it_goes_wrong(text, piece, at, due):
    with pytest.raises(ValueError) as e: MAZES.parse(text)
    assert str(e.value).startswith(f"{piece} at position {at}, where ") and due in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("text, said", [
    ("1>4#1:2-2:1=", "the goal 4 is not among"), ("4>1#1:2-2:1=", "the start 4 is not among"), ("1>1#1:2-2:1=", "start and goal are both 1"),
    ("1>3#1:2-2:1,3-3:4-4:3=", "node 2 lists 3, but 3 does not list 2"), ("1>2#1:2-2:1,3=", "node 2 lists 3, which is not among"),
    ("1>2#1:2-2:1-1:2=", "node 1 is listed a second time at position 13"), ("1>2#1:2,2-2:1,1=", "node 1 lists 2 twice"), ("1>2#1:1,2-2:1=", "node 1 lists itself"),
    ("1>3#1:2-2:1-4:3-3:4=", "no path leads from 1 to 3"), ("1>2#1:2-2:1-3:4-4:3=", "no path leads from 1 to 3"),
    ("1>3#1:2,3-2:1,3-3:2,1=", "3 nodes with 3 edges are not a tree"),
])
def test_what_is_no_tree_is_refused(text, said):
    with pytest.raises(ValueError, match=said): MAZES.parse(text)


def test_answers_are_read_as_they_are():
    assert MAZES.parse(TEXT).answer.shape == (1, 0)
    assert MAZES.show(MAZES.parse(TEXT + "98>>9=").answer[0]) == "98>>9="   # a wrong answer is still an answer
    with pytest.raises(ValueError, match="'x'"): MAZES.parse(TEXT + "98x")
    assert torch.equal(MAZES.solve(MAZES.parse(TEXT).prompt), rows(PATH))


# levels and options

def test_levels_end_where_mazes_do():
    assert MazeHops().levels(25, 40) == [25, 26, 27, 28, 29] and MazeHops(nodes=4).levels(-3, 9) == [1, 2, 3]
    assert MazeNodes().levels(8, 12) == [10, 11, 12] and MazeNodes(hops=3).levels(97, 200) == [97, 98, 99] and MazeHops().levels(40, 50) == []
    assert MazeHops().shapes(29) == [(30, 29)] and MazeNodes().shapes(99) == [(99, 9)] and MazeNodes(hops=3).shapes(4, "base") == [(4, 3)]
    assert MazeHops().size(12) == 12


@pytest.mark.parametrize("task, level, said", [
    (MazeHops(), 30, "level 30 is not one that maze_hops has: with 30 nodes a path has 1 to 29 hops"), (MazeHops(), 0, "level 0 is not"),
    (MazeHops(nodes=5), 5, "with 5 nodes a path has 1 to 4 hops"), (MazeNodes(), 9, "level 9 is not one that maze_nodes has: with 9 hops a maze has 10 to 99 nodes"),
    (MazeNodes(), 100, "level 100"), (MazeHops(), "5", "level '5'"), (MazeHops(), True, "level True"), (MazeHops(), (3, 4), r"level \(3, 4\)"), (MazeHops(), 3.0, "level 3.0"),
])
def test_a_level_that_is_not_there(task, level, said):
    with pytest.raises(ValueError, match=said): task.shapes(level)
    with pytest.raises(ValueError, match=said): task.check_level(level)


@pytest.mark.parametrize("name, options, said", [
    ("maze_hops", {"nodes": 100}, "100 nodes cannot be: there are labels for 2 to 99"), ("maze_hops", {"nodes": 1}, "1 nodes cannot be"),
    ("maze_nodes", {"hops": 0}, "0 hops cannot be"), ("maze_nodes", {"hops": 99}, "99 hops cannot be in a maze of 99 nodes: it has 1 to 98"),
    ("maze_hops", {"nodes": "30"}, "nodes '30' is not a whole number"), ("maze_nodes", {"hops": 2.0}, "hops 2.0 is not"), ("maze_nodes", {"nodes": 9}, "no option 'nodes': it has hops"),
])
def test_an_option_that_cannot_be(name, options, said):
    with pytest.raises(ValueError, match=said): make_task(name, **options)


def test_a_shape_that_cannot_be():
    for shape in ((5, 5), (100, 3), (5, 0)):
        with pytest.raises(ValueError, match="cannot be"): MAZES.draw(shape, Stream(0, "base"), 1)


def test_tasks_by_name():
    assert TASKS["maze_hops"] is MazeHops and make_task("maze_nodes", hops=3) == MazeNodes(3) != MazeNodes()
    assert MazeHops(nodes=2).levels(1, 99) == [1] and MazeNodes(hops=98).levels(1, 99) == [99]


# pictures

def crossing(p, q, r, s):
    """Do two segments without a common end meet?"""
    def side(a, b, c): return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
    return side(p, q, r) * side(p, q, s) < 0 and side(r, s, p) * side(r, s, q) < 0


@given(shapes, st.integers(0, 10_000))
@settings(deadline=None, max_examples=20)
def test_layout_is_tidy(shape, row):
    block = MAZES.draw(shape, Stream(0, "eval"), torch.tensor([row]))
    picture = MAZES.picture(block.prompt[0], block.answer[0])
    at = lay_out(picture.nodes, picture.path)
    assert set(at) == set(picture.nodes)
    along = [at[a] for a in picture.path]
    assert all(y == 0 for _, y in along) and [x for x, _ in along] == sorted(x for x, _ in along)
    assert min((math.dist(p, q) for p, q in itertools.combinations(at.values(), 2))) > 0.999    # no two on one another
    edges = [(at[a], at[b]) for a, near in picture.nodes.items() for b in near if a < b]
    assert not [1 for e, f in itertools.combinations(edges, 2) if not set(e) & set(f) and crossing(*e, *f)]


def picture(output=None, end=(EOS,)):
    return MAZES.picture(rows(TEXT, end=())[0], rows(PATH)[0], None if output is None else rows(output, end=end)[0])


@pytest.mark.parametrize("output, mark, why", [
    (PATH, None, None), ("98>9>16", "     ^^", "no edge leads from 9 to 16"), ("98>9>64>16", "     ^^", "64 leads away from the goal"), ("9>33>16", "^", "the path begins at 98"),
    ("98>9>33", "       ^", "the goal is 16"), ("98>9>98>9", "     ^^", "98 has been visited before"), ("98>9>57", "     ^^", "there is no node 57"),
    ("98>9,33", "    ^", "a '>' is due"), ("98>>", "   ^", "a label is due"), ("98>9>33>", "        ^", "a label is due"), ("", "^", "a label is due"),
])
def test_text_marks_the_first_fault(output, mark, why):
    lines = str(picture(output)).split("\n")
    assert lines[0] == "maze of 6 nodes, 98 to 16 in 3 hops" and lines[1].split() == ["path", PATH] and lines[2] == f"output  {output}"
    assert lines[3:] == ([] if mark is None else [lines[3]])
    if mark: assert lines[3].startswith(" " * 8 + mark + " ") and why in lines[3]


def test_text_without_an_output():
    assert str(picture()).split("\n")[1:] == ["path    98>9>33>16"] and repr(picture()) == str(picture())
    assert "should end" in str(picture(PATH, end=()))


def test_moves_have_colours():
    assert picture("98>9>64>16>33").moves() == [(98, 9, "right"), (9, 64, "astray"), (64, 16, "wrong"), (16, 33, "right")]
    assert picture().moves() == [] and picture("98>57").moves() == [(98, 57, "wrong")]


def test_drawing_marks_wrong_moves():
    from matplotlib.colors import to_hex
    from matplotlib.patches import FancyArrowPatch

    from self_improve.tasks import draw_maze
    def arrows(p): return [(to_hex(a.get_edgecolor()), a.get_linestyle()) for a in draw_maze(p).axes[0].patches if isinstance(a, FancyArrowPatch)]
    assert arrows(picture()) == []
    right, astray, wrong = arrows(picture("98>9>64>16"))
    assert wrong[0] == "#c8102e" and wrong[1] in ("--", "dashed") and right[1] == astray[1] == "solid" and len({right[0], astray[0], wrong[0]}) == 3
    assert arrows(picture("98>9>57>16")) == [right]                                           # a node that is not there cannot be drawn
    texts = {t.get_text() for t in draw_maze(picture("98>9>16")).axes[0].texts}
    assert {"98", "9", "33", "16", "64", "58", "start", "goal", "no edge leads from 9 to 16"} == texts


def test_png():
    for p in (picture(), picture("98>9>16"), picture("")):
        png = p._repr_png_()
        assert png.startswith(b"\x89PNG\r\n\x1a\n") and b"Software" not in png and png == p._repr_png_() and len(png) < 30_000
    assert picture()._repr_png_() != picture(PATH)._repr_png_() != picture("98>9>16")._repr_png_()
    big = MAZES.draw((99, 98), Stream(0, "eval"), 1)
    assert len(MAZES.picture(big.prompt[0], big.answer[0])._repr_png_()) < 200_000


def test_pictures_of_typed_mazes():
    prompt = rows(TEXT, end=())[0]
    assert str(MAZES.picture(prompt, MAZES.parse(TEXT).answer[0])) == str(picture())   # without an answer it is worked out
    with pytest.raises(ValueError, match="'98>9>16' is not the right path"): MAZES.picture(prompt, rows("98>9>16")[0])
