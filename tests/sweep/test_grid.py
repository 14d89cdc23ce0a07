"""From a sweep file to its runs."""

from pathlib import Path

import pytest

from eca_hub.errors import InvalidConfig, UnknownName
from eca_hub.sweep.grid import column_names, read_sweep


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text("model: {architecture: resnet20}\n")
    Path("list.yaml").write_text("- model\n")
    return tmp_path


def write(text: str) -> Path:
    path = Path("sweep.yaml")
    path.write_text(text)
    return path


SWEEP = """
configs: [base.yaml]
options: {trainer.max_epochs: 3}
grid:
  model.attention: [none, eca]
  seed_everything: [0, 1]
exclude: [{model.attention: none, seed_everything: 1}]
"""


def test_every_combination_that_is_not_excluded_is_a_run(folder: Path) -> None:
    runs = read_sweep(write(SWEEP))
    assert [tuple(run.point.values()) for run in runs] == [("none", 0), ("eca", 0), ("eca", 1)]
    assert runs[1].arguments == (
        *("--config", "base.yaml", "--trainer.max_epochs", "3"),
        *("--model.attention", "eca", "--seed_everything", "0"),
    )
    assert runs[1].name.startswith("attention=eca_seed_everything=0_")


def test_a_changed_recipe_is_another_run_and_the_same_recipe_is_the_same_run(folder: Path) -> None:
    before = read_sweep(write(SWEEP))
    assert [run.name for run in read_sweep(write(SWEEP + "\n# a comment\n"))] == [run.name for run in before]
    Path("base.yaml").write_text("model: {architecture: resnet32}\n")
    after = read_sweep(write(SWEEP))
    assert not {run.name for run in before} & {run.name for run in after}


def training_hash(sweep: str, config: str) -> str:
    Path("base.yaml").write_text(config)
    return {run.training_hash for run in read_sweep(write(sweep))}.pop()


@pytest.mark.parametrize(
    ("sweep", "config", "is_alike"),
    [
        (SWEEP, "# a comment\nmodel:\n  architecture: resnet20\n", True),
        (SWEEP.replace("{tr", "{data.root: /elsewhere, data.init_args.num_workers: 2, tr"), "", True),
        (SWEEP.replace("[0, 1]", "[2, 3]").replace("1}]", "3}]"), "", True),
        (SWEEP, "model: {architecture: resnet20, attention: se}\n", True),
        (SWEEP, "model: {architecture: resnet20, optim: {lr: 0.2}}\n", False),
        (SWEEP, "model: {architecture: resnet32}\n", False),
        (SWEEP.replace("max_epochs: 3", "max_epochs: 4"), "", False),
        (SWEEP, "model: {architecture: resnet20}\nsave: {every_minutes: 1}\nrun_dir: x\n", True),
        (SWEEP.replace("{tr", "{trainer.log_every_n_steps: 1, trainer.accelerator: cpu, tr"), "", True),
        (SWEEP, "model: {architecture: resnet20}\nsave: {keep: last}\n", False),
        (SWEEP, "model: {architecture: resnet20}\ntrainer: {devices: 2}\n", False),
        (SWEEP, "model: {architecture: resnet20}\noptimizer: {class_path: torch.optim.SGD}\n", False),
    ],
    ids=[
        *("a comment", "the folder", "other seeds", "an option of the grid", "the rate", "the network", "epochs"),
        *("files of a run", "the log and the device", "weights that are kept", "processes", "the optimizer"),
    ],
)
def test_sweeps_that_train_alike_have_the_same_training_hash(
    folder: Path, sweep: str, config: str, is_alike: bool
) -> None:
    base = Path("base.yaml").read_text()
    assert (training_hash(sweep, config or base) == training_hash(SWEEP, base)) == is_alike


def test_a_group_of_options_in_the_grid_hides_those_of_the_configuration(folder: Path) -> None:
    sweep = "configs: [base.yaml]\ngrid: {trainer: [{max_epochs: 1}, {max_epochs: 2}]}"
    assert training_hash(sweep, "trainer: {max_epochs: 3}") == training_hash(sweep, "trainer: {max_epochs: 4}")


