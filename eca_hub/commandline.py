"""How every command reads its arguments: one dialect, and a mistyped option gets the one that was meant.

Knows nothing of what the commands do.
"""

import difflib
import re
from typing import NoReturn

import jsonargparse

from eca_hub.errors import InvalidUsage


class MeantOption:
    """Parser mixin: a mistake becomes one sentence, with the closest option, instead of a page of usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise what the dispatcher prints; jsonargparse calls this for every mistake."""
        parser = getattr(ex, "subcommand_parser", None) or self
        options = [name for name in parser._option_string_actions if name.startswith("--")]  # type: ignore[union-attr]
        raise InvalidUsage(_sentence(message), hint=_hint(message, options, parser.prog)) from None  # type: ignore[union-attr]


class CommandParser(MeantOption, jsonargparse.ArgumentParser):
    """Read the arguments of one command; `--dry-run` and `--dry_run` are the same option.

    Args:
        command: Its name, as typed after `eca-hub`.
        description: What it does, for `--help`.
        env_prefix: When given, every option is also an environment variable with this prefix.
    """

    def __init__(self, command: str, description: str, *, env_prefix: str | None = None) -> None:
        super().__init__(
            prog=f"eca-hub {command}",
            description=description,
            allow_abbrev=False,
            default_env=env_prefix is not None,
            env_prefix=env_prefix or False,
        )

    def read(self, argv: list[str]) -> jsonargparse.Namespace:
        """Read what stands after the command."""
        return self.parse_args([_with_underscores(word) for word in argv])


def _with_underscores(word: str) -> str:
    """Spell the name of an option as it is declared; its value is left alone."""
    name, equals, value = word.partition("=")
    return f"--{name[2:].replace('-', '_')}{equals}{value}" if word.startswith("--") else word


def _sentence(message: str) -> str:
    """Fold a parser's message into one line that ends with a full stop."""
    folded = " ".join(message.split()).rstrip(".")
    return f"{folded[:1].upper()}{folded[1:]}."


def _hint(message: str, options: list[str], prog: str) -> str:
    typed = re.findall(r"--[\w.-]+", message) or [f"--{key}" for key in re.findall(r"[\"']([\w.]+)[\"']", message)]
    for option in typed:
        close = difflib.get_close_matches(option.partition("=")[0], options, n=1, cutoff=0.6)
        if close and close[0] != option:
            return f"Did you mean {close[0]}?"
    return f"All options: {prog.replace(' [options]', '')} --help"
