"""Sources of text: files, folders, globs and URLs -> parts of bounded size -> documents.

By suffix:

    .txt .md                  text: one document, cut at blank lines where it is long
    .jsonl .ndjson .json      one JSON object a line, the text under a key
    .parquet                  one row a document, the text in a column (needs pyarrow)

Text and lines may be compressed (.gz; .zst needs zstandard). A source with `://` is read by fsspec and its plug-ins
(s3:// by s3fs, gs:// by gcsfs, ...). Nothing is ever read whole: a part is a range of bytes, of row groups, or several
small files, and depends on the sources alone, not on how many processes read them.
"""

import glob
import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, cast

from pydantic import NonNegativeInt

from agent.failures import CorpusError
from hwprofiles.value import Value

LARGEST_PART_BYTES = 2**25
_SMALLEST_PART_BYTES = 2**20
_WANTED_PARTS = 256

Format = Literal["text", "lines", "parquet"]
_FORMATS: dict[str, Format] = {
    ".txt": "text",
    ".md": "text",
    ".jsonl": "lines",
    ".ndjson": "lines",
    ".json": "lines",
    ".parquet": "parquet",
}
_COMPRESSIONS = (".gz", ".zst")
_KNOWN = "expected .txt, .md, .jsonl, .ndjson or .json (one object a line), each also with .gz or .zst, or .parquet"
_PLUG_INS = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "hf": "huggingface_hub",
    "az": "adlfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "http": "aiohttp",
    "https": "aiohttp",
    "sftp": "paramiko",
}
# Of what a file system tells of a file: the first that it knows says whether the file was written to.
_VERSION_KEYS = (
    "ETag",
    "etag",
    "md5",
    "generation",
    "blob_id",
    "mtime",
    "LastModified",
    "last_modified",
    "updated",
    "created",
)
_LONGEST_LINE = 2**28


class SourceFile(Value):
    """One file of text as it was when it was looked at."""

    url: str
    """An absolute path, or a URL of fsspec's."""
    num_bytes: NonNegativeInt
    version: str
    """Modification time or entity tag: another one means that the file was written to."""

    @property
    def format(self) -> Format:
        """How it is read, from its suffix."""
        return _FORMATS[_suffixes(self.url)[0]]

    @property
    def compression(self) -> str:
        """`.gz`, `.zst` or nothing."""
        return _suffixes(self.url)[1]


class Piece(Value):
    """Bytes, or row groups of Parquet, of one file. Lines belong to the piece in which they begin."""

    file: SourceFile
    first: NonNegativeInt
    end: NonNegativeInt
    num_bytes: NonNegativeInt
    """About how much there is to read."""


class Part(Value):
    """What one process reads at a time: a piece of a large file, or several small files."""

    pieces: tuple[Piece, ...]

    @property
    def name(self) -> str:
        """What the part is, without the state that the files are in."""
        places = [(piece.file.url, piece.first, piece.end) for piece in self.pieces]
        return hashlib.sha256(json.dumps(places).encode()).hexdigest()[:24]

    @property
    def num_bytes(self) -> int:
        """About how much there is to read."""
        return sum(piece.num_bytes for piece in self.pieces)


class Reading(NamedTuple):
    """How documents are found in files."""

    text_key: str
    max_document_bytes: int
    """A longer text file is cut at blank lines; 0 leaves it whole. Lines and rows are never cut."""


class Found(NamedTuple):
    """The files that sources name, in the order of their URLs, and how many were of no known kind."""

    files: tuple[SourceFile, ...]
    num_ignored: int


def find_files(sources: Sequence[str]) -> Found:
    """List the files that these files, folders, globs and URLs name.

    Raises:
        CorpusError: a source is not there or of no known kind, there are no files, or a package for a URL is missing.
    """
    found: dict[str, SourceFile] = {}
    num_ignored = 0
    for source in sources:
        named, listed = _list_remote(source) if is_remote(source) else _list_local(source)
        known = [file for file in listed if _suffixes(file.url)[0] in _FORMATS]
        if named and not known:
            raise CorpusError(f"{source} is of no known kind; {_KNOWN}")
        num_ignored += len(listed) - len(known)
        found |= {file.url: file for file in known}
    if not found:
        raise CorpusError(
            f"no text in {', '.join(sources) or 'no source'}: {num_ignored} files of other kinds; {_KNOWN}"
        )
    return Found(tuple(found[url] for url in sorted(found)), num_ignored)


