"""Images that are streamed from tar shards, over HTTP or from a file system."""

import importlib.util
import json
import tarfile
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.data import DataLoader

from eca_hub.errors import InvalidConfig
from eca_hub.hub.package import check_label_text
from eca_hub.paths import expand_home
from eca_hub.train.data.datamodule import ImageDataModule
from eca_hub.train.data.dataset import Batch
from eca_hub.train.data.shards import StreamSource, check_url, count_samples, open_shard
from eca_hub.train.data.source import SPLITS, Source, Split, fingerprint_of, readable_name
from eca_hub.train.data.stream_sampler import StreamBatchSampler
from eca_hub.train.errors import TrainingStopped
from eca_hub.train.lightning_internals import is_rank_zero


class WebDatasetStreamData(ImageDataModule):
    """Images streamed from tar shards, such as https://host/train-{0000..0146}.tar; nothing is kept on disk.

    Shards in a folder of this machine are better read by WebDatasetData, which needs no list of classes, shuffles all
    images and can balance the classes. A sample is an image and its class, as WebDatasetData has it. A run resumes at
    the very batch, and reads nothing of the shards that are done. Processes and workers share the shards, without
    reading a sample twice.

    Args:
        train: Shards to train on: a path or address with {0000..0146} or {a,b} for several, or more of them with ::
            between. `pipe:` is refused.
        labels: A text file with the name of a class in each line; the first is that of number 0.
        val: Shards to validate on.
        test: Shards to test on; one of val and test may be missing.
        index: JSON file with the number of samples of each shard: {"train-0000.tar": 1000}, or as timm's _info.json
            or webdataset's index have it. Shards on this machine are counted without it.
        images_per_shard: Samples in every shard, in the place of an index.
        shuffle_buffer: Images that are shuffled at a time, in the memory of each worker.
        multi_label: Whether any number of classes applies to an image: `KEY.json` then has a list under `labels`, or
            `KEY.cls` names them with commas between. Whether each applies takes a byte an image and class.
        options: image, augment, batch_size, num_workers, max_bad_samples.

    Raises:
        InvalidConfig: a pattern or a file is wrong, or the number of samples of a shard is not known.
    """

    def __init__(
        self,
        train: str,
        labels: str,
        val: str | None = None,
        test: str | None = None,
        index: str | None = None,
        images_per_shard: int = 0,
        shuffle_buffer: int = 1000,
        multi_label: bool = False,
        **options: object,
    ) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        if importlib.util.find_spec("webdataset") is None:
            raise InvalidConfig("Streaming shards needs webdataset.", hint="pip install 'eca-hub[webdataset]'")
        if self.balanced_sampling:
            raise InvalidConfig("A stream cannot be balanced: its classes are not known before they are read.")
        if shuffle_buffer < 1 or images_per_shard < 0:
            raise InvalidConfig(
                f"shuffle_buffer is {shuffle_buffer} and images_per_shard {images_per_shard}; they must be at least 1 "
                "and 0."
            )
        if not val and not test:
            raise InvalidConfig("There are no shards to measure on.", hint="Give --data.val or --data.test.")
        # What was decoded would never be asked for again before all other images are.
        self.cache_mib = 0
        self.labels = _read_labels(labels)
        self.is_multi_label = multi_label
        self.title = readable_name(train.rsplit("/", 2)[-2] if "/" in train else "") or "images"
        self.has_single_eval_split = not (val and test)
        self._shuffle_buffer = shuffle_buffer
        known = _read_index(index) if index else {}
        patterns: dict[Split, str] = {"train": train, "val": val or test or "", "test": test or val or ""}
        self._sources: dict[Split, StreamSource] = {}
        for split, pattern in patterns.items():
            urls = expand(pattern)
            counts = [_count(url, known, images_per_shard, self.remarks) for url in urls]
            if not sum(counts):
                raise InvalidConfig(f"The {split} split has no images: {pattern}.")
            buffer_size = max(shuffle_buffer, 2 * self.batch_size)
            self._sources[split] = StreamSource(urls, counts, self.labels, buffer_size, is_multi_label=multi_label)

    def source(self, split: Split) -> StreamSource:
        """Return the images of a split."""
        return self._sources[split]

    def predict_source(self) -> Source:
        """Refuse, because a table of predictions is in the order of the files.

        Raises:
            InvalidConfig: always.
        """
        raise InvalidConfig(
            "A stream cannot be predicted.",
            hint="Give --data WebDatasetData and a folder of shards, or eca-hub classify.",
        )

    def class_counts(self) -> list[int]:
        """Refuse to count the images of each class, which are not known before they are read.

        Raises:
            InvalidConfig: always.
        """
        raise InvalidConfig(
            "The classes of a stream are not known before they are read, so they cannot be weighed.",
            hint="Leave out --model.class_weights.",
        )

    def fingerprint(self) -> str:
        """Hash the names and sizes of the shards, and what decides their order: the shuffle buffer and the workers."""
        sources = [self.source(split).fingerprint() for split in SPLITS]
        return fingerprint_of([*sources, self._shuffle_buffer, max(self.num_workers, 1)])

    def check(self) -> None:
        """Read the first image of each split, and print the remarks.

        Raises:
            InvalidConfig: it cannot be read, a class is not among the labels, or a label has control characters.
        """
        check_label_text(self.labels)
        if len(self.labels) < 2:
            raise InvalidConfig(f"{self.title} has {len(self.labels)} classes; a classifier needs two or more.")
        for split in SPLITS if is_rank_zero() else ():
            probe = self.source(split)
            probe = StreamSource(probe.urls[:1], probe.counts[:1], self.labels, 1, is_multi_label=self.is_multi_label)
            try:
                probe.read(0)
            except TrainingStopped as error:
                raise InvalidConfig(str(error)) from None
            except OSError as error:
                raise InvalidConfig(f"{probe.name(0)} of the {split} split: {error}.") from None
            finally:
                probe.close()

    def train_dataloader(self) -> DataLoader[Batch]:
        """Load the training split, from the current position in training, in another order every epoch."""
        batches = self._batches(
            self.source("train"), seed=self.seed, buffer_size=self._shuffle_buffer, position=self.position
        )
        return self.load_batches(self.dataset("train"), batches)

    def _eval_loader(self, source: Source) -> DataLoader[Batch]:
        assert isinstance(source, StreamSource)
        return self.load_batches(self._dataset(source, is_augmented=False), self._batches(source))

    def _batches(self, source: StreamSource, **options: Any) -> StreamBatchSampler:
        return StreamBatchSampler(source.counts, self.batch_size, self.rank_shard(), self.num_workers, **options)


