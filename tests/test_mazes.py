"""Mazes: the sampler beside the process it stands for, the solver, the verifier, reading, pictures."""
import hashlib
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

from self_improve import mazes
from self_improve.drawing import lay_out
from self_improve.mazes import CHECKS, MAZE, MazeHops, MazeNodes, find_paths, grow_trees
from self_improve.streams import Stream
from self_improve.tasks import EOS, PAD, TASKS, Task, check_task, make_task, rows_equal

# the paper's format, worked by hand
TEXT, PATH = "98>16#33:16,9-64:9,58-98:9-9:64,98,33-58:64-16:33=", "98>9>33>16"
# what mazes of any shape are drawn, solved and checked with
MAZES = MazeHops()
shapes = st.integers(2, 99).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n - 1)))


def rows(*texts, width=0, end=(EOS,)):
    """Texts as rows of one width."""
    ids = [MAZE.encode(t) + list(end) for t in texts]
    width = max([width, *map(len, ids)])
    return torch.tensor([i + [PAD] * (width - len(i)) for i in ids], dtype=torch.uint8)


def read(text):
    """Start, goal, and the list of a prompt as (node, neighbors), read by splitting."""
    ends, listing = text.removesuffix("=").split("#")
    items = []
    for item in listing.split("-"):
        node, neighbors = item.split(":")
        items.append((int(node), [int(b) for b in neighbors.split(",")]))
    return *map(int, ends.split(">")), items


def labels_of(answer): return [int(x) for x in MAZES.show(answer).split(">")]


def graph(text):
    return nx.Graph([(a, b) for a, near in read(text)[2] for b in near])


def spread(counts, expected):
    """Chi-square in standard deviations from its mean."""
    chi = sum((counts.get(k, 0) - e) ** 2 / e for k, e in expected.items())
    assert set(counts) <= set(expected)
    return (chi - (len(expected) - 1)) / math.sqrt(2 * (len(expected) - 1))


# formats

def test_worked_example():
    row = MAZES.parse(f"{TEXT}{PATH}")
    assert row.prompt.shape == (1, 36) and row.answer[0, -1] == EOS
    assert row.answer.shape == (1, 8) == (1, MAZES.width((6, 3)))
    assert MAZES.show(row.prompt[0], row.answer[0]) == TEXT + PATH
    assert torch.equal(MAZES.solve(row.prompt), row.answer)
    assert MAZES.check(row, MAZES.solve(row.prompt)).all() and MAZES.verify(row.prompt, row.answer).all()


@given(shapes, st.integers(0, 2**40))
@settings(deadline=None, max_examples=60)
def test_mazes_are_what_the_format_says(shape, row):
    nodes, hops = shape
    block = MAZES.draw(shape, Stream(0, "self", level=hops), torch.arange(row, row + 3))
    assert block.prompt.shape == (3, 6 * nodes) and block.answer.shape == (3, 2 * hops + 2)
    assert block.prompt.dtype == block.answer.dtype == torch.uint8
    assert MAZES.width(shape) == 2 * hops + 2 and (block.answer[:, -1] == EOS).all()
    for p, a in zip(block.prompt, block.answer, strict=True):
        text = MAZES.show(p)
        start, goal, items = read(text)
        g = graph(text)
        labels = [a for a, _ in items]
        assert len(set(labels)) == nodes == g.number_of_nodes() and set(labels) <= set(range(1, 100))
        both_ways = Counter(pair for e in g.edges for pair in (e, e[::-1]))
        assert nx.is_tree(g) and Counter((a, b) for a, near in items for b in near) == both_ways
        assert nx.shortest_path(g, start, goal) == labels_of(a)
        assert nx.shortest_path_length(g, start, goal) == hops
        again = MAZES.parse(MAZES.show(p, a))
        assert torch.equal(again.prompt[0], p) and torch.equal(again.answer[0], a)
    assert torch.equal(MAZES.solve(block.prompt), block.answer) and MAZES.verify(block.prompt, block.answer).all()


