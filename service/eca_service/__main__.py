"""The command: `eca-hub serve --model OWNER/NAME`.

Arguments are read, and mistakes answered, before anything slow is imported.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import gc
import logging
import os
import sys
import warnings
from typing import Any

from docstring_parser import parse_from_object

from eca_hub import CommandParser, open_hub
from eca_service.http.auth import Keys
from eca_service.http.security import check_exposure, check_hub_exposure
from eca_service.settings import Settings

_ABOUT = """Serve models over HTTP: POST a picture to /v1/classify and get its classes.

  eca-hub serve --model acme/eca_resnet50 --port 8000
  curl --data-binary @cat.jpg http://127.0.0.1:8000/v1/classify
"""


class _Collect(argparse.Action):
    """Gather an option that is given several times; the command line replaces what the environment says."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Add one value."""
        gathered = getattr(namespace, self.dest, None) if getattr(self, "_has_begun", False) else None
        self._has_begun = True
        setattr(namespace, self.dest, [*(gathered or []), values])


def _truth(word: str | bool) -> bool:
    """Read yes or no, as people write them in environments."""
    if str(word).lower() in ("1", "true", "yes", "on"):
        return True
    if str(word).lower() in ("", "0", "false", "no", "off"):
        return False
    raise ValueError("say true or false")


def read_settings(argv: list[str]) -> Settings:
    """Settings from the command line, then from `ECA_*`, then the defaults.

    Raises:
        BadSetting: a value that cannot work.
        EcaHubError: an option that there is not, or a value of the wrong kind.
    """
    parser = CommandParser("serve", _ABOUT, env_prefix="ECA")
    about = {entry.arg_name: entry.description for entry in parse_from_object(Settings).params}
    for entry in dataclasses.fields(Settings):
        option = f"--{entry.name}"
        if entry.name == "model":
            parser.add_argument(option, action=_Collect, metavar="ID", default=[], help=about[entry.name])
        elif entry.type is bool:
            parser.add_argument(
                option, type=_truth, nargs="?", const=True, default=entry.default, help=about[entry.name]
            )
        else:
            parser.add_argument(option, type=entry.type, default=entry.default, help=about[entry.name])
    values = parser.read(argv).as_dict()
    model = values.pop("model")
    models = [name.strip() for name in model.split(",") if name.strip()] if isinstance(model, str) else model
    return Settings(model=tuple(models), **values)


def main(argv: list[str]) -> int:
    """Run the service until a signal ends it.

    Args:
        argv: What stands after `eca-hub serve`.

    Returns:
        0 after an orderly end.

    Raises:
        EcaHubError: the user's mistake, which the command line prints before it ends with 2.
    """
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for talkative in ("uvicorn", "httpx2"):
        logging.getLogger(talkative).setLevel(logging.WARNING)
    # Pillow would write a line into the log for each picture that is refused a moment later.
    warnings.filterwarnings("ignore", message="Image size .* exceeds limit")
    _serve(read_settings(argv))
    return 0


def _serve(settings: Settings) -> None:
    from eca_service.http.port import open_port
    from eca_service.http.server import end_threads, let_go_of_streams, serve

    keys = Keys.gather(os.environ, settings.api_keys_file)
    admin_keys = Keys.gather(os.environ, settings.admin_keys_file, "ECA_ADMIN_KEYS")
    check_exposure(settings.host, keys, insecure=settings.insecure)
    check_hub_exposure(settings.host, settings.hub_root, settings.hub_users)
    with open_port(settings.host, settings.port) as listener, contextlib.ExitStack() as stack:
        # What is imported and loaded stays: looking through it for garbage takes a tenth of the start. `serve` goes on.
        gc.disable()
        # Engines have one thread each: more threads than cores would wait for each other.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        # Pillow's own pieces of 16 MiB are kept as well: each thread that ever met a large picture would hold all of
        # its memory for good. Pieces beyond 32 MiB go back to the system.
        os.environ.setdefault("PILLOW_BLOCK_SIZE", "64m")
        from eca_service.app import create_app
        from eca_service.models.loader import ModelLoader
        from eca_service.models.registry import ModelSource, Registry

        loader = ModelLoader(settings)
        stack.callback(loader.close)
        sources = [ModelSource.parse(text) for text in settings.model]
        max_weights_bytes = int(settings.max_weights_mib * 2**20)
        registry = Registry(
            sources, loader.open, max_weights_bytes=max_weights_bytes, patience_s=settings.wait_for_models_s
        )
        loader.is_draining = lambda: registry.is_draining
        hub = stack.enter_context(open_hub(settings.hub_root, settings.hub_users)) if settings.hub_root else None
        asyncio.run(serve(create_app(settings, registry, keys, admin_keys, hub=hub), settings, listener))
    let_go_of_streams()
    end_threads()
