"""Objects of Python as data: data sets, frames, arrays and lists become the same table as files do."""

from __future__ import annotations

import io
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from tellapart import packages
from tellapart.contract.decoding import decode
from tellapart.contract.given import content_of
from tellapart.contract.preprocessing import Preprocessing
from tellapart.data.samples import Samples, content_hash
from tellapart.data.sources.objects import take
from tellapart.data.sources.opening import open_source
from tellapart.data.stores.images import evaluation_images
from tellapart.errors import DataError
from tellapart.spec import DataSpec

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 6, 8, 3), dtype=np.uint8)
LABELS = [number % 3 for number in range(24)]
CONTRACT = Preprocessing(6, 3, "crop", "bilinear", 1.0, (0.5,) * 3, (0.5,) * 3)
NAMES = ["ant", "bee", "cat"]


class Pairs(Dataset):
    """A data set of pairs, through a function."""

    def __init__(self, make: Callable[[int], Any], count: int = 24, **more: Any) -> None:
        self.make, self.count = make, count
        self.__dict__.update(more)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return self.make(index)


def opened(data: Any, spec: DataSpec | None = None, notes: list[str] | None = None, **more: Any) -> Samples:
    given = take(data, **more)
    assert given is not None
    spec = spec or DataSpec(source=given.name)
    return open_source(spec, (notes if notes is not None else []).append, given=given)


def refused(data: Any, spec: DataSpec | None = None, **more: Any) -> str:
    with pytest.raises(DataError) as caught:
        opened(data, spec, **more)
    return str(caught.value)


def table(samples: Samples) -> list[tuple[str, str]]:
    return sorted(
        (path, samples.classes[label]) for path, label in zip(samples.paths, samples.labels, strict=True)
    )


def chw(index: int) -> torch.Tensor:
    return torch.from_numpy(PIXELS[index]).permute(2, 0, 1)


KINDS: dict[str, Callable[[], Any]] = {
    "pillow": lambda: Pairs(lambda i: (Image.fromarray(PIXELS[i]), LABELS[i]), classes=NAMES),
    "array": lambda: Pairs(lambda i: (PIXELS[i], np.int64(LABELS[i])), classes=NAMES),
    "array, channels first": lambda: Pairs(
        lambda i: (PIXELS[i].transpose(2, 0, 1), LABELS[i]), classes=NAMES
    ),
    "tensor": lambda: Pairs(lambda i: (chw(i), torch.tensor(LABELS[i])), classes=NAMES),
    "tensor of floats": lambda: Pairs(lambda i: (chw(i).float() / 255, LABELS[i]), classes=NAMES),
    "half": lambda: Pairs(lambda i: ((chw(i).double() / 255).half(), LABELS[i]), classes=NAMES),
    "texts": lambda: Pairs(lambda i: (PIXELS[i], NAMES[LABELS[i]])),
    "numpy text": lambda: Pairs(lambda i: (PIXELS[i], np.str_(NAMES[LABELS[i]]))),
    "whole floats": lambda: Pairs(lambda i: (PIXELS[i], float(LABELS[i])), classes=tuple(NAMES)),
    "one number": lambda: Pairs(lambda i: (PIXELS[i], np.array([LABELS[i]])), classes=NAMES),
    "mapping": lambda: Pairs(lambda i: {"image": PIXELS[i], "label": LABELS[i], "id": i}, classes=NAMES),
    "synonyms": lambda: Pairs(
        lambda i: (PIXELS[i], LABELS[i]), classes=[("ant", "emmet"), ("bee",), ("cat",)]
    ),
    "list": lambda: [(PIXELS[i], NAMES[LABELS[i]]) for i in range(24)],
    "subset": lambda: Subset(Pairs(lambda i: (PIXELS[i], LABELS[i]), classes=NAMES), list(range(24))),
    "concatenated": lambda: ConcatDataset(
        [
            Pairs(lambda i: (PIXELS[i], LABELS[i]), 12, classes=NAMES),
            Pairs(lambda i: (PIXELS[i + 12], LABELS[i + 12]), 12, classes=NAMES),
        ]
    ),
    "png bytes": lambda: Pairs(lambda i: (_file(Image.fromarray(PIXELS[i])), LABELS[i]), classes=NAMES),
}
GIVEN_NAMES: dict[str, Callable[[], Any]] = {
    "arrays": lambda: (PIXELS, np.array(LABELS)),
    "arrays and a list": lambda: (PIXELS, LABELS),
    "tensors": lambda: (torch.from_numpy(PIXELS).permute(0, 3, 1, 2), torch.tensor(LABELS)),
    "tensor data set": lambda: TensorDataset(
        torch.from_numpy(PIXELS).permute(0, 3, 1, 2).float() / 255, torch.tensor(LABELS)
    ),
    "generator of numbers": lambda: Pairs(lambda i: (PIXELS[i], np.uint8(LABELS[i]))),
}