def test_solver_takes_mazes_of_other_makers():
    """Uniform trees of networkx, start and goal anywhere: paths of different lengths, beyond one chunk."""
    texts, answers = [], []
    for seed in range(1100):
        labels = random.Random(seed).sample(range(1, 100), 9)
        tree = nx.relabel_nodes(nx.random_labeled_tree(9, seed=seed), dict(enumerate(labels)))
        start, goal = list(tree)[:2]
        items = [f"{a}:{','.join(map(str, tree[a]))}" for a in tree]
        texts.append(f"{start}>{goal}#" + "-".join(items) + "=")
        answers.append(">".join(map(str, nx.shortest_path(tree, start, goal))))
    prompts, right = rows(*texts, end=()), rows(*answers)
    assert torch.equal(MAZES.solve(prompts), right) and MAZES.verify(prompts, right).all()
    assert len({len(a.split(">")) for a in answers}) > 4
    assert find_paths(prompts).shape == (1100, 9)


@given(shapes, st.lists(st.integers(0, 10_000), min_size=1, max_size=8))
@settings(deadline=None, max_examples=25)
def test_mazes_do_not_depend_on_their_neighbors(shape, numbers):
    stream = Stream(0, "self", level=12, round=2)
    some = MAZES.draw(shape, stream, torch.tensor(numbers))
    one = MAZES.draw(shape, stream, torch.tensor(numbers[-1:]))
    assert torch.equal(some.prompt[-1:], one.prompt) and torch.equal(some.answer[-1:], one.answer)


def test_chunks_make_no_difference():
    block = MAZES.draw((7, 4), Stream(0, "base"), 2500)
    for i in (0, 1023, 1024, 2499):
        one = MAZES.draw((7, 4), Stream(0, "base"), torch.tensor([i]))
        assert torch.equal(one.prompt[0], block.prompt[i]) and torch.equal(one.answer[0], block.answer[i])
    outputs = block.answer.clone()
    # the start once more, in second place
    outputs[::3, 2] = block.prompt[::3, 0]
    assert (MAZES.verify(block.prompt, outputs) == (torch.arange(2500) % 3 > 0)).all()
    assert len(MAZES.draw((7, 4), Stream(0, "base"), 0)) == 0


def test_other_streams_make_other_mazes():
    names = ((0, "base"), (1, "base"), (0, "eval"), (0, "base", 1), (0, "base", 0, 3))
    prompts = [MAZES.draw((8, 3), Stream(*name), 2).prompt.tolist() for name in names]
    assert len({str(p) for pair in prompts for p in pair}) == 10


def test_drawing_and_checking_stay_on_their_device():
    """The meta device has no data, so whatever waits for a number or brings an array from elsewhere fails there."""
    block = MAZES.draw((30, 9), Stream(0, "base"), torch.arange(1500, device="meta"))
    assert block.prompt.shape == (1500, 180) and block.prompt.device.type == block.answer.device.type == "meta"
    assert MAZES.verify(block.prompt, block.answer).device.type == "meta"


# the class and its rules

@pytest.mark.parametrize("task", [MazeHops(), MazeHops(nodes=6), MazeNodes(), MazeNodes(hops=3)], ids=repr)
def test_every_rule_of_a_task_holds(task):
    check_task(task)


@pytest.mark.parametrize("kind", [MazeHops, MazeNodes])
def test_tasks_are_registered_and_near_to_task(kind):
    assert TASKS[kind.name] is kind and make_task(kind.name) == kind()
    # the class, at most one between, `Task`, `object`
    assert len(kind.__mro__) <= 4 and kind.__mro__[-2] is Task


def test_all_seven_tasks_are_registered():
    import self_improve.arithmetic  # noqa: F401
    seven = {"copy", "reverse", "reverse_addition", "forward_addition", "multiplication", "maze_hops", "maze_nodes"}
    assert seven <= set(TASKS)


# mazes that may never change: a record stores row numbers instead of problems

GOLDEN = ["20>58#59:79,58,34-71:20-34:59-79:20,59-20:71,79-58:59=20>79>59>58",
          "32>28#28:90-20:13-13:20,32-32:13,65-65:90,32-90:65,28=32>65>90>28"]


