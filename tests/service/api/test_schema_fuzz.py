"""schemathesis on /openapi.json: some thousand valid and invalid requests to every route."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.service.server_process import save_tiny_package, served

CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,"
    "negative_data_rejection"
)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("schemathesis") is None, reason="schemathesis is not installed")
def test_schemathesis_finds_nothing(tmp_path: Path) -> None:
    package = save_tiny_package(tmp_path / "acme" / "digits")
    arguments = ("--model", "acme/digits", "--explain")
    environment = {"ECA_ADMIN_KEYS": "admin", "HF_ENDPOINT": "http://127.0.0.1:9"}
    with served(*arguments, cwd=package.parent.parent, **environment) as running:
        running.wait_until_ready()
        options = ("--phases", "examples,coverage,fuzzing", "--max-examples", "20", "--checks", CHECKS)
        # Model ids contain slashes, so that most generated paths are discarded before they are sent.
        more = ("--suppress-health-check", "filter_too_much,too_slow", "--max-time", "120", "--continue-on-failure")
        header = ("-H", "Authorization: Bearer admin")
        command = ["schemathesis", "run", f"{running.url}/openapi.json", *header, *options, *more]
        ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert ended.returncode == 0, ended.stdout[-4000:]
