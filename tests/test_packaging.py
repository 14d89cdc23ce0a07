"""What is installed: declared dependencies, and the contents of the wheel."""

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from eca_hub import list_releases
from eca_hub.hub.package import FILES

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OURS = {"eca_hub", "eca_service", "experiments", "tests"}


def names_of(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=!~; ]", text)[0].lower().replace("_", "-") for text in requirements}


def imported_by(folder: Path) -> set[str]:
    """Top-level names of the absolute imports of a folder's modules, those inside functions included."""
    found: set[str] = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found.update(alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names) - OURS


@pytest.mark.parametrize("folder", ["eca_hub", "service"])
def test_every_package_that_the_product_imports_is_declared(folder: str) -> None:
    extras = [text for extra, texts in PROJECT["optional-dependencies"].items() if extra != "dev" for text in texts]
    declared = names_of([*PROJECT["dependencies"], *extras])
    distributions = packages_distributions()
    missing = {
        name: distributions.get(name, [name])
        for name in imported_by(ROOT / folder)
        if not {one.lower().replace("_", "-") for one in distributions.get(name, [name])} & declared
    }
    assert missing == {}


@pytest.mark.slow
def test_the_wheel_that_pip_builds_from_the_sdist_holds_two_packages_and_the_kernel(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip"]
    subprocess.run([sys.executable, "-m", "build", "--sdist", "--outdir", tmp_path, ROOT], check=True, timeout=240)
    [sdist] = tmp_path.glob("*.tar.gz")
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", tmp_path, sdist], check=True, timeout=240)
    [wheel] = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {"eca_hub", "eca_service"}
    assert [name for name in names if re.search(r"cpu_kernel/eca_kernel\..*so$", name)]
    assert "eca_service/py.typed" in names
    assert "eca_hub/quickstart.yaml" in names
    for release in list_releases():
        assert {f"eca_hub/releases/{release}/{file}" for file in FILES} <= set(names)
