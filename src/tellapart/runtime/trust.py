"""Which model files are opened: of those that can run code, only what tellapart wrote here, or what the user trusts.

``.pt2`` and TorchScript files are programs: torch's readers unpickle, evaluate and load native code. No list of what is
bad in them can be complete, so a stranger's file is refused before torch sees it. Export records the SHA-256 of each of
these files that it writes in the user's own data folder; that is what "wrote here" means. Loads no torch.
"""

from __future__ import annotations

import datetime
import hashlib
import os
from pathlib import Path

from tellapart import places
from tellapart.errors import ArtifactError

SUFFIXES = (".pt2", ".torchscript")
_HASH_LENGTH = 64


def record_file() -> Path:
    """Return the file with the hashes of what was exported here: one line for each, the hash first."""
    return places.data_folder() / "exported.sha256"


def record(path: Path) -> str:
    """Record that this program wrote the file; return a message if that fails, otherwise nothing."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    notes = record_file()
    line = f"{digest} {datetime.datetime.now(datetime.UTC):%Y-%m-%d} {path.suffix}\n"
    try:
        notes.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(notes, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(handle, line.encode())  # in one write, so that other processes cannot interleave
        finally:
            os.close(handle)
    except OSError as error:
        return (
            f"{notes} cannot be written ({error.strerror}), so this file counts as a stranger's here: "
            "predict, evaluate and serve need --trust for it."
        )
    return ""


def wrote(content: bytes) -> bool:
    """Return whether a file of this content was exported here, by this user."""
    digest = hashlib.sha256(content).hexdigest()
    try:
        lines = record_file().read_text("ascii", "replace").splitlines()
    except OSError:
        return False
    return any(line[:_HASH_LENGTH] == digest for line in lines)


def read(path: Path, trust: bool) -> tuple[bytes, bool]:
    """Return a file's content, which has to be what is opened afterwards, and whether it was written here.

    Raises ArtifactError if it was not and ``trust`` does not allow it to run code.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}.") from None
    ours = wrote(content)
    if not ours and not trust:
        raise ArtifactError(
            f"{path} is not opened: a {path.suffix} file can run any program when it is opened, and tellapart did not "
            f"write this one here ({record_file()} has the hashes of those that it wrote). If you trust where it "
            "comes from, give --trust (in Python: trust=True); else ask for a safetensors, ONNX or OpenVINO file, "
            "which hold no programs."
        )
    return content, ours