def is_remote(source: str) -> bool:
    """Whether fsspec reads this source."""
    return "://" in source and not source.startswith("file://")


def _list_local(source: str) -> tuple[bool, list[SourceFile]]:
    """Whether the source is one file, and the files."""
    path = Path(source.removeprefix("file://")).expanduser()
    if path.is_file():
        return True, [_local(path)]
    if path.is_dir():
        inside = (each for each in sorted(path.rglob("*")) if each.is_file())
        shown = [each for each in inside if not any(part.startswith(".") for part in each.relative_to(path).parts)]
        return False, [_local(each) for each in shown]
    matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207 (a pattern may be absolute)
    if not matches:
        raise CorpusError(f"no such source: {source}; expected a file, a folder, a glob that matches, or a URL")
    return False, [_local(Path(match)) for match in matches if Path(match).is_file()]


def _local(path: Path) -> SourceFile:
    found = path.stat()
    return SourceFile(url=str(path.resolve()), num_bytes=found.st_size, version=str(found.st_mtime_ns))


def _list_remote(source: str) -> tuple[bool, list[SourceFile]]:
    with _readable(source):
        system, path = _file_system(source)
        protocol = source.split("://")[0]
        if not any(sign in path for sign in "*?[") and system.isfile(path):
            return True, [_remote(system, protocol, path)]
        paths = system.glob(path) if any(sign in path for sign in "*?[") else system.find(path)
        files = [_remote(system, protocol, each) for each in sorted(paths) if system.isfile(each)]
    if not files:
        raise CorpusError(f"no such source: {source}; expected a file, a folder or a glob that matches")
    return False, files


def _remote(system: Any, protocol: str, path: str) -> SourceFile:
    told = system.info(path)
    version = next((str(told[key]) for key in _VERSION_KEYS if told.get(key)), "")
    return SourceFile(url=f"{protocol}://{path.lstrip('/')}", num_bytes=int(told.get("size") or 0), version=version)


def _file_system(url: str) -> tuple[Any, str]:
    protocol = url.split("://")[0]
    try:
        import fsspec

        system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        package = "fsspec" if "fsspec" in str(error) else _PLUG_INS.get(protocol, "a plug-in of fsspec's")
        raise CorpusError(f"{url} needs {package}, which is not installed: pip install {package}") from None
    except ValueError as error:
        raise CorpusError(f"{url}: {error}; expected a path, or a URL that fsspec knows") from None
    return system, path


def _suffixes(url: str) -> tuple[str, str]:
    """Suffix of the kind, and of the compression."""
    name = url.rsplit("/", 1)[-1].lower()
    compression = next((suffix for suffix in _COMPRESSIONS if name.endswith(suffix)), "")
    return Path(name.removesuffix(compression)).suffix, compression


def plan_parts(files: Sequence[SourceFile], *, part_bytes: int | None = None) -> tuple[Part, ...]:
    """Cut large files that can be cut, and put small ones together; the same for any number of processes.

    By default a part has 1 to 32 MiB, so that there are some 256: a power of two, which does not change when a file
    grows a little, so that parts that are done stay what they were.
    """
    if part_bytes is None:
        wanted = sum(file.num_bytes for file in files) // _WANTED_PARTS
        part_bytes = min(LARGEST_PART_BYTES, max(_SMALLEST_PART_BYTES, 1 << max(0, wanted.bit_length() - 1)))
    parts: list[Part] = []
    small: list[Piece] = []
    for file in files:
        pieces = _pieces(file, part_bytes)
        if len(pieces) > 1 or file.num_bytes >= part_bytes:
            parts += [Part(pieces=(piece,)) for piece in pieces]
            continue
        small += pieces
        if sum(piece.file.num_bytes for piece in small) >= part_bytes:
            parts.append(Part(pieces=tuple(small)))
            small = []
    return (*parts, Part(pieces=tuple(small))) if small else tuple(parts)


