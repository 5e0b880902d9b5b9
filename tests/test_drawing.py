"""Squared paper and trees: their text, their pixels, and what is marked."""
import io
import itertools
import math
import random
import subprocess
import sys

import matplotlib.image
import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_hex
from matplotlib.patches import FancyArrowPatch

from self_improve.drawing import (
    DPI,
    EDGE_COLOR,
    MOVE_STYLES,
    Page,
    addition_on_paper,
    draw_tree,
    figure_png,
    lay_out,
    page_png,
    product_on_paper,
    write_answer,
    write_row,
)

TREE = {33: [16, 9], 64: [9, 58], 98: [9], 9: [64, 98, 33], 58: [64], 16: [33]}
PATH = [98, 9, 33, 16]


# pages

def test_a_page_is_a_png():
    page = Page().write(0, 0, "a$b").write(2, 1, "wrong", wrong=[1])
    png = page._repr_png_()
    assert png[:8] == b"\x89PNG\r\n\x1a\n" and b"Software" not in png
    assert png == page._repr_png_() == page_png(page)
    pixels = matplotlib.image.imread(io.BytesIO(png))
    # three lines and six columns, and a margin of one
    assert pixels.shape[:2] == (80, 80)
    reddish = ((pixels[..., 0] - pixels[..., 1]) > 0.1).nonzero()
    # one square: the second letter of `wrong`
    assert (reddish[1].min(), reddish[1].max()) == (30, 39)
    assert 45 <= reddish[0].min() and reddish[0].max() <= 75


def test_a_page_is_text():
    page = Page().write(1, 2, "xyz", wrong=[0, 2]).write(1, 0, "a").write(1, 3, "-")
    assert str(page) == repr(page) == "\na x-z\n  ^ ^" and page.size == (2, 5)
    assert str(Page()) == "" and Page().size == (1, 1)


def test_what_is_written_later_stands_above():
    page = Page().write(0, 0, "abc").write(0, 1, "xy", color="gray")
    assert str(page) == "axy" and page.cells[0, 1] == ("x", "gray") and page.cells[0, 0] == ("a", "black")


def test_a_wrong_character_has_a_color_of_its_own():
    page = Page().write(0, 0, "ab", wrong=[1], color="gray")
    assert page.cells[0, 0][1] == "gray" and page.cells[0, 1][1] not in ("gray", "black") and page.wrong == {(0, 1)}


def test_an_empty_page_has_a_png():
    pixels = matplotlib.image.imread(io.BytesIO(page_png(Page())))
    assert pixels.shape[:2] == (40, 30) and (pixels == 1).all()


# sums and products on paper

def test_a_sum_on_paper():
    page, places = addition_on_paper("9567", "67", characters=5)
    assert str(page) == "\n".join(["    11", "   9567", "+    67", "───────"])
    assert places == [(4, 6), (4, 5), (4, 4), (4, 3), (4, 2)]


def test_a_product_on_paper():
    """The places of a chain of thought, in its order: every number ends below the units."""
    page, places = product_on_paper("12", "34")
    row = "840+0630=8040"
    assert len(places) == len(row)
    write_answer(page, places, right=row, shown=row, wrong=[])
    assert str(page).split("\n") == [
        "    12", "×   34", "──────", "   048   4 × 12", "+ 0360   3 × 12", "──────", "= 0408"]


def test_mistakes_are_put_right_beside_their_line():
    page, places = addition_on_paper("9567", "4567", characters=5)
    write_answer(page, places, right="43141", shown="431517", wrong=[3, 4, 5])
    assert str(page).split("\n")[4:] == ["  15134  right: 14134", "  ^^", "and then 7", "         ^"]
    # nothing stands beside a line without a mistake
    page, places = product_on_paper("12", "34")
    write_answer(page, places, right="840+0630=8040", shown="840+0630=8041", wrong=[12])
    assert [line.split() for line in str(page).split("\n") if "right" in line] == [["=", "1408", "right:", "=0408"]]


def test_a_row_is_written_below_in_lines_of_sixty():
    page = Page().write(0, 0, "x")
    write_row(page, "a" * 60 + "b")
    assert str(page) == "x\n\nthe row: " + "a" * 60 + "\n         b"


# places of a tree

def crossing(p, q, r, s):
    """Do two segments without a common end meet?"""
    def side(a, b, c): return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
    return side(p, q, r) * side(p, q, s) < 0 and side(r, s, p) * side(r, s, q) < 0


