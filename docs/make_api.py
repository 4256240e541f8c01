"""Write docs/api.md from the signatures and docstrings of what tellapart offers in Python.

python docs/make_api.py
"""

from __future__ import annotations

import importlib
import inspect
import re
import textwrap
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("api.md")
WIDTH = 100

GROUPS: dict[str, tuple[str, tuple[str, ...]]] = {
    "Train and measure": (
        'Options of the spec are keyword arguments by section or by dotted name: `training={"epochs": 3}`, '
        '`**{"training.epochs": 3}`; `tellapart train --help` lists them all.',
        (
            *("tellapart.train", "tellapart.resume", "tellapart.cross_validate", "tellapart.repeat"),
            *("tellapart.find_lr", "tellapart.evaluate"),
            *("tellapart.report", "tellapart.compare"),
            *(
                "tellapart.Result",
                "tellapart.workflow.Series",
                "tellapart.evaluation.measurement.Measurement",
                "tellapart.evaluation.metrics.Evaluation",
                "tellapart.evaluation.multilabel.MultiEvaluation",
                "tellapart.Spec",
                "tellapart.Callback",
            ),
        ),
    ),
    "Look at data": ("", ("tellapart.check", "tellapart.cache")),
    "Use": (
        "",
        (
            *("tellapart.load", "tellapart.predict", "tellapart.Classifier", "tellapart.Prediction"),
            *("tellapart.models", "tellapart.candidates", "tellapart.workflow.Candidates"),
            *("tellapart.workflow.Candidate", "tellapart.doctor"),
        ),
    ),
    "Ship": (
        "",
        (
            *("tellapart.export", "tellapart.compress", "tellapart.serve", "tellapart.serve.create_app"),
            *("tellapart.serve.Options", "tellapart.import_weights", "tellapart.workflow.Export"),
        ),
    ),
    "Parts": (
        "For your own loop or program; each works without the others. `examples/` has scripts for them.",
        (
            *("tellapart.parts.open_images", "tellapart.parts.ImageSet", "tellapart.parts.batches"),
            *("tellapart.parts.RawBatch", "tellapart.parts.Augmentation", "tellapart.parts.ResumableSampler"),
            *("tellapart.parts.epoch_order", "tellapart.parts.Preprocessing", "tellapart.parts.load"),
            *("tellapart.parts.resize", "tellapart.parts.normalise", "tellapart.parts.as_module"),
            *("tellapart.parts.parity", "tellapart.parts.Agreement", "tellapart.parts.open_model"),
            "tellapart.Predictor",
        ),
    ),
    "Errors": ("", ("tellapart.TellapartError", "tellapart.UserError")),
}

HEAD = """\
# The Python API

<!-- Written by docs/make_api.py from signatures and docstrings: change those, and run it again. -->

Every command of the program is a function of the same name, with the same arguments and defaults. `predict` is one call
too; who labels often loads a model once. `import` is a word of Python, so that command is `import_weights`. What a
command prints, its function returns. All of it is typed.

```python
import tellapart

result = tellapart.train("photos/", model={"name": "resnet18"})
print(result.metrics["accuracy"])
for answer in tellapart.predict(result.run, "new/"):
    print(answer.path, answer.label, answer.probability)
tellapart.export(result.run, "onnx", "export")
```
"""


def page() -> str:
    """Return the whole page."""
    parts = [HEAD]
    for title, (intro, names) in GROUPS.items():
        parts.append(f"## {title}\n")
        if intro:
            parts.append(textwrap.fill(intro, 120) + "\n")
        parts += [entry(name) for name in names]
    return "\n".join(parts)


def entry(name: str) -> str:
    """Return what the page says of one function or class."""
    member = find(name)
    lines = [f"### `{name}`\n"]
    if not (inspect.isclass(member) and issubclass(member, Exception)):
        lines.append(f"```python\n{signature(name.rpartition('.')[2], member)}\n```\n")
    lines.append(prose(documentation(member)))
    if inspect.isclass(member):
        methods = [method for key in vars(member) if (method := _method(member, key))]
        if methods:
            lines.append("\n".join(methods) + "\n")
    return "\n".join(lines)


def find(name: str) -> Any:
    """Return the object of a dotted name, whose first parts are modules."""
    module, _, last = name.rpartition(".")
    return getattr(importlib.import_module(module), last)


def documentation(member: Any) -> str:
    """Return a docstring; that of the command where a package inside has its name."""
    if inspect.ismodule(member):
        member = member._command
    return inspect.getdoc(member) or ""


def signature(name: str, member: Any, wide: bool = False) -> str:
    """Return ``name(…) -> …``, over several lines where one is too long and it must not be ``wide``."""
    found = inspect.signature(member)
    parts = parameters([one for key, one in found.parameters.items() if key != "self"])
    back = found.return_annotation
    end = ")" if inspect.isclass(member) or back is found.empty else f") -> {_written(back)}"
    line = f"{name}({', '.join(parts)}{end}"
    if wide or len(line) <= WIDTH:
        return line
    rows = [""]
    for part in parts:
        if rows[-1] and len(rows[-1]) + len(part) > WIDTH - 6:
            rows.append("")
        rows[-1] += f"{part}, "
    inside = "\n".join(f"    {row.rstrip()}" for row in rows).removesuffix(",")
    return f"{name}(\n{inside}\n{end}"


def parameters(given: list[inspect.Parameter]) -> list[str]:
    """Return each parameter as it is written, with the marks of those that are positional or keywords alone."""
    parts: list[str] = []
    for place, one in enumerate(given):
        before = given[place - 1].kind if place else None
        if before is one.POSITIONAL_ONLY and one.kind is not one.POSITIONAL_ONLY:
            parts.append("/")
        if one.kind is one.KEYWORD_ONLY and before not in (one.KEYWORD_ONLY, one.VAR_POSITIONAL):
            parts.append("*")
        stars = {one.VAR_POSITIONAL: "*", one.VAR_KEYWORD: "**"}.get(one.kind, "")
        text = f"{stars}{one.name}: {_written(one.annotation)}"
        parts.append(text if one.default is one.empty else f"{text} = {_value(one.default)}")
    return parts


def _written(annotation: Any) -> str:
    """Return an annotation as the source has it."""
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _value(default: Any) -> str:
    text = repr(default)
    return "…" if text.startswith("<") else text.replace("'", '"')


def prose(text: str) -> str:
    """Return a docstring as Markdown: arguments as a list."""
    lines: list[str] = []
    inside = False
    for line in text.replace("``", "`").splitlines():
        if line.strip() == "Args:":
            inside = True
            continue
        found = re.match(r"    (\*{0,2}\w+): (.*)", line) if inside else None
        if inside and line and not line.startswith(" "):
            inside = False
        if found:
            lines.append(f"- `{found[1]}`: {found[2]}")
        else:
            lines.append(f"  {line.strip()}" if inside and line.strip() else line)
    return "\n".join(lines).rstrip() + "\n"


def _method(owner: type, key: str) -> str:
    """Return the line of a public method or property."""
    member = inspect.getattr_static(owner, key)
    if key.startswith("_") or not (inspect.isfunction(member) or isinstance(member, (property, classmethod))):
        return ""
    first = (inspect.getdoc(member) or "").replace("``", "`").split("\n\n")[0].replace("\n", " ")
    if isinstance(member, property):
        return f"- `.{key}`: {first}"
    return f"- `.{signature(key, getattr(owner, key), wide=True)}`: {first}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