def test_golden_mazes():
    block = MAZES.draw((6, 3), Stream(1, "self", level=3), 2)
    assert [MAZES.show(p, a) for p, a in zip(block.prompt, block.answer, strict=True)] == GOLDEN


def level_digest(task, level):
    """Four rows of every shape of a level, base and self-made, in six characters."""
    digest = hashlib.sha256()
    for purpose in ("base", "self"):
        for shape in task.shapes(level, purpose):
            block = task.draw(shape, Stream(2, purpose, 1, level, 3), torch.tensor([0, 1, 77, 12345]))
            for array in (block.prompt, block.answer): digest.update(array.contiguous().numpy().tobytes())
    return digest.hexdigest()[:6]


# task, highest level, one digest for each level from the lowest
LEVELS = [
    (MazeHops(), 29, """
        0139be 947f25 85751f e1704a 4e22a5 d1e897 15ef7b 48c5ef 51f17f ecdccd a7ba27 fae585 cb873c 20745c
        5c1a6e bf69d7 d7f7b9 98bc17 fbfd60 82896a ac4f8c 955c37 dff640 bff286 46003e d4688b 9bb46c a8977e
        09b8cb"""),
    (MazeHops(nodes=6), 5, """
        f09227 a4542d 46e001 6d86fb 41c9d6"""),
    (MazeNodes(), 99, """
        d02775 3d9693 786b6d 866f70 9f779c 05a975 7e0d8a 76ac22 50737b fce9eb 3de5cd cceb4e 08f814 a0ab2d
        868fad c5d5bc 3c4291 353a23 6c02ff 932ed5 0abcf6 298043 2548cc 718cc8 67c7ca 610e76 53c5e3 aff738
        469b67 78b109 c2afad 204cef a8dde5 f9ed99 178b10 eaa55a cdf2cb d8cb4b 844d93 e63f5a 192af0 aeebc9
        0ac299 b55560 3748e7 f46372 f87c7e d46ab8 995b26 1ec77a 2b4bec 6740e2 0ffdc9 831e90 bb08cd 344e63
        bfa126 b68ebd dd6255 7500df 77122f 89be2a 1d13fc 5d0fd1 e96882 b0626e 3c1b73 7cf877 b29c5d 87c62e
        c7312c a36452 bba9a5 301487 7de20b a4f123 23a1d1 b911cd e8484f 418622 5c084c 2561c5 19136b 8cab21
        ce4b0f 33597f 2c8ab1 f2fef2 558d3f 4c92fc"""),
    (MazeNodes(hops=3), 30, """
        a0cdf5 0d395c 5d108a 541a1f f35d51 a196d4 c429f9 15ef86 281dd8 af45bd c849da 2a8641 b237d4 97a2c5
        5c96df c5237f fa33b4 fa0704 d9a258 4ac4df 00b32c 61d282 98f45a 23a0bd 582e6e e6dde1 50b51c""")]


@pytest.mark.parametrize("task, high, digests", LEVELS, ids=lambda x: repr(x) if isinstance(x, Task) else "")
def test_every_level_draws_what_it_always_drew(task, high, digests):
    levels = task.levels(1, high)
    assert [level_digest(task, level) for level in levels] == digests.split()


# the process

def walk_by_walk(nodes, hops, rng):
    """One tree by the process in words: walks over unused nodes, of which only the first becomes a landing place."""
    edges, landing = [(i, i + 1) for i in range(hops)], list(range(hops + 1))
    fresh = list(range(hops + 1, nodes))
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
            share = p / len(landing + fresh)
            for to in landing + fresh:
                go(share, edges + [(at, to)], landing, [f for f in fresh if f != to], first, to)

    path = [(i, i + 1) for i in range(hops)]
    go(Fraction(1), path, list(range(hops + 1)), list(range(hops + 1, nodes)), None, None)
    return total


