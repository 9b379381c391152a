"""Two seeds are never one in silence."""

import argparse
import math

import numpy as np
import pytest

from marigold_jax import evaluate, predict
from marigold_jax.runtime import seeds

BAD = [-1, 2**32, 2**64, 1.5, "1", None, True, math.nan]


@pytest.mark.parametrize("seed", BAD)
def test_what_is_no_seed_is_refused_in_one_line(seed):
    with pytest.raises(
        ValueError, match=r"^config\.run\.seed: wanted a whole number from 0 to 4294967295, got [^\n]+$"
    ):
        seeds.check(seed, "config.run.seed")


def test_all_of_32_bits_are_seeds():
    for seed in (0, 2**32 - 1, np.int64(7), np.uint32(2**32 - 1)):
        assert seeds.check(seed) == int(seed) and seeds.flag(str(seed)) == int(seed)
    for text in ("", "-1", "4294967296", "1.5", "9" * 5000):
        with pytest.raises(argparse.ArgumentTypeError):
            seeds.flag(text)


PROGRAMS = {
    predict: ["--input", "x.png", "--output_dir", "out"],
    evaluate: ["--dataset", "rooms", "--data_dir", "data", "--output_dir", "out"],
}


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
@pytest.mark.parametrize("seed", ["-1", "4294967296"])
def test_programs_refuse_it_as_a_flag(program, seed, capsys):
    with pytest.raises(SystemExit) as stopped:
        program.main([*PROGRAMS[program], "--seed", seed])
    assert stopped.value.code == 2
    assert f"--seed: wanted a whole number from 0 to 4294967295, got {seed!r}" in capsys.readouterr().err
