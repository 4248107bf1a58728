"""What is written is a promise: each command runs or is understood, each link leads somewhere, nothing is left out.

The commands of README.md are run here, those of the other documents are parsed; what belongs to a cluster (kubectl,
sbatch ...) is held to the files that it names.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from coordinator.cli import main
from coordinator.version import PACKAGES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = sorted(
    file
    for pattern in ("*.md", "deploy/**/*.md", *(f"{room}/**/*.md" for room in PACKAGES))
    for file in ROOT.glob(pattern)
)

# Commands that start Ray or install: other tests run exactly these.
RUN_ELSEWHERE = {
    "make run": "Makefile target; `archfleet run` is its only command",
    "make test": "this very test run",
    "pip install --constraint constraints.txt '.[all]'": "the Makefile installs so, and tests/test_wheel.py the wheel",
    "archfleet run": "the study laptop takes ten minutes; quick and tiny studies run the same code",
    "archfleet run --quick": "tests/integration/test_quick_run.py",
    "archfleet data import shards/*.bin --out corpus": "tests/coordinator/test_data.py",
    "archfleet data inspect corpus": "tests/coordinator/test_data.py",
    "archfleet data check corpus": "tests/coordinator/test_data.py",
    "archfleet bench config.json other/config.json --batch 16 --window-seconds 2": ("tests/coordinator/test_bench.py"),
    "archfleet hw calibrate --seconds 10 --out measured.toml": "tests/coordinator/test_hardware.py",
    "archfleet status --trial train-0a1b2c3d4e5f": "tests/coordinator/test_trial_status.py; ids are a run's own",
    "archfleet serve": "tests/coordinator/test_serve.py",
    "archfleet serve rehearsal": "tests/coordinator/test_serve.py",
    "archfleet token revoke ada": "tests/coordinator/test_tokens.py; here it may come before ada has a token",
    "archfleet score mine/seed-0/model --tasks piqa,sciq": "tests/agent/scoring/test_harness.py, on a local task",
    "archfleet compare mine other": "tests/coordinator/test_compare.py",
    "archfleet train config.json --tokens 1e6 --seeds 4 --out mine": "tests/coordinator/test_train.py",
    "archfleet run my-study.toml": "tests/integration/test_survives_kills.py runs a study file",
    "archfleet run my-study.toml --address head.example:6379": "tests/coordinator/fleet/test_ray_cluster.py",
}


# Programs of a cluster: nothing of it is here, but the files that a command names are.
OF_A_CLUSTER = (
    *("kubectl", "docker", "buildah", "helm", "sbatch", "scancel", "squeue", "scontrol", "srun", "ray"),
    *("sudo", "systemctl", "journalctl", "install", "ssh", "scp", "openssl", "promtool", "amtool"),
)
FOLDERS = ("deploy", "tests", ".github", *PACKAGES)


def commands_of(text: str) -> list[str]:
    """The commands of a document's console blocks: without comments, continued lines in one, pipes apart."""
    blocks = re.findall(r"```console\n(.*?)```", text, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [command for line in lines if (command := re.split(r"(?:^|\s)#\s", line)[0].strip())]


def readme_commands() -> list[str]:
    return commands_of(README)


def runs_here(command: str) -> bool:
    return command not in RUN_ELSEWHERE and command.split()[0] not in OF_A_CLUSTER


def archfleet_words(command: str) -> list[list[str]]:
    """The words after each `archfleet` of a command line: behind `VARIABLE=value`, between pipes, in `$(...)`."""
    inside = r"\$\(([^)]*)\)"
    parts = [*re.split(r"\||&&|;", re.sub(inside, "", command)), *re.findall(inside, command)]
    found = []
    for part in parts:
        words = shlex.split(re.split(r" \d?>", part)[0])
        while words and (re.fullmatch(r"[A-Z_]+=.*", words[0]) or words[0] in ("sudo", "exec")):
            words = words[1:]
        if words[:1] == ["archfleet"]:
            found.append(words[1:])
    return found


def parse(words: list[str]) -> None:
    """Let the command parse its words without doing anything.

    Raises:
        click.ClickException: there is no such command, or an option or argument is wrong.
    """
    context = main.make_context("archfleet", list(words))
    command: click.Command = main
    while isinstance(command, click.Group):
        rest = [*context._protected_args, *context.args]
        name, found, rest = command.resolve_command(context, rest)
        assert found is not None
        assert name is not None
        command, context = found, found.make_context(name, rest, parent=context)


def all_commands(group: click.Group, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], click.Command]]:
    found: list[tuple[tuple[str, ...], click.Command]] = []
    for name, command in group.commands.items():
        found.append(((*path, name), command))
        if isinstance(command, click.Group):
            found += all_commands(command, (*path, name))
    return found