def test_chances_by_hand():
    """Four nodes, one hop: worked out on paper."""
    both, apart, chain = Fraction(1, 9), Fraction(2, 9), Fraction(5, 18)
    found = chances(4, 1)
    assert sorted(found.values()) == sorted([both, both, apart, chain, chain])
    assert found[((0, 1), (0, 2), (2, 3))] == chain and found[((0, 1), (0, 2), (1, 3))] == apart


def array_trees(nodes, hops, n):
    words = Stream(0, "eval", level=(nodes, hops)).words(n, nodes - hops - 1)
    return [list(enumerate(t, 1)) for t in grow_trees(words, nodes, hops).tolist()]


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
    shares = {(3, 1): 1 / 9, (1, 3): 1 / 9, (2, 2): 2 / 9, (2, 1): 5 / 18, (1, 2): 5 / 18}
    assert spread(counts, {k: 6000 * p for k, p in shares.items()}) < 3.5


def test_same_process_at_full_size():
    """30 nodes, 9 hops: degrees, and distances from the start, of 2,000 trees each way; standard errors by maze."""
    def facts(edges):
        g = nx.Graph(edges)
        degrees = Counter(dict(g.degree).values())
        far = Counter(nx.single_source_shortest_path_length(g, 0).values())
        return [degrees[k] for k in range(1, 6)] + [far[k] for k in range(1, 15)] + [degrees[1] ** 2]
    rng = random.Random(0)
    one = torch.tensor([facts(walk_by_walk(30, 9, rng)) for _ in range(2000)]).double()
    other = torch.tensor([facts(edges) for edges in array_trees(30, 9, 2000)]).double()
    z = (one.mean(0) - other.mean(0)) / ((one.var(0) + other.var(0)) / 2000).sqrt().clamp(min=1e-9)
    assert z.abs().max() < 4, z


def test_labels_and_places_are_fair():
    """Start and goal have any name and any place in the list; the way on is anywhere among a node's neighbors."""
    n = 6000
    block = MAZES.draw((6, 3), Stream(5, "eval"), n)
    names, places, order, pairs, sides = (Counter() for _ in range(5))
    for p, a in zip(block.prompt, block.answer, strict=True):
        start, goal, items = read(MAZES.show(p))
        path, near = labels_of(a), dict(items)
        names[start] += 1
        names[goal + 100] += 1
        listed = [a for a, _ in items]
        for group, label in enumerate((start, goal, path[1])): places[10 * group + listed.index(label)] += 1
        pairs[listed.index(path[1]) > listed.index(path[2]), path[1] > path[2]] += 1
        if len(near[path[1]]) == 3: order[near[path[1]].index(path[2])] += 1
        sides[near[path[1]].index(path[0]) < near[path[1]].index(path[2]), path[0] < path[2]] += 1
    assert spread(names, {k + 100 * i: n / 99 for k in range(1, 100) for i in (0, 1)}) < 4
    assert spread(places, {k + 10 * i: n / 6 for k in range(6) for i in range(3)}) < 4
    assert spread(order, {k: order.total() / 3 for k in range(3)}) < 4
    # not by label
    for counts in (pairs, sides):
        assert spread(counts, {k: n / 4 for k in itertools.product((False, True), repeat=2)}) < 4


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
    return {
        "format": True,
        "moves": all(b in dict(items).get(a, ()) for a, b in itertools.pairwise(path)),
        "ends": (path[0], path[-1]) == (start, goal),
        "repeats": len(set(path)) == len(path)}


tokens = st.sampled_from([*MAZE.encode("98>9>33>16>64>58>57"), MAZE.ids[","], EOS, PAD])
label_lists = st.lists(st.sampled_from([98, 9, 33, 16, 64, 58]), min_size=1, max_size=6)
walks = label_lists.map(lambda labels: MAZE.encode(">".join(map(str, labels))) + [EOS, PAD])


@given(st.lists(tokens, max_size=10) | walks)
@settings(deadline=None, max_examples=300)
def test_checks_are_what_their_names_say(said):
    prompts = rows(TEXT, end=())
    outputs = torch.tensor([said], dtype=torch.uint8).reshape(1, -1)
    marks = mazes.check_paths(prompts, outputs)
    assert {c: bool(m) for c, m in marks.items()} == by_hand(TEXT, said)
    for checks in itertools.chain.from_iterable(itertools.combinations(CHECKS, k) for k in range(1, 5)):
        assert MAZES.verify(prompts, outputs, checks).item() == all(marks[c].item() for c in checks)


