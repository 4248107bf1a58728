import gzip
import io
import json
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.corpus.sources import Reading, SourceFile, cut_text, find_files, plan_parts, read_documents
from agent.failures import CorpusError

READING = Reading("text", 65_536)
ROWS = [f"document {number} " * (1 + number % 7) for number in range(100)]


def _lines(path: Path, rows: list[str] = ROWS) -> Path:
    path.write_text("".join(json.dumps({"id": number, "text": row}) + "\n" for number, row in enumerate(rows)))
    return path


def _read(*sources: str, part_bytes: int = 2**25, reading: Reading = READING) -> list[str]:
    parts = plan_parts(find_files(sources).files, part_bytes=part_bytes)
    return [text for part in parts for text in read_documents(part, reading)]


@pytest.mark.parametrize("part_bytes", [1, 7, 100, 1000, 2**25])
def test_lines_belong_to_one_part_each_wherever_a_file_is_cut(tmp_path: Path, part_bytes: int) -> None:
    assert _read(str(_lines(tmp_path / "a.jsonl")), part_bytes=part_bytes) == ROWS


@given(
    rows=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), max_size=20),
    part_bytes=st.integers(1, 200),
)
@settings(max_examples=40, deadline=None)
def test_any_lines_are_read_once_and_in_order(
    tmp_path_factory: pytest.TempPathFactory, rows: list[str], part_bytes: int
) -> None:
    path = _lines(tmp_path_factory.mktemp("lines") / "a.jsonl", rows)
    assert _read(str(path), part_bytes=part_bytes) == rows


@given(
    text=st.lists(st.sampled_from(["a", "bc", "é", " ", "\n", "\n\n", "\r\n", "word " * 9]), max_size=60).map("".join),
    max_bytes=st.integers(1, 40),
)
@settings(max_examples=200, deadline=None)
def test_a_cut_text_is_whole_and_its_pieces_are_short(text: str, max_bytes: int) -> None:
    pieces = list(cut_text(io.StringIO(text, newline=""), max_bytes))
    assert "".join(pieces) == text
    assert all(len(piece) <= max_bytes for piece in pieces)


def test_texts_are_cut_at_blank_lines() -> None:
    text = "one\none\n\ntwo\n\nthree\n"
    assert list(cut_text(io.StringIO(text), 15)) == ["one\none\n\ntwo\n\n", "three\n"]


def test_a_folder_gives_its_files_of_known_kinds_and_says_how_many_are_of_others(tmp_path: Path) -> None:
    (tmp_path / "deep" / ".hidden").mkdir(parents=True)
    (tmp_path / "deep" / "b.txt").write_text("b")
    (tmp_path / "deep" / ".hidden" / "c.txt").write_text("c")
    (tmp_path / "a.md").write_text("a")
    (tmp_path / "image.png").write_bytes(b"")
    found = find_files([str(tmp_path)])
    assert [Path(file.url).name for file in found.files] == ["a.md", "b.txt"]
    assert found.num_ignored == 1


def test_a_file_that_is_named_twice_is_read_once(tmp_path: Path) -> None:
    path = _lines(tmp_path / "a.jsonl")
    assert _read(str(path), f"file://{path}", str(tmp_path), str(tmp_path / "*.jsonl")) == ROWS


def test_small_files_share_a_part_and_large_ones_are_cut(tmp_path: Path) -> None:
    for number in range(10):
        (tmp_path / f"{number}.txt").write_text("x" * 100)
    large = _lines(tmp_path / "large.jsonl")
    parts = plan_parts(find_files([str(tmp_path)]).files, part_bytes=1000)
    assert [len(part.pieces) for part in parts] == [10] + [1] * -(-large.stat().st_size // 1000)
    assert len({part.name for part in parts}) == len(parts)


@pytest.mark.parametrize(("num_bytes", "part_bytes"), [(1, 2**20), (3 * 2**30, 2**23), (10**12, 2**25)])
def test_there_are_some_hundred_parts_of_one_to_thirty_two_mebibytes(num_bytes: int, part_bytes: int) -> None:
    for grown in (num_bytes, num_bytes + 10**6):
        file = SourceFile(url="/texts/a.jsonl", num_bytes=grown, version="")
        first = plan_parts([file])[0].pieces[0]
        assert first.end == min(grown, part_bytes)


def test_gzip_is_read(tmp_path: Path) -> None:
    plain = _lines(tmp_path / "a.jsonl").read_bytes()
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(plain[:500]) + gzip.compress(plain[500:]))
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(b"one text"))
    assert _read(str(tmp_path / "b.json.gz"), str(tmp_path / "c.txt.gz")) == [*ROWS, "one text"]