@pytest.fixture(scope="session")
def reader_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the README's commands name."""
    from agent.assignment import TrainAssignment
    from agent.corpus.manifest import build_stdlib_corpus
    from scaling.architecture import Architecture
    from scaling.recipes import TrainingRecipe

    folder = tmp_path_factory.mktemp("reader")
    shutil.copytree(ROOT / "coordinator" / "studies", folder / "coordinator" / "studies")
    (folder / "tests" / "data").mkdir(parents=True)
    for table in (ROOT / "tests" / "data").glob("*.csv"):
        shutil.copy(table, folder / "tests" / "data" / table.name)
    shutil.copy(ROOT / "tests" / "data" / "runs.csv", folder)
    shapes = [
        Architecture(
            hidden_size=d,
            intermediate_size=f,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            vocab_size=512,
        )
        for d, f in ((48, 64), (64, 48))
    ]
    for shape, place in zip(shapes, (folder, folder / "other"), strict=True):
        place.mkdir(exist_ok=True)
        (place / "config.json").write_text(json.dumps(shape.to_hf_config()))
    (folder / "texts").mkdir()
    text = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "scaling").glob("*.py")))
    for start in range(0, len(text), 500):
        (folder / "texts" / f"{start}.txt").write_text(text[start : start + 500], encoding="utf-8")
    corpus = build_stdlib_corpus(folder / "own-blobs", vocab_size=512, source=ROOT / "scaling")
    shutil.copytree(folder / "own-blobs", folder / "blobs")
    assignment = TrainAssignment(
        architecture=shapes[0], recipe=TrainingRecipe(num_tokens=8192), corpus_id=corpus.id, num_eval_windows=8
    )
    (folder / "assignment.json").write_text(assignment.model_dump_json())
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in readme_commands() if runs_here(c)])
def test_readme_command_runs(command: str, reader_folder: Path) -> None:
    if command.startswith(("archfleet status", "archfleet report", "archfleet backup")):
        _make_a_run(reader_folder)
    command, _, into = command.partition(" > ")
    words = command.split()
    program = {"archfleet": [sys.executable, "-m", "coordinator.cli"], "python": [sys.executable]}.get(
        words[0], [words[0]]
    )
    result = subprocess.run(
        [*program, *words[1:]],
        cwd=reader_folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(reader_folder)},
    )
    # The doctor may find this very machine wanting.
    assert result.returncode in ((0, 1) if command.startswith("archfleet doctor") else (0,)), result.stderr
    assert "Traceback" not in result.stderr
    assert not into or result.stdout


def _make_a_run(folder: Path) -> None:
    from coordinator.store import Store
    from coordinator.study import read_study

    directory = folder / "runs" / "laptop-20260101-000000"
    if not directory.exists():
        Store.create(directory, read_study("laptop"), now_unix=0.0).close()


def test_commands_run_elsewhere_are_still_in_the_readme() -> None:
    assert set(RUN_ELSEWHERE) <= set(readme_commands())


def test_commands_of_a_cluster_name_files_that_exist() -> None:
    for document in DOCUMENTS:
        for command in commands_of(document.read_text(encoding="utf-8")):
            words = shlex.split(command) if command.split()[0] in OF_A_CLUSTER else []
            files = [word for word in words if word.split("/")[0] in FOLDERS and "/" in word]
            assert all((ROOT / file).exists() for file in files), f"{document}: {command}"


def documented_commands() -> list[tuple[str, list[str]]]:
    return [
        (str(document.relative_to(ROOT)), words)
        for document in DOCUMENTS
        for command in commands_of(document.read_text(encoding="utf-8"))
        for words in archfleet_words(command)
    ]


@pytest.mark.parametrize(("document", "words"), documented_commands(), ids=lambda value: str(value))
def test_a_documented_command_is_understood(document: str, words: list[str]) -> None:
    try:
        parse(words)
    except click.ClickException as error:
        pytest.fail(f"{document}: archfleet {' '.join(words)}: {error.format_message()}")


@pytest.mark.parametrize(
    "words",
    ["rum", "run --quik", "token mint", "run --agents none", "data inspect"],
)
def test_a_command_that_is_not_understood_would_be_noticed(words: str) -> None:
    with pytest.raises(click.ClickException):
        parse(words.split())


def test_commands_are_found_behind_variables_pipes_and_comments() -> None:
    text = '```console\nA=1 archfleet run \\\n  --quick | tee log  # a word\neval "$(archfleet completion zsh)"\n```\n'
    first, second = commands_of(text)
    assert archfleet_words(first) == [["run", "--quick"]]
    assert archfleet_words(second) == [["completion", "zsh"]]


