"""Archives: a `.tar` or `.zip` unpacked safely, once, into the cache folder.

tarfile and zipfile write the members, a tar's by the rules of `tarfile.data_filter`. What they do not know is checked
here, before each is written: names that another system would take for a way out, depth, and the bytes that all come to.
No link is ever created (a link inside the archive becomes a hard link or a copy of the file it points to). Knows
nothing of what the files mean.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import posixpath
import re
import shutil
import stat
import sys
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from lzma import LZMAError

from tellapart import places
from tellapart.data.sources.listing import Note, printable
from tellapart.data.sources.text import AUTO, DEFAULT, EncodingError, decode_text
from tellapart.errors import DataError
from tellapart.spec import DataSpec

TAR_EXTENSIONS = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2", ".tar.zst", ".tzst")
EXTENSIONS = (*TAR_EXTENSIONS, ".zip")
_MOST_STEPS = 40  # from link to link, as Linux has it
_MOST_LEVELS, _LONGEST_NAME = 100, 255
_STALE = 7 * 24 * 3600.0
_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, LZMAError, EOFError, NotImplementedError)


def is_archive(path: str) -> bool:
    """Return whether a file's name is that of an archive."""
    return path.lower().endswith(EXTENSIONS)


def cache_folder(spec: DataSpec) -> str:
    """Return the folder for downloads and unpacked archives: ``spec.cache_dir`` or the user's cache folder."""
    return os.fspath(places.cache_folder(spec.cache_dir))


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
            room = _Room(path, int(free * 0.9) if limit is None else limit)
            if absolute.lower().endswith(".zip"):
                links = _unzip(absolute, temporary, room, encoding, say)
            else:
                links = _untar(absolute, temporary, room)
            _make_links(links, temporary, room)
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


class _Room:
    """What one archive may take: names of its members, and bytes."""

    def __init__(self, path: str, limit: int) -> None:
        self.path, self._limit, self._taken = printable(path), limit, 0

    def take(self, size: int) -> None:
        """Count bytes before they are written; both formats write no more of a member than its header says."""
        self._taken += size
        if self._taken > self._limit:
            raise DataError(
                f"The archive {self.path!r} unpacks to more than {self._limit:,} bytes, which is the "
                "bound for the free disk space there; --data.cache-dir chooses another disk."
            )

    def place(self, name: str) -> str:
        """Return a member's name with plain slashes; raise DataError where it leads out or is too deep."""
        clean = name.replace("\\", "/")
        parts = [part for part in clean.split("/") if part not in ("", ".")]
        if (
            clean.startswith("/")
            or "\0" in clean
            or ".." in parts
            or (parts and re.match(r"[A-Za-z]:", parts[0]))
        ):
            raise self.unsafe(f"{printable(name)!r}, which would lie outside of the folder")
        if len(parts) > _MOST_LEVELS or any(len(os.fsencode(part)) > _LONGEST_NAME for part in parts):
            raise DataError(
                f"The archive {self.path!r} has a member of more than {_MOST_LEVELS} folders in one another, or of a "
                f"name of more than {_LONGEST_NAME} bytes: {printable(name[:60])!r} …. Nothing was unpacked."
            )
        return "/".join(parts)

    def leads(self, name: str, target: str) -> str:
        """Return where a symbolic link at ``name`` leads, as a name in the archive; raise DataError if outside."""
        target = target.replace("\\", "/")
        return self.place(posixpath.normpath(posixpath.join(posixpath.dirname(name), target)))

    def unsafe(self, what: str) -> DataError:
        """Return the error for a member that is not unpacked."""
        return DataError(
            f"The archive {self.path!r} has an unsafe member: {what[:300]}. Nothing was unpacked; use an archive of "
            "plain files with relative paths only."
        )


