"""What the documentation says is held against the program: commands parse, files exist, both READMEs agree."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tellapart
from tellapart import cli, devices, recipes
from tellapart.data.sources.opening import open_source
from tellapart.spec import DataSpec

ROOT = Path(__file__).resolve().parent.parent
READMES = ("README.md", "README.zh-CN.md")
PAGES = (
    *READMES,
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/architecture.md",
    "docs/data.md",
    "docs/serving.md",
    "examples/README.md",
)
PROGRAM = re.compile(r"(?:\$ )?(?:\.venv/bin/)?(?:torchrun .*?-m )?tellapart (.+)")
FOLDERS = ("src/", "docs/", "bench/", "examples/", "tests/", ".ci/")


@dataclass(frozen=True)
class Block:
    language: str
    code: str


def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str) -> list[Block]:
    return [Block(*found) for found in re.findall(r"^```(\w*)\n(.*?)^```$", text(page), re.M | re.S)]


def prose(page: str) -> str:
    return re.sub(r"^```.*?^```$", "", text(page), flags=re.M | re.S)


def inline(page: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", prose(page))


def command_lines() -> list[str]:
    """Every command line of the program on any page, in blocks and in sentences, once."""
    lines: list[str] = []
    for page in PAGES:
        for block in blocks(page):
            lines += block.code.replace("\\\n", " ").splitlines()
        lines += inline(page)
    found = (PROGRAM.fullmatch(line.strip()) for line in lines)
    return list(dict.fromkeys(match[1].replace("COMMAND", "evaluate") for match in found if match))


def headings(page: str) -> list[str]:
    return re.findall(r"^(#+) (.+)$", prose(page), re.M)


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Return a function that parses a command line as the program does, without running it: (exit code, stderr)."""
    commands = {name: (kind, lambda args: 0) for name, (kind, _) in cli.COMMANDS.items()}
    monkeypatch.setattr(cli, "COMMANDS", commands)
    monkeypatch.setattr(devices, "tune_allocator", lambda: None)
    monkeypatch.chdir(tmp_path)

    def run(words: list[str]) -> tuple[int, str]:
        try:
            code = cli.main(words)
        except SystemExit as end:
            code = int(end.code or 0)
        return code, capsys.readouterr().err

    return run


@pytest.mark.parametrize("line", command_lines())
def test_every_command_line_parses(line, parse):
    code, said = parse(shlex.split(line, comments=True))
    assert code == 0, said


def test_the_check_of_command_lines_can_fail(parse):
    assert parse(["train", "photos/", "--training.epchs", "3"])[0] == 2
    assert parse(["train", "photos/", "--recipe", "tutorail"])[0] == 2
    assert parse(["train", "photos/", "--training.sampling", "often"])[0] == 2
    assert parse(["trian"])[0] == 2
    assert len(command_lines()) > 30


def test_flags_in_sentences_exist(parse, capsys):
    known: dict[str, str] = {}
    for name in cli.COMMANDS:
        with pytest.raises(SystemExit):
            cli.main([name, "--help"])
        for flag in re.findall(r"--[a-z][\w.-]*", capsys.readouterr().out):
            known.setdefault(flag, name)
    seen = 0
    for page in PAGES:
        for code in inline(page):
            if not code.startswith("--"):
                continue
            words = shlex.split(code)
            assert words[0] in known, f"{page}: {code}"
            seen += 1
            if len(words) > 1:  # a flag with a value: the value must be possible
                name = known[words[0]]
                positional = {"train": [], "predict": ["MODEL", "IMAGE"]}.get(name, ["MODEL"])
                assert parse([name, *positional, *words])[0] == 0, f"{page}: {code}"
    assert seen > 20


def test_recipes_are_named_as_they_are():
    for page in READMES:
        table = re.findall(r"^\| `([\w-]+)` \|", text(page), re.M)
        assert set(recipes.RECIPES) <= set(table), page
        for name in re.findall(r"--recipe ([\w-]+)", text(page)):
            assert name in recipes.RECIPES, f"{page}: {name}"


def test_the_table_of_commands_is_whole():
    for page in READMES:
        named = re.findall(r"^\| `tellapart ([\w-]+)[^|]*\|", text(page), re.M)
        assert list(dict.fromkeys(named)) == list(dict.fromkeys([*named, *cli.COMMANDS])), page


def test_make_targets_exist():
    targets = set(re.findall(r"^([\w-]+):", text("Makefile"), re.M))
    named = 0
    for page in PAGES:
        lines = [line for block in blocks(page) for line in block.code.splitlines()] + inline(page)
        for line in lines:
            match = re.fullmatch(r"make ([\w-]+)", line.strip())
            if match:
                named += 1
                assert match[1] in targets, f"{page}: {line}"
    assert named > 5


