"""The command: `eca-hub serve --model OWNER/NAME`.

Arguments are read, and mistakes answered, before anything slow is imported.
"""

import argparse
import asyncio
import dataclasses
import difflib
import logging
import os
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from docstring_parser import parse_from_object
from jsonargparse import ArgumentParser

from eca_hub import EcaHubError
from service.security import Keys, check_exposure
from service.settings import Settings

_ABOUT = """Serve models over HTTP: POST a picture to /v1/classify and get its classes.

  eca-hub serve --model acme/eca_resnet50 --port 8000
  curl --data-binary @cat.jpg http://127.0.0.1:8000/v1/classify
"""

_WRONG_TYPE = re.compile(r"Parser key \"(\w+)\": Expected a <class '(\w+)'>\. Got value: .*")
_KINDS = {"int": "a whole number", "float": "a number"}


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


class _Parser(ArgumentParser):
    """A parser that answers a mistake in one sentence."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say what is wrong and end with 2."""
        sentence = " ".join(message.split())
        if wrong := _WRONG_TYPE.fullmatch(sentence):
            sentence = f"--{wrong[1]} must be {_KINDS.get(wrong[2], wrong[2])}."
        options = [option for action in self._actions for option in action.option_strings]
        if sentence.startswith("unrecognized arguments: "):
            given = sentence.split()[2].partition("=")[0]
            close = difflib.get_close_matches(given.replace("-", "_").replace("__", "--", 1), options, n=1)
            advice = f"Did you mean {close[0]}?" if close else f"All options: {self.prog} --help"
            sentence = f"There is no option {given}. {advice}"
        self.exit(2, f"{self.prog}: {sentence}\n")


def _truth(word: str | bool) -> bool:
    """Read yes or no, as people write them in environments."""
    if str(word).lower() in ("1", "true", "yes", "on"):
        return True
    if str(word).lower() in ("", "0", "false", "no", "off"):
        return False
    raise ValueError("say true or false")


def read_settings(argv: Sequence[str]) -> Settings:
    """Settings from the command line, then from `ECA_*`, then the defaults.

    Raises:
        BadSetting: a value that cannot work.
    """
    parser = _Parser(prog="eca-hub serve", description=_ABOUT, default_env=True, env_prefix="ECA")
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
    values = parser.parse_args(list(argv)).as_dict()
    model = values.pop("model")
    models = [name.strip() for name in model.split(",") if name.strip()] if isinstance(model, str) else model
    return Settings(model=tuple(models), **values)


def main(argv: list[str]) -> int:
    """Run the service until a signal ends it.

    Args:
        argv: What stands after `eca-hub serve`.

    Returns:
        0 after an orderly end, 2 for the user's mistake, 1 for ours.
    """
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for talkative in ("uvicorn", "httpx2"):
        logging.getLogger(talkative).setLevel(logging.WARNING)
    try:
        _serve(read_settings(argv))
    except EcaHubError as error:
        print(f"eca-hub serve: {error}", file=sys.stderr)
        return 2
    except Exception as error:
        print(f"eca-hub serve: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def _serve(settings: Settings) -> None:
    from service.server import open_port, serve

    keys = Keys.gather(os.environ, settings.api_keys_file)
    check_exposure(settings.host, keys, insecure=settings.insecure)
    listener = open_port(settings.host, settings.port)
    from service.allocator import keep_freed_memory
    from service.app import create_app
    from service.loading import ModelLoader
    from service.registry import ModelSource, Registry

    keep_freed_memory()
    # Engines have one thread each: more threads than cores would wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    loader = ModelLoader(settings)
    registry = Registry([ModelSource.parse(text) for text in settings.model], loader.open)
    try:
        asyncio.run(serve(create_app(settings, registry, keys), settings, listener))
    finally:
        loader.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
