"""Promise 6 for every file but the run's store (test_corruption.py): one byte changed, or an end cut off, is noticed.

What archfleet writes and reads again carries a hash: a changed byte is named, or it changed nothing that is read. What
a person writes has none: it is refused in a sentence, or read as exactly what it now says. Nothing ends in a traceback.
"""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.archive import pack, unpack
from agent.benchmark.configs import read_config
from agent.blobs import BlobCache, directory_fetcher
from agent.failures import BlobMismatchError, CorpusError
from coordinator.backup import back_up
from coordinator.bench_record import read_record, write_record
from coordinator.errors import StoreError, UserError
from coordinator.hardware import write_profile
from coordinator.predict import read_serving_observations
from coordinator.store import FILE_NAME, StoreReader
from coordinator.study import read_study, shipped_studies
from hwprofiles.catalog import load_profile, read_profile
from hwprofiles.profile import Calibration, EfficiencyPoint, EfficiencyTable, HardwareProfile

NUM_FLIPS = 120
NUM_CUTS = 30


def damaged(sound: bytes, *, seed: int, num_flips: int = NUM_FLIPS) -> Iterator[tuple[str, bytes]]:
    """The content with one bit flipped at each of many places, and cut at each of many lengths."""
    source = random.Random(seed)
    for _ in range(num_flips):
        offset, bit = source.randrange(len(sound)), source.randrange(8)
        flipped = bytearray(sound)
        flipped[offset] ^= 1 << bit
        yield f"bit {bit} of byte {offset}", bytes(flipped)
    for length in {0, len(sound) - 1, *(source.randrange(len(sound)) for _ in range(NUM_CUTS))}:
        yield f"cut to {length} bytes", sound[:length]


def endings(
    path: Path, read: Callable[[], object], refusals: tuple[type[Exception], ...], *, names: str, **options: int
) -> dict[str, int]:
    """How often damage of a file was named, did not matter, or was used; the file is as it was at the end."""
    sound, whole = path.read_bytes(), read()
    seen, told = {"named": 0, "same": 0, "used": 0}, list[tuple[str, str]]()
    for what, content in damaged(sound, seed=len(sound), **options):
        path.write_bytes(content)
        try:
            seen["same" if read() == whole else "used"] += 1
        except refusals as error:
            told.append((what, str(error)))
    path.write_bytes(sound)
    for what, sentence in told:
        assert names in sentence, f"{what}: {sentence}"
        assert len(sentence) < 2_000, f"{what} is told at too great length"
    seen["named"] = len(told)
    assert sum(seen.values()) > NUM_CUTS
    return seen


def test_a_backup(run_copy: Path) -> None:
    made = back_up(run_copy, now_unix=0).path

    def read() -> object:
        for leftover in ("-wal", "-shm"):
            (made / (FILE_NAME + leftover)).unlink(missing_ok=True)
        with StoreReader.open(made) as store:
            store.verify()
            return store.study(), store.trials(), store.observations(), store.plans(), store.recommendation()

    seen = endings(made / FILE_NAME, read, (StoreError,), names=str(made), num_flips=40)
    assert not seen["used"]
    assert seen["named"] >= NUM_CUTS


def test_a_bench_record(tmp_path: Path, make_bench: Callable) -> None:
    record = make_bench({"a": [1, 2, 3], "b": [4, 5, 6]})
    path = write_record(tmp_path, record)
    assert read_record(path) == record
    assert not endings(path, lambda: read_record(path), (UserError,), names=str(path))["used"]
    seen = endings(path, lambda: read_serving_observations(path), (ValueError,), names=str(path))
    assert not seen["used"]


def measured_profile() -> HardwareProfile:
    point = EfficiencyPoint(size=(64, 4096), efficiency=0.625, spread=0.0123, num_samples=5)
    made = Calibration(device="a CPU", measured_at="2026-01-01T00:00:00Z", versions={"torch": "2"}, clock="processor",
                       num_repeats=5, seconds=12.5)  # fmt: skip
    tables = (EfficiencyTable(operation="gemm", dtype="float32", points=(point,)),)
    return load_profile("cpu-generic").model_copy(update={"efficiencies": tables, "calibration": made})


def test_a_measured_profile(tmp_path: Path) -> None:
    path = tmp_path / "measured.toml"
    write_profile(measured_profile(), path)
    assert read_profile(path) == measured_profile()
    assert not endings(path, lambda: read_profile(path), (ValueError,), names=str(path))["used"]


