"""Folder layouts of other tools: they are read as intended, or one sentence names the folder and the option."""

import errno
import os
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from eca_hub.errors import InvalidConfig
from eca_hub.train.data import ImageFolderData
from eca_hub.train.data.sampler import BatchIndex
from tests.train.datasets import SMALL, png, write_folder

FIFTH = {"val_fraction": 0.25}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "set", splits=("train", "val"))


def tiff(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path, format="TIFF")


@pytest.mark.parametrize(
    "path",
    [
        "train/dark/._0.png", "train/dark/.DS_Store", "train/dark/Thumbs.db", "train/__MACOSX/dark/0.png",
        "train/.ipynb_checkpoints/0.png", "train/@eaDir/0.png", "train/dark/@eaDir/0.png", "train/dark/notes.txt",
        "__MACOSX/train/dark/0.png", "train/dark/desktop.ini", "train/dark/Thumbs.db:encryptable", "train/.gitkeep",
        "train/lost+found/0.png", "train/dark/.nfs000000001", "train/dark/p0.json", "train/$RECYCLE.BIN/0.png",
        "train/#recycle/0.png", "train/@Recycle/0.png", "train/@tmp/0.png", "train/System Volume Information/0.png",
        "train/__pycache__/0.png", "train/_gsdata_/0.png", "#snapshot/0.png", "train/dark/0.png:Zone.Identifier",
        "train/dark/~$notes.docx", "train/dark/Picasa.ini",
    ],
)  # fmt: skip
def test_files_of_operating_systems_are_neither_images_nor_classes(path: str, root: Path) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_bytes(b"\0\5\26\7\0\2\0\0Mac OS X        ")
    data = ImageFolderData(str(root), image=SMALL)
    assert data.labels == ["dark", "light"]
    assert data.num_images("train") == 8
    assert not data.remarks


@pytest.mark.parametrize("name", ["0.jfif", "0.JPE", "0", "0.img", "image.0001"])
def test_images_of_other_endings_are_read(name: str, root: Path) -> None:
    Image.new("RGB", (8, 8)).save(root / "train" / "dark" / name, format="JPEG")
    assert ImageFolderData(str(root)).num_images("train") == 9


def test_a_class_of_a_format_that_is_not_decoded_is_refused(root: Path) -> None:
    for number in range(3):
        tiff(root / "train" / "bird" / f"{number}.tif")
    with pytest.raises(InvalidConfig, match=r"train/bird has no JPEG, .* it holds 3 x \.tif\."):
        ImageFolderData(str(root))


def test_some_files_that_are_not_decoded_are_counted_by_their_ending(root: Path) -> None:
    tiff(root / "train" / "dark" / "a.tif")
    tiff(root / "train" / "light" / "b.TIF")
    data = ImageFolderData(str(root))
    [remark] = data.remarks
    assert remark.endswith("files that are not decoded are left out: 2 x .tif.")
    assert data.num_images("train") == 8


@pytest.mark.parametrize("name", ["0.png.part", "0.png.partial", "0.png.crdownload", "0.png~", "0.png.bak", "0.tmp"])
def test_unfinished_downloads_and_copies_of_an_editor_are_left_out(name: str, root: Path) -> None:
    (root / "train" / "dark" / name).write_bytes(png(3))
    data = ImageFolderData(str(root))
    assert data.num_images("train") == 8
    assert "files that are not decoded are left out: 1 x" in data.remarks[0]


def test_an_empty_class_folder_is_left_out_with_a_remark(root: Path) -> None:
    (root / "train" / "dusk").mkdir()
    data = ImageFolderData(str(root))
    assert data.labels == ["dark", "light"]
    assert "without images are left out: dusk" in data.remarks[0]


