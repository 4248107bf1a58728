"""A study that takes a minute, for whatever runs coordinators and agents as processes of their own."""

from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Passes through every stage.
STUDY = """
schema_version = 1
name = "batch"
[corpus]
source = "{text}"
vocab_size = 300
num_eval_windows = 16
[space]
num_hidden_layers = 2
head_dim = 16
query_group_size = 2
hidden_multiple_of = 4
intermediate_multiple_of = 4
x_min = 0.12
x_max = 0.5
tolerance = 0.05
[training]
sequence_length = 64
batch_tokens = 512
[[reference]]
num_parameters = 25e3
tokens_per_parameter = 0.5
[fit]
num_parameters = 25e3
tokens_per_parameter = 1
num_space_shapes = 6
num_centre_replicates = 1
num_rounds = 1
num_runs_per_round = 1
[target]
num_parameters = 40e3
tokens_per_parameter = 0.5
num_validation_seeds = 1
[serving]
num_candidates = 1
num_repeats = 3
min_window_seconds = 0.1
[serving.recipe]
engine = "fake"
dtype = "float32"
[serving.workload]
batch_size = 4
input_tokens = 8
output_tokens = 8
[budget]
wall_minutes = 30
checkpoint_every_seconds = 0.5
"""


@pytest.fixture
def small_study() -> Callable[..., str]:
    """Writes a corpus of this project's own source into a folder, and gives the study that is run on it.

    `seen` is the folder's name for whoever runs the study.
    """

    def write(folder: Path, *, seen: str | None = None) -> str:
        (folder / "text").mkdir()
        for number, source in enumerate(sorted(ROOT.glob("scaling/*.py"))):
            (folder / "text" / f"{number}.txt").write_text(source.read_text())
        return STUDY.format(text=f"{seen or folder}/text")

    return write
