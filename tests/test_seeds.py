"""Seeds depend on what they are for, and on nothing else."""

from __future__ import annotations

import subprocess
import sys

from hypothesis import assume, given
from hypothesis import strategies as st

from bidsapp.seeds import image_generators, seed_for

PART = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=6)


@given(st.integers(0, 2**63), st.lists(PART, max_size=4))
def test_seeds_fit_and_repeat(run_seed, parts):
    seed = seed_for(run_seed, *parts)
    assert 0 <= seed < 2**63
    assert seed == seed_for(run_seed, *parts)


@given(
    st.tuples(st.integers(0, 99), st.lists(PART, max_size=4)),
    st.tuples(st.integers(0, 99), st.lists(PART, max_size=4)),
)
def test_different_parts_give_different_seeds(one, other):
    assume(one != other and (one[1] or other[1] != [""]) and (other[1] or one[1] != [""]))
    assert seed_for(one[0], *one[1]) != seed_for(other[0], *other[1])


def test_the_end_of_a_part_matters():
    assert seed_for(1, "ab", "c") != seed_for(1, "a", "bc")
    assert seed_for(1, "2") != seed_for(12)


def test_another_process_has_the_same_seeds():
    code = "from bidsapp.seeds import seed_for; print(seed_for(7, '01', 'pic', 'stage 2'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == seed_for(7, "01", "pic", "stage 2")


def test_an_image_does_not_depend_on_its_position():
    import torch

    def draws(ids, seed=0, subject="01", purpose="stage 1"):
        generators = image_generators(seed, subject, ids, purpose)
        return {i: torch.rand(3, generator=g).tolist() for i, g in zip(ids, generators, strict=True)}

    all_three = draws(["a", "b", "c"])
    assert draws(["c", "a"]) == {k: all_three[k] for k in ("c", "a")}
    values = [*all_three.values(), *draws(["a"], 1).values(), *draws(["a"], subject="02").values()]
    values += draws(["a"], purpose="stage 2").values()
    assert len({tuple(v) for v in values}) == len(values)
