"""`archfleet train` alone: losses and weights that stay, runs that go on after a kill, mistakes told once."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from agent.corpus.manifest import Corpus, build_stdlib_corpus
from coordinator.cli import main

ROOT = Path(__file__).parents[2]
VOCAB_SIZE = 300
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": VOCAB_SIZE,
}
SHORT = ("--tokens", "8192", "--batch-tokens", "256", "--sequence-length", "32", "--device", "cpu")


@pytest.fixture(scope="module")
def corpus_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("corpus")


@pytest.fixture(scope="module")
def corpus(corpus_directory: Path) -> Corpus:
    return build_stdlib_corpus(corpus_directory, vocab_size=VOCAB_SIZE, source=ROOT / "scaling")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "shape.json"
    path.write_text(json.dumps(SHAPE))
    return path


@pytest.fixture
def train(
    corpus: Corpus, corpus_directory: Path, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def train(*options: object, shape: Path = config, corpus: Path | None = corpus_directory) -> Result:
        where = () if corpus is None else ("--corpus", corpus)
        return CliRunner().invoke(main, [str(word) for word in ("train", shape, *where, *options)])

    return train


@pytest.fixture
def mistake(train: Callable[..., Result]) -> Callable[..., str]:
    def mistake(*options: object, **where: Any) -> str:
        result = train(*options, **where)
        assert result.exit_code == 2, result.output
        assert isinstance(result.exception, SystemExit)
        assert "Traceback" not in result.output
        assert result.stdout == ""
        return result.stderr

    return mistake


def test_several_seeds_give_a_mean_their_scatter_and_models(train: Callable[..., Result], tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = train(*SHORT, "--seeds", 3, "--out", out, "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    losses = [run["nats_per_token"] for run in told["seeds"]]
    assert [run["seed"] for run in told["seeds"]] == [0, 1, 2]
    assert len(set(losses)) == 3
    assert told["mean_loss"]["value"] == pytest.approx(np.mean(losses))
    assert told["sd_over_seeds"]["value"] == pytest.approx(np.std(losses, ddof=1))
    assert told["mean_loss"]["interval"]["method"] == "t over seeds"
    bytes_per_token = told["training"]["bytes_per_token"]
    assert told["mean_bits_per_byte"]["value"] == pytest.approx(np.mean(losses) / np.log(2) / bytes_per_token)
    assert told["training"]["recipe_from"].startswith("study laptop")
    assert json.loads((out / "result.json").read_text()) == told
    for run in told["seeds"]:
        place = out / f"seed-{run['seed']}"
        observation = json.loads((place / "observation.json").read_text())
        token_losses = np.load(place / "token_losses.npy")
        assert token_losses.shape == (len(observation["window_losses"]), 32)
        assert token_losses.mean(dtype=np.float64) == pytest.approx(run["nats_per_token"])
        assert (out / run["model"] / "model.safetensors").is_file()
    assert not (out / "checkpoints").exists()


def test_a_finished_seed_is_not_trained_again_and_another_joins_it(
    train: Callable[..., Result], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert train(*SHORT, "--out", out).exit_code == 0
    first = (out / "seed-0" / "observation.json").read_bytes()
    again = train(*SHORT, "--seed", 0, "--seed", 5, "--out", out)
    assert again.exit_code == 0, again.output
    assert (out / "seed-0" / "observation.json").read_bytes() == first
    assert (out / "seed-5" / "observation.json").is_file()
    assert "sd over seeds" in again.stdout


def test_without_out_the_same_command_finds_its_folder_again(
    train: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert train(*SHORT).exit_code == 0
    assert train(*SHORT, "--seed", 1).exit_code == 0
    (directory,) = tmp_path.glob("train-*")
    assert directory.name.startswith("train-d32-f40-h4kv2x8-L2-")
    assert sorted(path.name for path in directory.glob("seed-*")) == ["seed-0", "seed-1"]


def test_other_options_are_not_mixed_into_a_folder(train: Callable[..., Result], tmp_path: Path) -> None:
    assert train(*SHORT, "--out", tmp_path / "out").exit_code == 0
    other = train(*SHORT, "--rate", "0.004", "--out", tmp_path / "out")
    assert other.exit_code == 2
    assert "holds another training: recipe.base_learning_rate differ" in other.stderr


def test_a_diverged_run_says_so_and_ends_with_status_one(train: Callable[..., Result], tmp_path: Path) -> None:
    done = train(*SHORT, "--rate", "1000", "--out", tmp_path / "out")
    assert done.exit_code == 1
    assert "archfleet: seed 0: " in done.stderr
    assert "a lower base_learning_rate or a longer warm-up may help" in done.stderr
    assert not (tmp_path / "out" / "seed-0").exists()


def test_a_lack_of_memory_is_one_message_and_status_one(
    train: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def starving(*_: object, **__: object) -> Iterator[None]:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory")
        yield

    monkeypatch.setattr("agent.training.run.train", starving)
    done = train(*SHORT, "--out", tmp_path / "out")
    assert done.exit_code == 1
    assert "archfleet: seed 0: out-of-memory: " in done.stderr
    assert "Traceback" not in done.output


def test_a_corpus_of_unknown_bytes_has_no_bits_per_byte_and_says_why(
    train: Callable[..., Result], corpus: Corpus, corpus_directory: Path, tmp_path: Path
) -> None:
    from agent.blobs import put

    shards = tuple(shard.model_copy(update={"num_bytes": None}) for shard in corpus.manifest.shards)
    place = tmp_path / "unknown"
    for shard in shards:
        put(place, (corpus_directory / shard.sha256).read_bytes())
    without = corpus.manifest.model_copy(update={"shards": shards, "tokenizer_sha256": None})
    put(place, without.model_dump_json().encode())
    told = json.loads(train(*SHORT, "--out", tmp_path / "out", "--json", corpus=place).stdout)
    assert told["mean_bits_per_byte"]["kind"] == "not-measured"
    assert "how many bytes" in told["mean_bits_per_byte"]["reason"]
    assert not (tmp_path / "out" / "seed-0" / "model" / "tokenizer.json").exists()


COMMAND = [sys.executable, "-m", "coordinator.cli", "train"]
LONGER = ("--tokens", "300000", "--batch-tokens", "512", "--sequence-length", "32", "--device", "cpu")
LONGER += ("--checkpoint-seconds", "0.5")


@pytest.fixture
def command(config: Path, corpus: Corpus, corpus_directory: Path, tmp_path: Path) -> list[str]:
    return [*COMMAND, str(config), "--corpus", str(corpus_directory), *LONGER, "--json", "--out", str(tmp_path / "out")]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache")}


def _until_trained_some(process: subprocess.Popen[str], out: Path) -> None:
    deadline = time.monotonic() + 120
    while not list(out.glob("checkpoints/*/checkpoint.json")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_a_killed_training_goes_on_and_ends_with_the_loss_of_one_that_was_not(
    train: Callable[..., Result], command: list[str], environment: dict[str, str], tmp_path: Path
) -> None:
    whole = json.loads(train(*LONGER, "--json", "--out", tmp_path / "whole").stdout)
    with subprocess.Popen(
        command, env=environment, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        _until_trained_some(process, tmp_path / "out")
        process.kill()
    assert not (tmp_path / "out" / "result.json").exists()
    done = subprocess.run(command, env=environment, cwd=tmp_path, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["seeds"][0]["num_resumes"] >= 1
    assert "resumed at step" in done.stderr
    assert told["mean_loss"] == whole["mean_loss"]


@pytest.mark.slow
def test_a_training_that_is_asked_to_stop_says_how_it_goes_on(
    command: list[str], environment: dict[str, str], tmp_path: Path
) -> None:
    with subprocess.Popen(
        command, env=environment, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        _until_trained_some(process, tmp_path / "out")
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert stdout == ""
    assert f"stopped; the same command goes on with {tmp_path / 'out'}" in stderr
    assert "Traceback" not in stderr


def test_a_missing_config_is_one_message(mistake: Callable[..., str], tmp_path: Path) -> None:
    assert "nowhere.json: no such file; expected a config.json" in mistake(*SHORT, shape=tmp_path / "nowhere.json")


def test_an_unknown_field_is_named(mistake: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "typo.json"
    path.write_text(json.dumps(SHAPE | {"hiden_size": 32}))
    assert "hiden_size: Extra inputs are not permitted" in mistake(*SHORT, shape=path)


def test_a_vocabulary_smaller_than_the_corpus_is_refused(mistake: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "small.json"
    path.write_text(json.dumps(SHAPE | {"vocab_size": 256}))
    assert "the corpus has a vocabulary of 300, the architecture's vocab_size is 256" in mistake(*SHORT, shape=path)


def test_fewer_tokens_than_a_batch_are_refused(mistake: Callable[..., str]) -> None:
    assert "--tokens 100 is less than one batch of 512 tokens" in mistake("--tokens", 100)


def test_a_batch_of_broken_sequences_is_refused(mistake: Callable[..., str]) -> None:
    words = mistake("--tokens", 8192, "--batch-tokens", 300, "--sequence-length", 128)
    assert "--batch-tokens 300 is no multiple of the sequence length 128; give 256" in words


def test_too_many_epochs_are_counted_for_the_user(mistake: Callable[..., str], corpus: Corpus) -> None:
    num_tokens = corpus.manifest.shard("train").num_tokens
    words = mistake("--tokens", 10 * num_tokens)
    assert "is 10.0 epochs of the corpus's" in words
    assert "expected at most 4: give fewer tokens, a larger corpus (archfleet data prepare" in words


def test_a_folder_without_a_corpus_is_refused(mistake: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "holds no corpus manifest; expected one corpus" in mistake(*SHORT, corpus=tmp_path / "empty")
    assert "is not a folder; expected one that archfleet data prepare" in mistake(*SHORT, corpus=tmp_path / "none")


def test_a_device_that_is_not_there_is_refused(mistake: Callable[..., str], tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    words = mistake("--tokens", 8192, "--device", "cuda", "--out", tmp_path / "out")
    assert "torch sees no CUDA device here" in words


def test_devices_that_cannot_share_a_batch_are_refused(mistake: Callable[..., str], tmp_path: Path) -> None:
    message = mistake(*SHORT, "--devices", 3, "--out", tmp_path / "out")
    assert "8 sequences cannot be shared evenly by 3 devices" in message


def test_seeds_are_asked_for_in_one_way(mistake: Callable[..., str]) -> None:
    assert "--seed and --seeds 2 were both given" in mistake(*SHORT, "--seed", 1, "--seeds", 2)


def test_a_folder_that_another_training_holds_is_refused(mistake: Callable[..., str], tmp_path: Path) -> None:
    from coordinator.training_folder import held

    with held(tmp_path / "out"):
        words = mistake(*SHORT, "--out", tmp_path / "out")
    assert "another archfleet train works in" in words


def test_the_default_corpus_is_built_once_in_the_users_cache(
    train: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from coordinator import training_corpus

    def small(directory: Path, *, vocab_size: int, progress: Callable[[str], None]) -> Corpus:
        progress("small")
        return build_stdlib_corpus(directory, vocab_size=VOCAB_SIZE, source=ROOT / "scaling")

    monkeypatch.setattr(training_corpus, "build_stdlib_corpus", small)
    first = train(*SHORT, "--out", tmp_path / "out", corpus=None)
    assert first.exit_code == 0, first.output
    assert "building the default corpus, once, in" in first.stderr
    assert "building" not in train(*SHORT, "--out", tmp_path / "out", corpus=None).stderr


def test_the_step_law_gives_the_recipe_where_it_was_fitted() -> None:
    from coordinator.train import TrainOptions, recipe_for
    from scaling.named import named_architecture
    from scaling.step_law import step_law_batch_tokens, step_law_rate

    shape = named_architecture("llama-3.2-1b")
    recipe, origin = recipe_for(shape, TrainOptions(tokens=20e9))
    assert origin == "the step law (arXiv 2503.04715)"
    assert recipe.base_learning_rate == pytest.approx(step_law_rate(shape.num_parameters, 20e9))
    assert recipe.batch_tokens == step_law_batch_tokens(20e9, sequence_length=2048)
    assert recipe.base_fan_ins.hidden == pytest.approx(shape.hidden_size, rel=0.01)
    assert recipe.base_fan_ins.mlp == pytest.approx(shape.intermediate_size, rel=0.01)
    given, _ = recipe_for(shape, TrainOptions(tokens=20e9, rate=0.001, batch_tokens=65_536, sequence_length=512))
    assert (given.base_learning_rate, given.batch_tokens, given.sequence_length) == (0.001, 65_536, 512)