def test_all_checks_together_leave_the_right_path():
    """Every sequence of up to five of six labels, one of which is not in the maze."""
    text = "1>3#1:2-2:1,3,5-3:2,4-4:3-5:2="
    sequences = itertools.chain.from_iterable(itertools.product((1, 2, 3, 4, 5, 6), repeat=k) for k in range(1, 6))
    said = [">".join(map(str, labels)) for labels in sequences]
    outputs = rows(*said, width=13)
    prompts = rows(text, end=()).expand(len(said), -1)
    passed = MAZES.verify(prompts, outputs)
    assert [s for s, ok in zip(said, passed.tolist(), strict=True) if ok] == ["1>2>3"]
    assert torch.equal(passed, rows_equal(rows("1>2>3").expand(len(said), -1), outputs))
    # without any one of them, others come through
    for leave_out in CHECKS[1:]:
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


# the picture stops at the first EOS
AFTER_THE_END = ["goes on after the end", "ends twice", "ends again later"]
KINDS = ["skips a node", "stops short", "starts late", "walks backwards", "goes back and forth", "stands still",
         "invents a node", "starts elsewhere", "ends on a sign", "uses another sign", "says a sign for a label",
         "leaves out a sign", "does not end", "does not end, is filled", *AFTER_THE_END, "says nothing"]
path_shapes = st.tuples(st.integers(3, 98), st.integers(2, 40)).filter(lambda s: s[1] < s[0])


@pytest.mark.parametrize("kind", KINDS)
@given(path_shapes, st.integers(0, 1000), st.integers(0, 5))
@settings(deadline=None, max_examples=10)
def test_each_mistake_is_noticed_by_the_checks_that_should(kind, shape, row, padding):
    block = MAZES.draw(shape, Stream(0, "eval"), torch.tensor([row]))
    text, path = MAZES.show(block.prompt[0]), labels_of(block.answer[0])
    said, noticed = mutate(kind, path, dict(read(text)[2]))
    outputs = torch.tensor([said + [PAD] * padding], dtype=torch.uint8)
    assert {c for c in CHECKS if not MAZES.verify(block.prompt, outputs, (c,))} == noticed
    assert MAZES.verify(block.prompt, block.answer).all() and not MAZES.verify(block.prompt, outputs).any()
    nodes = mazes.parse_maze(text)[2]
    assert mazes.first_error(nodes, path, said + [PAD] * padding) or kind in AFTER_THE_END


def test_checks_have_names():
    row = MAZES.parse(TEXT + PATH)
    assert MAZES.verify(row.prompt, row.answer, "moves").tolist() == [True]
    for wrong in (("moves", "speed"), "speed", ()):
        with pytest.raises(ValueError, match="choose among format, moves, ends, repeats"):
            MAZES.verify(row.prompt, row.answer, wrong)


# reading

def test_what_is_no_maze_is_refused():
    wrong = {"98-16#": "'-' at position 3", "1>3#1:2,3-2:1,3-3:2,1=": "not a tree", PATH: "'#' was due"}
    for text, message in wrong.items():
        with pytest.raises(ValueError, match=message): MAZES.parse(text)


def test_answers_are_read_as_they_are():
    assert MAZES.parse(TEXT).answer.shape == (1, 0)
    # a wrong answer is still an answer
    assert MAZES.show(MAZES.parse(TEXT + "98>>9=").answer[0]) == "98>>9="
    with pytest.raises(ValueError, match="'x'"): MAZES.parse(TEXT + "98x")
    assert torch.equal(MAZES.solve(MAZES.parse(TEXT).prompt), rows(PATH))


# levels and options