@given(st.integers(2, 60), st.integers(0, 10_000))
@settings(deadline=None, max_examples=40)
def test_a_layout_is_tidy(n, seed):
    """Any tree, any path: no two nodes on one another, no two edges crossing, the path in order at height 0."""
    tree = nx.random_labeled_tree(n, seed=seed)
    start, goal = random.Random(seed).sample(range(n), 2)
    nodes, path = {a: list(tree[a]) for a in tree}, nx.shortest_path(tree, start, goal)
    at = lay_out(nodes, path)
    assert set(at) == set(nodes)
    along = [at[a] for a in path]
    assert all(y == 0 for _, y in along) and [x for x, _ in along] == sorted(x for x, _ in along)
    assert all(at[a][1] != 0 for a in nodes if a not in path)
    assert min(math.dist(p, q) for p, q in itertools.combinations(at.values(), 2)) > 0.999
    edges = [(at[a], at[b]) for a, b in tree.edges]
    pairs = [(e, f) for e, f in itertools.combinations(edges, 2) if not set(e) & set(f)]
    assert not [1 for e, f in pairs if crossing(*e, *f)]


def test_subtrees_hang_on_both_sides():
    star = {0: [1, 2, 3, 4, 9], 9: [0]} | {leaf: [0] for leaf in (1, 2, 3, 4)}
    heights = [lay_out(star, [0, 9])[leaf][1] for leaf in (1, 2, 3, 4)]
    assert sorted(heights) == [-1, -1, 1, 1]


# drawings of a tree

def arrows(figure):
    patches = [a for a in figure.axes[0].patches if isinstance(a, FancyArrowPatch)]
    return [(to_hex(a.get_edgecolor()), a.get_linestyle()) for a in patches]


def texts(figure): return {t.get_text() for t in figure.axes[0].texts}


MOVES = [(98, 9, "right"), (9, 64, "astray"), (64, 16, "wrong")]


def test_moves_are_arrows_in_the_color_of_their_kind():
    right, astray, wrong = arrows(draw_tree(TREE, PATH, MOVES, "a caption"))
    assert [c for c, _ in (right, astray, wrong)] == [MOVE_STYLES[k]["color"] for k in ("right", "astray", "wrong")]
    assert wrong[1] in ("--", "dashed") and right[1] == astray[1] == "solid"
    assert arrows(draw_tree(TREE, PATH)) == []


def test_a_move_to_a_node_that_is_not_there_is_not_drawn():
    figure = draw_tree(TREE, PATH, [MOVES[0], (9, 57, "wrong"), (57, 16, "wrong")], "there is no node 57")
    assert len(arrows(figure)) == 1


@pytest.mark.parametrize("kind", list(MOVE_STYLES))
def test_a_caption(kind):
    figure = draw_tree(TREE, PATH, (), "no edge leads from 9 to 16", kind)
    assert texts(figure) == {*map(str, TREE), "start", "goal", "no edge leads from 9 to 16"}
    caption = next(t for t in figure.axes[0].texts if " " in t.get_text())
    assert caption.get_color() == MOVE_STYLES[kind]["color"]
    assert texts(draw_tree(TREE, PATH)) == {*map(str, TREE), "start", "goal"}


def test_edges_and_path_are_lines():
    lines = draw_tree(TREE, PATH).axes[0].lines
    assert sum(to_hex(line.get_color()) == EDGE_COLOR and len(line.get_xdata()) == 2 for line in lines) == 2 * 5
    assert sum(len(line.get_xdata()) == len(PATH) for line in lines) == 1


def test_arcs_of_wrong_moves_stay_inside():
    """A long arc makes the picture taller, on the side to which it bends."""
    path = list(range(12))
    chain = {a: [b for b in (a - 1, a + 1) if b in path] for a in path}
    low = draw_tree(chain, path, [(0, 1, "right")], "x").axes[0].get_ylim()
    high = draw_tree(chain, path, [(0, 11, "wrong")], "x").axes[0].get_ylim()
    assert high[1] > low[1] + 2 and high[0] == low[0]


def test_a_figure_is_a_png():
    figures = [draw_tree(TREE, PATH), draw_tree(TREE, PATH, MOVES[:2], "x"), draw_tree(TREE, PATH, MOVES, "x")]
    pngs = [figure_png(figure) for figure in figures]
    assert len(set(pngs)) == 3
    for figure, png in zip(figures, pngs, strict=True):
        assert png.startswith(b"\x89PNG\r\n\x1a\n") and b"Software" not in png and png == figure_png(figure)
        assert len(png) < 30_000
        height, width = matplotlib.image.imread(io.BytesIO(png)).shape[:2]
        assert (width, height) == tuple(int(x) for x in figure.get_size_inches() * DPI)


def test_importing_and_writing_need_no_matplotlib():
    code = "import sys; from self_improve.drawing import Page; str(Page().write(0, 0, 'abc', [1])); "
    code += "assert 'matplotlib' not in sys.modules and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