def _file(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("name", [*KINDS, *GIVEN_NAMES])
def test_an_object_gives_its_own_pixels_and_labels_stratified(name: str, tmp_path: Path) -> None:
    classes = NAMES if name in GIVEN_NAMES else None
    samples = opened({**KINDS, **GIVEN_NAMES}[name](), classes=classes)
    assert samples.classes == ("ant", "bee", "cat")
    assert table(samples) == sorted((f"image/{i}", NAMES[LABELS[i]]) for i in range(24))
    assert [samples.counts(split).tolist() for split in ("train", "val", "test")] == [
        [5] * 3,
        [1] * 3,
        [2] * 3,
    ]
    images, bad = evaluation_images(samples, CONTRACT, DataSpec(cache_dir=str(tmp_path)))
    assert not bad
    for row in range(24):
        assert np.array_equal(images.store.image(row), PIXELS[row][:, 1:7])


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I;16", "I"]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_pillow_image_is_what_its_lossless_file_is(mode: str, channels: int) -> None:
    image = Image.fromarray(PIXELS[0]).convert("RGBA")
    image.putalpha(Image.fromarray(PIXELS[1][..., 0]))
    if mode in ("I;16", "I"):
        image = Image.fromarray(PIXELS[0][..., 0].astype(np.uint16) * 257)
        image = image.convert("I") if mode == "I" else image
    elif mode == "LAB":
        image = Image.frombytes("LAB", (8, 6), PIXELS[0].tobytes())
    else:
        image = (
            image.convert("RGB").convert(mode)
            if mode in ("CMYK", "YCbCr", "HSV", "P")
            else image.convert(mode)
        )
    stored = (
        image.convert("RGB") if mode in ("HSV", "YCbCr") else image.convert("RGBA") if mode == "PA" else image
    )
    file = _file(stored, "TIFF" if mode in ("CMYK", "LAB", "I", "I;16") else "PNG")
    content = content_of(image)
    from tellapart.data.stores.decoded import pixels

    assert np.array_equal(pixels(content, channels, 10**6), decode(file, channels))


def test_orientation_is_obeyed() -> None:
    image = Image.fromarray(PIXELS[0])
    image.getexif()[0x0112] = 6
    turned = content_of(image)
    assert np.array_equal(turned, np.rot90(PIXELS[0], -1))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("levels", [None, (0.0, 4095.0)])
def test_sixteen_bits_follow_the_rules_for_files(channels: int, levels: tuple[float, float] | None) -> None:
    deep = np.random.default_rng(1).integers(0, 65536, (5, 7, 3)).astype(np.uint16)
    high = deep if channels == 3 else deep[..., :1]
    got = decode(content_of(high), channels, levels=levels)  # type: ignore[arg-type]
    if levels is None:
        wanted = deep >> 8 if channels == 3 else np.rint(high / 257)
    else:
        wanted = np.floor(np.clip(high.astype(float) * 255 / 4095, 0, 255) + 0.5)
    assert np.array_equal(got, wanted)
    assert np.array_equal(decode(content_of(np.squeeze(high)), channels, levels=levels), wanted)  # type: ignore[arg-type]


@pytest.mark.parametrize("channels", [1, 3])
def test_floating_point_with_a_range_keeps_its_numbers(channels: int) -> None:
    values = np.random.default_rng(2).normal(size=(4, 6, channels)).astype(np.float32)
    got = decode(content_of(values, ranged=True), channels, levels=(-2.0, 2.0))  # type: ignore[arg-type]
    assert np.array_equal(got, np.floor(np.clip((values.astype(float) + 2) * 255 / 4, 0, 255) + 0.5))


def test_names_of_data_sets_with_other_classes_are_joined_by_name() -> None:
    train = Pairs(lambda i: (PIXELS[i], LABELS[i]), classes=NAMES)
    val = Pairs(
        lambda i: (PIXELS[i], i % 2), 10, classes=["ant", "cat"]
    )  # as ImageFolder, where a folder is missing
    samples = opened(train, val=val)
    assert samples.classes == ("ant", "bee", "cat")
    assert samples.split("val").counts().tolist() == [5, 0, 5]
    assert samples.paths[0] == "train/0"


def test_numbers_without_names_are_classes_in_their_order() -> None:
    samples = opened(Pairs(lambda i: (PIXELS[i], [2, 10, 7][i % 3])))
    assert samples.classes == ("2", "7", "10")


def test_an_official_order_of_classes_is_kept_and_a_given_one_goes_before_it() -> None:
    data = Pairs(lambda i: (PIXELS[i], LABELS[i]), classes=["zebra", "ant", "cat"])
    assert opened(data).classes == ("zebra", "ant", "cat")
    other = opened(data, classes=["cat", "ant", "zebra"])
    assert other.classes == ("cat", "ant", "zebra")
    assert dict(table(other))["image/0"] == "zebra"
    assert dict(table(opened(data, classes=["a", "b", "c"])))["image/0"] == "a"


def test_a_label_changed_on_the_way_is_not_named_by_the_inner_data_set() -> None:
    data = Pairs(lambda i: (PIXELS[i], LABELS[i] // 2), classes=NAMES, target_transform=lambda y: y // 2)
    assert opened(data).classes == ("0", "1")


def test_what_has_no_label_or_cannot_be_read_is_left_out_with_a_message() -> None:
    def make(index: int) -> Any:
        if index == 4:
            raise OSError("broken")
        return PIXELS[index], -1 if index == 5 else float("nan") if index == 6 else LABELS[index]

    notes: list[str] = []
    samples = opened(Pairs(make, classes=NAMES), notes=notes)
    assert len(samples) == 21
    assert [item.path for item in samples.unusable] == ["image/4"]
    assert "2 images of Pairs(24) without a label" in " ".join(notes)
    assert "broken" in samples.unusable[0].reason
    assert "image/4" in refused(Pairs(make, classes=NAMES), DataSpec(on_bad_image="error"))


def test_a_file_that_pillow_cannot_read_to_its_end_is_a_bad_image(tmp_path: Path) -> None:
    noise = np.random.default_rng(4).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    broken = _file(Image.fromarray(noise))[:2000]
    data = Pairs(
        lambda i: (Image.open(io.BytesIO(broken)) if i == 3 else PIXELS[i], LABELS[i]), classes=NAMES
    )
    samples = opened(data)
    images, bad = evaluation_images(samples, CONTRACT, DataSpec(cache_dir=str(tmp_path)))
    assert [item.path for item in bad] == ["image/3"]
    assert len(images) == 23


def test_more_than_a_pair_is_reported() -> None:
    notes: list[str] = []
    samples = opened(Pairs(lambda i: (PIXELS[i], LABELS[i], i)), notes=notes)
    assert samples.classes == ("0", "1", "2")
    assert any("returns 3 items" in note for note in notes)


def test_copies_go_to_one_split() -> None:
    samples = opened(
        Pairs(lambda i: (PIXELS[i // 2], LABELS[i // 2]), classes=NAMES), DataSpec(test_fraction=0.5)
    )
    splits = dict(zip(samples.paths, samples.splits, strict=True))
    assert all(splits[f"image/{i}"] == splits[f"image/{i + 1}"] for i in range(0, 24, 2))
    assert len(set(splits.values())) == 3


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (lambda i: ((chw(i).float() / 255 - 0.5) / 0.25, 0), "normalised already"),
        (lambda i: (chw(i).float(), 0), "floating-point numbers up to 2"),
        (lambda i: (chw(i).float() / 255 * 0.999, 0), "not the 256 levels"),
        (lambda i: (PIXELS[i].astype(np.int64), 0), "type int64"),
        (lambda i: (PIXELS[i][:, :, :2], 0), "the shape [6, 8, 2]"),
        (lambda i: (PIXELS[i][None], 0), "the shape [1, 6, 8, 3]"),
        (lambda i: (chw(i).bfloat16(), 0), "bfloat16"),
        (lambda i: PIXELS[i], "an image alone"),
        (lambda i: (i, PIXELS[i]), "array of 144 numbers"),
        (lambda i: (i, 0), "a int is not an image"),
        (lambda i: (PIXELS[i], np.eye(3)[LABELS[i]]), "argmax"),
        (lambda i: (PIXELS[i], {"boxes": []}), "a dict"),
        (lambda i: (PIXELS[i], 0.5), "the label is 0.5"),
        (lambda i: (PIXELS[i], 3), "names for 0 to 2"),
        (lambda i: (PIXELS[i], -2), "names for 0 to 2"),
        (lambda i: {"picture": PIXELS[i], "answer": 1}, "label_column"),
        (lambda i: (PIXELS[i], [1, 2]), "a list"),
        (lambda i: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_what_cannot_be_taken_is_refused_with_place_and_reason(
    value: Callable[[int], Any], words: str
) -> None:
    text = refused(Pairs(value, classes=NAMES))
    assert words in text
    assert "Pairs(24): index 0" in text or "label of index" in text or "Pairs(24): none is known" in text


def test_a_random_transform_is_refused_and_its_place_named() -> None:
    def noisy(index: int) -> Any:
        shift = random.randrange(1, 1000)
        return np.roll(PIXELS[index].reshape(-1), shift).reshape(6, 8, 3), LABELS[index]

    text = refused(Pairs(noisy, classes=NAMES))
    assert "returns other pixels when it is read a second time" in text
    assert "augment" in text


def test_a_rare_random_transform_is_found_when_images_are_decoded(tmp_path: Path) -> None:
    seen: dict[int, int] = {}

    def noisy(index: int) -> Any:
        seen[index] = seen.get(index, 0) + 1
        return PIXELS[index] ^ np.uint8(index == 5 and seen[index] == 2), LABELS[index]

    samples = opened(Pairs(noisy, 24, classes=NAMES))
    with pytest.raises(DataError, match="index 5 returns other pixels"):
        evaluation_images(samples, CONTRACT, DataSpec(cache_dir=str(tmp_path)))


def test_a_random_label_is_refused() -> None:
    labels = iter(range(100))
    assert "second" in refused(Pairs(lambda i: (PIXELS[i], next(labels) % 3), classes=NAMES))


class _Endless(IterableDataset):
    def __iter__(self) -> Any:
        yield PIXELS[0], 0


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (_Endless(), "without a length"),
        (DataLoader(Pairs(lambda i: (chw(i), 0))), "loader.dataset"),
        ((item for item in [(PIXELS[0], 0)]), "read it into a list"),
        ([], "empty"),
        (["a.png", "b.png"], "no pairs"),
        (PIXELS, "A ndarray is not taken"),
        (7, "A int is not taken"),
        ((PIXELS, LABELS[:5]), "24 images and 5 labels"),
        ({"train": [], "extra": []}, "'extra' is not a split"),
        ({"val": [], "valid": []}, "means val, as another does"),
        ({}, "empty"),
    ],
)
def test_other_objects_are_refused_by_name(data: Any, words: str) -> None:
    assert words in refused(data)


def test_what_contradicts_is_refused() -> None:
    data = Pairs(lambda i: (PIXELS[i], LABELS[i]), classes=NAMES)
    assert "which number means which" in refused(data, classes=["ant", "dog", "cat"])
    assert "more than once" in refused(data, classes=["a", "a"])
    assert "expected a list of names" in refused(data, classes="abc")
    assert "not in classes" in refused(Pairs(lambda i: (PIXELS[i], "dog")), classes=NAMES)
    assert "data has a val split itself" in refused({"train": data, "val": data}, val=data)
    assert "data is an object" in refused(data, val="photos")
    assert "for files" in refused(data, DataSpec(format="coco"))
    other = Pairs(lambda i: (PIXELS[i], LABELS[i]), classes=["bee", "ant", "cat"])
    assert "different class names" in refused(ConcatDataset([data, other]))
    with pytest.raises(DataError, match=r"the path 'photos'"):
        take("photos", val=data)
    assert take("photos") is None
    assert take(None) is None


def test_a_spec_of_an_object_says_that_it_needs_it() -> None:
    with pytest.raises(DataError, match=r"a Python object.*tellapart.resume"):
        open_source(DataSpec(source="object:CIFAR10(50000)"), lambda note: None)


# --- Lists and frames -------------------------------------------------------------------------------------


def _written(folder: Path) -> list[tuple[str, str]]:
    pairs = []
    for index in range(24):
        place = folder / NAMES[LABELS[index]] / f"{index}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(PIXELS[index]).save(place)
        pairs.append((str(place), NAMES[LABELS[index]]))
    return pairs


def test_a_list_of_paths_and_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = _written(tmp_path)
    samples = opened(pairs)
    assert table(samples) == sorted(pairs)
    numbered = [(Path(path), np.int64(NAMES.index(label))) for path, label in pairs]
    assert table(opened(numbered, classes=NAMES)) == sorted(pairs)
    assert opened(numbered).classes == ("0", "1", "2")
    monkeypatch.chdir(tmp_path)
    relative = [(str(Path(path).relative_to(tmp_path)), label) for path, label in pairs]
    assert table(opened(relative)) == sorted(relative)
    monkeypatch.chdir("/")
    assert table(opened(relative, DataSpec(root=str(tmp_path)))) == sorted(relative)


def test_a_list_has_the_rules_of_a_lists_file(tmp_path: Path) -> None:
    pairs = _written(tmp_path)
    notes: list[str] = []
    double = [*pairs, pairs[0], (pairs[1][0], "dog"), (str(tmp_path / "none.png"), "ant")]
    samples = opened(double, notes=notes)
    assert [item.labels for item in samples.conflicts] == [("bee", "dog")]
    text = " ".join(notes)
    assert "merged" in text
    assert "not there" in text
    assert "None of the images" in refused([("nowhere/a.png", "x"), ("nowhere/b.png", "y")])
    assert "argmax" in refused([(pairs[0][0], np.eye(3)[0])])


def test_tables_of_paths_keep_their_splits(tmp_path: Path) -> None:
    pairs = _written(tmp_path)
    samples = opened(pairs[:12], val=pairs[12:18], test=pairs[18:])
    assert [len(samples.split(split)) for split in ("train", "val", "test")] == [12, 6, 6]


@pytest.mark.parametrize("package", ["pandas", "polars"])
def test_a_frame_is_read_as_its_csv_file_is(package: str, tmp_path: Path) -> None:
    library = pytest.importorskip(package)
    pairs = _written(tmp_path)
    columns = {
        "file": [path for path, _ in pairs],
        "what": [label for _, label in pairs],
        "split": ["train", "val", "test"] * 8,
        "patient": [number // 3 for number in range(24)],
    }
    frame = library.DataFrame(columns)
    list_file = tmp_path / "list.csv"
    if package == "pandas":
        frame.to_csv(list_file, index=False)
    else:
        frame.write_csv(list_file)
    spec = DataSpec(path_column="file", label_column=("what",), group="patient")
    samples, wanted = (
        opened(frame, spec),
        open_source(
            DataSpec(str(list_file), path_column="file", label_column=("what",), group="patient"),
            lambda note: None,
        ),
    )
    assert samples.classes == wanted.classes
    assert list(samples.labels) == list(wanted.labels)
    assert list(samples.splits) == list(wanted.splits)
    assert list(samples.groups) == list(wanted.groups)  # type: ignore[arg-type]
    assert "no such column" in refused(frame, DataSpec(path_column="nothing"))


@pytest.mark.parametrize("package", ["pandas", "polars"])
def test_a_frame_of_numbers_and_gaps(package: str, tmp_path: Path) -> None:
    library = pytest.importorskip(package)
    pairs = _written(tmp_path)
    labels = [float(NAMES.index(label)) for _, label in pairs]
    frame = library.DataFrame({"path": [path for path, _ in pairs], "label": [None, *labels[1:]]})
    samples = opened(frame, classes=NAMES)
    assert len(samples) == 23
    assert samples.classes == ("ant", "bee", "cat")
    pictures = library.DataFrame({"image": [_file(Image.fromarray(p)) for p in PIXELS], "label": LABELS})
    assert [n for _, n in table(opened(pictures, classes=NAMES))] == [
        n for _, n in table(opened((PIXELS, LABELS), classes=NAMES))
    ]


# --- torchvision and Hugging Face -------------------------------------------------------------------------


def _torchvision() -> Any:
    if not packages.installed("torchvision"):
        pytest.skip("torchvision is not installed")
    packages.prepare_torchvision()
    import torchvision

    return torchvision


def test_an_image_folder_is_the_folder(tmp_path: Path) -> None:
    torchvision = _torchvision()
    _written(tmp_path)
    data = torchvision.datasets.ImageFolder(str(tmp_path))
    samples, wanted = opened(data), open_source(DataSpec(str(tmp_path)), lambda note: None)
    for column in ("paths", "labels", "splits"):
        assert list(getattr(samples, column)) == list(getattr(wanted, column))
    assert (samples.classes, samples.root) == (wanted.classes, wanted.root)
    part = opened(Subset(Subset(data, list(range(0, 24, 2))), [0, 5, 5, 11]))
    assert table(part) == sorted({table(wanted)[place] for place in (0, 10, 22)})


def test_an_image_folder_with_a_transform_is_asked_for_its_items(tmp_path: Path) -> None:
    torchvision = _torchvision()
    _written(tmp_path)
    steps = torchvision.transforms
    data = torchvision.datasets.ImageFolder(
        str(tmp_path), steps.Compose([steps.CenterCrop(4), steps.ToTensor()])
    )
    samples = opened(data)
    assert samples.classes == ("ant", "bee", "cat")
    assert samples.read(0).shape == (4, 4, 3)  # type: ignore[union-attr]
    flipped = torchvision.datasets.ImageFolder(str(tmp_path), steps.RandomHorizontalFlip())
    assert "second time" in refused(flipped)
    mixed = opened(torchvision.datasets.ImageFolder(str(tmp_path)), val=data)
    assert len(mixed.split("val")) == 24
    assert len(mixed.split("train")) == 24


def test_cifar10_as_an_object_is_cifar10_by_name(tmp_path: Path) -> None:
    torchvision = _torchvision()
    data = object.__new__(torchvision.datasets.CIFAR10)
    pixels = np.random.default_rng(3).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    data.__dict__.update(
        data=pixels, targets=[i % 10 for i in range(20)], classes=names, transform=None, target_transform=None,
        transforms=None, root="", train=True,
    )  # fmt: skip
    samples = opened(Subset(data, range(15)), test=data)
    assert samples.classes == tuple(names)
    assert samples.name == "cifar10"
    assert np.array_equal(samples.read(3), pixels[3])


def test_a_data_set_of_hugging_face(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    files = [_file(Image.fromarray(p)) for p in PIXELS]
    features = datasets.Features({"picture": datasets.Image(), "kind": datasets.ClassLabel(names=NAMES)})
    data = datasets.Dataset.from_dict(
        {"picture": [{"bytes": file, "path": None} for file in files], "kind": LABELS}, features=features
    )
    samples = opened(data)
    assert table(samples) == sorted((f"image/{i}", NAMES[LABELS[i]]) for i in range(24))
    assert samples.read(2) == files[2]  # the file's own bytes
    both = opened(datasets.DatasetDict({"train": data, "validation": data.select(range(6))}))
    assert len(both.split("val")) == 6
    assert both.paths[0] == "train/0"
    turned = data.with_transform(
        lambda batch: {"picture": [i.rotate(180) for i in batch["picture"]], "kind": batch["kind"]}
    )
    assert np.array_equal(opened(turned).read(0), PIXELS[0][::-1, ::-1])
    unlabelled = data.map(lambda row, i: {"kind": -1 if i < 4 else row["kind"]}, with_indices=True)
    assert len(opened(unlabelled)) == 20
    stream = data.to_iterable_dataset()
    assert "streaming" in refused(stream)
    assert "no column 'x'" in refused(data, DataSpec(path_column="x"))


def test_nothing_foreign_is_imported() -> None:
    code = (
        "import sys, numpy as np\nfrom tellapart.data.sources.objects import take\n"
        "from tellapart.data.sources.opening import open_source\nfrom tellapart.spec import DataSpec\n"
        "g = take((np.arange(24 * 48, dtype=np.uint16).astype(np.uint8).reshape(24, 6, 8), [0, 1] * 12))\n"
        "open_source(DataSpec(source=g.name), print, given=g)\n"
        "print([m for m in ('pandas', 'polars', 'datasets', 'torchvision') if m in sys.modules])"
    )
    import subprocess

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("[]")


def test_hashes_are_of_what_is_decoded() -> None:
    samples = opened((PIXELS, LABELS))
    assert samples.items is not None
    assert samples.items.hashes[4] == content_hash(PIXELS[4])
