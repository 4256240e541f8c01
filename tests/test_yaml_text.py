"""YAML of strangers: plain values, bounded; everything else is refused, and at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
import yaml
from hypothesis import strategies as st

from tellapart import yaml_text
from tellapart.errors import RunError, SpecError
from tellapart.evaluation.run_folder import read_run
from tellapart.runs import read_spec
from tellapart.yaml_text import YamlError, load

BOMB = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)
MERGES = "a0: &a0 {x: 1, y: 2}\n" + "".join(
    f"a{n}: &a{n} {{{', '.join(f'k{k}: *a{n - 1}' for k in range(9))}}}\n" for n in range(1, 12)
)
BAD = {
    "aliases of aliases": BOMB,
    "mappings of mappings": MERGES,
    "merged mappings": "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [{','.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 12)),
    "in itself": "a: &a [*a]",
    "in itself, further in": "a: &a {b: {c: [1, *a]}}",
    "brackets": "[" * 100_000,
    "closed brackets": "[" * 5000 + "]" * 5000,
    "braces": "{a: " * 5000 + "1" + "}" * 5000,
    "indented": "".join(" " * n + "a:\n" for n in range(3000)),
    "dashes": "- " * 5000 + "a",
    "very long": "a: " + "x" * (yaml_text.MOST_TEXT + 1),
    "an object": "!!python/object/apply:os.system ['touch mischief']",
    "a name": "a: !!python/name:os.system",
    "a tag of its own": "!thing {a: 1}",
    "an alias of nothing": "a: *b",
    "two documents": "a: 1\n---\nb: 2\n",
    "a number of many digits": "a: " + "9" * 100_000,
    "a date that is none": "a: 2026-13-45",
    "a list as a key": "? [a]\n: 1",
    "a zero byte": "a: \0",
    "half a pair": "a: \ud800",
    "not closed": "a: 'b",
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_bad_texts_are_refused_at_once(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    started = time.process_time()
    with pytest.raises(YamlError) as caught:
        load(BAD[kind])
    assert time.process_time() - started < 3
    assert len(str(caught.value)) < 2000
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["aliases of aliases", "closed brackets", "an object", "in itself"])
def test_every_reader_of_yaml_refuses(kind: str, tmp_path: Path, call: Callable) -> None:
    file = tmp_path / "spec.yaml"
    file.write_text(BAD[kind], "utf-8")
    with pytest.raises(SpecError, match="not valid YAML"):
        read_spec(file)
    with pytest.raises(RunError, match="as YAML"):
        read_run(tmp_path)
    if kind == "an object":  # where all is words, it is one
        assert load(BAD[kind], words=True) == ["touch mischief"]
    else:
        with pytest.raises(YamlError):
            load(BAD[kind], words=True)
    answer = call("train", "--spec", file)
    assert answer.code == 2
    assert "Traceback" not in answer.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["spec.yaml"]


def test_usual_texts_are_what_yaml_makes_of_them() -> None:
    for text in ("", "a: 1", "[1, 2.5, x, null, on]", "names: {0: cat, 1: 猫}", "a: &x {b: 1}\nc: *x\nd: {<<: *x, e: 2}",
                 "- [a, [b]]\n- 2026-01-02", "a: |\n  x\n  y\n", "# nothing", "names:\n" + "".join(f"  {n}: c{n}\n" for n in range(3000))):  # fmt: skip
        assert load(text) == yaml.safe_load(text)


@hypothesis.given(st.text(alphabet="ab:&*[]{}-<,?!|>'\"# \n0", max_size=40))
def test_any_text_is_refused_or_what_yaml_makes_of_it(text: str) -> None:
    try:
        found = load(text)
    except YamlError:
        return
    assert repr(found) == repr(yaml.safe_load(text))
