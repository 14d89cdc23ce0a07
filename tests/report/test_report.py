"""From a table of results to a page."""

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from eca_hub.__main__ import main
from eca_hub.errors import InvalidConfig, UnknownName
from eca_hub.report.page import png, warnings_on
from eca_hub.report.plots import draw_all
from eca_hub.report.study import Plan, Planned, Study, group, read_plan, read_study
from eca_hub.sweep.results import Row, table_beside, write_table

PLAIN = Plan("test_top1", None)


def rows_of(means: dict[str, float], *, architecture: str = "resnet18", num_seeds: int = 5) -> list[Row]:
    dice = random.Random(0)
    return [
        {
            "run": f"{architecture}-{attention}-{seed}",
            "architecture": architecture,
            "attention": attention,
            "seed_everything": seed,
            "config_hash": f"{attention}{seed}",
            "test_top1": mean + dice.uniform(-0.002, 0.002),
            "parameters": 11_000_000 + 1000 * position,
            "multiply_adds": 1_800_000_000,
            "training_hash": "options:one",
            "data_hash": "10e5",
            "num_test_images": 1000,
            "steps": 942,
            "hardware": "CPU",
            "commit": "0123456789abcdef",
        }
        for position, (attention, mean) in enumerate(means.items())
        for seed in range(num_seeds)
    ]


MEANS = {"none": 0.90, "se": 0.905, "eca": 0.92}


def test_methods_are_compared_within_a_block_and_seeds_are_values() -> None:
    first, second = group(rows_of(MEANS) + rows_of(MEANS, architecture="resnet20"), PLAIN)
    assert (first.name, second.name) == ("architecture resnet18", "architecture resnet20")
    assert [method.name for method in first.methods] == ["none", "se", "eca"]
    assert [method.summary.num_seeds for method in first.methods] == [5, 5, 5]
    assert [(each.a, each.b) for each in first.comparisons] == [("se", "none"), ("eca", "none"), ("eca", "se")]
    assert first.comparisons[1].conclusion == "eca is higher than none"


def test_a_kernel_size_makes_another_method() -> None:
    rows = [
        {"run": f"k{k}", "attention": "eca", "kernel_size": k, "config_hash": str(k), "test_top1": 0.5} for k in (3, 5)
    ]
    [block] = group(rows, PLAIN)
    assert [(method.name, method.kernel_size) for method in block.methods] == [("eca 3", 3), ("eca 5", 5)]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "The results have no rows"),
        ([{"run": "a", "test_top1": 0.5}], "lack the columns run and config_hash"),
        ([{"run": "a", "lr": 1, "config_hash": "x", "test_top1": 0.5}], "No column of the grid names a method"),
        ([{"run": "a", "attention": "eca", "config_hash": "x", "test_top1": ""}], "Run a has no number in the column"),
        ([{"run": "a", "attention": "eca", "config_hash": "x", "test_top1": 0.5}] * 2, "two runs of eca with the same"),
        (
            [{"run": "a", "attention": "eca", "config_hash": "x", "test_top1": math.nan}],
            "test_top1 nan; it must be a s",
        ),
        (
            [{"run": "a", "attention": "eca", "config_hash": "x", "test_top1": 93.1}],
            "test_top1 93.1; it must be a share",
        ),
        ([{"run": "a", "attention": "", "config_hash": "x", "test_top1": 0.5}], "Run a has no method"),
    ],
)
def test_results_that_cannot_be_compared_are_refused(rows: list[Row], words: str) -> None:
    with pytest.raises(InvalidConfig, match=words):
        group(rows, PLAIN)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("comparisons: [{a: eca}]", "is not a plan. It needs comparisons"),
        ("- x", "is not a plan"),
        ("comparisons: [{a: eca, b: se, kind: better}]", "kind 'better' is none of difference, non_inferiority"),
        ("comparisons: [{a: eca, b: se, kind: non_inferiority}]", "needs a margin above 0"),
        ("comparisons: [{a: eca, b: se, kind: non_inferiority, margin: .nan}]", "needs a margin above 0"),
        ("comparisons: [{a: eca, b: se}]\nnum_seeds: .inf", "num_seeds is inf; it must be a whole number"),
        ("comparisons: [{a: eca, b: se}]\nnum_seeds: -1", "num_seeds is -1"),
        ("comparisons: [{a: eca, b: se}]\nnum_seeds: true", "num_seeds is True; it must be a whole number"),
        ("comparisons: [{a: eca, b: se}]\nnum_seeds: {eca: 2.5}", "num_seeds of eca is 2.5"),
        ("comparisons: [{a: eca, b: eca}]", "compares eca with itself"),
        ("comparisons: [{a: eca, b: se}, {a: se, b: eca}]", "has the difference of eca and se more than once"),
        ("comparisons: [{a: eca, b: se, margin: 3}]", "has a margin; only kind non_inferiority takes one"),
        ("comparisons: [{a: eca, b: se}]\nmetric: test_top5", "compares test_top5; --metric names test_top1"),
        (
            "comparisons: [{a: eca, b: se, kind: non_inferiority, margin: 1}]\nmetric: test_calibration_error",
            "compares test_calibration_error",
        ),
    ],
)
def test_a_mistake_in_a_plan_is_one_sentence(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "plan.yaml").write_text(text)
    with pytest.raises(InvalidConfig, match=words):
        read_plan(tmp_path / "plan.yaml", "test_top1")


