"""The public API: every name resolves, in order, and the import needs no torch."""

import subprocess
import sys

import pytest

import eca_hub


def test_every_exported_name_resolves() -> None:
    assert [name for name in eca_hub.__all__ if getattr(eca_hub, name, None) is None] == []
    assert set(eca_hub.__all__) <= set(dir(eca_hub))


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        eca_hub.nothing  # noqa: B018


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_importing_the_package_imports_no_torch() -> None:
    assert run_python("import sys, eca_hub, eca_hub.localhub; print('torch' in sys.modules)").strip() == "False"


@pytest.mark.slow
def test_pulling_and_classifying_needs_no_package_of_the_extras() -> None:
    extras = ["lightning", "torchmetrics", "sklearn", "matplotlib", "fastapi", "uvicorn", "pydantic", "rich", "pyarrow"]
    run_python(
        f"import sys; sys.modules.update(dict.fromkeys({extras}))\n"
        "from eca_hub import Classifier, create_model, push_to_hub"
    )