def _untar(path: str, target: str, room: _Room) -> list[tuple[str, str]]:
    """Unpack a tar; return its links as pairs of names."""
    if path.lower().endswith(("zst", "zstd")) and sys.version_info < (3, 14):
        raise DataError(
            f"{printable(path)!r} is compressed with Zstandard, which Python reads from 3.14 on. Unpack it, "
            "or use .tar.xz or .tar.gz."
        )
    if not hasattr(tarfile, "data_filter"):
        raise DataError(
            f"{printable(path)!r} cannot be unpacked safely by this Python; 3.11.4 and later can. Unpack it first."
        )
    links: list[tuple[str, str]] = []

    def allowed(item: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
        sparse = [size for _, size in getattr(item, "sparse", None) or ()]  # written before the file is cut
        if min(item.size, *sparse, 0) < 0:
            raise tarfile.ReadError(f"{printable(item.name)[:100]!r} has a negative size")
        room.take(max(item.size, sum(sparse)))
        item = item.replace(name=room.place(item.name) or ".", deep=False)
        if item.islnk() or item.issym():
            leads = room.leads(item.name, item.linkname) if item.issym() else room.place(item.linkname)
            links.append((item.name, leads))
            return None
        checked = tarfile.data_filter(item, folder)
        # A file here may not be able to have its time, and its mode is left to the umask.
        return checked.replace(mtime=None, mode=None, deep=False)  # type: ignore[arg-type]

    with tarfile.open(path, "r:*") as archive:
        try:
            archive.extractall(target, filter=allowed)
        except tarfile.FilterError as error:
            raise room.unsafe(str(error)) from error
        check_end(archive)
    return links


def check_end(archive: tarfile.TarFile) -> None:
    """Raise tarfile.ReadError where an archive, read to its end, has no mark there.

    tarfile silently stops at a truncated or damaged header, as if the archive ended there.
    """
    stream = archive.fileobj
    if stream is not None:
        stream.seek(archive.offset)
        if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"it is truncated, or has a damaged header at byte {archive.offset:,}")


def _unzip(path: str, target: str, room: _Room, encoding: str, say: Note) -> list[tuple[str, str]]:
    """Unpack a zip; return its links as pairs of names."""
    links: list[tuple[str, str]] = []
    with zipfile.ZipFile(path) as archive:
        items = archive.infolist()
        for item, name in zip(items, _zip_names(items, path, encoding, say), strict=True):
            room.take(item.file_size)
            kind = stat.S_IFMT(item.external_attr >> 16)
            if item.flag_bits & 1:
                raise DataError(f"The archive {printable(path)!r} is encrypted; unpack it first.")
            folder = item.is_dir()
            item.filename = room.place(name) + "/" * folder
            if folder or kind in (0, stat.S_IFREG):
                archive.extract(item, target)
            elif kind != stat.S_IFLNK:
                raise room.unsafe(f"{printable(name)!r} is a special file")
            elif item.file_size > 4096:
                raise zipfile.BadZipFile(f"the link {printable(name)} is too long")
            else:
                leads = archive.read(item).decode("utf-8", "surrogateescape")
                links.append((item.filename, room.leads(item.filename, leads)))
    return links


def _make_links(named: Sequence[tuple[str, str]], target: str, room: _Room) -> None:
    """Give each link's file a second name (or a copy); links to folders or to nothing are left out."""
    links = [(os.path.join(target, name), os.path.join(target, leads)) for name, leads in named]
    follow = dict(links)
    for place, _ in links:
        source, steps = place, 0
        while source in follow and not os.path.lexists(source):
            source, steps = follow[source], steps + 1
            if steps > _MOST_STEPS:
                raise DataError(
                    f"The archive {room.path!r} has a chain of more than {_MOST_STEPS} links, or links in a "
                    f"circle, at {printable(os.path.basename(place))!r}. Nothing was unpacked."
                )
        if not os.path.isfile(source) or os.path.exists(place):
            continue
        os.makedirs(os.path.dirname(place), exist_ok=True)
        try:
            os.link(source, place)
        except OSError:
            room.take(os.stat(source).st_size)
            shutil.copyfile(source, place)


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
