"""A real local hub, to which HF_ENDPOINT points; parsers that are built once."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from tests.localhub.hub_process import Hub, running_hub

_PARSERS: dict[object, tuple[Any, Any, Any]] = {}


@pytest.fixture(scope="package", autouse=True)
def parsers_are_built_once() -> Iterator[None]:
    """A parser has hundreds of options and does not depend on the arguments, and building it takes seconds."""
    from eca_hub.train.lightning_cli import RunCLI

    build = RunCLI.setup_parser

    def setup_parser(self: RunCLI, *args: Any) -> None:
        key = (self.task.module, self.command)
        if key not in _PARSERS:
            build(self, *args)
            _PARSERS[key] = (self.parser, self._subcommand_parsers, self._subcommand_method_arguments)
        self.parser, self._subcommand_parsers, self._subcommand_method_arguments = _PARSERS[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunCLI, "setup_parser", setup_parser)
        yield


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running_hub(tmp_path / "hub") as running:
        # As HF_ENDPOINT does, which the client reads when it is imported.
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, running.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield running
