"""Known names: official classes, local copies in every layout, and clear words without a network."""

from __future__ import annotations

import gzip
import importlib.util
import pathlib
import pickle
import struct
import tarfile
import urllib.error
from typing import Any

import numpy as np
import pytest

from tellapart import packages
from tellapart.data.samples import Samples
from tellapart.data.sources import arrays, known, torchvision_sets
from tellapart.data.sources.opening import open_source
from tellapart.errors import DataError, MissingPackageError, OfflineError, SpecError
from tellapart.spec import DataSpec

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _no_shared_copies(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known, "SHARED", str(tmp_path / "shared"))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Make every download of torchvision's fail as it does without a network."""
    packages.prepare_torchvision()
    from torchvision.datasets import utils

    asked: list[str] = []

    def fail(request: Any, *_: object, **__: object) -> None:
        asked.append(getattr(request, "full_url", str(request)))
        raise urllib.error.URLError("Temporary failure in name resolution")

    monkeypatch.setattr(utils.urllib.request, "urlopen", fail)
    return asked


def read(source: object, **options: object) -> Samples:
    return open_source(DataSpec(source=str(source), **options), lambda _: None)


def idx(path: pathlib.Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = (
        b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    )
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def idx_set(
    folder: pathlib.Path, ending: str = ".gz", prefix: str = "", test: str = "t10k", first: int = 0
) -> dict[str, np.ndarray]:
    made = {}
    for stem, count in (("train", 40), (test, 10)):
        made[stem] = RNG.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        idx(folder / f"{prefix}{stem}-images-idx3-ubyte{ending}", made[stem])
        idx(
            folder / f"{prefix}{stem}-labels-idx1-ubyte{ending}",
            (np.arange(count) % 10 + first).astype(np.uint8),
        )
    return made


# --- digits ---------------------------------------------------------------------------------------------------


def test_digits_are_scikit_learns_with_an_honest_split() -> None:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    samples = read("digits")
    assert samples.classes == tuple("0123456789")
    assert samples.pixels is not None
    assert samples.pixels.dtype == np.uint8
    assert samples.pixels.shape == (1797, 8, 8)
    np.testing.assert_allclose(samples.pixels, bunch.images * 255 / 16, atol=0.5)
    np.testing.assert_array_equal(samples.labels, bunch.target)
    assert samples.pixels.max() == 255
    for split, fraction in (("val", 0.1), ("test", 0.2)):
        assert (np.abs(samples.counts(split) - samples.counts() * fraction) < 1).all()
    np.testing.assert_array_equal(samples.read(7), samples.pixels[7])
    part = samples.split("test")
    assert part.keys is not None
    np.testing.assert_array_equal(part.read(0), samples.pixels[part.keys[0]])


# --- IDX ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize(
    "place",
    [
        "shared/fashion-mnist",
        "cache/fashion-mnist",
        "cache/FashionMNIST/raw",
        "cache/fashion-mnist/FashionMNIST/raw",
    ],
)
def test_idx_files_are_found_by_the_name(tmp_path: pathlib.Path, place: str, ending: str) -> None:
    made = idx_set(tmp_path / place, ending)
    samples = read("Fashion_MNIST", cache_dir=str(tmp_path / "cache"), download=False, val_fraction=0.25)
    assert samples.name == "fashion-mnist"
    assert samples.classes[0] == "T-shirt/top"
    assert samples.classes[9] == "Ankle boot"
    assert [samples.counts(s).sum() for s in ("train", "val", "test")] == [30, 10, 10]
    np.testing.assert_array_equal(samples.pixels, np.concatenate([made["train"], made["t10k"]]))
    assert (samples.paths[0], samples.paths[-1]) == ("train/0", "test/9")


def test_a_folder_of_idx_files_is_a_source(tmp_path: pathlib.Path) -> None:
    for name, first in (("my-fashion", "T-shirt/top"), ("plain", "0"), ("kmnist", "o")):
        idx_set(tmp_path / name)
        assert read(tmp_path / name).classes[0] == first
    idx_set(tmp_path / "other/MNIST/raw", "")
    assert len(read(tmp_path / "other")) == 50


