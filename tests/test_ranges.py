"""Ranges of settings: one for every number, every configuration within them, and what is outside refused by name."""
import math
from dataclasses import replace

import pytest

from self_improve.config import Config, configure, flatten
from self_improve.experiments import EXPERIMENTS, LAPTOP, SCALES
from self_improve.ranges import RANGES, check_range, check_ranges

NUMBERS = {key: value for key, value in flatten(Config()).items() if type(value) in (int, float)}
every_number = pytest.mark.parametrize("key", list(RANGES))
CONFIGURATIONS = [(name, scale) for name, known in EXPERIMENTS.items() for scale in known.scales]


def changed(key, value):
    """The default configuration with one field of any part changed, whatever its type."""
    part, _, name = key.rpartition(".")
    if not part: return replace(Config(), **{name: value})
    return replace(Config(), **{part: replace(getattr(Config(), part), **{name: value})})


def test_every_number_has_a_range_and_every_range_a_number():
    assert set(RANGES) == set(NUMBERS)


@every_number
def test_a_range_is_one_and_holds_the_default(key):
    low, high = RANGES[key]
    assert -math.inf < low < high < math.inf and low <= NUMBERS[key] <= high
    for edge in (low, high): check_range(key, edge)


@pytest.mark.parametrize("name, scale", CONFIGURATIONS)
def test_every_experiment_is_within(name, scale):
    values = flatten(EXPERIMENTS[name].scales[scale])
    for key, (low, high) in RANGES.items(): assert low <= values[key] <= high, key


def test_every_configuration_is_looked_at():
    assert len(CONFIGURATIONS) == 7 * (len(SCALES) - 1) + len(LAPTOP)


def outside(key):
    """Numbers that a setting cannot be: endless, none, and next to the ends of its range."""
    low, high = RANGES[key]
    if isinstance(NUMBERS[key], int): return [low - 1, high + 1]
    return [math.nextafter(low, -math.inf), math.nextafter(high, math.inf)]


@every_number
def test_what_is_out_of_range_is_refused_by_its_key(key):
    for value in [math.inf, -math.inf, math.nan, *outside(key)]:
        with pytest.raises(ValueError) as error: changed(key, value)
        assert str(error.value).startswith(f"{key}={value} is out of range: a number from "), value
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["low", "size", "train.steps", "train.lr", "loop.rounds", "model.theta"])
def test_a_number_that_no_float_holds_is_refused(key):
    with pytest.raises(ValueError, match=f"{key}=1000.* is out of range"): changed(key, 10**400)
    with pytest.raises(ValueError, match=key): configure(Config(), {key: "1" + "0" * 400})


@pytest.mark.parametrize("value", ["3", None, [3]], ids=repr)
def test_what_is_no_number_is_refused(value):
    for key in ("low", "train.lr", "loop.rounds", "model.layers"):
        with pytest.raises(ValueError, match=f"{key}=.* is out of range"): check_range(key, value)


def test_a_part_is_checked_under_its_prefix():
    loop = replace(Config().loop)
    object.__setattr__(loop, "rounds", -1)
    with pytest.raises(ValueError, match="loop.rounds=-1 is out of range: a number from 0 to 5,000"):
        check_ranges("loop.", loop)
    # a name that the table lacks has no range
    check_ranges("other.", loop)
