"""`eca-hub serve`: read the settings, bind the port, then import what is slow and serve."""

import argparse
import asyncio
import contextlib
import gc
import logging
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from eca_hub import DEFAULT_RELEASE
from eca_hub.commandline import CommandParser
from eca_hub.commands.localhub import open_hub
from eca_service.errors import BadSetting
from eca_service.http.auth import ApiKeys, check_bind_address, check_hub_bind_address
from eca_service.logging import log_to_stderr
from eca_service.settings import RENAMED, Settings, split

_logger = logging.getLogger(__name__)

_ABOUT = """Serve models over HTTP: POST an image to /v1/classify and get its classes.

  eca-hub serve --model acme/eca_resnet50 --port 8000
  curl --data-binary @cat.jpg http://127.0.0.1:8000/v1/classify
"""

_GROUPS = {"model": "Model", "network": "Network", "limits": "Limits", "speed": "Speed", "keys": "Keys"}


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """One line an option, with its default."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=27, width=116)

    def add_usage(self, usage: Any, actions: Any, groups: Any, prefix: Any = None) -> None:
        """Show no list of all options: they follow."""
        super().add_usage(f"{self._prog.removesuffix(' [options]')} [--model ID] [options]", [], [], prefix)

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        return "" if action.nargs == "?" else super()._format_args(action, default_metavar)


class _HelpAll(argparse.Action):
    """Print every option with its whole description."""

    def __init__(self, option_strings: Any, dest: str, **kwargs: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, **kwargs)

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """Print and exit, as --help does."""
        _parser(is_full=True).print_help()
        parser.exit()


def _parser(*, is_full: bool = False) -> Any:
    parser = CommandParser("serve", _ABOUT)
    parser.formatter_class = _HelpFormatter
    parser.add_argument(
        "--help_all", action=_HelpAll, help="show every option; each is also an environment variable, ECA_NAME"
    )
    groups = {group: parser.add_argument_group(title) for group, title in _GROUPS.items()}
    for name, field in Settings.model_fields.items():
        assert isinstance(field.json_schema_extra, dict)
        about = str(field.description).replace("%", "%%")
        if not is_full:
            about = about.partition(". ")[0].rstrip(".")
            if field.json_schema_extra["is_rare"]:
                about = argparse.SUPPRESS
        options: dict[str, Any] = {"action": "append"} if name == "model" else {}
        if field.annotation is bool:
            options = {"nargs": "?", "const": "true"}
        elif field.default != "" and about is not argparse.SUPPRESS:
            [default] = field.default if name == "model" else [field.default]
            about = f"{about} ({default:g})" if isinstance(default, float) else f"{about} ({default})"
        group = groups[str(field.json_schema_extra["group"])]
        group.add_argument(f"--{name}", help=about, metavar=_metavar(name, field.annotation), **options)
    for name in RENAMED:
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    return parser


def _metavar(name: str, kind: Any) -> str | None:
    if name == "model":
        return "ID"
    return {bool: "", int: "N", float: "X"}.get(kind, "TEXT")


def read_settings(argv: list[str], environment: Mapping[str, str] = os.environ) -> Settings:
    """Read the settings: options first, then `ECA_*` variables, then defaults.

    Raises:
        BadSetting: a value that is not allowed.
        EcaHubError: an unknown option.
    """
    names = [*Settings.model_fields, *RENAMED]
    # An empty variable, as a compose file has it, sets nothing.
    variables = {name: value for name in names if (value := environment.get(f"ECA_{name.upper()}"))}
    options = {name: value for name, value in _parser().read(argv).as_dict().items() if value is not None}
    values = _with_current_names(variables, lambda name: f"ECA_{name.upper()}")
    values |= _with_current_names(options, lambda name: f"--{name}")
    if isinstance(values.get("model"), str):
        values["model"] = split(values["model"])
    return Settings(**values)


def _with_current_names(given: dict[str, Any], spell: Callable[[str], str]) -> dict[str, Any]:
    """Replace the names of before.

    Args:
        given: Value by name.
        spell: Spells a name as the user has typed it.
    """
    for old in given.keys() & RENAMED.keys():
        old_name, new_name = spell(old), spell(RENAMED[old])
        if RENAMED[old] in given:
            raise BadSetting(f"{old_name} and {new_name} are given, which are one setting.", hint=f"Omit {old_name}.")
        print(f"eca-hub serve: {old_name} is now called {new_name}.", file=sys.stderr)  # noqa: T201
    return {RENAMED.get(name, name): value for name, value in given.items()}


def main(argv: list[str]) -> int:
    """Run the service until a signal ends it.

    Args:
        argv: The arguments after `eca-hub serve`.

    Returns:
        0 after a graceful shutdown.

    Raises:
        EcaHubError: the user's mistake, which the command line prints before it exits with 2.
    """
    settings = read_settings(argv)
    # Pillow would log a line for each image that is refused a moment later.
    warnings.filterwarnings("ignore", message="Image size .* exceeds limit")
    with log_to_stderr(settings.log_format, settings.access_log):
        _serve(settings)
    return 0


def _serve(settings: Settings) -> None:
    from eca_service.http.server import bind_listener, flush_stdio, join_daemon_threads, serve, url_of
    from eca_service.models.source import ModelSource, check_ids

    sources = [ModelSource.parse(text) for text in settings.model]
    check_ids(sources)
    keys = ApiKeys.from_env(os.environ, settings.api_keys_file)
    admin_keys = ApiKeys.from_env(os.environ, settings.admin_keys_file, "ECA_ADMIN_KEYS")
    check_bind_address(settings.host, keys, insecure=settings.insecure)
    check_hub_bind_address(settings.host, settings.hub_root, settings.hub_users)
    with bind_listener(settings.host, settings.port) as listener, contextlib.ExitStack() as stack:
        if settings.model == (DEFAULT_RELEASE,):
            _logger.info(
                "serving %s, which is part of eca-hub; --model serves another. Its page: %s",
                DEFAULT_RELEASE,
                url_of(listener),
            )
        # Imports and weights live until exit: collecting garbage meanwhile takes a tenth of the startup. `serve` turns
        # the collector on again.
        gc.disable()
        from eca_service.app import open_app

        hub = stack.enter_context(open_hub(settings.hub_root, settings.hub_users)) if settings.hub_root else None
        app, loader = open_app(settings, sources, keys, admin_keys, hub=hub)
        stack.callback(loader.close)
        asyncio.run(serve(app, settings, listener))
    flush_stdio()
    join_daemon_threads()
