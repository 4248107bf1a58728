"""`archfleet compare`: differences pair by window, noise over seeds decides, and what does not pair is refused."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from coordinator.cli import main
from coordinator.training_folder import Training, seed_directory, write_json
from scaling.architecture import Architecture
from scaling.observations import Provenance, TrainingObservation, TrainingPoint
from scaling.recipes import TrainingRecipe

CORPUS_ID = "c" * 64
NUM_WINDOWS = 400
PROVENANCE = Provenance(
    agent="local",
    hostname="here",
    device="a CPU",
    hardware="cpu-generic",
    started_at_unix=0.0,
    seconds=1.0,
    versions={},
)


def training(hidden_size: int, **changes: object) -> Training:
    fields: dict[str, object] = {
        "architecture": Architecture(
            hidden_size=hidden_size,
            intermediate_size=40,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            vocab_size=300,
        ),
        "recipe": TrainingRecipe(num_tokens=10_240, sequence_length=32),
        "recipe_from": "study laptop",
        "corpus_id": CORPUS_ID,
        "corpus": "text",
        "num_train_tokens": 100_000,
        "num_eval_windows": NUM_WINDOWS,
        "bytes_per_token": 2.5,
    }
    return Training.model_validate(fields | changes)


def trained(
    directory: Path, what: Training, losses: Sequence[float], *, hardness: np.ndarray | None = None, own: float = 0.02
) -> Path:
    """A folder whose seeds have these mean losses over windows that are hard or easy for all, and a little for one."""
    shared = np.random.default_rng(7).normal(0, 0.5, what.num_eval_windows) if hardness is None else hardness
    for seed, loss in enumerate(losses):
        noise = np.random.default_rng((seed, what.architecture.hidden_size)).normal(0, own, what.num_eval_windows)
        windows = shared - shared.mean() + noise - noise.mean() + loss
        observation = TrainingObservation(
            assignment_id=what.assignment(seed).id,
            architecture=what.architecture,
            recipe=what.recipe.model_copy(update={"seed": seed}),
            corpus_id=what.corpus_id,
            loss=float(windows.mean()),
            loss_standard_error=float(windows.std(ddof=1) / np.sqrt(len(windows))),
            window_losses=tuple(windows.tolist()),
            num_tokens=10_240,
            tokens_per_second=1000.0,
            train_seconds=10.0,
            curve=(TrainingPoint(num_tokens=10_240, loss=loss, learning_rate=0.0, gradient_norm=1.0),),
            provenance=PROVENANCE,
        )
        write_json(seed_directory(directory, seed) / "observation.json", observation)
    write_json(directory / "training.json", what)
    return directory


def archfleet(*words: object) -> Result:
    return CliRunner().invoke(main, ["compare", *map(str, words)])


def test_a_difference_beyond_windows_and_seeds_is_shown(tmp_path: Path) -> None:
    centre = trained(tmp_path / "centre", training(32), [3.60, 3.61, 3.59, 3.60])
    wide = trained(tmp_path / "wide", training(48), [3.55, 3.56, 3.54, 3.55])
    told = json.loads(archfleet(centre, wide, "--json").stdout)
    (difference,) = told["differences"]
    assert difference["verdict"] == "better"
    assert difference["difference"]["value"] == pytest.approx(-0.05)
    assert difference["bits_per_byte"]["value"] == pytest.approx(-0.05 / np.log(2) / 2.5)
    assert told["noise"]["value"] == pytest.approx(np.std([3.60, 3.61, 3.59, 3.60], ddof=1))
    assert told["noise"]["interval"]["method"] == "chi-square over seeds"


def test_pairing_cuts_the_standard_error_to_that_of_what_is_not_shared(tmp_path: Path) -> None:
    centre = trained(tmp_path / "centre", training(32), [3.60])
    wide = trained(tmp_path / "wide", training(48), [3.55])
    told = json.loads(archfleet(centre, wide, "--json").stdout)
    assert told["trained"][0]["loss_standard_error"] == pytest.approx(0.5 / np.sqrt(NUM_WINDOWS), rel=0.4)
    expected = 0.02 * np.sqrt(2 / NUM_WINDOWS)
    assert told["differences"][0]["standard_error_over_windows"] == pytest.approx(expected, rel=0.4)  # of 32 blocks


def test_a_difference_within_the_noise_over_seeds_is_not_shown(tmp_path: Path) -> None:
    centre = trained(tmp_path / "centre", training(32), [3.60, 3.62, 3.58])
    wide = trained(tmp_path / "wide", training(48), [3.59, 3.61, 3.57])
    told = json.loads(archfleet(centre, wide, "--json").stdout)
    assert told["differences"][0]["verdict"] == "no difference shown"
    over_windows = told["differences"][0]["over_windows"]["interval"]
    assert over_windows["high"] < 0  # windows alone would have called it a difference
    assert told["noise_floor"] > 0.02


def test_one_seed_each_is_never_called_a_difference_unless_the_noise_is_known(tmp_path: Path) -> None:
    centre = trained(tmp_path / "centre", training(32), [3.60])
    wide = trained(tmp_path / "wide", training(48), [3.50])
    alone = archfleet(centre, wide)
    assert "cannot be told from noise. Train several seeds, or give --noise-sd" in alone.stdout
    known = json.loads(archfleet(centre, wide, "--noise-sd", 0.011, "--json").stdout)
    assert known["differences"][0]["verdict"] == "better"
    half = 1.645 * np.hypot(0.011 * np.sqrt(2), known["differences"][0]["standard_error_over_windows"])
    interval = known["differences"][0]["difference"]["interval"]
    assert interval["high"] - interval["low"] == pytest.approx(2 * half, rel=1e-3)


def test_several_are_compared_with_the_first_in_one_table(tmp_path: Path) -> None:
    folders = [trained(tmp_path / f"d{d}", training(d), [3.6 + d / 1000, 3.61 + d / 1000]) for d in (32, 40, 48)]
    done = archfleet(*folders)
    assert done.exit_code == 0, done.output
    for folder in folders:
        assert folder.name in done.stdout
    assert done.stdout.count(" minus ") >= 2
    assert "two runs of one architecture differ by chance by up to" in done.stdout
    assert "intervals are corrected for 2 comparisons" in done.stdout
    both, one = (json.loads(archfleet(*chosen, "--json").stdout) for chosen in (folders, folders[:2]))
    assert one["differences"][0]["difference"]["interval"]["level"] == pytest.approx(0.9)
    assert both["differences"][0]["difference"]["interval"]["level"] == pytest.approx(0.95)


def test_observations_alone_compare_without_bits_per_byte(tmp_path: Path) -> None:
    centre = trained(tmp_path / "centre", training(32), [3.60])
    wide = trained(tmp_path / "wide", training(48), [3.55])
    files = [folder / "seed-0" / "observation.json" for folder in (centre, wide)]
    told = json.loads(archfleet(*files, "--json").stdout)
    assert told["differences"][0]["difference"]["value"] == pytest.approx(-0.05)
    assert "how many bytes" in told["differences"][0]["bits_per_byte"]["reason"]
    one_seed = json.loads(archfleet(centre / "seed-0", wide, "--json").stdout)
    assert one_seed["differences"][0]["bits_per_byte"]["kind"] == "measured"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"corpus_id": "d" * 64},
            "they were evaluated of corpus cccccccccccc and dddddddddddd; train both with the same",
        ),
        ({"num_eval_windows": 200}, "they were evaluated on 400 windows of 32 tokens and 200 windows of 32 tokens"),
    ],
)
def test_other_corpora_and_windows_are_refused_in_one_sentence(
    tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    centre = trained(tmp_path / "centre", training(32), [3.60])
    other = trained(tmp_path / "other", training(48, **changes), [3.55])
    done = archfleet(centre, other)
    assert done.exit_code == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_recipe_that_differs_is_named(tmp_path: Path) -> None:
    centre = trained(tmp_path / "centre", training(32), [3.60])
    slower = TrainingRecipe(num_tokens=10_240, sequence_length=32, base_learning_rate=0.004)
    other = trained(tmp_path / "other", training(48, recipe=slower), [3.55])
    assert "differs from" in archfleet(centre, other).stdout
    assert "in its recipe too: base_learning_rate" in archfleet(centre, other).stdout


def test_what_is_no_training_is_one_message(tmp_path: Path) -> None:
    centre = trained(tmp_path / "centre", training(32), [3.60])
    (tmp_path / "empty").mkdir()
    broken = tmp_path / "broken.json"
    broken.write_text("{}")
    for words, message in (
        ((centre, tmp_path / "nowhere"), "no such file or folder; expected a folder of archfleet train"),
        ((centre, tmp_path / "empty"), "holds no finished run"),
        ((centre, broken), "broken.json is not a TrainingObservation"),
        ((centre,), "1 training given; expected two or more"),
    ):
        done = archfleet(*words)
        assert done.exit_code == 2, done.output
        assert message in done.stderr