@pytest.mark.parametrize("text", ["comparisons: []\nnum_seed: 8", "comparisons: [{a: eca, b: se, margins: 1}]"])
def test_an_unknown_key_of_a_plan_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "plan.yaml").write_text(text)
    with pytest.raises(UnknownName, match="key of a plan"):
        read_plan(tmp_path / "plan.yaml")


def test_no_difference_of_a_metric_that_is_better_when_lower_is_not_inferior(tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(
        "metric: test_calibration_error\ncomparisons: [{a: eca, b: se, kind: non_inferiority, margin: 1}]"
    )
    with pytest.raises(InvalidConfig, match="non_inferiority is for metrics that are better when higher"):
        read_plan(tmp_path / "plan.yaml")


@pytest.fixture
def results(tmp_path: Path) -> Path:
    rows = rows_of(MEANS)
    path = tmp_path / "results.csv"
    write_table(rows, path)
    curves = [{"run": row["run"], "epoch": epoch, "val_top1": 0.3 * epoch} for row in rows for epoch in range(3)]
    write_table(curves, table_beside(path, "curves"))
    classes = [{"run": row["run"], "label": label, "recall": 0.5} for row in rows for label in ("<b>cat</b>", "dog")]
    write_table(classes, table_beside(path, "classes"))
    write_table([{"run": row["run"], "images_per_s": 100.0} for row in rows], table_beside(path, "costs"))
    return path


def report(results: Path, out: Path, *options: str) -> int:
    return main(["report", str(results), "--out", str(out), *options])


def test_the_page_holds_tables_figures_and_conclusions_and_fetches_nothing(results: Path, tmp_path: Path) -> None:
    assert report(results, tmp_path / "out", "--title", "A <study>") == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<h1>A &lt;study&gt;</h1>" in page
    assert "eca is higher than none" in page
    assert page.count("data:image/png;base64,") == 4
    assert "http" not in page
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| eca | 5 | 92.0" in text
    assert "77.48" in text
    assert {path.stem for path in (tmp_path / "out" / "figures").iterdir()} == {
        "accuracy",
        "bubbles",
        "classes",
        "curves",
    }


@pytest.mark.slow
def test_the_same_results_give_the_same_bytes(results: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert report(results, tmp_path / name) == 0
    files = [path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file()]
    assert len(files) == 6
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_a_plan_decides_what_is_compared(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "plan.yaml").write_text(
        "comparisons: [{a: eca, b: none}, {a: eca, b: se, kind: non_inferiority, margin: 0.5}]"
    )
    assert report(results, tmp_path / "out", "--plan", str(tmp_path / "plan.yaml"), "--json") == 0
    comparisons: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["comparisons"]
    assert [each["kind"] for each in comparisons] == ["difference", "non_inferiority"]
    assert comparisons[1]["conclusion"] == "eca is not worse than se by 0.5 or more"


def test_a_missing_table_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report(tmp_path / "absent.csv", tmp_path / "out") == 2
    assert "absent.csv cannot be read: No such file or directory." in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_report_in_the_home_folder_and_one_that_cannot_be_written(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert report(results, Path("~/out")) == 0
    assert (tmp_path / "out" / "report.html").is_file()
    assert report(results, Path("x" * 300)) == 2
    assert "x cannot be written: File name too long." in capsys.readouterr().err


def test_results_with_fewer_seeds_than_planned_are_labeled_as_incomplete(results: Path, tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text("num_seeds: 8\ncomparisons: [{a: eca, b: none}]")
    assert report(results, tmp_path / "out", "--plan", str(tmp_path / "plan.yaml")) == 0
    words = "Incomplete: 6 runs of the plan are missing."
    assert words in (tmp_path / "out" / "report.html").read_text()
    assert words in (tmp_path / "out" / "report.md").read_text()


def test_planned_comparisons_of_methods_without_runs_are_named(results: Path, tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text("comparisons: [{a: eca, b: none}, {a: cbam, b: se}, {a: eca, b: cbam}]")
    assert report(results, tmp_path / "out", "--plan", str(tmp_path / "plan.yaml")) == 0
    words = "Left out: the comparisons that the plan makes with cbam, of which there are no runs;"
    assert words in (tmp_path / "out" / "report.html").read_text()
    assert words in (tmp_path / "out" / "report.md").read_text()


def test_options_of_a_method_are_a_part_of_its_name() -> None:
    options = ['{"kernel_sizes": 3}', '{"reduction": 8, "gate": "tanh"}', "{not json"]
    rows = [
        {"run": str(n), "attention": "eca", "attention_args": each, "config_hash": str(n), "test_top1": 0.5}
        for n, each in enumerate(options)
    ]
    [block] = group(rows, PLAIN)
    assert [(method.name, method.kernel_size) for method in block.methods] == [
        ("eca kernel_sizes=3", 3),
        ("eca reduction=8 gate=tanh", None),
        ("eca {not json", None),
    ]


def rows_with_kernel_size(k: int, **more: Any) -> list[Row]:
    return [
        {
            "run": f"k{k}-{seed}",
            "architecture": "resnet18",
            "attention": "eca",
            "attention_args": json.dumps({"kernel_sizes": k}),
            "seed_everything": seed,
            "config_hash": f"k{k}-{seed}",
            "test_top1": 0.91,
            **more,
        }
        for seed in range(5)
    ]


def test_tables_of_several_sweeps_are_one_study(results: Path, tmp_path: Path) -> None:
    sized = tmp_path / "sized.csv"
    write_table(rows_with_kernel_size(7) + rows_with_kernel_size(3), sized)
    study = read_study([results, sized], PLAIN)
    [block] = study.blocks
    assert [method.name for method in block.methods] == [
        "none",
        "se",
        "eca",
        "eca kernel_sizes=7",
        "eca kernel_sizes=3",
    ]
    assert len(study.results) == 25
    [axes] = draw_all(study)["kernel_size"].axes
    legend = axes.get_legend()
    assert legend is not None
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["none", "se", "eca, default k", "eca, one k for all blocks"]
    plan = tmp_path / "plan.yaml"
    plan.write_text("comparisons: [{a: eca, b: eca kernel_sizes=7}]")
    assert main(["report", str(results), str(sized), "--plan", str(plan), "--out", str(tmp_path / "out")]) == 0
    assert "| eca - eca kernel_sizes=7 |" in (tmp_path / "out" / "report.md").read_text()


def test_a_plan_with_seeds_of_each_method_is_incomplete_without_those_that_it_does_not_compare() -> None:
    plan = Plan("test_top1", (("eca", "none", "difference", 0.0),), {"eca": 5, "none": 7, "cbam": 4})
    [block] = group(rows_of(MEANS), plan)
    assert block.num_missing_runs == 2 + 4


def test_a_compared_method_without_runs_lacks_all_of_its_seeds() -> None:
    plan = Plan("test_top1", (("eca", "none", "difference", 0.0), ("eca", "cbam", "difference", 0.0)), 8)
    [block] = group(rows_of(MEANS), plan)
    assert block.num_missing_runs == 3 + 3 + 8


def test_a_comparison_without_runs_still_counts_in_the_correction() -> None:
    planned: list[Planned] = [("eca", other, "difference", 0.0) for other in ("none", "se", "cbam")]
    [block] = group(rows_of(MEANS), Plan("test_top1", tuple(planned)))
    assert [each.b for each in block.comparisons] == ["none", "se"]
    assert block.comparisons[0].p_holm == pytest.approx(3 * block.comparisons[0].p)


def test_a_plan_may_compare_nothing_and_state_how_many_runs_there_are(tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text("num_seeds: 8\ncomparisons: []\n")
    plan = read_plan(tmp_path / "plan.yaml")
    [block] = group(rows_of(MEANS), plan)
    assert block.comparisons == ()
    assert block.num_missing_runs == 3 * len(MEANS)
    assert warnings_on(block, plan) == [f"Incomplete: {3 * len(MEANS)} runs of the plan are missing."]


def test_where_the_exact_test_can_show_nothing_no_smallest_difference_is_stated() -> None:
    [block] = group(rows_of(MEANS, num_seeds=3), PLAIN)
    assert all(math.isnan(each.smallest_difference) for each in block.comparisons)


def test_speeds_of_two_sweeps_are_not_compared(results: Path, tmp_path: Path) -> None:
    sized = tmp_path / "sized.csv"
    write_table(rows_with_kernel_size(7), sized)
    speeds = {f"{mode}_{kind}": 1.0 for mode in ("training", "inference") for kind in ("images_per_s", "time_ratio")}
    machine = {"batch_size": 32, "threads": 2, "device": "cpu"}
    eca = {"run": "resnet18-eca-0", "attention": "eca"}
    write_table([{**eca, **speeds, **machine}], table_beside(results, "speeds"))
    sizes = {"run": "k7-0", "attention": "eca", "attention_args": '{"kernel_sizes": 7}'}
    write_table([{**sizes, **speeds, **machine}], table_beside(sized, "speeds"))
    [block] = read_study([results, sized], PLAIN).blocks
    assert {method.name: method.speed is not None for method in block.methods} == {
        "none": False,
        "se": False,
        "eca": True,
        "eca kernel_sizes=7": False,
    }


def test_speeds_of_two_sweeps_are_compared_where_both_were_timed_beside_the_same_network(
    results: Path, tmp_path: Path
) -> None:
    sized = tmp_path / "sized.csv"
    write_table(rows_with_kernel_size(7), sized)
    machine = {"batch_size": 32, "threads": 2, "device": "cpu"}

    def speeds(run: str, ratio: float) -> Row:
        numbers = {"images_per_s": 100 / ratio, "time_ratio": ratio}
        return {
            "run": run,
            "attention": run.split("-")[1],
            **{f"{mode}_{kind}": each for mode in ("training", "inference") for kind, each in numbers.items()},
            **machine,
        }

    write_table([speeds("resnet18-none-4", 1.0), speeds("resnet18-eca-0", 1.1)], table_beside(results, "speeds"))
    write_table([speeds("resnet18-none-0", 1.0), speeds("k7-0", 1.2)], table_beside(sized, "speeds"))
    [block] = read_study([results, sized], PLAIN).blocks
    ratios = {method.name: method.speed and method.speed["training_time_ratio"] for method in block.methods}
    assert ratios == {"none": 1.0, "se": None, "eca": 1.1, "eca kernel_sizes=7": 1.2}
    first = block.methods[0].speed
    assert first is not None
    assert first["run"] == "resnet18-none-4", "the speeds beside the first results count"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"drop": "architecture"}, "lack the column architecture, which others of the tables have"),
        ({"num_test_images": 500}, "differ in the number of test images"),
        ({"steps": 1884}, "differ in the number of training steps"),
        ({"training_hash": "options:other"}, "differ in the configuration files or options"),
        ({"data_hash": "100000"}, "differ in the data set, or in the workers or the shuffle buffer of a stream"),
        ({"drop": "attention_args"}, "two runs of eca with the same seed"),
    ],
)
def test_tables_that_are_not_alike_are_refused(
    results: Path, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    dropped = change.pop("drop", None)
    rows = [{key: each for key, each in row.items() if key != dropped} for row in rows_with_kernel_size(3, **change)]
    write_table(rows, tmp_path / "sized.csv")
    with pytest.raises(InvalidConfig, match=words):
        read_study([results, tmp_path / "sized.csv"], PLAIN)


@pytest.mark.parametrize("older", [{"training_hash": "0123", "data_hash": ""}, {"training_hash": ""}])
def test_a_table_of_an_older_version_is_compared_by_what_it_has(
    results: Path, tmp_path: Path, older: dict[str, Any]
) -> None:
    write_table(rows_with_kernel_size(3, **older), tmp_path / "sized.csv")
    assert read_study([results, tmp_path / "sized.csv"], PLAIN).blocks
    write_table(rows_with_kernel_size(3, **older, steps=1), tmp_path / "sized.csv")
    with pytest.raises(InvalidConfig, match="differ in the number of training steps"):
        read_study([results, tmp_path / "sized.csv"], PLAIN)


def test_two_methods_with_the_same_kernel_sizes_are_two_lines() -> None:
    rows = [
        {"run": f"{method}{k}", "attention": method, "kernel_size": k, "config_hash": f"{method}{k}", "test_top1": 0.5}
        for k in (5, 3)
        for method in ("eca", "ceca")
    ]
    figure = draw_all(Study(PLAIN, tuple(group(rows, PLAIN)), rows))["kernel_size"]
    assert [line.get_label() for line in figure.axes[0].containers] == ["eca", "ceca"]
    assert points_of(figure)[0] == ([3, 5], [50.0, 50.0])


def test_labels_that_matplotlib_cannot_draw_are_replaced(tmp_path: Path) -> None:
    rows = rows_of(MEANS)
    classes = [{"run": row["run"], "label": r"$\foo$ 猫", "recall": 0.5} for row in rows]
    figures = draw_all(Study(PLAIN, tuple(group(rows, PLAIN)), rows, classes=classes))
    assert png(figures["classes"])


def test_a_metric_without_curves_has_no_figure_of_them() -> None:
    rows = rows_of(MEANS)
    curves = [{"run": row["run"], "epoch": 0, "val_top1": 0.5} for row in rows]
    plan = Plan("test_macro", None)
    rows = [{**row, "test_macro": 0.5} for row in rows]
    assert "curves" not in draw_all(Study(plan, tuple(group(rows, plan)), rows, curves))


def test_what_is_planned_and_missing_is_also_said_on_the_command_line(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "plan.yaml").write_text("num_seeds: 8\ncomparisons: [{a: eca, b: none}, {a: eca, b: cbam}]")
    plan = ["--plan", str(tmp_path / "plan.yaml")]
    assert report(results, tmp_path / "out", *plan) == 0
    printed = capsys.readouterr().out
    assert "Incomplete: 14 runs" in printed
    assert "Left out: the comparisons that the plan makes with cbam" in printed
    assert report(results, tmp_path / "out", *plan, "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["warnings"]) == 2


def test_the_notes_explain_what_the_page_has_and_nothing_else(results: Path, tmp_path: Path) -> None:
    described = tmp_path / "described.csv"
    write_table(rows_of({"coord": 0.9, "ela": 0.91}, num_seeds=1), described)
    explained = ("Intervals: 95 %", "corrected by Holm", "Smallest detectable", "Published: top-1")
    for table, has in ((results, True), (described, False)):
        assert report(table, tmp_path / "out") == 0
        text = (tmp_path / "out" / "report.md").read_text()
        assert [words in text for words in explained] == [has] * len(explained)
        assert ("| published |" in text) == has
        assert ("| accuracy, 95 % interval |" in text) == has


def test_a_single_seed_is_null_in_json_and_no_nan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "results.csv"
    write_table(rows_of(MEANS, num_seeds=1), path)
    assert report(path, tmp_path / "out", "--json") == 0
    printed = capsys.readouterr().out
    assert "NaN" not in printed
    assert json.loads(printed)["comparisons"][0]["smallest_difference"] is None


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("results_curves.csv", "run,val_top1\na,0.5\n", "lacks the column epoch"),
        ("results_speeds.csv", "run,attention\na,eca\n", "lacks the column training_images_per_s"),
    ],
)
def test_a_table_beside_the_results_that_lacks_a_column_is_named(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: str, words: str
) -> None:
    (tmp_path / name).write_text(content)
    assert report(results, tmp_path / "out") == 2
    assert words in capsys.readouterr().err


def test_a_file_in_the_place_of_the_folder_is_one_sentence(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").write_text("")
    assert report(results, tmp_path / "out") == 2
    assert "out cannot be written: Not a directory." in capsys.readouterr().err


def test_methods_are_the_same_from_csv_and_parquet(tmp_path: Path) -> None:
    rows = [
        {"run": str(k), "attention": "eca", "kernel_size": k, "config_hash": str(k), "test_top1": 0.5} for k in (3, "")
    ]
    for name in ("results.csv", "results.parquet"):
        write_table(rows, tmp_path / name)
        [block] = read_study([tmp_path / name], PLAIN).blocks
        assert [method.kernel_size for method in block.methods] == [3, None]
        assert block.methods[1].name == "eca"


def points_of(figure: Figure) -> list[tuple[list[float], list[float]]]:
    lines = [np.asarray(each.get_xydata()) for each in figure.axes[0].lines]
    return [(line[:, 0].tolist(), line[:, 1].tolist()) for line in lines if len(line)]


def test_another_metric_names_the_axes_and_the_classes(tmp_path: Path) -> None:
    rows = [{"test_AP" if key == "test_top1" else key: each for key, each in row.items()} for row in rows_of(MEANS)]
    path = tmp_path / "results.csv"
    write_table(rows, path)
    write_table([{"run": row["run"], "epoch": 0, "val_AP": 0.3} for row in rows], table_beside(path, "curves"))
    write_table([{"run": row["run"], "label": "cat", "AP": 0.5} for row in rows], table_beside(path, "classes"))
    figures = draw_all(read_study([path], Plan("test_AP", None)))
    curves, classes = figures["curves"], figures["classes"]
    assert curves.axes[0].get_ylabel() == "val_AP (%)"
    assert points_of(curves) == [([1], [30.0])] * 3
    assert classes.axes[0].get_xlabel() == "AP with eca less AP with none (points)"


def test_a_point_of_the_curves_stands_at_its_epoch() -> None:
    rows = rows_of(MEANS)
    curves = [
        {"run": row["run"], "epoch": epoch, "train_top1": 0.25, "val_top1": 0.5 if epoch == 5 else ""}
        for row in rows
        for epoch in range(6)
    ]
    drawn = draw_all(Study(PLAIN, tuple(group(rows, PLAIN)), rows, curves))["curves"]
    assert points_of(drawn) == [([1, 2, 3, 4, 5, 6], [25.0] * 6), ([6], [50.0])] * 3


def test_speeds_stand_beside_the_accuracy(results: Path, tmp_path: Path) -> None:
    machine = {"batch_size": 32, "threads": 2, "device": "cpu"}
    write_table(
        [
            {
                "run": f"resnet18-{attention}-3",
                "training_images_per_s": 1234.4,
                "training_time_ratio": ratio,
                "inference_images_per_s": 5000.0,
                "inference_time_ratio": ratio,
                **machine,
            }
            for attention, ratio in {"none": 1.0, "eca": 1.031}.items()
        ],
        table_beside(results, "speeds"),
    )
    assert report(results, tmp_path / "out") == 0
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| 1,234 (+0.0%) | 5,000 (+0.0%) | 75.20 |" in text
    assert "| 1,234 (+3.1%) | 5,000 (+3.1%) | 77.48 |" in text
    assert "| - | - | 76.71 |" in text, "the speed of a run is not one in turns"
    assert "networks in turns on cpu, threads: 2, batches of 32" in text


def test_the_plan_of_the_study_can_be_read() -> None:
    plan = read_plan(Path("experiments/results/plan.yaml"))
    assert (plan.metric, plan.num_seeds) == ("test_top1", 8)
    assert plan.comparisons == (
        ("eca", "none", "difference", 0.0),
        ("se_var3", "se", "difference", 0.0),
        ("eca", "se_var2", "difference", 0.0),
        ("eca", "se", "non_inferiority", 0.5),
    )