def anchors(page: str) -> set[str]:
    """The names of a page's headings as GitHub makes them."""
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for _, title in headings(page)}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        found = (ROOT / page).parent / path if path else ROOT / page
        assert found.exists(), f"{page}: {target}"
        if anchor:
            assert anchor in anchors(found.relative_to(ROOT).as_posix()), f"{page}: {target}"


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_exist(page):
    """Paths from the root, modules by their path below src/tellapart, and files at the top."""
    for block in blocks(page):
        if block.language == "bash":
            for word in re.findall(r"(?:examples|bench)/[\w./-]+", block.code):
                assert (ROOT / word).exists(), f"{page}: {word}"
    for code in inline(page):
        word = code.split()[1] if code.startswith("python ") else code
        at_root = word.startswith(FOLDERS) or re.fullmatch(r"\w[\w.-]*\.(md|txt|toml)", word)
        if not re.fullmatch(r"[\w./-]+", word) or "//" in word or word.startswith("/"):
            continue
        if word in (
            "classes.txt",
            "classnames.txt",
            "labels.txt",
            "train.txt",
            "val.txt",
            "test.txt",
        ):  # the user's
            continue
        if at_root:
            assert (ROOT / word).exists(), f"{page}: {word}"
        elif word.endswith(".py"):
            places = (ROOT / "src/tellapart" / word, ROOT / Path(page).parent / word)
            assert any(place.exists() for place in places), f"{page}: {word}"


def test_the_layers_are_those_that_are_enforced():
    contract = re.search(r"^layers = \[\n(.*?)^\]", text("pyproject.toml"), re.M | re.S)
    assert contract
    enforced = [re.findall(r"tellapart\.(\w+)", line) for line in re.findall(r'"([^"]+)"', contract[1])]
    drawn = next(block.code for block in blocks("docs/architecture.md") if "argv -> spec" in block.code)
    names = [re.split(r"\s{2,}", line)[0].split(" | ") for line in drawn.splitlines()]
    assert [sorted(layer) for layer in names] == [sorted(layer) for layer in enforced]
    built = {path.stem for path in (ROOT / "src/tellapart").iterdir() if path.suffix in ("", ".py")}
    assert built - {"__init__", "__main__", "__pycache__", "py"} <= {
        name for layer in names for name in layer
    }


def bare(code: str) -> str:
    """Code without its comments, which may be in either language."""
    return re.sub(r"\s+# .*$", "", code, flags=re.M)


def test_both_readmes_have_the_same_code():
    one, two = ([(block.language, bare(block.code)) for block in blocks(page)] for page in READMES)
    assert one == two


def test_both_readmes_have_the_same_headings():
    one, two = ([marks for marks, _ in headings(page)] for page in READMES)
    assert one == two


def test_both_readmes_have_the_same_tables():
    """The same rows: the code in the first two columns, and the figures."""

    def rows(page: str) -> list[tuple[list[str], list[str]]]:
        found = []
        for line in re.findall(r"^\| (.+) \|$", prose(page), re.M):
            first, second, *_ = line.split(" | ")
            code = re.findall(r"`[^`]+`", first) + ([second] if second.startswith("`") else [])
            figures = re.findall(r"MEASURED-\d+|\d[\d.,]*\d", re.sub(r"`[^`]+`", "", line))
            found.append((code, figures))
        return found

    one, two = map(rows, READMES)
    assert len(one) > 30
    assert one == two


def test_python_in_the_readme_names_what_there_is():
    (code,) = (block.code for block in blocks("README.md") if block.language == "python")
    compile(code, "README.md", "exec")
    names = set(re.findall(r"\btellapart\.(\w+)", code))
    assert names >= {"train", "load", "evaluate"}
    assert names <= set(tellapart.__all__)


def test_the_example_digit_is_in_the_test_part():
    samples = open_source(DataSpec(), lambda note: None)
    row = list(samples.paths).index("image/475")
    assert samples.splits[row] == "test"
    assert samples.classes[samples.labels[row]] == "3"
    with Image.open(ROOT / "examples" / "digit-3.png") as image:
        assert image.mode == "L"
        np.testing.assert_array_equal(np.asarray(image), samples.read(row))


def demo_end(*words: str) -> subprocess.CompletedProcess[str]:
    script = str(ROOT / "examples" / "demo_end.py")
    return subprocess.run(
        [sys.executable, script, *words], capture_output=True, text=True, check=False, timeout=60
    )


def test_the_demo_ends_with_what_was_achieved(tmp_path):
    folder = tmp_path / "demo" / "evaluation" / "test"
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(
        '{"accuracy": 0.985, "accuracy_interval": [0.9661, 0.9935], "n": 1359}'
    )
    done = demo_end(str(tmp_path / "demo"))
    assert done.returncode == 0
    for expected in (
        "98.50 %",
        "1,359",
        "96.61 to 99.35 %",
        "model.safetensors",
        "report.html",
        "train photos/",
    ):
        assert expected in done.stdout
    failed = demo_end(str(tmp_path / "other"))
    assert failed.returncode == 1
    assert "other" in failed.stderr
