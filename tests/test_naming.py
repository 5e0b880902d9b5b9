"""Names in text: values behind a colon, registries, and what is refused."""
from dataclasses import dataclass

import pytest

from self_improve.naming import FromText, parse_in, register_in


@dataclass(frozen=True)
class Window(FromText):
    low: int = 0
    share: float = 0.5
    in_text = {"low": int, "share": float}


@dataclass(frozen=True)
class Bare(FromText):
    pass


@pytest.fixture
def registry():
    registry = {}
    register_in(registry, "thing", "window")(Window)
    register_in(registry, "thing", "bare")(Bare)
    return registry


@pytest.mark.parametrize("text, thing", [
    ("window", Window()), ("window:3", Window(3)), ("window:3/0.9", Window(3, 0.9)), ("window:3/1", Window(3, 1.0)),
    ("bare", Bare()),
])
def test_text_becomes_an_object(registry, text, thing):
    assert parse_in(registry, "thing", text) == thing


@pytest.mark.parametrize("text, message", [
    ("door", r"unknown thing 'door': choose among window\[:low/share\], bare$"),
    ("", "unknown thing '': choose among"),
    ("window:", "unknown thing 'window:': low='' is not of type int"),
    ("window:x", "unknown thing 'window:x': low='x' is not of type int"),
    ("window:1/y", "share='y' is not of type float"),
    ("window:1/2/3", r"its name takes \[:low/share\]"),
    ("bare:1", "its name takes no value"),
])
def test_what_cannot_be_read_is_refused_in_one_sentence(registry, text, message):
    with pytest.raises(ValueError, match=message) as e: parse_in(registry, "thing", text)
    assert "\n" not in str(e.value)


def test_errors_of_the_class_are_told_with_the_text(registry):
    @dataclass(frozen=True)
    class Strict(FromText):
        n: int
        in_text = {"n": int}

        def __post_init__(self):
            if self.n < 1: raise ValueError(f"n={self.n} must be at least 1")
    register_in(registry, "thing", "strict")(Strict)
    assert parse_in(registry, "thing", "strict:4") == Strict(4)
    with pytest.raises(ValueError, match="unknown thing 'strict:0': n=0 must be at least 1"):
        parse_in(registry, "thing", "strict:0")
    with pytest.raises(ValueError, match="unknown thing 'strict': .*'n'"): parse_in(registry, "thing", "strict")


def test_a_name_belongs_to_one_class(registry):
    with pytest.raises(ValueError, match="the thing name 'window' belongs to Window: choose another"):
        register_in(registry, "thing", "window")(Bare)
    assert registry["window"] is Window
    again = type("Window", (Window,), {"__qualname__": "Window"})
    assert register_in(registry, "thing", "window")(again) is again, "the same class, defined again, replaces itself"
    assert registry["window"] is again


@pytest.mark.parametrize("name", ["", "Window", "two words", "a+b", "a:b", "1st", "a/b", "-a"])
def test_names_that_text_could_not_hold_are_refused(name):
    with pytest.raises(ValueError, match="lower-case letters, digits and hyphens"): register_in({}, "thing", name)
