"""Shards that are streamed: every sample once over all processes and workers, in the same order again."""

import functools
import http.server
import json
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eca_hub.errors import InvalidConfig
from eca_hub.train.data import WebDatasetStreamData
from eca_hub.train.data.sampler import BatchIndex, RankShard
from eca_hub.train.data.stream_sampler import StreamBatchSampler
from eca_hub.train.errors import TrainingStopped
from tests.train.data.test_webdataset import samples, write_shard
from tests.train.datasets import SMALL, png
from tests.train.runs import checkpoints, fit, stop_at, weights_hash

COUNTS = [3, 40, 1, 17, 25]
"""Shards of unequal sizes."""


def batches(rank: int = 0, world_size: int = 1, num_workers: int = 0, **options: Any) -> list[list[int]]:
    sampler = StreamBatchSampler(COUNTS, 4, RankShard(rank, world_size), num_workers, seed=1, **options)
    return [batch.indices for batch in sampler]


def training(epoch: int = 0, done: int = 0) -> dict[str, Any]:
    return {"buffer_size": 8, "position": lambda: (epoch, done)}


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_every_process_has_as_many_batches_and_no_sample_comes_twice(world_size: int, num_workers: int) -> None:
    parts = [batches(rank, world_size, num_workers, **training()) for rank in range(world_size)]
    num_batches = sum(COUNTS) // world_size // 4
    assert [len(part) for part in parts] == [num_batches] * world_size
    drawn = Counter(index for part in parts for batch in part for index in batch)
    assert set(drawn.values()) == {1}
    assert len(drawn) == num_batches * 4 * world_size


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_evaluation_reads_every_sample_once(world_size: int, num_workers: int) -> None:
    parts = [batches(rank, world_size, num_workers) for rank in range(world_size)]
    assert sorted(index for part in parts for batch in part for index in batch) == list(range(sum(COUNTS)))


def test_a_resumed_epoch_continues_with_the_same_batches_and_another_epoch_has_others() -> None:
    whole = batches(num_workers=2, **training())
    assert batches(num_workers=2, **training(done=7)) == whole[7:]
    assert batches(num_workers=2, **training(epoch=1)) != whole


def test_samples_are_shuffled_within_the_buffer_and_a_worker_reads_shards_in_order() -> None:
    order = [index for batch in batches(num_workers=0, **training()) for index in batch]
    starts = {index: shard for shard, index in enumerate([0, 3, 43, 44, 61])}
    assert order != sorted(order)
    first_seen = [starts[index] for index in order if index in starts]
    assert len(first_seen) == len(set(first_seen))
    # A block of the buffer is consecutive in the stream: at most three shards are open at a time.
    shard_of = [sum(index >= start for start in starts) - 1 for index in order]
    assert all(len(set(shard_of[start : start + 8])) <= 3 for start in range(0, len(order), 8))


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder, counts what is asked for, and cuts answers off while it is told to."""

    asked: list[str]
    num_cuts = 0


class Handler(http.server.SimpleHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name = self.path.rsplit("/", 1)[-1]
        self.server.asked.append(name)
        if self.server.num_cuts and name.endswith(".tar"):
            self.server.num_cuts -= 1
            content = Path(self.translate_path(self.path)).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[:1024])
            self.close_connection = True
            return
        super().do_GET()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six shards of four images to train on, one to validate on, names of classes and an index."""
    root = tmp_path_factory.mktemp("shards")
    for number in range(6):
        write_shard(root / f"train-{number:04}.tar", samples("number", 4 * number))
    write_shard(root / "val-0000.tar", samples("number"))
    (root / "classes.txt").write_text("cat\ndog\n")
    (root / "index.json").write_text(json.dumps({path.name: 4 for path in root.glob("*.tar")}))
    return root


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    with Server(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder))) as running:
        running.asked = []
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def address(server: Server) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}"


