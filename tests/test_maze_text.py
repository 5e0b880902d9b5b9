"""Mazes as text: the vocabulary, reading, the first error of an output, arrays of paths, pictures."""
import pytest
import torch

from self_improve import mazes
from self_improve.blocks import EOS, PAD
from self_improve.maze_text import (
    EXAMPLE,
    MAX_NODES,
    MAZE,
    MazePicture,
    check_shape,
    first_error,
    parse_maze,
    parse_paths,
    require_tree,
    write_mazes,
    write_paths,
)

# the paper's format, worked by hand
TEXT, PATH = "98>16#33:16,9-64:9,58-98:9-9:64,98,33-58:64-16:33=", "98>9>33>16"
LABELS = [98, 9, 33, 16]


def read(text):
    """A maze that is a tree."""
    start, goal, nodes, end = parse_maze(text)
    require_tree(start, goal, nodes)
    return start, goal, nodes, end


# formats

def test_vocabulary():
    assert [MAZE.ids[str(i)] for i in range(1, 100)] == list(range(EOS + 1, EOS + 100)) and MAX_NODES == 99
    assert len(MAZE) == 3 + 99 + 6 and MAZE.encode("10>1") == [EOS + 10, MAZE.ids[">"], EOS + 1]


def test_the_names_belong_to_mazes_too():
    for name in ("MAX_NODES", "MAZE", "MazePicture", "check_shape", "first_error", "parse_maze", "parse_paths",
                 "require_tree", "write_mazes", "write_paths"):
        assert name in mazes.__all__ and getattr(mazes, name) is globals()[name]


def test_shapes():
    assert check_shape(2, 1) == (2, 1) and check_shape(99, 98) == (99, 98)


@pytest.mark.parametrize("shape, message", [
    ((100, 3), "100 nodes cannot be: there are labels for 2 to 99"), ((1, 1), "1 nodes cannot be"),
    ((5, 5), "5 hops cannot be in a maze of 5 nodes: it has 1 to 4"), ((5, 0), "0 hops cannot be"),
    (("5", 1), "nodes '5' is not a whole number"), ((5, True), "hops True is not a whole number"),
])
def test_shapes_that_cannot_be(shape, message):
    with pytest.raises(ValueError, match=message): check_shape(*shape)


# arrays

def test_paths_to_rows_and_back():
    labels = torch.tensor([[EOS + x for x in LABELS], [EOS + 98, EOS + 9, PAD, PAD]])
    written = write_paths(labels)
    assert written.dtype == torch.uint8 and [MAZE.decode(row) for row in written] == [PATH, "98>9"]
    assert written[1].tolist() == [*MAZE.encode("98>9"), EOS, PAD, PAD, PAD, PAD]
    fits, back = parse_paths(written)
    assert fits.tolist() == [True, True] and torch.equal(back[:, :4], labels) and not back[:, 4:].any()


@pytest.mark.parametrize("ids", [
    [], [EOS], [EOS + 1], [EOS + 1, PAD], [MAZE.ids[">"], EOS], [EOS + 1, EOS, EOS], [EOS + 1, EOS, EOS + 2],
    [EOS + 1, MAZE.ids[">"], EOS], [EOS + 1, MAZE.ids[","], EOS + 2, EOS]], ids=str)
def test_what_is_no_path(ids):
    fits, labels = parse_paths(torch.tensor([ids], dtype=torch.uint8).reshape(1, -1))
    assert fits.tolist() == [False] and not labels.any()