def _pieces(file: SourceFile, part_bytes: int) -> list[Piece]:
    if file.format == "parquet":
        groups = _num_row_groups(file)
        step = max(1, groups * part_bytes // max(1, file.num_bytes))
        return [
            Piece(file=file, first=first, end=end, num_bytes=file.num_bytes * (end - first) // groups)
            for first, end in _steps(groups, step)
        ]
    if file.format == "text" or file.compression:  # only a reader from its beginning on knows where they may be cut
        return [Piece(file=file, first=0, end=file.num_bytes, num_bytes=file.num_bytes)]
    return [
        Piece(file=file, first=first, end=end, num_bytes=end - first)
        for first, end in _steps(file.num_bytes, part_bytes)
    ]


def _steps(total: int, step: int) -> list[tuple[int, int]]:
    return [(first, min(first + step, total)) for first in range(0, total, step)]


def read_documents(part: Part, reading: Reading) -> Iterator[str]:
    """The documents of a part, empty ones included.

    Raises:
        CorpusError: something cannot be read; file and line are named.
    """
    for piece in part.pieces:
        with _readable(piece.file.url):
            match piece.file.format:
                case "text":
                    yield from _read_text(piece.file, reading.max_document_bytes)
                case "lines":
                    yield from _read_lines(piece, reading.text_key)
                case "parquet":
                    yield from _read_rows(piece, reading.text_key)


@contextmanager
def _readable(url: str) -> Iterator[None]:
    """Whatever a file system or a decompressor says becomes one sentence that names the file."""
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        raise CorpusError(
            f"{url} cannot be read: {str(error) or type(error).__name__}; expected a whole, readable file"
        ) from error


@contextmanager
def _opened(file: SourceFile) -> Iterator[BinaryIO]:
    if is_remote(file.url):
        system, path = _file_system(file.url)
        with system.open(path, "rb") as raw:
            yield _decompressed(raw, file)
    else:
        with Path(file.url).open("rb") as raw:
            yield _decompressed(raw, file)


def _decompressed(raw: BinaryIO, file: SourceFile) -> BinaryIO:
    if file.compression == ".gz":
        return cast("BinaryIO", gzip.GzipFile(fileobj=raw))
    if file.compression == ".zst":
        try:
            import zstandard
        except ImportError:
            raise CorpusError(
                f"{file.url} needs zstandard, which is not installed: pip install zstandard, or use .gz"
            ) from None
        return cast("BinaryIO", io.BufferedReader(_ZstdReader(zstandard.ZstdDecompressor(), raw, zstandard.ZstdError)))
    return raw


class _ZstdReader(io.RawIOBase):
    """All frames of a zstd file; a cut or broken one is an OSError as with other decompressors."""

    def __init__(self, decompressor: Any, raw: BinaryIO, broken: type[Exception]) -> None:
        self._stream = decompressor.stream_reader(raw, read_across_frames=True)
        self._broken = broken

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            return int(self._stream.readinto(buffer))
        except self._broken as error:
            raise OSError(str(error)) from None


def _read_text(file: SourceFile, max_document_bytes: int) -> Iterator[str]:
    try:
        with _opened(file) as raw, io.TextIOWrapper(raw, encoding="utf-8", newline="") as lines:
            yield from cut_text(lines, max_document_bytes) if max_document_bytes else [lines.read()]
    except UnicodeDecodeError as error:
        raise CorpusError(f"{file.url}, line {_bad_line(file)}: not UTF-8 ({error.reason})") from None


def _bad_line(file: SourceFile) -> int:
    """The first line that is not UTF-8: readers decode ahead, so the line they stand at is an earlier one."""
    with _opened(file) as raw:
        for number, line in enumerate(raw, start=1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 0


def cut_text(lines: io.TextIOBase, max_bytes: int) -> Iterator[str]:
    """Cut a text at blank lines into documents of at most `max_bytes` UTF-8 bytes; joined they are the text.

    A paragraph that is longer is cut at the end of a line, and a line at about that many characters.
    """
    document, block = _Text(), _Text()
    while line := lines.readline(max_bytes):
        if block.num_bytes + len(line.encode()) > max_bytes and block.num_bytes:
            yield from document.followed_by(block, max_bytes)
            block = _Text()
        block.add(line)
        if not line.strip():
            yield from document.followed_by(block, max_bytes)
            block = _Text()
    yield from document.followed_by(block, max_bytes)
    if document.num_bytes:
        yield "".join(document.lines)


class _Text:
    """Lines and their bytes."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.num_bytes = 0

    def add(self, line: str) -> None:
        self.lines.append(line)
        self.num_bytes += len(line.encode())

    def followed_by(self, block: "_Text", max_bytes: int) -> Iterator[str]:
        """Take the block in; where there is no room, give what was there and begin anew with it."""
        if self.num_bytes and self.num_bytes + block.num_bytes > max_bytes:
            yield "".join(self.lines)
            self.lines, self.num_bytes = [], 0
        self.lines += block.lines
        self.num_bytes += block.num_bytes


def _read_lines(piece: Piece, text_key: str) -> Iterator[str]:
    file = piece.file
    with _opened(file) as raw:
        place = 0
        if piece.first:  # the line that began before belongs to the piece before
            raw.seek(piece.first - 1)
            place = piece.first - 1 + len(raw.readline())
        number = 0
        while file.compression or place < piece.end:
            line = raw.readline(_LONGEST_LINE)
            if not line:
                return
            place, number = place + len(line), number + 1
            if line.strip():
                try:
                    yield _text_of(line, text_key)
                except ValueError as error:
                    raise CorpusError(f"{file.url}, line {_lines_before(piece) + number}: {error}") from None


def _text_of(line: bytes, text_key: str) -> str:
    """The text of a line; a ValueError says what is wrong with it."""
    try:
        row = json.loads(line)
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error}); expected one object a line, got {line[:60]!r}") from None
    except RecursionError:
        raise ValueError("JSON that is nested too deeply") from None
    if not isinstance(row, dict):
        raise ValueError(f"expected an object with the key {text_key!r}, got {line[:60]!r}")
    if text_key not in row:
        keys = ", ".join(map(repr, list(row)[:20])) or "none"
        raise ValueError(f"there is no key {text_key!r}, its keys are {keys}; name the text's with --text-key")
    text = row[text_key]
    if not isinstance(text, str):
        raise ValueError(f"{text_key!r} is {type(text).__name__}, expected a string")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{text_key!r} holds half of a surrogate pair, which is no text") from None
    return text


def _lines_before(piece: Piece) -> int:
    """Lines that began before the piece; counted only when one of its own is wrong."""
    if not piece.first:
        return 0
    count, left = 0, piece.first - 1
    with _opened(piece.file) as raw:
        while left > 0:
            block = raw.read(min(left, 2**20))
            count += block.count(b"\n")
            left -= len(block)
    return count + 1


def _read_rows(piece: Piece, text_key: str) -> Iterator[str]:
    with _parquet(piece.file) as table:
        if text_key not in table.schema_arrow.names:
            raise CorpusError(
                f"{piece.file.url} has no column {text_key!r}, its columns are {', '.join(table.schema_arrow.names)}; "
                "name the text's with --text-key"
            )
        kind = table.schema_arrow.field(text_key).type
        if str(kind) not in ("string", "large_string", "string_view"):
            raise CorpusError(f"{piece.file.url}: column {text_key!r} is {kind}, expected strings")
        groups = list(range(piece.first, piece.end))
        for batch in table.iter_batches(batch_size=512, row_groups=groups, columns=[text_key], use_threads=False):
            for text in batch.column(0).to_pylist():
                yield text or ""


def _num_row_groups(file: SourceFile) -> int:
    with _readable(file.url), _parquet(file) as table:
        return int(table.metadata.num_row_groups)


@contextmanager
def _parquet(file: SourceFile) -> Iterator[Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise CorpusError(f"{file.url} needs pyarrow, which is not installed: pip install 'archfleet[data]'") from None
    with _opened(file) as raw:
        try:
            yield parquet.ParquetFile(raw)
        except pyarrow.ArrowException as error:
            raise CorpusError(f"{file.url} is not whole Parquet: {error}") from None