def expand(pattern: str) -> list[str]:
    """Return the paths and addresses of a pattern with braces.

    Raises:
        InvalidConfig: it is malformed, or of a scheme other than http, https and file.
    """
    from webdataset.shardlists import expand_urls

    if "${" in pattern:
        raise InvalidConfig(f"{pattern} has a variable; write its value.")
    for part in pattern.split("::"):
        check_url(part)
    try:
        urls: list[str] = list(expand_urls(pattern))
    except (ValueError, AssertionError) as error:
        raise InvalidConfig(f"{pattern} is no pattern: {error}.") from None
    urls = [shard for url in urls for shard in _files_of(url)]
    if len(set(urls)) < len(urls):
        raise InvalidConfig(f"{pattern} names a shard twice.")
    return urls


def _files_of(url: str) -> list[str]:
    """Expand `*` and `~` in a local path; return any other URL as it is."""
    if "://" in url:
        return [url]
    path = expand_home(url)
    paths = sorted(map(str, path.parent.glob(path.name))) if "*" in path.name else []
    return paths or [str(path)]


def _read_labels(path: str) -> list[str]:
    try:
        text = expand_home(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidConfig(
            f"--data.labels {path} cannot be read: {error}.", hint="Give a text file with a class in each line."
        ) from None
    if text.lstrip().startswith(("[", "{")):
        raise InvalidConfig(f"--data.labels {path} is JSON.", hint="Give a text file with a class in each line.")
    labels = [readable_name(line.strip()) for line in text.splitlines() if line.strip()]
    if len(set(labels)) < len(labels):
        raise InvalidConfig(f"{path} names a class twice.")
    return labels


def _read_index(path: str) -> dict[str, int]:
    """Return the number of samples of each shard by its name."""
    try:
        check_url(path)
        with open_shard(path) as file:
            index = json.load(file)
        return _counts_in(index)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise InvalidConfig(
            f"--data.index {path} cannot be read: {error!r}.",
            hint='Give a JSON file such as {"train-0000.tar": 1000}, the number of samples of each shard.',
        ) from None


def _counts_in(index: Mapping[str, Any]) -> dict[str, int]:
    """Read the three forms of an index: name to number, timm's _info.json, and webdataset's index."""
    pairs: list[tuple[str, Any]] = list(index.items())
    if isinstance(splits := index.get("splits"), Mapping):
        pairs = [
            pair for split in splits.values() for pair in zip(split["filenames"], split["shard_lengths"], strict=True)
        ]
    elif isinstance(shards := index.get("shardlist"), Sequence):
        pairs = [(shard["url"], shard["nsamples"]) for shard in shards]
    # By its name alone as well, where that is the name of one shard only.
    names = [str(name).rsplit("/", 1)[-1] for name, _ in pairs]
    num_named = Counter(names)
    for name, number in pairs:
        if isinstance(number, bool) or int(number) < 0 or int(number) != float(number):
            raise ValueError(f"{name} has {number!r} samples")
    short = {name: int(number) for name, (_, number) in zip(names, pairs, strict=True) if num_named[name] == 1}
    return short | {str(name): int(number) for name, number in pairs}


def _count(url: str, known: Mapping[str, int], images_per_shard: int, remarks: list[str]) -> int:
    if images_per_shard:
        return images_per_shard
    if known:
        parts = url.split("/")
        ends = ("/".join(parts[start:]) for start in range(len(parts)))
        if not (number := next((known[end] for end in ends if end in known), 0)):
            raise InvalidConfig(f"--data.index has no number of samples for {url}.")
        return number
    if url.startswith(("http://", "https://")):
        raise InvalidConfig(
            f"The number of samples of {url} is not known.",
            hint="Give --data.index, or --data.images_per_shard where all shards have as many.",
        )
    path = url.removeprefix("file://")
    try:
        with tarfile.open(path) as tar:
            members = tar.getmembers()
    except (OSError, tarfile.TarError) as error:
        raise InvalidConfig(f"The shard {path} cannot be read: {error}.") from None
    if num_links := sum(member.islnk() or member.issym() for member in members):
        remark = f"{path}: links, which a stream cannot follow, are left out: {num_links}."
        # One file may be the shard of two splits.
        remarks += [] if remark in remarks else [remark]
    try:
        return count_samples(member.name for member in members if member.isreg())
    except ValueError as error:
        raise InvalidConfig(
            f"The shard {path} has two files of one name: {str(error.args[0]).partition(': duplicate')[0]}.",
            hint="Give each sample a name of its own.",
        ) from None
