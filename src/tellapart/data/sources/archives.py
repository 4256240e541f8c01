"""Archives: a `.tar` or `.zip` unpacked safely, once, into the cache folder.

Members are written by this module's own code: only regular files and folders, only below the target. No symbolic link
is ever created (a link inside the archive becomes a hard link or a copy of the file it points to), so nothing can lead
out. Knows nothing of what the files mean.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import stat
import sys
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from lzma import LZMAError
from typing import IO

from tellapart.data.sources.listing import Note, printable
from tellapart.data.sources.text import AUTO, DEFAULT, EncodingError, decode_text
from tellapart.errors import DataError
from tellapart.spec import DataSpec

TAR_EXTENSIONS = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2", ".tar.zst", ".tzst")
EXTENSIONS = (*TAR_EXTENSIONS, ".zip")
_CHUNK = 1 << 20
_MOST_STEPS = 40  # from link to link, as Linux has it
_MOST_LEVELS, _LONGEST_NAME = 100, 255
_STALE = 7 * 24 * 3600.0
_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, LZMAError, EOFError, NotImplementedError)


@dataclass
class _Member:
    """One entry: ``open`` for a file; ``link`` (a path in the archive) for a link; neither for a folder."""

    name: str
    open: Callable[[], IO[bytes]] | None = None
    link: str | None = None


def is_archive(path: str) -> bool:
    """Return whether a file's name is that of an archive."""
    return path.lower().endswith(EXTENSIONS)


def cache_folder(spec: DataSpec) -> str:
    """Return the folder for downloads and unpacked archives: ``spec.cache_dir`` or the user's cache folder."""
    if spec.cache_dir:
        return os.path.abspath(os.path.expanduser(spec.cache_dir))
    import platformdirs

    return platformdirs.user_cache_dir("tellapart", appauthor=False)


def extract(path: str, cache: str, say: Note, limit: int | None = None, encoding: str = DEFAULT) -> str:
    """Return a folder below ``cache`` with the archive's contents, unpacking it if that was not done before.

    The folder's name contains the archive's path, size and modification time, so that a changed archive is unpacked
    again. Contents appear whole or not at all: they are unpacked in a temporary folder that is then renamed, which also
    allows two processes at once. ``limit`` bounds the bytes written; by default nine tenths of the free disk space.
    ``encoding``: of a zip's names that are not marked as UTF-8. Raises DataError for a damaged archive, and for one
    with members that lead out of the folder, devices, links to the outside, or more than ``limit`` bytes.
    """
    absolute = os.path.abspath(path)
    try:
        status = os.stat(absolute)
        os.makedirs(os.path.join(cache, "archives"), exist_ok=True)
        free = shutil.disk_usage(cache).free
    except OSError as error:
        raise DataError(
            f"{printable(path)!r} cannot be unpacked into {printable(cache)!r}: {error}."
        ) from error
    named = "" if encoding == DEFAULT else f"\0{encoding}"
    key = hashlib.blake2b(
        f"{absolute}\0{status.st_size}\0{status.st_mtime_ns}{named}".encode("utf-8", "surrogateescape"),
        digest_size=6,
    ).hexdigest()
    stem = re.sub(r"[^\w.-]", "_", printable(os.path.basename(absolute)))[:80]
    target = os.path.join(cache, "archives", f"{stem}-{key}")
    if os.path.isdir(target):
        if encoding == AUTO and absolute.lower().endswith(".zip"):  # a guess is reported each time
            with zipfile.ZipFile(absolute) as archive:
                _zip_names(archive.infolist(), absolute, encoding, say)
        return target
    say(f"Unpacking {printable(path)} into {printable(target)}.")
    with fresh_folder(target) as temporary:
        try:
            members = _members(absolute, encoding, say)
            _unpack(members, absolute, temporary, int(free * 0.9) if limit is None else limit)
        except _DAMAGE as error:
            raise DataError(
                f"The archive {printable(path)!r} is damaged or of an unknown kind: {error}."
            ) from error
        except OSError as error:
            raise DataError(f"The archive {printable(path)!r} cannot be unpacked: {error}.") from error
    return target