def test_emnist_is_made_upright_and_letters_count_from_one(tmp_path: pathlib.Path) -> None:
    made = idx_set(tmp_path / "cache/emnist/EMNIST/raw", ".gz", "emnist-letters-", "test", first=1)
    samples = read("emnist-letters", cache_dir=str(tmp_path / "cache"), download=False)
    assert samples.classes[:3] == ("a", "b", "c")
    assert samples.labels[:3].tolist() == [0, 1, 2]
    assert samples.pixels is not None
    np.testing.assert_array_equal(samples.pixels[0], made["train"][0].T)
    assert len(read(tmp_path / "cache/emnist/EMNIST/raw")) == 50


@pytest.mark.parametrize("damage", ["magic", "short", "gzip", "labels"])
def test_damaged_idx_files_are_named(tmp_path: pathlib.Path, damage: str) -> None:
    idx_set(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    content = gzip.decompress(path.read_bytes())
    if damage == "labels":
        path = tmp_path / "train-labels-idx1-ubyte.gz"
        content = gzip.decompress(path.read_bytes())[:-1] + b"\x63"
    changed = {"magic": b"xyz" + content[3:], "short": content[:-5]}.get(damage, content)
    path.write_bytes(b"no gzip" if damage == "gzip" else gzip.compress(changed))
    with pytest.raises(DataError, match=str(tmp_path)):
        read(tmp_path)


# --- CIFAR ----------------------------------------------------------------------------------------------------


def old_array_pickle(value: dict[str, Any]) -> bytes:
    """Pickle as the original batches are: protocol 2 and numpy's old module name."""
    return pickle.dumps(value, protocol=2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def cifar_folder(root: pathlib.Path, hundred: bool = False) -> tuple[pathlib.Path, np.ndarray]:
    folder = root / ("cifar-100-python" if hundred else "cifar-10-batches-py")
    folder.mkdir(parents=True)
    images = RNG.integers(0, 256, (60, 3072), dtype=np.uint8)
    names = ["train", "test"] if hundred else [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]
    classes = [f"class {n:03d}" for n in range(100)] if hundred else list("jihgfedcba")
    for part, name in zip(np.split(images, len(names)), names, strict=True):
        labels = [n % len(classes) for n in range(len(part))]
        value = {
            "data": part,
            "fine_labels" if hundred else "labels": labels,
            "filenames": ["x.png"] * len(part),
        }
        (folder / name).write_bytes(old_array_pickle(value))
    meta = {"fine_label_names" if hundred else "label_names": classes}
    (folder / ("meta" if hundred else "batches.meta")).write_bytes(old_array_pickle(meta))
    return folder, images


@pytest.mark.parametrize("hundred", [False, True])
def test_cifar_batches_by_name_and_by_path(tmp_path: pathlib.Path, hundred: bool) -> None:
    folder, images = cifar_folder(tmp_path / "cache", hundred)
    name = "cifar100" if hundred else "cifar10"
    samples = read(name, cache_dir=str(tmp_path / "cache"), download=False, val_fraction=0)
    np.testing.assert_array_equal(samples.pixels, images.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    assert samples.classes[0] == ("class 000" if hundred else "j")  # the official order, not the sorted one
    assert samples.splits.tolist() == ["train"] * (30 if hundred else 50) + ["test"] * (30 if hundred else 10)
    assert samples.paths[-1] == ("test/29" if hundred else "test/9")
    assert len(set(samples.paths)) == 60
    for path in (folder, folder.parent):
        np.testing.assert_array_equal(read(path, val_fraction=0).pixels, samples.pixels)


def test_a_packed_cifar_in_the_cache_is_unpacked(tmp_path: pathlib.Path) -> None:
    folder, _ = cifar_folder(tmp_path / "made")
    (tmp_path / "cache/cifar10").mkdir(parents=True)
    packed = tmp_path / "cache/cifar10/cifar-10-python.tar.gz"
    with tarfile.open(packed, "w:gz") as archive:
        archive.add(folder, folder.name)
    assert len(read("cifar-10", cache_dir=str(tmp_path / "cache"), download=False)) == 60
    assert len(read(packed, cache_dir=str(tmp_path / "cache"))) == 60


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pathlib.Path.touch, (pathlib.Path("pwned"),))


def test_pickles_cannot_run_anything(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder, _ = cifar_folder(tmp_path)
    for value in (Evil(), {"data": Evil()}, {"data": np.array([Evil()], dtype=object)}):
        (folder / "data_batch_3").write_bytes(pickle.dumps(value))
        with pytest.raises(DataError, match=r"data_batch_3.* is not a CIFAR batch"):
            read(folder)
    for payload in (
        b"cos\nsystem\n(S'touch pwned'\ntR.",
        b"c_codecs\ndecode\n(S'eA=='\nS'base64'\ntR.",
        b"",
        b"\x80\x02noise",
    ):
        (folder / "data_batch_3").write_bytes(payload)
        with pytest.raises(DataError, match="not a CIFAR batch"):
            read(folder)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    "value",
    [
        [1, 2],
        {"labels": [1]},
        {"data": np.zeros((2, 5), np.uint8), "labels": [0, 1]},
        {"data": np.zeros((2, 3072), np.uint8), "labels": [0, 55]},
    ],
)
def test_batches_of_another_shape_are_refused(tmp_path: pathlib.Path, value: Any) -> None:
    folder, _ = cifar_folder(tmp_path)
    (folder / "data_batch_1").write_bytes(pickle.dumps(value, protocol=2))
    with pytest.raises(DataError):
        read(folder)


# --- ImageNet -------------------------------------------------------------------------------------------------


def test_imagenet_folders_get_the_official_names(tmp_path: pathlib.Path) -> None:
    info = pathlib.Path(str(importlib.util.find_spec("timm").origin)).parent / "data/_info"  # type: ignore[union-attr]
    numbers = (info / "imagenet_synsets.txt").read_text().split()
    lemmas = dict(
        line.split("\t") for line in (info / "imagenet_synset_to_lemma.txt").read_text().splitlines()
    )
    for split in ("train", "val"):
        for number in numbers:
            path = tmp_path / "cache/imagenet" / split / number / "1.JPEG"
            path.parent.mkdir(parents=True)
            path.touch()
    samples = read("imagenet", cache_dir=str(tmp_path / "cache"))
    assert len(set(samples.classes)) == 1000
    assert (samples.classes[0], samples.classes[999]) == ("tench", "toilet tissue")
    assert all(numbers[label] in path for label, path in zip(samples.labels, samples.paths, strict=True))
    agree = [
        name.lower() in lemmas[number].lower() for name, number in zip(samples.classes, numbers, strict=True)
    ]
    assert sum(agree) > 850  # the rest are other words for the same thing
    assert read(tmp_path / "cache/imagenet").classes == samples.classes


def test_imagenet_is_not_downloaded_but_explained(tmp_path: pathlib.Path) -> None:
    with pytest.raises(OfflineError, match=r"image-net\.org"):
        read("imagenet", cache_dir=str(tmp_path))


# --- torchvision's sets and no network ------------------------------------------------------------------------

DOWNLOADS = sorted(set(known.OPENERS) - {"digits", "imagenet"})


@pytest.mark.parametrize("name", DOWNLOADS)
def test_without_a_network_every_name_gives_advice(
    name: str, tmp_path: pathlib.Path, no_network: list[str]
) -> None:
    with pytest.raises(OfflineError) as caught:
        read(name, cache_dir=str(tmp_path / "cache"))
    text = str(caught.value)
    assert repr(name) in text or (name.startswith("emnist") and "'emnist" in text)
    assert str(tmp_path / "cache") in text
    by_hand = name in ("fer2013", "stanford-cars")
    assert bool(no_network) != by_hand
    assert not any(".part-" in str(path) for path in (tmp_path / "cache").rglob("*"))
    with pytest.raises(OfflineError, match=r"data\.download is off"):
        read(name, cache_dir=str(tmp_path / "cache"), download=False)


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError(104, "reset"),
        TimeoutError("timed out"),
        RuntimeError("File not found or corrupted."),
        urllib.error.HTTPError("u", 503, "busy", None, None),
    ],
)  # type: ignore[arg-type]
def test_every_network_error_becomes_an_offline_error(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    packages.prepare_torchvision()
    from torchvision import datasets

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(datasets.MNIST, "download", fail)
    with pytest.raises(OfflineError, match="could not be downloaded"):
        read("mnist", cache_dir=str(tmp_path / "cache"))


def test_a_full_disk_is_not_called_a_network_error(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages.prepare_torchvision()
    from torchvision import datasets

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(datasets.MNIST, "download", fail)
    with pytest.raises(DataError, match="cannot be stored"):
        read("mnist", cache_dir=str(tmp_path / "cache"))


def test_a_download_appears_whole(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packages.prepare_torchvision()
    from torchvision import datasets

    def download(self: Any) -> None:
        assert ".part-" in str(self.root)
        idx_set(pathlib.Path(self.raw_folder), "")

    monkeypatch.setattr(datasets.KMNIST, "download", download)
    said: list[str] = []
    spec = DataSpec(source="kmnist", cache_dir=str(tmp_path / "cache"))
    samples = open_source(spec, said.append)
    assert samples.classes == ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
    assert any("Downloading kmnist" in text for text in said)
    monkeypatch.undo()
    monkeypatch.setattr(known, "SHARED", str(tmp_path / "shared"))
    assert len(open_source(spec, said.append)) == 50


def test_without_torchvision_the_extra_is_named(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "installed", lambda _: False)
    with pytest.raises(MissingPackageError, match=r"tellapart\[models\]"):
        read("svhn", cache_dir=str(tmp_path))


class Fake:
    """Looks like a data set of torchvision's: classes, and files or arrays where that one keeps them."""

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)


def test_file_sets_become_relative_paths_with_official_names(tmp_path: pathlib.Path) -> None:
    root = str(tmp_path)
    for name, attribute in (("dtd", "_image_files"), ("country211", "samples"), ("imagenette", "_samples")):
        files = [f"{root}/x/{n}.jpg" for n in range(4)]
        labels = [1, 0, 1, 0]
        values: dict[str, Any] = {
            "classes": [("b", "second name"), ("a",)] if name == "imagenette" else ["b", "a"]
        }
        values[attribute] = files if attribute == "_image_files" else list(zip(files, labels, strict=True))
        part = Fake(**values, _labels=labels)
        listing = torchvision_sets.listing(torchvision_sets.SETS[name], {"train": part, "val": part}, root)
        assert listing.paths[0] == "x/0.jpg"
        assert listing.labels[:2] == ["a", "b"]
        assert listing.classes == ("b", "a")
        assert listing.splits == ["train"] * 4 + ["val"] * 4


def test_array_sets_become_pixels_with_channels_last() -> None:
    colour = Fake(data=RNG.integers(0, 256, (5, 3, 8, 8), dtype=np.uint8), labels=np.array([0, 1, 2, 3, 9]))
    listing = torchvision_sets.listing(torchvision_sets.SETS["svhn"], {"train": colour}, "")
    assert listing.pixels is not None
    assert listing.pixels.shape == (5, 8, 8, 3)
    np.testing.assert_array_equal(listing.pixels[2, :, :, 1], colour.data[2, 1])
    assert listing.labels == ["0", "1", "2", "3", "9"]
    wide = Fake(data=np.zeros((2, 28, 28), np.uint8), targets=np.array([[3, 9, 9], [4, 9, 9]]))
    assert torchvision_sets.listing(torchvision_sets.SETS["qmnist"], {"test": wide}, "").labels == ["3", "4"]


def test_frames_of_one_traffic_sign_stay_together(tmp_path: pathlib.Path) -> None:
    train = [
        (f"{tmp_path}/gtsrb/GTSRB/Training/{k:05d}/{t:05d}_{f:05d}.ppm", k)
        for k in range(2)
        for t in range(8)
        for f in range(5)
    ]
    test = [(f"{tmp_path}/gtsrb/GTSRB/Final_Test/Images/{n:05d}.ppm", n % 2) for n in range(6)]
    parts = {"train": Fake(_samples=train), "test": Fake(_samples=test)}
    listing = torchvision_sets.listing(torchvision_sets.SETS["gtsrb"], parts, str(tmp_path))
    assert listing.groups is not None
    assert len(set(listing.groups)) == 16 + 6
    assert listing.labels[0] == "speed limit 20"


@pytest.mark.parametrize(
    ("name", "files", "classes", "splits"),
    [
        ("eurosat", "eurosat/2750/{}/{}.jpg", ("Forest", "River"), {"train", "val", "test"}),
        (
            "caltech101",
            "caltech101/101_ObjectCategories/{}/image_{}.jpg",
            ("ant", "lotus"),
            {"train", "val", "test"},
        ),
        (
            "caltech256",
            "caltech256/256_ObjectCategories/{}/001_{}.jpg",
            ("001.ak47", "002.flag"),
            {"train", "val", "test"},
        ),
        ("imagenette", "imagenette2/train/{}/{}.jpeg", ("n01440764", "n02979186"), {"train", "val"}),
    ],
)
def test_a_local_copy_in_torchvisions_layout_is_read(
    tmp_path: pathlib.Path,
    no_network: list[str],
    name: str,
    files: str,
    classes: tuple[str, ...],
    splits: set[str],
) -> None:
    root = tmp_path / "cache" / name
    places = [files.format(c, f"{n:04d}") for c in classes for n in range(10)]
    if name == "imagenette":
        places += [place.replace("/train/", "/val/") for place in places]
    for place in places:
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).touch()
    if name == "caltech101":
        (root / "caltech101/Annotations").mkdir()
        (root / "caltech101/101_ObjectCategories/BACKGROUND_Google").mkdir()  # no class, as its authors say
        (root / "caltech101/101_ObjectCategories/BACKGROUND_Google/image_0001.jpg").touch()
    samples = read(name, cache_dir=str(tmp_path / "cache"))
    expected = {"caltech256": ("ak47", "flag"), "imagenette": ("tench", "cassette player")}.get(name, classes)
    assert samples.classes == expected
    assert set(samples.paths) == set(places)
    assert set(samples.splits) == splits
    assert all(pathlib.Path(samples.file(row)).is_file() for row in range(len(samples)))
    assert no_network == []


def test_another_layout_of_torchvision_is_an_error_that_says_so() -> None:
    with pytest.raises(DataError, match="keeps DTD differently"):
        torchvision_sets.listing(torchvision_sets.SETS["dtd"], {"train": Fake(classes=["a"])}, "")


def test_the_table_agrees_with_torchvision() -> None:
    packages.prepare_torchvision()
    from torchvision import datasets

    for row in torchvision_sets.SETS.values():
        assert issubclass(getattr(datasets, row.class_name), datasets.VisionDataset)
        assert (row.files is None) != (row.arrays is None)
    for part, names in arrays.EMNIST.items():
        assert names == tuple(name for name in datasets.EMNIST.classes_split_dict[part] if name != "N/A")
    assert tuple(datasets.FashionMNIST.classes) == arrays.FASHION
    assert tuple(datasets.KMNIST.classes) == arrays.KUZUSHIJI
    assert len(torchvision_sets.TRAFFIC_SIGNS) == 43


# --- Names ----------------------------------------------------------------------------------------------------


def test_unknown_names_get_the_nearest_and_where_a_path_was_looked_for(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as caught:
        read("cifar11")
    assert "'cifar10'" in str(caught.value)
    assert str(tmp_path / "cifar11") in str(caught.value)
    with pytest.raises(DataError, match="Did you mean 'fashion-mnist'"):
        read("fashion-minst", format="name")
    with pytest.raises(SpecError):
        DataSpec(source="digits", format="nonsense")  # type: ignore[arg-type]


def test_spellings_of_a_name() -> None:
    for text in ("CIFAR10", "cifar-10", "Fashion_MNIST", "FashionMNIST", "Oxford IIIT Pet", "imagenet-1k"):
        assert known.canonical(text)
    assert known.canonical("./digits") == ""
    for name in known.names():
        assert known.canonical(name) == name
