"""Plots of a detector's run."""

from pathlib import Path

from PIL import Image

from eca_hub.train.detection_plots import draw_contact_sheet


def test_a_run_whose_test_images_are_all_broken_has_an_empty_contact_sheet(tmp_path: Path) -> None:
    draw_contact_sheet([], {}, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as image:
        assert image.size == (1280, 256)