def test_zstd_is_read(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard", reason="zstandard is not installed (extra: data)")
    plain = _lines(tmp_path / "a.jsonl").read_bytes()
    compress = zstandard.ZstdCompressor().compress
    (tmp_path / "b.jsonl.zst").write_bytes(compress(plain[:500]) + compress(plain[500:]))
    assert _read(str(tmp_path / "b.jsonl.zst")) == ROWS


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_truncated_file_is_named(tmp_path: Path, suffix: str) -> None:
    plain = os.urandom(3000).hex().encode()
    if suffix == ".gz":
        whole = gzip.compress(plain)
    else:
        whole = pytest.importorskip("zstandard", reason="zstandard is not installed").ZstdCompressor().compress(plain)
    (tmp_path / f"a.txt{suffix}").write_bytes(b"broken" + whole if suffix == ".zst" else whole[: len(whole) // 2])
    with pytest.raises(CorpusError, match=r"a\.txt\.(gz|zst) cannot be read: .*expected a whole, readable file"):
        _read(str(tmp_path))


@pytest.mark.parametrize("part_bytes", [1, 2**25])
def test_parquet_is_read_by_row_groups(tmp_path: Path, part_bytes: int) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed (extra: data)")
    from pyarrow import parquet

    table = pyarrow.table({"content": [*ROWS, None], "id": list(range(101))})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=30)
    parts = plan_parts(find_files([str(tmp_path)]).files, part_bytes=part_bytes)
    assert len(parts) == (4 if part_bytes == 1 else 1)
    assert _read(str(tmp_path), part_bytes=part_bytes, reading=Reading("content", 0)) == [*ROWS, ""]
    with pytest.raises(CorpusError, match=r"no column 'text', its columns are content, id; .*--text-key"):
        _read(str(tmp_path))
    with pytest.raises(CorpusError, match="column 'id' is int64, expected strings"):
        _read(str(tmp_path), reading=Reading("id", 0))


def test_a_broken_parquet_file_is_named(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed (extra: data)")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(CorpusError, match=r"a\.parquet is not whole Parquet"):
        _read(str(tmp_path))


def test_urls_are_read_by_fsspec() -> None:
    fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed (extra: data)")
    memory = fsspec.filesystem("memory")
    memory.pipe("/texts/a.txt", b"remote")
    memory.pipe("/texts/deep/b.jsonl", b'{"text": "also"}\n')
    try:
        for sources in (["memory://texts"], ["memory://texts/*.txt", "memory://texts/**/*.jsonl"]):
            assert _read(*sources) == ["remote", "also"]
        assert _read("memory://texts/a.txt") == ["remote"]
        with pytest.raises(CorpusError, match="no such source: memory://nowhere"):
            find_files(["memory://nowhere"])
    finally:
        memory.rm("/texts", recursive=True)


def test_a_missing_plug_in_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fsspec", reason="fsspec is not installed (extra: data)")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(CorpusError, match=r"s3://bucket/a\.txt needs s3fs, which is not installed: pip install s3fs"):
        find_files(["s3://bucket/a.txt"])


def test_an_unknown_protocol_is_refused() -> None:
    pytest.importorskip("fsspec", reason="fsspec is not installed (extra: data)")
    with pytest.raises(CorpusError, match=r"nonsense://a\.txt: .*expected a path, or a URL"):
        find_files(["nonsense://a.txt"])


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"text": "cut', "not JSON"),
        (b'["text"]', "expected an object with the key 'text'"),
        (b'{"content": "x", "id": 3}', "there is no key 'text', its keys are 'content', 'id'; .*--text-key"),
        (b'{"text": 3}', "'text' is int, expected a string"),
        (b'{"text": "\xff"}', "not UTF-8"),
        (b'{"text": "\\ud800"}', "'text' holds half of a surrogate pair"),
        (b"[" * 100_000, "JSON that is nested too deeply"),
    ],
)
@pytest.mark.parametrize("part_bytes", [500, 2**25])
def test_a_bad_line_is_named_by_file_and_number(tmp_path: Path, line: bytes, words: str, part_bytes: int) -> None:
    before = _lines(tmp_path / "a.jsonl").read_bytes()
    (tmp_path / "a.jsonl").write_bytes(before + line + b"\n" + before)
    with pytest.raises(CorpusError, match=rf"a\.jsonl, line 101: {words}"):
        _read(str(tmp_path), part_bytes=part_bytes)


def test_a_text_that_is_not_utf8_is_named_by_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"fine\n" * 5000 + b"caf\xe9\n")
    with pytest.raises(CorpusError, match=r"a\.txt, line 5001: not UTF-8"):
        _read(str(tmp_path))


@pytest.mark.parametrize(
    ("source", "words"),
    [("nowhere", "no such source: .*nowhere"), ("image.png", "of no known kind; expected .txt"), ("", "no text in")],
)
def test_sources_without_text_are_refused(tmp_path: Path, source: str, words: str) -> None:
    (tmp_path / "image.png").write_bytes(b"")
    with pytest.raises(CorpusError, match=words):
        find_files([str(tmp_path / source)])