def test_a_value_may_be_a_list_or_a_mapping(folder: Path) -> None:
    [run] = read_sweep(write("configs: [base.yaml]\ngrid: {model.attention_args: [{kernel_size: 5}]}"))
    assert run.arguments[-2:] == ("--model.attention_args", '{"kernel_size": 5}')
    assert "/" not in run.name
    assert " " not in run.name


def test_columns_are_named_by_the_last_word_where_it_is_unique() -> None:
    assert column_names(["model.attention", "a.lr", "b.lr"]) == {
        "model.attention": "attention",
        "a.lr": "a.lr",
        "b.lr": "b.lr",
    }


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("grids: {}", UnknownName, "There is no key of a sweep file 'grids'. Did you mean 'grid'?"),
        ("- 1", InvalidConfig, "must be a mapping"),
        (
            "grid: {model.attention: eca}",
            InvalidConfig,
            r"must be a list of values, not 'eca'. Write model.attention: \[",
        ),
        ("grid: {model.attention: []}", InvalidConfig, "must be a list of values"),
        ("grid: {a: [1, 1]}", InvalidConfig, "has '1' more than once"),
        ("grid: {a: [1]}\noptions: {a: 2}", InvalidConfig, "a is under options and under grid"),
        ("grid: {a: [1]}\nexclude: [{b: 1}]", InvalidConfig, "must name options of the grid: a"),
        ("grid: {a: [1]}\nexclude: [{a: 2}]", InvalidConfig, "exclude names a: 2, which the grid does not have"),
        ("grid: {a: [1]}\nexclude: [{a: 1}]", InvalidConfig, "every combination is excluded"),
        ("configs: [absent.yaml]", InvalidConfig, "absent.yaml cannot be read: No such file"),
        ("configs: base.yaml", InvalidConfig, "configs must be a list"),
        ("configs: [sweep.yaml, 'list.yaml']", InvalidConfig, "list.yaml must be a mapping"),
        ("grid: {data.root: [2024-01-01]}", InvalidConfig, r"root has datetime.* Write '2024-01-01' in quotes"),
        ("grid: {model.attention_args: [{1: 2}]}", InvalidConfig, "attention_args has the key 1; keys must be text"),
        ("grid: [", InvalidConfig, "is not a YAML file"),
        (f"grid: {{a: {list(range(400))}, b: {list(range(400))}}}", InvalidConfig, "describes 160,000 runs"),
    ],
)
def test_a_mistake_in_the_sweep_file_is_one_sentence(
    folder: Path, text: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        read_sweep(write(text))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("model: {x: [{1: 2, a: 3}]}", "has a mapping whose keys are not all text"),
        ("model: &a {b: *a}", "has a value that cannot be read: Circular reference"),
        ('model: {x: "\\ud800"}', "has a value that cannot be read: .*surrogates not allowed"),
        (f"model: {'[' * 2000}", "is not a YAML file"),
        ("model: {x: !!bool abc}", "is not a YAML file"),
        ("model: {x: 2024-13-01}", "is not a YAML file"),
    ],
)
def test_a_mistake_in_a_configuration_is_one_sentence_with_its_name(folder: Path, config: str, words: str) -> None:
    Path("base.yaml").write_text(config)
    with pytest.raises(InvalidConfig, match=rf"base\.yaml {words}"):
        read_sweep(write(SWEEP))
    with pytest.raises(InvalidConfig, match=rf"sweep\.yaml {words}"):
        read_sweep(write(config.replace("model:", "options:")))


@pytest.mark.parametrize("config", ["", "# nothing yet\n"])
def test_a_configuration_may_be_empty_and_a_sweep_file_not(folder: Path, config: str) -> None:
    Path("base.yaml").write_text(config)
    assert len(read_sweep(write(SWEEP))) == 3
    with pytest.raises(InvalidConfig, match=r"must be a mapping\. Its keys are"):
        read_sweep(write(config))


def test_a_missing_sweep_file_is_one_sentence(folder: Path) -> None:
    with pytest.raises(InvalidConfig, match=r"absent.yaml cannot be read: No such file"):
        read_sweep(Path("absent.yaml"))