def test_linked_folders_are_entered_and_circles_are_not(root: Path, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    for number in range(3):
        (tmp_path / "store" / f"more{number}.png").write_bytes(png(30))
    (root / "train" / "dark" / "more").symlink_to(tmp_path / "store")
    (root / "train" / "dark" / "again").symlink_to(root / "train" / "dark")
    (root / "train" / "light" / "up").symlink_to(root / "train")
    assert (ImageFolderData(str(root)).source("train").targets == 0).sum() == 7


def test_folders_that_link_to_each_other_are_read_once(root: Path) -> None:
    (root / "train" / "dark" / "other").symlink_to(root / "train" / "light")
    (root / "train" / "light" / "other").symlink_to(root / "train" / "dark")
    assert ImageFolderData(str(root)).num_images("train") == 16


def test_a_class_folder_that_is_a_link_is_a_class(root: Path, tmp_path: Path) -> None:
    (root / "train" / "dark").rename(tmp_path / "elsewhere")
    (root / "train" / "dark").symlink_to(tmp_path / "elsewhere")
    assert ImageFolderData(str(root)).num_images("train") == 8


def test_a_link_to_nothing_is_a_broken_image(root: Path) -> None:
    (root / "train" / "dark" / "9.png").symlink_to("/not/here.png")
    data = ImageFolderData(str(root), image=SMALL, max_bad_samples=1)
    data.check()
    assert data.fingerprint()
    [bad] = data.dataset("train")[BatchIndex(0, [0, 4])].bad_samples
    assert bad.name.endswith("train/dark/9.png")
    assert bad.reason == "No such file or directory"


def test_links_that_all_lead_nowhere_are_refused_before_training(root: Path) -> None:
    for path in (root / "train").rglob("*.png"):
        path.unlink()
        path.symlink_to("/annex/objects/x.png")
    with pytest.raises(InvalidConfig, match=r"train split of set cannot be read; 8 were tried.*git annex get"):
        ImageFolderData(str(root)).check()


def test_pointers_of_git_lfs_are_refused_before_training(root: Path) -> None:
    for path in (root / "val").rglob("*.png"):
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    with pytest.raises(InvalidConfig, match=r"val split of set cannot be read.*`git lfs pull` fetches"):
        ImageFolderData(str(root)).check()
    (root / "train" / "dark" / "0.png").write_text("version https://git-lfs.github.com/spec/v1\n")
    [bad] = ImageFolderData(str(root), image=SMALL).dataset("train")[BatchIndex(0, [0, 1])].bad_samples
    assert "Git LFS" in bad.reason


@pytest.mark.parametrize("content", [b"/annex/objects/SHA256E-s12--ab.png\n", b"../../.git/annex/objects/x/y/SHA256E"])
def test_pointers_of_git_annex_are_named(content: bytes, root: Path) -> None:
    (root / "val" / "dark" / "0.png").write_bytes(content)
    with pytest.raises(InvalidConfig, match=r"0\.png: a pointer of git-annex; `git annex get \.` fetches the image"):
        ImageFolderData(str(root)).check()
    for path in (root / "val").rglob("*.png"):
        path.write_bytes(content)
    with pytest.raises(InvalidConfig, match=r"val split of set cannot be read.*`git annex get \.` fetches the images"):
        ImageFolderData(str(root)).check()


def test_the_error_of_a_storage_that_was_saved_as_an_image_is_named(root: Path) -> None:
    (root / "val" / "dark" / "0.png").write_bytes(b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>")
    with pytest.raises(InvalidConfig, match=r"0\.png: The file is an XML document \(perhaps an SVG\), which is not"):
        ImageFolderData(str(root)).check()


@pytest.mark.parametrize("content", [b"", b"no image"])
def test_a_class_of_broken_images_is_refused_however_many_may_be_broken(content: bytes, root: Path) -> None:
    for path in (root / "train" / "dark").iterdir():
        path.write_bytes(content)
    with pytest.raises(InvalidConfig, match=r"Every image of dark in the train split of set is broken; the first: .*"):
        ImageFolderData(str(root), max_bad_samples=99).check()


@pytest.mark.parametrize("link", ["train/bird", "val/bird", "test", "train"])
def test_a_folder_that_is_a_link_to_nothing_is_refused(link: str, root: Path) -> None:
    if link == "train":
        (root / "train").rename(root / "elsewhere")
    (root / link).symlink_to("/not/mounted")
    with pytest.raises(InvalidConfig, match=rf"{link} is a link to /not/mounted, which does not exist\."):
        ImageFolderData(str(root))


def test_a_class_that_links_to_a_parent_folder_is_left_out(root: Path) -> None:
    (root / "train" / "all").symlink_to(root)
    data = ImageFolderData(str(root))
    assert data.labels == ["dark", "light"]
    assert data.num_images("train") == 8
    assert data.remarks == [f"{root}/train: links to a parent folder are left out: all."]


def test_a_class_folder_that_links_to_another_class_is_refused(root: Path) -> None:
    (root / "train" / "night").symlink_to(root / "train" / "dark")
    with pytest.raises(InvalidConfig, match=r"train: dark and night are the same folder, by a link\."):
        ImageFolderData(str(root))


@pytest.mark.parametrize("folder", ["train", "train/dark", "train/dark/more"])
def test_a_folder_that_may_not_be_read_is_named(folder: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "train" / "dark" / "more").mkdir()
    real = os.scandir

    def scandir(path: str | Path) -> Iterator[os.DirEntry[str]]:
        if Path(path) == root / folder:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(InvalidConfig, match=rf"The folder .*{folder} cannot be read: Permission denied\."):
        ImageFolderData(str(root))


def test_classes_that_differ_only_in_case_are_remarked_on(root: Path) -> None:
    (root / "train" / "Dark").mkdir()
    (root / "train" / "Dark" / "0.png").write_bytes(png(3))
    data = ImageFolderData(str(root))
    assert data.labels == ["Dark", "dark", "light"]
    assert data.remarks == ["The classes Dark and dark differ only in case; are they one class?"]


def test_folders_beside_the_splits_are_named(root: Path) -> None:
    for number in range(7):
        (root / f"extra{number}").mkdir()
    assert ImageFolderData(str(root)).remarks == [
        f"{root}: folders that are no split (train, val or test) are left out: extra0, extra1, extra2, extra3, extra4 "
        "and 2 more."
    ]


def test_names_in_latin_1_bytes_become_text(root: Path) -> None:
    for split in ("train", "val"):
        (root / split / "dark").rename(os.fsdecode(os.fsencode(root / split) + b"/caf\xe9"))
    data = ImageFolderData(str(root), image=SMALL)
    assert data.labels == ["caf\u00e9", "light"]
    name = data.source("train").name(0)
    assert name.encode().endswith("caf\u00e9/0.png".encode())
    assert len(data.dataset("train")[BatchIndex(0, [0, 1])].targets) == 2


def test_a_class_name_with_a_control_character_is_refused_before_training(root: Path) -> None:
    for split in ("train", "val"):
        (root / split / "dark").rename(root / split / "da\x1b[31mrk")
    with pytest.raises(InvalidConfig, match=r"Label 0 is 'da\\x1b\[31mrk'; control characters are not allowed"):
        ImageFolderData(str(root)).check()


def test_the_same_name_in_two_unicode_forms_is_one_class(root: Path) -> None:
    for split, name in (("train", "caf\u00e9"), ("val", unicodedata.normalize("NFD", "caf\u00e9"))):
        (root / split / "dark").rename(root / split / name)
    data = ImageFolderData(str(root))
    assert data.labels == ["caf\u00e9", "light"]
    assert data.source("val").targets.tolist() == [0] * 4 + [1] * 4


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("Train", "Val"), ("TRAINING", "Validation"), ("training", "valid"), ("train_set", "val_set"),
        ("trainset", "validset"), ("train_images", "val-images"), ("train2017", "val2017"), ("train ", "eval"),
    ],
)  # fmt: skip
def test_split_folders_are_found_in_any_case_and_spelling(train: str, val: str, root: Path) -> None:
    (root / "train").rename(root / train)
    (root / "val").rename(root / val)
    assert ImageFolderData(str(root)).num_images("val") == 8


