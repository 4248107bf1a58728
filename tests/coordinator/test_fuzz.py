"""Whatever a file or a message holds, its reader gives a value or one clear error: hypothesis over every parser.

In CI the examples are always the same. A long run by hand:

    ARCHFLEET_FUZZ_EXAMPLES=100000 pytest tests/coordinator/test_fuzz.py
"""

import copy
import json
import os
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import Field, TypeAdapter, ValidationError

from agent.archive import unpack
from agent.assignment import AssignmentAdapter
from agent.benchmark.configs import read_config
from agent.blobs import BlobCache
from agent.failures import BlobMissingError
from coordinator.bench_record import read_record
from coordinator.errors import StudyError, UserError
from coordinator.predict import read_serving_observations
from coordinator.runs import find_run
from coordinator.runs_table import fit_table, read_runs_table
from coordinator.study import StudySpec, parse_study, read_study, shipped_studies
from hwprofiles.catalog import load_profile, read_profile
from hwprofiles.toml_text import profile_to_toml
from scaling.observations import Observation, Progress

WANTED = int(os.environ.get("ARCHFLEET_FUZZ_EXAMPLES", "0"))
fuzz = settings(
    max_examples=WANTED or 60,
    derandomize=not WANTED,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
report: TypeAdapter[Any] = TypeAdapter(Annotated[Observation, Field(discriminator="kind")])

NUMBERS = st.one_of(
    st.integers(),
    st.sampled_from([2**63, -(2**63) - 1, 10**400, -1, 0, 1e308, 5e-324]),
    st.floats(),
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=20))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=12), inner, max_size=4)),
    max_leaves=12,
)
NESTS = st.tuples(st.sampled_from(["[", '{"a":', "[[1],"]), st.integers(500, 60_000)).map(
    lambda nest: nest[0] * nest[1]
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something could be changed in a nested value."""
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += places(inner, (*path, key))
    return found


def mutations(value: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """The value with up to three of its parts replaced, taken out, or joined by a stranger."""
    change = st.tuples(st.sampled_from(places(value)), st.sampled_from(["replace", "drop", "add"]), VALUES)

    def apply(changes: list[tuple[tuple[Any, ...], str, Any]]) -> dict[str, Any]:
        changed = copy.deepcopy(value)
        for path, what, new in changes:
            inner: Any = changed
            try:
                for key in path[:-1]:
                    inner = inner[key]
                if what == "drop":
                    del inner[path[-1]]
                elif what == "add" and isinstance(inner, dict):
                    inner[f"{path[-1]}x"] = new
                else:
                    inner[path[-1]] = new
            except (KeyError, IndexError, TypeError):
                continue  # an earlier change took that part away
        return changed

    return st.lists(change, min_size=1, max_size=3).map(apply)


def require_sentence(error: Exception) -> None:
    assert str(error).strip()
    assert "Traceback" not in str(error)
    assert len(str(error)) < 5_000, "a message is read by people"


def once(read: Callable[[], object], *refusals: type[Exception]) -> object:
    """What was read, or None where it was refused in a sentence."""
    try:
        return read()
    except refusals as error:
        require_sentence(error)
        return None


# Study files


STUDY = read_study("laptop").model_dump(mode="json", exclude_none=True)


@fuzz
@given(mutations(STUDY))
def test_a_study_is_a_study_or_refused(table: dict[str, Any]) -> None:
    study = once(lambda: parse_study(table, source="mine.toml"), StudyError)
    if study is not None:
        assert isinstance(study, StudySpec)
        assert StudySpec.model_validate_json(study.model_dump_json()) == study


@fuzz
@given(
    st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode), NESTS.map(lambda n: b"a = " + n.encode()))
)
def test_a_study_file_of_anything_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "mine.toml").write_bytes(content)
    assert once(lambda: read_study(str(tmp_path / "mine.toml")), UserError) is None


@fuzz
@given(st.data())
def test_a_study_file_with_changed_lines_is_a_study_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    lines = shipped_studies()["quick"].read_text().splitlines()
    for _ in range(3):
        number = data.draw(st.integers(0, len(lines) - 1))
        key = lines[number].partition("=")[0]
        lines[number] = data.draw(st.one_of(st.just(""), VALUES.map(lambda v, key=key: f"{key}= {json.dumps(v)}")))
    (tmp_path / "mine.toml").write_text("\n".join(lines), "utf-8", errors="replace")
    once(lambda: read_study(str(tmp_path / "mine.toml")), UserError)


# Reports of agents, and assignments


@pytest.fixture(scope="module")
def reports(finished_run: Path) -> list[dict[str, Any]]:
    from coordinator.store import StoreReader

    with StoreReader.open(finished_run) as store:
        found = {o.kind: o.model_dump(mode="json") for o in store.observations()}
        made = next(iter(found.values()))["provenance"]
    failure = {"kind": "failure", "assignment_id": "a", "failure_kind": "timeout", "message": "m", "provenance": made}
    return [*found.values(), failure]


@fuzz
@given(st.data())
def test_a_report_is_an_observation_or_refused(reports: list[dict[str, Any]], data: st.DataObject) -> None:
    one = data.draw(st.sampled_from(range(len(reports))))
    text = json.dumps(data.draw(mutations(reports[one])))  # NaN and Infinity are written as Python writes them
    observation = once(lambda: report.validate_json(text), ValidationError)
    if observation is not None:
        again = observation.model_dump_json()  # type: ignore[attr-defined]
        assert "NaN" not in again
        assert "Infinity" not in again
        assert report.validate_json(again) == observation


@fuzz
@given(st.one_of(st.binary(max_size=100), NESTS.map(str.encode), VALUES.map(lambda value: json.dumps(value).encode())))
@example(b'{"kind": "failure", "kind": "training"}')
@example(b'{"assignment_id": "a", "done_fraction": NaN}')
@example(b'{"assignment_id": "a", "done_fraction": 1e999}')
@example(b'{"assignment_id": "a", "done_fraction": ' + b"9" * 10_000 + b"}")
def test_a_message_of_anything_is_refused(content: bytes) -> None:
    assert once(lambda: report.validate_json(content), ValidationError) is None
    assert once(lambda: Progress.model_validate_json(content), ValidationError) is None
    assert once(lambda: AssignmentAdapter.validate_json(content), ValidationError) is None


def test_the_last_of_two_equal_keys_counts() -> None:
    text = '{"assignment_id": "a", "done_fraction": 0.25, "done_fraction": 0.5}'
    assert Progress.model_validate_json(text).done_fraction == 0.5


# Profiles, architectures, bench records, tables


@fuzz
@given(st.data())
def test_a_profile_is_a_profile_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "mine.toml"
    lines = profile_to_toml(load_profile("h200")).splitlines()
    for _ in range(2):
        number = data.draw(st.integers(0, len(lines) - 1))
        key = lines[number].partition("=")[0]
        nest = NESTS.map(lambda n, key=key: f"{key}= {n}")
        lines[number] = data.draw(st.one_of(VALUES.map(lambda v, key=key: f"{key}= {json.dumps(v)}"), nest))
    path.write_text("\n".join(lines), "utf-8", errors="replace")
    profile = once(lambda: read_profile(path), ValueError)
    if profile is not None:
        assert all(0 < peak < float("inf") for peak in profile.peak_flops_per_second.values())  # type: ignore[attr-defined]


CONFIG = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
          "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 128, "model_type": "mistral"}  # fmt: skip


@fuzz
@given(st.one_of(mutations(CONFIG).map(json.dumps), NESTS, st.text(max_size=50)))
@example('{"hidden_size": ' + "9" * 10_000 + "}")
def test_an_architecture_is_legal_or_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text, "utf-8", errors="replace")
    once(lambda: read_config(str(path)), ValueError)


@fuzz
@given(st.data())
def test_a_bench_record_is_one_or_refused(tmp_path: Path, make_bench: Callable[..., Any], data: st.DataObject) -> None:
    whole = json.loads(json.dumps(make_bench({"a": [1, 2, 3]}).to_json()))
    text = data.draw(st.one_of(mutations(whole).map(json.dumps), NESTS, st.text(max_size=50)))
    path = tmp_path / "bench.json"
    path.write_text(text, "utf-8", errors="replace")
    once(lambda: read_record(path), UserError)
    once(lambda: read_serving_observations(path), ValueError)


CELLS = st.one_of(st.sampled_from(["", "nan", "inf", "-1", "0", "1e999", "x", "1e6"]), st.text(max_size=8))


@fuzz
@given(st.lists(st.lists(CELLS, min_size=1, max_size=4), max_size=6), st.booleans())
def test_a_table_of_runs_is_one_or_refused(tmp_path: Path, rows: list[list[str]], is_headed: bool) -> None:
    head = ["n_params,n_tokens,loss"] if is_headed else []
    path = tmp_path / "runs.csv"
    path.write_text("\n".join([*head, *(",".join(row) for row in rows)]), "utf-8", errors="replace")
    once(lambda: fit_table(read_runs_table(path), law="chinchilla"), ValueError)


# Names and paths


NAMES = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        ["..", ".", "", "/", "../../etc/passwd", "/etc/passwd", "a/../../b", "\0", "a\0b", "~", "x" * 5_000]
    ),
    st.lists(st.sampled_from(["..", ".", "a", "", "~"]), min_size=1, max_size=6).map("/".join),
)


@fuzz
@given(NAMES)
def test_a_blobs_name_is_a_hash_or_nothing_is_asked_for(tmp_path: Path, name: str) -> None:
    def fetch(sha256: str) -> bytes:
        raise AssertionError(f"{sha256} was asked for")

    assert once(lambda: BlobCache(tmp_path / "cache", fetch).get(name), BlobMissingError) is None


@fuzz
@given(NAMES)
def test_a_packed_checkpoint_writes_nowhere_else(tmp_path: Path, name: str) -> None:
    inside = tmp_path / "a" / "b" / "inside"
    inside.mkdir(parents=True, exist_ok=True)
    before = outside(tmp_path, inside)
    buffer = BytesIO()
    try:
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            archive.addfile(tarfile.TarInfo(name), BytesIO(b""))
    except (ValueError, UnicodeEncodeError):
        return  # no archive can hold this name
    once(lambda: unpack(buffer.getvalue(), inside), ValueError)
    assert outside(tmp_path, inside) == before


def outside(root: Path, inside: Path) -> set[Path]:
    return {path for path in root.rglob("*") if inside not in (path, *path.parents)}


@fuzz
@given(NAMES)
def test_a_run_is_found_or_refused(tmp_path: Path, name: str) -> None:
    once(lambda: find_run(name or None, tmp_path / "runs"), UserError)


@fuzz
@given(NAMES)
def test_a_study_of_any_name_stays_in_its_place(name: str) -> None:
    """The name becomes part of the run directory's."""
    study = once(lambda: parse_study(STUDY | {"name": name}, source="mine.toml"), StudyError)
    if study is not None:
        assert Path(study.name).name == study.name  # type: ignore[attr-defined]


@fuzz
@given(NAMES)
def test_a_study_or_a_config_at_any_path_is_found_or_refused(name: str) -> None:
    once(lambda: read_study(name), UserError)
    once(lambda: read_config(name), ValueError)