@pytest.fixture
def no_wait(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    return waits


def stream(folder: Path, address: str, **options: Any) -> WebDatasetStreamData:
    defaults: dict[str, Any] = {
        "train": f"{address}/train-{{0000..0005}}.tar",
        "val": f"{address}/val-0000.tar",
        "labels": str(folder / "classes.txt"),
        "index": f"{address}/index.json",
        "shuffle_buffer": 4,
        "batch_size": 4,
        "image": SMALL,
    }
    return WebDatasetStreamData(**defaults | options)


def test_shards_are_streamed_over_http_with_their_classes(folder: Path, address: str, server: Server) -> None:
    data = stream(folder, address)
    data.check()
    assert (data.num_images("train"), data.num_images("val")) == (24, 4)
    server.asked.clear()
    batch_list = list(data.train_dataloader())
    # The class of an image is in its index, by how the shards were written.
    assert [batch.targets.tolist() for batch in batch_list] == [(batch.indices % 2).tolist() for batch in batch_list]
    assert sorted(index for batch in batch_list for index in batch.indices.tolist()) == list(range(24))
    assert sorted(server.asked) == [f"train-{number:04}.tar" for number in range(6)]


def test_a_resumed_epoch_asks_for_no_shard_that_is_done(folder: Path, address: str, server: Server) -> None:
    data = stream(folder, address, shuffle_buffer=1)
    data.position = lambda: (0, 4)  # type: ignore[method-assign]
    server.asked.clear()
    assert len(list(data.train_dataloader())) == 2
    assert len(server.asked) == 2


def test_a_lost_connection_is_opened_again(folder: Path, address: str, server: Server, no_wait: list[float]) -> None:
    data = stream(folder, address)
    server.num_cuts = 3
    assert sum(len(batch.targets) for batch in data.train_dataloader()) == 24
    assert len(no_wait) == 3


def test_a_shard_that_stays_unreadable_stops_training_in_one_sentence(
    folder: Path, address: str, server: Server, no_wait: list[float]
) -> None:
    data = stream(folder, address)
    server.num_cuts = 99
    with pytest.raises(TrainingStopped, match=r"The shard .*train-\d+.tar cannot be read: "):
        list(data.train_dataloader())
    assert no_wait == [1.0, 2.0, 4.0]


@pytest.mark.parametrize(("number", "sentence"), [(3, "holds more than the 3 samples"), (9, "ends after 4 samples")])
def test_a_wrong_number_of_samples_is_noticed(number: int, sentence: str, folder: Path) -> None:
    data = stream(folder, str(folder), index=None, images_per_shard=number)
    with pytest.raises(TrainingStopped, match=sentence):
        list(data.train_dataloader())


def test_shards_on_this_machine_are_counted(folder: Path) -> None:
    data = stream(folder, str(folder), index=None)
    assert (data.num_images("train"), data.num_images("val")) == (24, 4)
    assert sum(len(batch.targets) for batch in data.val_dataloader()) == 4


@pytest.mark.parametrize(
    ("others", "num_images"),
    [({"README": b"", "__meta__/info.json": b"{}"}, 4), ({"__a.png": png(9), "__a.cls": b"cat"}, 5)],
    ids=["no samples", "a sample"],
)
def test_a_shard_is_counted_as_it_is_read(
    others: dict[str, bytes], num_images: int, folder: Path, tmp_path: Path
) -> None:
    write_shard(tmp_path / "val-0000.tar", samples("word") | others)
    data = stream(folder, str(folder), val=str(tmp_path / "val-0000.tar"), index=None)
    assert data.num_images("val") == num_images
    assert sum(len(batch.targets) for batch in data.val_dataloader()) == num_images


def test_two_files_of_one_name_are_refused(folder: Path, tmp_path: Path) -> None:
    write_shard(tmp_path / "val-0000.tar", {"a/1.png": png(1), "a/1.PNG": png(2)})
    with pytest.raises(InvalidConfig, match=r"has two files of one name: a/1.PNG\."):
        stream(folder, str(folder), val=str(tmp_path / "val-0000.tar"), index=None)


def test_links_inside_shards_are_left_out_and_named_once(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "val-0000.tar"
    shutil.copy(folder / "val-0000.tar", path)
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("9.png")
        link.type, link.linkname = tarfile.LNKTYPE, "0001.png"
        tar.addfile(link)
    data = stream(folder, str(folder), val=str(path), index=None)
    assert data.num_images("val") == 4
    assert data.remarks == [f"{path}: links, which a stream cannot follow, are left out: 1."]


@pytest.mark.parametrize(
    "index",
    [
        {"splits": {"train": {"filenames": ["x-0.tar", "x-1.tar"], "shard_lengths": [5, 6]}}},
        {"shardlist": [{"url": "s3://b/x-0.tar", "nsamples": 5}, {"url": "s3://b/x-1.tar", "nsamples": 6}]},
        {"x-0.tar": 5, "a/x-1.tar": 6},
    ],
)
def test_an_index_of_timm_or_of_webdataset_is_read(index: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "index.json"
    path.write_text(json.dumps(index))
    data = stream(
        folder, "http://127.0.0.1:9", train="http://127.0.0.1:9/a/x-{0,1}.tar", val="x-0.tar", index=str(path)
    )
    assert data.source("train").counts == [5, 6]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"train": "pipe:curl -s http://127.0.0.1/x.tar"}, "cannot be streamed: it would run a command. Give a path"),
        ({"train": "s3://bucket/x.tar"}, "this scheme is not supported"),
        ({"index": None}, "The number of samples of .*train-0000.tar is not known. Give --data.index"),
        ({"train": "other-{0..1}.tar"}, "--data.index has no number of samples for other-0.tar"),
        ({"val": None}, "no shards to measure on. Give --data.val"),
        ({"labels": "missing.txt"}, "--data.labels missing.txt cannot be read"),
        ({"balanced_sampling": True}, "A stream cannot be balanced"),
        ({"train": "train-{0..1}.tar::train-1.tar"}, "names a shard twice"),
    ],
)
def test_what_cannot_be_streamed_is_refused(options: dict[str, Any], sentence: str, folder: Path, address: str) -> None:
    with pytest.raises(InvalidConfig, match=sentence):
        stream(folder, address, **options)