def links_of(text: str) -> list[str]:
    """Where the links and pictures of a document lead, code left out."""
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    written = re.findall(r"\]\(\s*<?([^)\s>]+)", prose) + re.findall(r"^\[[^]]+\]:\s*(\S+)", prose, flags=re.MULTILINE)
    return written + re.findall(r"""(?:href|src|srcset)=["']([^"' ]+)""", prose)


def anchors_of(text: str) -> set[str]:
    """The anchors of a document's headings, made as GitHub makes them."""
    found: dict[str, int] = {}
    anchors = set()
    for heading in re.findall(
        r"^#{1,6} +(.+?) *#*$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), flags=re.MULTILINE
    ):
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        anchors.add(f"{slug}-{found[slug]}" if slug in found else slug)
        found[slug] = found.get(slug, 0) + 1
    return anchors | set(re.findall(r"""<a (?:id|name)=["']([^"']+)""", text))


def dead_link(document: Path, link: str) -> str | None:
    """Why a link leads nowhere; None where it leads somewhere, or out of the house."""
    if re.match(r"(https|mailto):", link):
        return None
    if re.match(r"[a-z]+:", link):
        return "neither https nor a file"
    path, _, anchor = link.partition("#")
    target = (document.parent / path).resolve() if path else document
    if not target.exists():
        return "no such file"
    if not target.is_relative_to(ROOT):
        return "leads out of the repository"
    if anchor and (target.suffix != ".md" or anchor not in anchors_of(target.read_text(encoding="utf-8"))):
        return "no such heading"
    return None


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    dead = {link: why for link in links_of(text) if (why := dead_link(document, link))}
    assert not dead


@pytest.mark.parametrize(
    ("link", "why"),
    [
        ("nowhere.md", "no such file"),
        ("README.md#no-such-heading", "no such heading"),
        ("#no-such-heading", "no such heading"),
        ("Makefile#run", "no such heading"),
        ("../elsewhere", "no such file"),
        ("/etc/passwd", "leads out of the repository"),
        ("http://example.org", "neither https nor a file"),
        ("README.md#what-it-promises", None),
        ("https://example.org/#anything", None),
    ],
)
def test_a_dead_link_would_be_noticed(link: str, why: str | None) -> None:
    assert dead_link(ROOT / "CHANGELOG.md", link) == why


def test_links_are_found_in_every_form_and_not_in_code() -> None:
    text = '[a](b.md "words") ![p](p.png) <img src="i.png"> <source srcset="s.png">\n[ref]: r.md\n`[no](no.md)`\n'
    assert links_of(text) == ["b.md", "p.png", "r.md", "i.png", "s.png"]


def test_anchors_are_those_of_github() -> None:
    text = "# What it *promises*: [law](x.md) & `code`\n## Same\n### Same\n```\n# no heading\n```\n"
    assert anchors_of(text) == {"what-it-promises-law--code", "same", "same-1"}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_are_named_in_code_exist(document: Path) -> None:
    named = re.findall(rf"`((?:{'|'.join(map(re.escape, FOLDERS))})/[\w./-]+)(?:::\w+)?`", document.read_text("utf-8"))
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing


OPTIONS_OF_OTHERS = {"--num-cpus", "--labels"}  # Ray's


def test_options_that_the_readme_names_exist() -> None:
    own = {option for _, command in all_commands(main) for each in command.params for option in each.opts}
    agent = set(re.findall(r'"(--[a-z-]+)"', (ROOT / "agent" / "__main__.py").read_text(encoding="utf-8")))
    prose = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", " ".join(re.findall(r"`[^`\n]*`", prose))))
    assert named <= own | agent | OPTIONS_OF_OTHERS | {"--version", "--help"}


def test_every_promise_names_tests_that_exist() -> None:
    section = README.partition("## What it promises\n")[2].partition("\n## ")[0]
    promises = re.split(r"^\d\. ", section, flags=re.MULTILINE)[1:]
    assert len(promises) == 8
    for promise in promises:
        tests = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", promise)
        assert tests, promise
        for file, name in tests:
            assert f"\ndef {name}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file}::{name}"


@pytest.mark.parametrize(("path", "command"), all_commands(main), ids=lambda value: str(value))
def test_every_command_has_an_example_and_a_line_in_the_readme(path: tuple[str, ...], command: click.Command) -> None:
    assert command.epilog
    assert f"archfleet {' '.join(path)}" in command.epilog
    assert f"archfleet {' '.join(path)}" in README


def test_makefile_run_is_archfleet_run() -> None:
    makefile = (ROOT / "Makefile").read_text()
    target = re.search(r"^run:.*\n\t(.*)$", makefile, flags=re.MULTILINE)
    assert target is not None
    assert target.group(1) == "$(BIN)/archfleet run"