@pytest.mark.parametrize("seed", range(5))
def test_a_written_maze_reads_as_its_tree(seed):
    """The tree as arrays: node v > 0 has an edge to `onward[v - 1]`; each list is shuffled, nothing else changes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randperm(99, generator=generator)[None, :6] + EOS + 1
    turns, shuffle = (torch.randint(2**62, (1, n), generator=generator) for n in (6, 10))
    text = MAZE.decode(write_mazes(torch.tensor([[0, 1, 2, 1, 4]]), labels, turns, shuffle)[0])
    name = (labels[0] - EOS).tolist()
    nodes = parse_maze(f"{name[0]}>{name[3]}#{text}")[2]
    edges = {(name[a], name[b]) for a, b in ((1, 0), (2, 1), (3, 2), (4, 1), (5, 4))}
    assert {(a, b) for a in nodes for b in nodes[a]} == edges | {(b, a) for a, b in edges}
    # nodes are listed by their turn
    assert list(nodes) == [name[i] for i in turns[0].argsort().tolist()]


# reading

@pytest.mark.parametrize("text, piece, at, due", [
    ("", "the text ends", 1, "a label from 1 to 99"), ("98", "the text ends", 3, "'>'"), ("98-16#", "'-'", 3, "'>'"),
    ("98>16>", "'>'", 6, "'#'"), ("98>16#33,16=", "','", 9, "':'"), ("98>16#33:16;9", "';'", 12, "',' or '-' or '='"),
    ("98>16#33:16,100-", "'100'", 13, "a label from 1 to 99"), ("0>16#", "'0'", 1, "a label"),
    ("07>16#", "'07'", 1, "a label"), ("98>16#33:-", "'-'", 10, "a label"), ("98>16#33:16,=", "'='", 13, "a label"),
    ("98>16#33:16 ,9=", "' '", 12, "','"), ("98>16#33:16,9-64:9,58", "the text ends", 22, "'='"),
    ("98>16#=", "'='", 7, "a label"), ("²>1#", "'²'", 1, "a label"),
])
def test_what_is_no_maze_is_refused_where_it_goes_wrong(text, piece, at, due):
    with pytest.raises(ValueError) as e: read(text)
    message = str(e.value)
    assert message.startswith(f"{piece} at position {at}, where ") and due in message and "\n" not in message


@pytest.mark.parametrize("text, said", [
    ("1>4#1:2-2:1=", "the goal 4 is not among"), ("4>1#1:2-2:1=", "the start 4 is not among"),
    ("1>1#1:2-2:1=", "start and goal are both 1"),
    ("1>3#1:2-2:1,3-3:4-4:3=", "node 2 lists 3, but 3 does not list 2"),
    ("1>2#1:2-2:1,3=", "node 2 lists 3, which is not among"),
    ("1>2#1:2-2:1-1:2=", "node 1 is listed a second time at position 13"),
    ("1>2#1:2,2-2:1,1=", "node 1 lists 2 twice"), ("1>2#1:1,2-2:1=", "node 1 lists itself"),
    ("1>3#1:2-2:1-4:3-3:4=", "no path leads from 1 to 3"), ("1>2#1:2-2:1-3:4-4:3=", "no path leads from 1 to 3"),
    ("1>3#1:2,3-2:1,3-3:2,1=", "3 nodes with 3 edges are not a tree: it would have 2 edges"),
])
def test_what_is_no_tree_is_refused(text, said):
    with pytest.raises(ValueError, match=said): read(text)


def test_the_example_of_the_message_is_a_maze():
    assert read(EXAMPLE)[:2] == (5, 7)


def test_what_follows_the_prompt_is_left_alone():
    assert read(TEXT + PATH) == read(TEXT) and read(TEXT)[3] == len(TEXT)


# pictures

def picture(output=None, end=(EOS,)):
    ids = None if output is None else MAZE.encode(output) + list(end)
    return MazePicture(read(TEXT)[2], LABELS, ids)


@pytest.mark.parametrize("output, mark, why", [
    (PATH, None, None), ("98>9>16", "     ^^", "no edge leads from 9 to 16"),
    ("98>9>64>16", "     ^^", "64 leads away from the goal"), ("9>33>16", "^", "the path begins at 98"),
    ("98>9>33", "       ^", "the goal is 16"), ("98>9>98>9", "     ^^", "98 has been visited before"),
    ("98>9>57", "     ^^", "there is no node 57"), ("98>9,33", "    ^", "a '>' is due"),
    ("98>>", "   ^", "a label is due"), ("98>9>33>", "        ^", "a label is due"), ("", "^", "a label is due"),
])
def test_text_marks_the_first_error(output, mark, why):
    lines = str(picture(output)).split("\n")
    assert lines[0] == "maze of 6 nodes, 98 to 16 in 3 hops"
    assert lines[1].split() == ["path", PATH] and lines[2] == f"output  {output}"
    assert lines[3:] == ([] if mark is None else [lines[3]])
    if mark: assert lines[3].startswith(" " * 8 + mark + " ") and why in lines[3]


def test_going_on_past_the_goal():
    nodes = read("1>3#1:2-2:1,3-3:2,4-4:3=")[2]
    assert first_error(nodes, [1, 2, 3], MAZE.encode("1>2>3>4") + [EOS]) == (6, "4 leads on past the goal")


def test_text_without_an_output():
    assert str(picture()).split("\n")[1:] == ["path    98>9>33>16"] and repr(picture()) == str(picture())
    assert "should end" in str(picture(PATH, end=())) and picture().error is None


def test_moves_have_kinds():
    assert picture("98>9>64>16>33").moves() == [
        (98, 9, "right"), (9, 64, "astray"), (64, 16, "wrong"), (16, 33, "right")]
    assert picture().moves() == [] and picture("98>57").moves() == [(98, 57, "wrong")]


def test_drawing_marks_wrong_moves():
    from matplotlib.colors import to_hex
    from matplotlib.patches import FancyArrowPatch

    def arrows(shown):
        patches = [a for a in shown.draw().axes[0].patches if isinstance(a, FancyArrowPatch)]
        return [(to_hex(a.get_edgecolor()), a.get_linestyle()) for a in patches]
    assert arrows(picture()) == []
    right, astray, wrong = arrows(picture("98>9>64>16"))
    assert wrong[0] == "#c8102e" and wrong[1] in ("--", "dashed")
    assert right[1] == astray[1] == "solid" and len({right[0], astray[0], wrong[0]}) == 3
    # a node that is not there cannot be drawn
    assert arrows(picture("98>9>57>16")) == [right]
    texts = {t.get_text() for t in picture("98>9>16").draw().axes[0].texts}
    assert texts == {"98", "9", "33", "16", "64", "58", "start", "goal", "no edge leads from 9 to 16"}
    assert "the right path" in {t.get_text() for t in picture(PATH).draw().axes[0].texts}


def test_png():
    for shown in (picture(), picture("98>9>16"), picture("")):
        png = shown._repr_png_()
        assert png.startswith(b"\x89PNG\r\n\x1a\n") and b"Software" not in png
        assert png == shown._repr_png_() and len(png) < 30_000
    assert picture()._repr_png_() != picture(PATH)._repr_png_() != picture("98>9>16")._repr_png_()
