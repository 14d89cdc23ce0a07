"""The software bill of materials: the command of CONTRIBUTING, and of the image."""

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("cyclonedx_py") is None, reason="cyclonedx-bom is not installed")
def test_it_lists_what_is_installed(tmp_path: Path) -> None:
    contributing = (ROOT / ".github" / "CONTRIBUTING.md").read_text()
    [arguments] = re.findall(r"`[^`]*cyclonedx-py (environment --output-file) sbom\.json`", contributing)
    file = tmp_path / "sbom.json"
    subprocess.run([sys.executable, "-m", "cyclonedx_py", *arguments.split(), str(file), sys.executable], check=True)
    document = json.loads(file.read_text())
    assert document["bomFormat"] == "CycloneDX"
    components = {component["name"]: component for component in document["components"]}
    assert {"torch", "eca-hub"} <= set(components)
    assert components["torch"]["version"]
    assert components["torch"]["purl"].startswith("pkg:pypi/torch@")


def test_the_image_holds_one_and_not_the_program_that_makes_it() -> None:
    stages = re.split(r"(?m)^FROM ", (ROOT / "service" / "Dockerfile").read_text())
    [sbom] = [stage for stage in stages if " AS sbom" in stage.splitlines()[0]]
    [serve] = [stage for stage in stages if " AS serve" in stage.splitlines()[0]]
    assert "cyclonedx-py" in sbom
    assert "COPY --from=sbom /sbom.json" in serve
    assert sbom.split()[0] == serve.split()[0], "both are made of the same stage"