@pytest.mark.parametrize(("first", "second"), [("val", "valid"), ("Val", "validation"), ("train", "Training")])
def test_two_folders_for_one_split_are_refused(first: str, second: str, root: Path) -> None:
    split = "train" if "rain" in first else "val"
    (root / split).rename(root / first)
    write_folder(root, splits=(second,))
    with pytest.raises(InvalidConfig, match=f"and .*; which is the {split} split"):
        ImageFolderData(str(root))


def test_val_fraction_holds_out_the_same_share_of_each_class(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "set", splits=("train",), num_each=8)
    with pytest.raises(InvalidConfig, match=r"no validation or test split .* Give --data.val_fraction 0.2"):
        ImageFolderData(str(root))
    data = ImageFolderData(str(root), **FIFTH)
    train, val = (data.source(split) for split in ("train", "val"))
    assert (train.targets.tolist(), val.targets.tolist()) == ([0] * 6 + [1] * 6, [0] * 2 + [1] * 2)
    names = [[source.name(index) for index in range(len(source.targets))] for source in (train, val)]
    assert len({*names[0], *names[1]}) == 16
    again = ImageFolderData(str(root), **FIFTH)
    again.seed = 7
    assert again.source("val").name(0) == names[1][0]
    assert data.has_single_eval_split


def test_val_fraction_leaves_the_test_split_alone_and_is_refused_beside_val(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "set", splits=("train", "test"))
    data = ImageFolderData(str(root), **FIFTH)
    assert [data.num_images(split) for split in ("train", "val", "test")] == [6, 2, 8]
    assert not data.has_single_eval_split
    write_folder(root, splits=("val",))
    with pytest.raises(InvalidConfig, match=r"has a validation split already\. Leave out --data.val_fraction"):
        ImageFolderData(str(root), **FIFTH)


def test_classes_of_one_image_cannot_be_held_out(tmp_path: Path) -> None:
    write_folder(tmp_path / "set", splits=("train",), num_each=1)
    with pytest.raises(InvalidConfig, match=r"No class of set has two images, so none can be held out to validate on"):
        ImageFolderData(str(tmp_path / "set"), **FIFTH)


def test_class_folders_without_splits_are_data_with_val_fraction(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "set", splits=(".",))
    with pytest.raises(InvalidConfig, match=r"it has the folders dark, light\. .*--data.val_fraction 0.2"):
        ImageFolderData(str(root))
    data = ImageFolderData(str(root), **FIFTH)
    assert (data.labels, data.num_images("train"), data.num_images("val")) == (["dark", "light"], 6, 2)