def test_levels_end_where_mazes_do():
    assert MazeHops().levels(25, 40) == [25, 26, 27, 28, 29] and MazeHops(nodes=4).levels(-3, 9) == [1, 2, 3]
    assert MazeNodes().levels(8, 12) == [10, 11, 12] and MazeNodes(hops=3).levels(97, 200) == [97, 98, 99]
    assert MazeHops().levels(40, 50) == [] and MazeHops().size(12) == 12
    assert MazeHops().shapes(29) == [(30, 29)] and MazeNodes().shapes(99) == [(99, 9)]
    assert MazeNodes(hops=3).shapes(4, "base") == [(4, 3)]


@pytest.mark.parametrize("task, level, said", [
    (MazeHops(), 30, "level 30 is not one that maze_hops has: with 30 nodes a path has 1 to 29 hops"),
    (MazeHops(), 0, "level 0 is not"), (MazeHops(nodes=5), 5, "with 5 nodes a path has 1 to 4 hops"),
    (MazeNodes(), 9, "level 9 is not one that maze_nodes has: with 9 hops a maze has 10 to 99 nodes"),
    (MazeNodes(), 100, "level 100"), (MazeHops(), "5", "level '5'"), (MazeHops(), True, "level True"),
    (MazeHops(), (3, 4), r"level \(3, 4\)"), (MazeHops(), 3.0, "level 3.0"),
])
def test_a_level_that_is_not_there(task, level, said):
    with pytest.raises(ValueError, match=said): task.shapes(level)
    with pytest.raises(ValueError, match=said): task.check_level(level)


@pytest.mark.parametrize("name, options, said", [
    ("maze_hops", {"nodes": 100}, "100 nodes cannot be: there are labels for 2 to 99"),
    ("maze_hops", {"nodes": 1}, "1 nodes cannot be"), ("maze_nodes", {"hops": 0}, "0 hops cannot be"),
    ("maze_nodes", {"hops": 99}, "99 hops cannot be in a maze of 99 nodes: it has 1 to 98"),
    ("maze_hops", {"nodes": "30"}, "nodes '30' is not a whole number"),
    ("maze_nodes", {"hops": 2.0}, "hops 2.0 is not"),
    ("maze_nodes", {"nodes": 9}, "no option 'nodes': it has hops"),
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
    # no two on one another
    assert min(math.dist(p, q) for p, q in itertools.combinations(at.values(), 2)) > 0.999
    edges = [(at[a], at[b]) for a, near in picture.nodes.items() for b in near if a < b]
    pairs = [(e, f) for e, f in itertools.combinations(edges, 2) if not set(e) & set(f)]
    assert not [1 for e, f in pairs if crossing(*e, *f)]


def picture(output=None, end=(EOS,)):
    said = None if output is None else rows(output, end=end)[0]
    return MAZES.picture(rows(TEXT, end=())[0], rows(PATH)[0], said)


def test_pictures_hold_the_maze_its_path_and_the_output():
    shown = picture("98>9>64>16")
    assert shown.path == [98, 9, 33, 16] and shown.nodes == dict(read(TEXT)[2])
    assert shown.output == MAZE.encode("98>9>64>16") + [EOS] and picture().output is None
    assert shown.error == (4, "64 leads away from the goal") and picture(PATH).error is None


def test_png():
    for p in (picture(), picture("98>9>16"), picture("")):
        png = p._repr_png_()
        assert png.startswith(b"\x89PNG\r\n\x1a\n") and b"Software" not in png
        assert png == p._repr_png_() and len(png) < 30_000
    assert picture()._repr_png_() != picture(PATH)._repr_png_() != picture("98>9>16")._repr_png_()
    big = MAZES.draw((99, 98), Stream(0, "eval"), 1)
    assert len(MAZES.picture(big.prompt[0], big.answer[0])._repr_png_()) < 200_000


def test_pictures_of_typed_mazes():
    prompt = rows(TEXT, end=())[0]
    # without an answer it is worked out
    assert str(MAZES.picture(prompt, MAZES.parse(TEXT).answer[0])) == str(picture())
    with pytest.raises(ValueError, match="'98>9>16' is not the right path"): MAZES.picture(prompt, rows("98>9>16")[0])