@contextlib.contextmanager
def fresh_folder(target: str) -> Iterator[str]:
    """Yield a new folder beside ``target`` that becomes it at the end, and is removed if the block fails.

    If another process made ``target`` meanwhile, that one stays. What a killed process left is removed by a later call,
    after a week.
    """
    parent = os.path.dirname(target)
    with contextlib.suppress(OSError):
        for entry in os.scandir(parent):
            if entry.name.startswith(".part-") and entry.stat().st_mtime < time.time() - _STALE:
                shutil.rmtree(entry.path, ignore_errors=True)
    temporary = tempfile.mkdtemp(prefix=".part-", dir=parent)
    try:
        inner = os.path.join(temporary, "content")
        os.mkdir(inner)
        yield inner
        try:
            os.rename(inner, target)
        except OSError:
            if not os.path.isdir(target):
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _members(path: str, encoding: str, say: Note) -> Generator[_Member, None, None]:
    return _zip_members(path, encoding, say) if path.lower().endswith(".zip") else _tar_members(path)


def _unpack(opened: Generator[_Member, None, None], path: str, target: str, limit: int) -> None:
    written = 0
    links: list[tuple[str, str]] = []
    with contextlib.closing(opened) as members:
        for member in members:
            place = os.path.join(target, *_parts(member.name, path))
            if member.link is not None:
                links.append((place, os.path.join(target, *_parts(member.link, path))))
            elif member.open is None:
                os.makedirs(place, exist_ok=True)
            else:
                os.makedirs(os.path.dirname(place), exist_ok=True)
                with member.open() as source:
                    written = _copy(source, place, written, limit, path)
    _make_links(links, written, limit, path)


def _copy(source: IO[bytes], place: str, written: int, limit: int, path: str) -> int:
    with open(place, "wb") as sink:
        while chunk := source.read(_CHUNK):
            written += len(chunk)
            if written > limit:
                raise DataError(
                    f"The archive {printable(path)!r} unpacks to more than {limit:,} bytes, which is the "
                    "bound for the free disk space there; --data.cache-dir chooses another disk."
                )
            sink.write(chunk)
    return written


def _make_links(links: list[tuple[str, str]], written: int, limit: int, path: str) -> None:
    """Give each link's file a second name (or a copy); links to folders or to nothing are left out."""
    follow = dict(links)
    for place, _ in links:
        source, steps = place, 0
        while source in follow and not os.path.lexists(source):
            source, steps = follow[source], steps + 1
            if steps > _MOST_STEPS:
                raise DataError(
                    f"The archive {printable(path)!r} has a chain of more than {_MOST_STEPS} links, or links in a "
                    f"circle, at {printable(os.path.basename(place))!r}. Nothing was unpacked."
                )
        if not os.path.isfile(source) or os.path.exists(place):
            continue
        os.makedirs(os.path.dirname(place), exist_ok=True)
        try:
            os.link(source, place)
        except OSError:
            with open(source, "rb") as stream:
                written = _copy(stream, place, written, limit, path)


def _parts(name: str, path: str) -> list[str]:
    """Return the components of a member's name; raise DataError if it leads out of the archive."""
    clean = name.replace("\\", "/")
    parts = [part for part in clean.split("/") if part not in ("", ".")]
    if (
        clean.startswith("/")
        or "\0" in clean
        or ".." in parts
        or (parts and re.match(r"[A-Za-z]:", parts[0]))
    ):
        raise DataError(
            f"The archive {printable(path)!r} has an unsafe member, {printable(name)!r}, which would lie "
            "outside of the folder. Nothing was unpacked; use an archive with only relative paths."
        )
    if len(parts) > _MOST_LEVELS or any(len(os.fsencode(part)) > _LONGEST_NAME for part in parts):
        raise DataError(
            f"The archive {printable(path)!r} has a member of more than {_MOST_LEVELS} folders in one another, or of a "
            f"name of more than {_LONGEST_NAME} bytes: {printable(name[:60])!r} …. Nothing was unpacked."
        )
    return parts


