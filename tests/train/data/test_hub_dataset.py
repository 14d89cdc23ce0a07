"""A data set of the hub trains by its name, and again when the hub is stopped."""

from pathlib import Path

import pytest
from huggingface_hub import HfApi

from eca_hub.errors import EcaHubError, HubUnavailable, InvalidConfig, RepoNotFound
from eca_hub.train.data import ParquetData
from eca_hub.train.data.sampler import BatchIndex
from tests.localhub.hub_process import Hub
from tests.train.datasets import SMALL, write_parquet


def upload(hub: Hub, folder: Path, name: str = "acme/pets") -> None:
    """As anybody does, by the stock client."""
    api = HfApi(hub.url, token=hub.token)
    api.create_repo(name, repo_type="dataset", exist_ok=True)
    api.upload_folder(repo_id=name, repo_type="dataset", folder_path=folder)


def pets(folder: Path, *, image: str = "image", label: str = "label") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        path = folder / f"{split}-00000-of-00001.parquet"
        write_parquet(path, [0, 1, 1], names=["cat", "dog"], image=image, label=label)
    return folder


def test_a_data_set_is_fetched_once_and_found_again_without_the_hub(hub: Hub, tmp_path: Path) -> None:
    pets(tmp_path / "set" / "data")
    upload(hub, tmp_path / "set")
    first = ParquetData("acme/pets", image=SMALL)
    assert first.labels == ["cat", "dog"]
    hub.process.terminate()
    hub.process.wait(10)
    again = ParquetData("acme/pets", image=SMALL)
    assert again.fingerprint() == first.fingerprint()
    assert len(again.dataset("train")[BatchIndex(0, [0, 1, 2])].targets) == 3
    with pytest.raises(HubUnavailable, match="the cache does not hold acme/birds"):
        ParquetData("acme/birds")


def test_a_data_set_that_is_not_there_and_one_without_parquet_files_are_one_sentence(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(RepoNotFound, match="'acme/pets'"):
        ParquetData("acme/pets")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "notes.txt").write_text("no image")
    upload(hub, tmp_path / "set")
    with pytest.raises(InvalidConfig, match="acme/pets on the hub has no parquet files"):
        ParquetData("acme/pets")


def test_only_the_subset_that_was_asked_for_is_fetched(hub: Hub, tmp_path: Path) -> None:
    for subset in ("large", "small"):
        pets(tmp_path / "set" / subset)
    upload(hub, tmp_path / "set")
    with pytest.raises(InvalidConfig, match=r"has the subsets large, small. Give one, such as --data.subset large"):
        ParquetData("acme/pets")
    hub.root.parent.joinpath("cache").rename(tmp_path / "elsewhere")
    assert ParquetData("acme/pets", subset="small").num_images("train") == 3
    assert {path.parent.name for path in (tmp_path / "cache").rglob("*.parquet")} == {"small"}


@pytest.mark.parametrize("name", ["../pets", "/nowhere/at/all", "~/pets", "pets", "a/b/c"])
def test_what_is_neither_a_folder_nor_a_name_is_one_sentence(name: str) -> None:
    with pytest.raises(EcaHubError, match="There is no folder"):
        ParquetData(name)


# columns that are called otherwise, as in CIFAR-10 on the Hub


def test_the_only_columns_of_images_and_of_classes_are_found(tmp_path: Path) -> None:
    data = ParquetData(str(pets(tmp_path, image="img", label="fine_label")))
    assert data.labels == ["cat", "dog"]


def test_a_column_that_was_asked_for_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="has no column 'image'; it has img, label"):
        ParquetData(str(pets(tmp_path, image="img")), image_column="image")