def test_a_test_folder_without_classes_is_for_predictions(root: Path) -> None:
    (root / "test").mkdir()
    for number in range(3):
        (root / "test" / f"{number}.png").write_bytes(png(40))
    data = ImageFolderData(str(root))
    assert data.remarks == ["The test split of set has no labels, so nothing is measured on it."]
    assert data.predict_source().targets.tolist() == [-1] * 3
    assert data.num_images("test") == 8


def _named_as_by_others(root: Path) -> None:
    (root / "train").rename(root / "seg_train")
    (root / "val").rename(root / "seg_test")


def _by_class_first(root: Path) -> None:
    for label in ("dark", "light"):
        for split in ("train", "val"):
            (root / label).mkdir(exist_ok=True)
            (root / split / label).rename(root / label / split)
    (root / "train").rmdir()
    (root / "val").rmdir()


def _only_zip(root: Path) -> None:
    _only_csv(root)
    (root / "labels.csv").rename(root / "train.zip")


def _one_level_too_high(root: Path) -> None:
    (root / "data").mkdir()
    for split in ("train", "val"):
        (root / split).rename(root / "data" / split)


def _three_levels_too_high(root: Path) -> None:
    (root / "ILSVRC" / "Data").mkdir(parents=True)
    (root / "ILSVRC" / "Annotations" / "CLS-LOC").mkdir(parents=True)
    _one_level_too_high(root)
    (root / "data").rename(root / "ILSVRC" / "Data" / "CLS-LOC")


def _only_csv(root: Path) -> None:
    _one_level_too_high(root)
    (root / "data").rename(root.with_name("elsewhere"))
    (root / "labels.csv").write_text("file,label\n")


def _only_tar(root: Path) -> None:
    _only_csv(root)
    (root / "labels.csv").rename(root / "train-0.tar")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (_three_levels_too_high, r"but .*set/ILSVRC/Data/CLS-LOC has\. Give --data.root .*set/ILSVRC/Data/CLS-LOC"),
        (_one_level_too_high, r"but .*set/data has\. Give --data.root .*set/data"),
        (_only_csv, r"it holds labels.csv\. Give --data CsvData --data.root .*labels.csv"),
        (
            _named_as_by_others,
            r"If seg_train is the train split: mv .*set/seg_train .*set/train; rename the others to val and",
        ),
        (_by_class_first, r"set sorts images by class first, then by split: dark/train\. It needs train/dark\."),
        (_only_zip, r"it holds train.zip\. Unpack it first\."),
        (_only_tar, r"it holds train-0.tar\. Give --data WebDatasetData"),
    ],
)
def test_another_layout_is_named_with_what_to_type(change: Callable[[Path], None], sentence: str, root: Path) -> None:
    change(root)
    for options in ({}, FIFTH):
        with pytest.raises(InvalidConfig, match=sentence):
            ImageFolderData(str(root), **options)


@pytest.mark.parametrize(
    ("root", "sentence"),
    [
        ("uoft-cs/cifar10", r"data set of the Hub: --data ParquetData --data.root uoft-cs/cifar10"),
        (__file__, r"is a file\. Give --data.root a folder; unpack an archive first"),
        ("~/no such folder", r"There is no folder ~/no such folder\. Give --data.root"),
    ],
)
def test_a_root_that_is_no_folder_is_named(root: str, sentence: str) -> None:
    with pytest.raises(InvalidConfig, match=sentence):
        ImageFolderData(root)


def test_a_home_folder_may_be_written_as_a_tilde(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(root.parent))
    assert ImageFolderData("~/set").num_images("train") == 8


def test_images_that_are_in_two_splits_are_remarked_on(root: Path) -> None:
    assert not ImageFolderData(str(root)).remarks
    (root / "val" / "dark" / "0.png").write_bytes((root / "train" / "dark" / "0.png").read_bytes())
    [remark] = ImageFolderData(str(root)).remarks
    assert "images of the train split, such as" in remark


def test_class_folders_one_level_too_low_are_named(tmp_path: Path) -> None:
    write_folder(tmp_path / "set", splits=("images",))
    with pytest.raises(InvalidConfig, match=r"has one folder, and .*images holds dark, light.*--data.root .*images"):
        ImageFolderData(str(tmp_path / "set"), **FIFTH)


def test_a_rare_class_is_remarked_on_before_training(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "set", splits=("train", "val"), num_each=10)
    for number in range(1, 10):
        (root / "train" / "dark" / f"{number}.png").unlink()
    data = ImageFolderData(str(root))
    data.check()
    assert data.remarks[-1].startswith("Of light there are 10 training images and of dark 1; --data.balanced_sampling")
    data = ImageFolderData(str(root), balanced_sampling=True)
    data.check()
    assert not data.remarks
