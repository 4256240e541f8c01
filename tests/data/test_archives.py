"""Archives: what goes in comes out, nothing gets outside, nothing is left half done."""

from __future__ import annotations

import io
import multiprocessing
import os
import pathlib
import stat
import tarfile
import time
import zipfile

import numpy as np
import pytest

from tellapart.data.sources import archives
from tellapart.data.sources.archives import extract
from tellapart.data.sources.opening import open_source
from tellapart.errors import DataError
from tellapart.spec import DataSpec

IMAGES = {f"photos/train/{c}/{n}.png": f"{c}{n}".encode() for c in ("cat", "собака") for n in range(5)}
MODES = {".tar": "w", ".tar.gz": "w:gz", ".tgz": "w:gz", ".tar.xz": "w:xz", ".tar.bz2": "w:bz2"}


def quiet(_: str) -> None:
    return None


def tar(path: pathlib.Path, members: list[tuple[tarfile.TarInfo, bytes]], mode: str = "w") -> str:
    with tarfile.open(path, mode) as archive:
        for info, content in members:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return str(path)


def info(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return member


def contents(folder: str) -> dict[str, bytes]:
    root = pathlib.Path(folder)
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def left(folder: pathlib.Path) -> list[pathlib.Path]:
    """Return what lies where archives are unpacked."""
    return list((folder / "cache" / "archives").iterdir())


@pytest.mark.parametrize("ending", [*MODES, ".zip"])
def test_archives_give_back_what_went_in_and_the_same_samples(tmp_path: pathlib.Path, ending: str) -> None:
    path = tmp_path / f"data{ending}"
    if ending == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in IMAGES.items():
                archive.writestr(name, content)
    else:
        tar(path, [(info(name), content) for name, content in IMAGES.items()], MODES[ending])
    cache = tmp_path / "cache"
    said: list[str] = []
    samples = open_source(DataSpec(source=str(path), cache_dir=str(cache)), said.append)
    assert "Unpacking" in said[0]
    folder = extract(str(path), str(cache), pytest.fail)  # a second time nothing is unpacked
    assert contents(folder) == IMAGES
    assert samples.classes == ("cat", "собака")
    for name, content in IMAGES.items():
        (tmp_path / "plain" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "plain" / name).write_bytes(content)
    plain = open_source(DataSpec(source=str(tmp_path / "plain")), quiet)
    np.testing.assert_array_equal(samples.paths, plain.paths)
    np.testing.assert_array_equal(samples.splits, plain.splits)


def test_a_changed_archive_is_unpacked_anew(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.tar"
    first = extract(tar(path, [(info("a/1.png"), b"one")]), str(tmp_path / "cache"), quiet)
    os.utime(path, ns=(1, 1))
    second = extract(tar(path, [(info("a/1.png"), b"three")]), str(tmp_path / "cache"), quiet)
    assert (contents(first), contents(second)) == ({"a/1.png": b"one"}, {"a/1.png": b"three"})


BAD = {
    "up": (info("../evil.png"), "unsafe member"),
    "deep up": (info("a/../../evil.png"), "unsafe member"),
    "absolute": (info("/tmp/evil.png"), "unsafe member"),
    "drive": (info("C:/evil.png"), "unsafe member"),
    "backslashes": (info("..\\..\\evil.png"), "unsafe member"),
    "link out": (info("a/link", tarfile.SYMTYPE, "../../evil"), "unsafe member"),
    "link to root": (info("a/link", tarfile.SYMTYPE, "/etc/passwd"), "unsafe member"),
    "link of backslashes": (info("a/link", tarfile.SYMTYPE, "..\\..\\evil"), "unsafe member"),
    "hard link out": (info("a/link", tarfile.LNKTYPE, "../evil"), "unsafe member"),
    "hard link to root": (info("a/link", tarfile.LNKTYPE, "/etc/passwd"), "unsafe member"),
    "device": (info("a/null", tarfile.CHRTYPE), "unsafe member.*special file"),
    "pipe": (info("a/pipe", tarfile.FIFOTYPE), "unsafe member.*special file"),
}


@pytest.mark.parametrize("name", BAD)
def test_unsafe_tar_members_are_refused_and_nothing_is_kept(tmp_path: pathlib.Path, name: str) -> None:
    member, words = BAD[name]
    inner = tmp_path / "inner"
    inner.mkdir()
    path = tar(inner / "bad.tar", [(info("a/1.png"), b"1"), (member, b""), (info("a/2.png"), b"2")])
    with pytest.raises(DataError, match=words):
        extract(path, str(inner / "cache"), quiet)
    assert set(contents(str(tmp_path))) == {"inner/bad.tar"}
    assert left(inner) == []


def test_a_link_that_becomes_a_folder_leads_nowhere(tmp_path: pathlib.Path) -> None:
    """Writing through an earlier link of the archive is the classic way out."""
    members = [
        (info("a/inner"), b"file"),
        (info("way", tarfile.SYMTYPE, "a"), b""),
        (info("way/2.png"), b"2"),
    ]
    folder = extract(tar(tmp_path / "x.tar", members), str(tmp_path / "cache"), quiet)
    assert contents(folder) == {"a/inner": b"file", "way/2.png": b"2"}


def test_links_inside_become_files(tmp_path: pathlib.Path) -> None:
    members = [
        (info("b/soft.png", tarfile.SYMTYPE, "../a/1.png"), b""),
        (info("b/chain.png", tarfile.SYMTYPE, "soft.png"), b""),
        (info("b/dangling.png", tarfile.SYMTYPE, "nothing.png"), b""),
        (info("b/folder", tarfile.SYMTYPE, "../a"), b""),
        (info("a/1.png"), b"one"),
        (info("b/hard.png", tarfile.LNKTYPE, "a/1.png"), b""),
    ]
    folder = extract(tar(tmp_path / "x.tar", members), str(tmp_path / "cache"), quiet)
    assert contents(folder) == dict.fromkeys(("a/1.png", "b/soft.png", "b/chain.png", "b/hard.png"), b"one")
    assert not any(path.is_symlink() for path in pathlib.Path(folder).rglob("*"))


@pytest.mark.parametrize(
    "name", ["../evil.png", "/evil.png", "a/../../evil.png", "C:\\evil.png", "..\\evil.png"]
)
def test_unsafe_zip_members_are_refused(tmp_path: pathlib.Path, name: str) -> None:
    (tmp_path / "inner").mkdir()
    with zipfile.ZipFile(tmp_path / "inner/x.zip", "w") as archive:
        archive.writestr("a/1.png", b"1")
        archive.writestr(zipfile.ZipInfo(name), b"2")
    with pytest.raises(DataError, match="unsafe member"):
        extract(str(tmp_path / "inner/x.zip"), str(tmp_path / "inner/cache"), quiet)
    assert set(contents(str(tmp_path))) == {"inner/x.zip"}


def test_zip_links_and_devices(tmp_path: pathlib.Path) -> None:
    def write(path: pathlib.Path, mode: int, content: bytes) -> str:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a/1.png", b"one")
            member = zipfile.ZipInfo("a/other.png")
            member.create_system, member.external_attr = 3, (mode | 0o644) << 16
            archive.writestr(member, content)
        return str(path)

    cache = str(tmp_path / "cache")
    with pytest.raises(DataError, match="unsafe member"):
        extract(write(tmp_path / "out.zip", stat.S_IFLNK, b"../../../etc/passwd"), cache, quiet)
    with pytest.raises(DataError, match=r"unsafe member.*special file"):
        extract(write(tmp_path / "dev.zip", stat.S_IFIFO, b""), cache, quiet)
    with pytest.raises(DataError, match="damaged"):
        extract(write(tmp_path / "long.zip", stat.S_IFLNK, b"x" * 5000), cache, quiet)
    folder = extract(write(tmp_path / "in.zip", stat.S_IFLNK, b"1.png"), cache, quiet)
    assert contents(folder) == {"a/1.png": b"one", "a/other.png": b"one"}


def test_zip_names_in_utf8_without_the_flag(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("猫/1.png", b"1")
    raw = bytearray(path.read_bytes())
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = raw.find(mark) + place
        raw[at : at + 2] = (int.from_bytes(raw[at : at + 2], "little") & ~0x800).to_bytes(2, "little")
    path.write_bytes(raw)
    assert contents(extract(str(path), str(tmp_path / "cache"), quiet)) == {"猫/1.png": b"1"}


def test_encrypted_zip_is_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/1.png", b"1")
    raw = bytearray(path.read_bytes())
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        raw[raw.find(mark) + place] |= 1
    path.write_bytes(raw)
    with pytest.raises(DataError, match="encrypted"):
        extract(str(path), str(tmp_path / "cache"), quiet)


@pytest.mark.parametrize("ending", [".zip", ".tar.gz"])
def test_bombs_stop_at_the_bound(tmp_path: pathlib.Path, ending: str) -> None:
    path = tmp_path / f"bomb{ending}"
    zeros = bytes(8 << 20)
    if ending == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a/1.png", zeros)
    else:
        tar(path, [(info("a/1.png"), zeros)], "w:gz")
    assert path.stat().st_size < 20_000
    with pytest.raises(DataError, match=r"more than 5,000,000 bytes"):
        extract(str(path), str(tmp_path / "cache"), quiet, limit=5_000_000)
    assert left(tmp_path) == []
    extract(str(path), str(tmp_path / "cache"), quiet, limit=len(zeros))


def sparse(path: pathlib.Path, stored: int, size: int) -> str:
    """Write a tar of one sparse file (GNU's old form) whose map says ``stored`` bytes, of a file of ``size``."""
    header = bytearray(info("a/1.png", tarfile.GNUTYPE_SPARSE).tobuf(tarfile.GNU_FORMAT))
    header[386:410] = b"%011o\0%011o\0" % (0, stored)
    header[483:495] = b"%011o\0" % size
    header[124:136] = b"%011o\0" % stored
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path.write_bytes(bytes(header) + b"x" * (-(-stored // 512) * 512) + bytes(1024))
    return str(path)


def test_a_sparse_file_counts_what_is_written_of_it(tmp_path: pathlib.Path) -> None:
    cache = str(tmp_path / "cache")
    with pytest.raises(DataError, match="more than 5,000 bytes"):
        extract(sparse(tmp_path / "map.tar", stored=8192, size=10), cache, quiet, limit=5000)
    with pytest.raises(DataError, match="more than 5,000 bytes"):
        extract(sparse(tmp_path / "hole.tar", stored=512, size=10_000), cache, quiet, limit=5000)
    assert left(tmp_path) == []
    found = contents(extract(sparse(tmp_path / "good.tar", stored=512, size=1000), cache, quiet, limit=5000))
    assert found == {"a/1.png": b"x" * 512 + bytes(488)}


def test_a_negative_size_is_damage(tmp_path: pathlib.Path) -> None:
    header = bytearray(info("a/1.png").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" * 10 + b"\xfe\x00"  # -512, in base 256
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "a.tar").write_bytes(bytes(header) + bytes(2048))
    with pytest.raises(DataError, match="damaged"):
        extract(str(tmp_path / "a.tar"), str(tmp_path / "cache"), quiet)
    assert left(tmp_path) == []


def test_times_and_modes_of_an_archive_are_not_taken(tmp_path: pathlib.Path) -> None:
    member = info("a/1.png")
    member.mtime, member.mode, member.uid = 1e18, 0o4000, 12345
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(member, io.BytesIO())
    folder = extract(str(tmp_path / "a.tar"), str(tmp_path / "cache"), quiet)
    status = (pathlib.Path(folder) / "a/1.png").stat()
    assert stat.S_IMODE(status.st_mode) & 0o7700 == 0o600
    assert abs(status.st_mtime - time.time()) < 100


def test_a_python_without_the_rules_for_tars_says_so(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(tarfile, "data_filter")
    with pytest.raises(DataError, match=r"3\.11\.4 and later can"):
        extract(tar(tmp_path / "a.tar", [(info("a/1.png"), b"1")]), str(tmp_path / "cache"), quiet)


def test_the_bound_follows_the_free_space(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tar(tmp_path / "x.tar", [(info("a/1.png"), bytes(1000))])
    usage = archives.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(DataError, match="more than 900 bytes"):
        extract(path, str(tmp_path / "cache"), quiet)


@pytest.mark.parametrize("ending", [".tar", ".tar.gz", ".tar.xz", ".zip"])
def test_damaged_archives(tmp_path: pathlib.Path, ending: str) -> None:
    path = tmp_path / f"x{ending}"
    path.write_bytes(b"this is not an archive" * 100)
    with pytest.raises(DataError, match="damaged"):
        extract(str(path), str(tmp_path / "cache"), quiet)
    noise = os.urandom(100_000)
    if ending == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a/1.png", noise)
    else:
        tar(path, [(info("a/1.png"), noise)], MODES[ending])
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match="damaged"):
        extract(str(path), str(tmp_path / "cache"), quiet)
    assert left(tmp_path) == []


def test_an_interruption_leaves_nothing(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tar(tmp_path / "x.tar", [(info("a/1.png"), b"1"), (info("a/2.png"), b"2")])
    write = tarfile.TarFile.makefile

    def interrupted(archive: tarfile.TarFile, item: tarfile.TarInfo, place: str) -> None:
        write(archive, item, place)
        if place.endswith("2.png"):
            raise KeyboardInterrupt

    monkeypatch.setattr(tarfile.TarFile, "makefile", interrupted)
    with pytest.raises(KeyboardInterrupt):
        extract(path, str(tmp_path / "cache"), quiet)
    assert left(tmp_path) == []
    monkeypatch.undo()
    assert len(contents(extract(path, str(tmp_path / "cache"), quiet))) == 2


def test_what_a_killed_process_left_is_cleared_later(tmp_path: pathlib.Path) -> None:
    old, new = (tmp_path / "cache/archives" / f".part-{name}" for name in ("old", "new"))
    for folder in (old, new):
        (folder / "content").mkdir(parents=True)
    os.utime(old, (0, 0))
    extract(tar(tmp_path / "x.tar", [(info("a/1.png"), b"1")]), str(tmp_path / "cache"), quiet)
    assert not old.exists()
    assert new.exists()


def _extract(path: str, cache: str, gate: object) -> None:
    gate.wait()  # type: ignore[attr-defined]
    assert len(contents(extract(path, cache, quiet))) == 300


def test_two_processes_at_once(tmp_path: pathlib.Path) -> None:
    path = tar(tmp_path / "x.tar", [(info(f"a/{n}.png"), bytes(2000)) for n in range(300)])
    context = multiprocessing.get_context("fork")
    gate = context.Barrier(2)
    workers = [context.Process(target=_extract, args=(path, str(tmp_path / "cache"), gate)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert len(left(tmp_path)) == 1


def test_zstandard_is_read_or_its_absence_explained(tmp_path: pathlib.Path) -> None:
    import sys

    if sys.version_info >= (3, 14):
        path = tar(tmp_path / "x.tar.zst", [(info("a/1.png"), b"1")], "w:zst")
        assert contents(extract(path, str(tmp_path / "cache"), quiet)) == {"a/1.png": b"1"}
    else:
        (tmp_path / "x.tar.zst").write_bytes(b"(\xb5/\xfd")
        with pytest.raises(DataError, match=r"from 3\.14 on"):
            extract(str(tmp_path / "x.tar.zst"), str(tmp_path / "cache"), quiet)


def test_a_cache_that_cannot_be_written(tmp_path: pathlib.Path) -> None:
    (tmp_path / "cache").write_text("a file in the way")
    path = tar(tmp_path / "x.tar", [(info("a/1.png"), b"1")])
    with pytest.raises(DataError, match="cannot be unpacked"):
        extract(path, str(tmp_path / "cache"), quiet)


def test_an_archive_that_is_cut_off_anywhere_is_refused(tmp_path: pathlib.Path) -> None:
    """tarfile itself ends in silence at a header that is cut or damaged, and half of the images are gone."""
    path = pathlib.Path(
        tar(tmp_path / "set.tar", [(info(name), content) for name, content in IMAGES.items()])
    )
    whole = path.read_bytes()
    end = len(whole.rstrip(b"\0"))
    for cut in range(512, end, 256):
        path.write_bytes(whole[:cut])
        with pytest.raises(DataError, match="damaged"):
            extract(str(path), str(tmp_path / "cache"), quiet)
    broken = bytearray(whole)
    broken[3 * 1024 + 150] ^= 0xFF  # the checksum of a header in the middle
    path.write_bytes(bytes(broken))
    with pytest.raises(DataError, match="damaged"):
        extract(str(path), str(tmp_path / "cache"), quiet)


def test_short_chains_of_links_are_followed(tmp_path: pathlib.Path) -> None:
    members = [(info(f"l{n}", tarfile.SYMTYPE, f"l{n + 1}"), b"") for n in range(20)]
    path = tar(tmp_path / "a.tar", [*members, (info("l20"), b"cat")])
    found = contents(extract(path, str(tmp_path / "cache"), quiet))
    assert found == {f"l{n}": b"cat" for n in range(21)}


def test_a_link_to_a_folder_or_to_nothing_is_left_out(tmp_path: pathlib.Path) -> None:
    links = [("a", "there"), ("b", "nothing"), ("c", "b")]
    members = [(info(name, tarfile.SYMTYPE, target), b"") for name, target in links]
    path = tar(tmp_path / "a.tar", [*members, (info("there/x"), b"cat")])
    assert contents(extract(path, str(tmp_path / "cache"), quiet)) == {"there/x": b"cat"}


CHAINS = {
    "a chain": [(info(f"l{n}", tarfile.SYMTYPE, f"l{n + 1}"), b"") for n in range(20_000)]
    + [(info("l20000"), b"x")],
    "a circle": [(info("a", tarfile.SYMTYPE, "b"), b""), (info("b", tarfile.SYMTYPE, "a"), b"")],
    "a link to itself": [(info("a", tarfile.SYMTYPE, "a"), b"")],
    "hard links in a circle": [
        (info("a", tarfile.LNKTYPE, "b"), b""),
        (info("b", tarfile.LNKTYPE, "a"), b""),
    ],
    "a deep file": [(info("d/" * 5000 + "x"), b"x")],
    "a deep folder": [(info("d/" * 5000, tarfile.DIRTYPE), b"")],
    "a deep link": [(info("x"), b"x"), (info("d/" * 5000 + "y", tarfile.LNKTYPE, "x"), b"")],
    "a long name": [(info("x" * 300), b"x")],
}


@pytest.mark.parametrize("kind", CHAINS)
def test_chains_of_links_and_deep_paths_are_refused_at_once(kind: str, tmp_path: pathlib.Path) -> None:
    path = tar(tmp_path / "a.tar", CHAINS[kind])
    started = time.process_time()
    with pytest.raises(DataError, match="Nothing was unpacked") as caught:
        extract(path, str(tmp_path / "cache"), quiet)
    assert time.process_time() - started < 10
    assert len(str(caught.value)) < 1000
    assert left(tmp_path) == []


def test_deep_paths_in_a_zip_are_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("d/" * 3000 + "x", b"x")
    with pytest.raises(DataError, match="Nothing was unpacked"):
        extract(str(path), str(tmp_path / "cache"), quiet)
    assert left(tmp_path) == []


def inside(folder: str) -> list[str]:
    return sorted(path.name for path in pathlib.Path(folder).iterdir())


def unmarked_zip(path: pathlib.Path, folders: tuple[str, ...], codec: str) -> None:
    """Write a zip as old programs do: names in ``codec``, and no mark that says so."""
    raw = io.BytesIO()
    stand_ins = {chr(65 + n) * len(name.encode(codec)): name.encode(codec) for n, name in enumerate(folders)}
    with zipfile.ZipFile(raw, "w") as archive:
        for stand_in in stand_ins:
            archive.writestr(f"{stand_in}/0.txt", b"x")
    content = raw.getvalue()
    for stand_in, name in stand_ins.items():
        content = content.replace(f"{stand_in}/".encode(), name + b"/")
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("codec", "folders"),
    [
        ("gbk", ("雏菊", "玫瑰", "cat")),
        ("shift_jis", ("薔薇", "表")),
        ("cp1251", ("роза", "мак")),
        ("cp437", ("né", "ür")),
    ],
)
def test_names_in_a_zip_that_does_not_say_their_encoding(
    tmp_path: pathlib.Path, codec: str, folders: tuple[str, ...]
) -> None:
    file, cache = tmp_path / "a.zip", str(tmp_path / "cache")
    unmarked_zip(file, folders, codec)
    with pytest.raises(DataError, match=r"a\.zip' are not in UTF-8.*--data\.encoding"):
        extract(str(file), cache, quiet)
    assert inside(extract(str(file), cache, quiet, encoding=codec)) == sorted(folders)
    said: list[str] = []
    if codec != "cp437":
        assert inside(extract(str(file), cache, said.append, encoding="auto")) == sorted(folders)
        assert "which was guessed" in " ".join(said)


def test_utf8_names_need_no_mark(tmp_path: pathlib.Path) -> None:
    unmarked_zip(tmp_path / "a.zip", ("雏菊", "é"), "utf-8")
    assert inside(extract(str(tmp_path / "a.zip"), str(tmp_path / "c"), quiet)) == ["é", "雏菊"]