@pytest.mark.parametrize("kind", ["train shard", "held-out shard", "tokenizer", "manifest"])
def test_a_blob_of_a_corpus(kind: str, tmp_path: Path) -> None:
    from agent.corpus.manifest import build_stdlib_corpus, load_corpus

    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(40):
        (texts / f"{number}.txt").write_text(" ".join(f"word{number * place % 97}" for place in range(200)))
    corpus = build_stdlib_corpus(tmp_path / "blobs", vocab_size=260, source=texts)
    shards = {shard.role: shard.sha256 for shard in corpus.manifest.shards}
    name = {"train shard": shards["train"], "held-out shard": shards["validation"], "manifest": corpus.id,
            "tokenizer": corpus.manifest.tokenizer_sha256}[kind]  # fmt: skip
    path = tmp_path / "blobs" / str(name)

    def fetch_again() -> object:
        cache = BlobCache(tmp_path / f"cache-{random.random()}", directory_fetcher(tmp_path / "blobs"))
        return load_corpus(cache, corpus.id).manifest if kind == "manifest" else cache.get(path.name).read_bytes()

    def find_in_the_cache() -> object:
        cache = BlobCache(tmp_path / "blobs", directory_fetcher(tmp_path / "nowhere"))
        return cache.get(path.name).read_bytes()

    for read in (fetch_again, find_in_the_cache):
        seen = endings(path, read, (BlobMismatchError, CorpusError), names=path.name, num_flips=40)
        assert not seen["used"]
        assert not seen["same"], "a hash is over every byte"


@pytest.mark.parametrize("file", ["checkpoint.json", "tensors"])
def test_a_checkpoint(file: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from agent.training.checkpoint import NoCheckpoint, RunState, restore_checkpoint, save_checkpoint
    from agent.training.model import Decoder
    from scaling.architecture import Architecture
    from scaling.observations import TrainingPoint

    shape = Architecture(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                         num_key_value_heads=1, head_dim=8, vocab_size=32)  # fmt: skip
    model = Decoder(shape, max_sequence_length=8)
    optimizer = torch.optim.AdamW(model.parameters())
    curve = (TrainingPoint(num_tokens=512, loss=5.5, learning_rate=0.125, gradient_norm=0.75),)
    save_checkpoint(
        tmp_path, RunState(step=31, train_seconds=17.25, curve=curve, recent_steps=4), model, optimizer,
        assignment_hash="this",
    )  # fmt: skip
    path = tmp_path / "checkpoint.json" if file == "checkpoint.json" else next(tmp_path.glob("state-*"))

    def read() -> object:
        found = restore_checkpoint(tmp_path, model, optimizer, assignment_hash="this")
        if isinstance(found, NoCheckpoint):
            raise ValueError(found.reason)
        return found

    seen = endings(path, read, (ValueError,), names="")
    assert not seen["used"]
    assert seen["named"] >= NUM_FLIPS // 2


def test_a_packed_checkpoint(tmp_path: Path) -> None:
    """The archive is refused, or its files are checked against their hashes by whoever restores them."""
    source, target, path = tmp_path / "source", tmp_path / "target", tmp_path / "packed"
    source.mkdir()
    (source / "state-1.safetensors").write_bytes(bytes(range(256)) * 8)
    (source / "checkpoint.json").write_text(json.dumps({"step": 1}))
    packed = pack(source)
    assert packed is not None
    path.write_bytes(packed)

    def read() -> object:
        unpack(path.read_bytes(), target)
        return sorted(file.name for file in target.iterdir())

    endings(path, read, (ValueError,), names="checkpoint", num_flips=100)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["packed", "source", "target"]


# What a person writes


def test_a_study_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(shipped_studies()["laptop"].read_bytes())
    seen = endings(path, lambda: read_study(str(path)), (UserError,), names=str(path))
    assert seen["named"] >= NUM_CUTS // 2


def test_a_profile_of_the_users_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'id = "mine"\nname = "Mine"\nkind = "gpu"\nmemory_bandwidth_bytes_per_second = 1e12\n'
        '[peak_flops_per_second]\nbfloat16 = 1e14\n[provenance]\nmemory_bandwidth_bytes_per_second = "measured"\n'
    )
    assert read_profile(path).id == "mine"
    assert endings(path, lambda: read_profile(path), (ValueError,), names=str(path))["named"] >= NUM_CUTS


def test_an_architecture(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 128, "model_type": "mistral"}  # fmt: skip
    path.write_text(json.dumps(shape))
    assert endings(path, lambda: read_config(str(path)), (ValueError,), names=str(path))["named"] >= NUM_CUTS