def _link_target(name: str, target: str, path: str) -> str:
    """Return where a symbolic link at ``name`` leads, as a path in the archive; raise DataError if outside."""
    target = target.replace("\\", "/")
    parts = [part for part in name.replace("\\", "/").split("/")[:-1] if part not in ("", ".")]
    for part in target.split("/"):
        if target.startswith("/") or (part == ".." and not parts):
            raise DataError(
                f"The archive {printable(path)!r} has a link, {printable(name)!r}, to "
                f"{printable(target)!r}, outside of the archive. Nothing was unpacked."
            )
        if part == "..":
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


def _tar_members(path: str) -> Generator[_Member, None, None]:
    if path.lower().endswith(("zst", "zstd")) and sys.version_info < (3, 14):
        raise DataError(
            f"{printable(path)!r} is compressed with Zstandard, which Python reads from 3.14 on. Unpack it, "
            "or use .tar.xz or .tar.gz."
        )
    with tarfile.open(path, "r:*") as archive:
        for item in archive:
            if item.isdir():
                yield _Member(item.name)
            elif item.issym():
                yield _Member(item.name, link=_link_target(item.name, item.linkname, path))
            elif item.islnk():
                yield _Member(item.name, link=item.linkname)
            elif item.isreg():
                yield _Member(item.name, open=lambda item=item: _stream(archive, item))  # type: ignore[misc]
            else:
                raise DataError(
                    f"The archive {printable(path)!r} has a device or pipe, {printable(item.name)!r}. "
                    "Nothing was unpacked."
                )
        check_end(archive)


def check_end(archive: tarfile.TarFile) -> None:
    """Raise tarfile.ReadError where an archive, read to its end, has no mark there.

    tarfile silently stops at a truncated or damaged header, as if the archive ended there.
    """
    stream = archive.fileobj
    if stream is not None:
        stream.seek(archive.offset)
        if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"it is truncated, or has a damaged header at byte {archive.offset:,}")


def _stream(archive: tarfile.TarFile, item: tarfile.TarInfo) -> IO[bytes]:
    stream = archive.extractfile(item)
    if stream is None:
        raise tarfile.ReadError(f"{item.name} has no content")
    return stream


def _zip_members(path: str, encoding: str, say: Note) -> Generator[_Member, None, None]:
    with zipfile.ZipFile(path) as archive:
        items = archive.infolist()
        for item, name in zip(items, _zip_names(items, path, encoding, say), strict=True):
            mode = item.external_attr >> 16
            if item.flag_bits & 1:
                raise DataError(f"The archive {printable(path)!r} is encrypted; unpack it first.")
            if item.is_dir():
                yield _Member(name)
            elif stat.S_ISLNK(mode):
                if item.file_size > 4096:
                    raise zipfile.BadZipFile(f"the link {name} is too long")
                target = archive.read(item).decode("utf-8", "surrogateescape")
                yield _Member(name, link=_link_target(name, target, path))
            elif stat.S_IFMT(mode) not in (0, stat.S_IFREG):
                raise DataError(f"The archive {printable(path)!r} has a device or pipe, {printable(name)!r}.")
            else:
                yield _Member(name, open=lambda item=item: archive.open(item))  # type: ignore[misc]


def _zip_names(items: Sequence[zipfile.ZipInfo], path: str, encoding: str, say: Note) -> list[str]:
    """Return the members' names. Many programs write UTF-8, or their system's encoding, without saying so."""
    names = [item.filename for item in items]
    plain = [n for n, item in enumerate(items) if not (item.flag_bits & 0x800 or item.filename.isascii())]
    content = b"\n".join(names[n].encode("cp437") for n in plain)
    try:
        found = decode_text(content, path, encoding, say).split("\n") if plain else []
    except EncodingError as error:
        first = next(names[n].encode("cp437") for n in plain if not _is_utf8(names[n].encode("cp437")))
        raise DataError(
            f"The names in {printable(path)!r} are not in UTF-8, and it does not say in what: {first!r}. Name their "
            "encoding with --data.encoding (gb18030, cp932, windows-1251, …; cp437 is that of old zips; auto guesses), "
            "or unpack it first."
        ) from error
    for number, name in zip(plain, found, strict=True):
        names[number] = name
    return names


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True