@pytest.mark.parametrize("number", [-1, 2.5, True, 1e999, "many"])
def test_an_index_with_an_impossible_number_is_refused(number: object, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "wrong.json"
    path.write_text(json.dumps({"train-0000.tar": number}))
    with pytest.raises(InvalidConfig, match=r"--data.index .*wrong.json cannot be read: .*Give a JSON file such as"):
        stream(folder, str(folder), index=str(path))


def test_a_label_with_control_characters_is_refused_before_training(folder: Path) -> None:
    data = stream(folder, str(folder))
    data.labels[0] = "a\0b"
    with pytest.raises(InvalidConfig, match=r"Label 0 is .*control characters are not allowed"):
        data.check()


def test_a_stream_without_samples_and_classes_in_json_are_refused(folder: Path, tmp_path: Path) -> None:
    write_shard(tmp_path / "empty.tar", {})
    with pytest.raises(InvalidConfig, match=r"The train split has no images: .*empty.tar"):
        stream(folder, str(folder), index=None, train=str(tmp_path / "empty.tar"))
    (tmp_path / "labels.json").write_text('["cat", "dog"]')
    with pytest.raises(InvalidConfig, match=r"labels.json is JSON\. Give a text file with a class in each line"):
        stream(folder, str(folder), labels=str(tmp_path / "labels.json"))


def test_shards_of_a_folder_may_be_named_with_a_star_or_a_tilde(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    assert stream(folder, str(folder), index=None, train="~/train-*.tar").num_images("train") == 24


def test_a_missing_shard_and_a_class_that_is_not_listed_show_before_training(
    folder: Path, address: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidConfig, match=r"val-9\.tar cannot be read: HTTP Error 404"):
        stream(folder, address, val=f"{address}/val-9.tar", images_per_shard=4).check()
    write_shard(tmp_path / "odd.tar", {"0.png": b"x", "0.cls": b"eel"})
    data = stream(folder, address, val=str(tmp_path / "odd.tar"), images_per_shard=4)
    with pytest.raises(InvalidConfig, match=r"odd.tar #0 of the val split: its class 'eel' is none of the 2"):
        data.check()


def test_any_number_of_classes_is_read_from_json_or_text(tmp_path: Path) -> None:
    contents = {"json": b'{"labels": ["cat", 1]}', "cls": b"dog", "txt": b"0 1", "target.cls": b" dog, cat \n"}
    files: dict[str, bytes] = {}
    for number, (ending, content) in enumerate(contents.items()):
        files |= {f"{number}.png": png(0), f"{number}.{ending}": content}
    files |= {"4.png": png(0), "4.json": b'{"labels": []}', "5.png": png(0), "5.json": b'{"labels": "cat"}'}
    for split in ("train", "val"):
        write_shard(tmp_path / f"{split}.tar", files)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    data = WebDatasetStreamData(
        str(tmp_path / "train.tar"),
        str(tmp_path / "classes.txt"),
        val=str(tmp_path / "val.tar"),
        multi_label=True,
        image=SMALL,
    )
    data.check()
    batch = data.dataset("val")[BatchIndex(0, list(range(6)))]
    assert batch.targets.tolist() == [[1, 1], [0, 1], [1, 1], [1, 1], [0, 0]]
    assert [each.reason for each in batch.bad_samples] == ["the sample has no list of classes"]


@pytest.mark.slow
def test_a_network_learns_several_labels_from_a_stream(folder: Path, tmp_path: Path) -> None:
    config = CONFIG.replace("ADDRESS", str(folder)).replace("FOLDER", str(folder))
    config = config.replace("shuffle_buffer: 8", "shuffle_buffer: 8\n    multi_label: true")
    assert fit(tmp_path / "run", config=config) == 0
    assert json.loads((tmp_path / "run" / "model" / "config.json").read_text())["problem_type"].startswith(
        "multi_label"
    )


CONFIG = """
model: {architecture: resnet20, optim: {lr: 0.05}}
data:
  class_path: WebDatasetStreamData
  init_args:
    train: ADDRESS/train-{0000..0005}.tar
    val: ADDRESS/val-0000.tar
    labels: FOLDER/classes.txt
    index: FOLDER/index.json
    shuffle_buffer: 8
    batch_size: 8
    image: {height_px: 8, width_px: 8, crop: 1.0}
save: {every_steps: 1}
trainer: {max_epochs: 2, accelerator: cpu, devices: 1}
"""


@pytest.mark.slow
def test_a_run_on_a_stream_resumes_to_the_same_weights(folder: Path, address: str, tmp_path: Path) -> None:
    config = CONFIG.replace("ADDRESS", address).replace("FOLDER", str(folder))
    assert fit(tmp_path / "whole", config=config) == 0
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, "on_train_batch_end", 5)
        assert fit(tmp_path / "run", config=config) == 143
    assert checkpoints(tmp_path / "run")[-1].name == "step-000000005-epoch-00001-batch-0000002.ckpt"
    assert fit(tmp_path / "run", "--resume", config=config) == 0
    assert weights_hash(tmp_path / "run") == weights_hash(tmp_path / "whole")


@pytest.mark.slow
def test_workers_share_the_shards(folder: Path, address: str, server: Server) -> None:
    data = stream(folder, address, num_workers=2, shuffle_buffer=1)
    server.asked.clear()
    for _ in range(2):
        indices = [index for batch in data.train_dataloader() for index in batch.indices.tolist()]
        assert sorted(indices) == list(range(24))
    assert max(Counter(server.asked).values()) == 2


@pytest.mark.slow
def test_two_processes_train_on_unequal_shards(folder: Path, tmp_path: Path) -> None:
    for number, size in enumerate((1, 2, 9)):
        files = dict(list(samples("number").items())[:2])
        for start in range(1, size):
            files |= dict(list(samples("number", start).items())[:2])
        write_shard(tmp_path / f"train-{number}.tar", files)
    data = f"""--data.train {tmp_path}/train-{{0..2}}.tar --data.index null --data.batch_size 2"""
    (tmp_path / "run.yaml").write_text(CONFIG.replace("ADDRESS", str(folder)).replace("FOLDER", str(folder)))
    words = ["fit", "--config", str(tmp_path / "run.yaml"), "--run_dir", str(tmp_path / "run"), *data.split()]
    words += ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    done = subprocess.run(
        [sys.executable, "-m", "eca_hub", *words], capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 0, done.stderr
    # Twelve images are three steps of two processes with batches of two.
    assert "6 steps in " in done.stdout
    assert "on 4 images" in done.stdout
