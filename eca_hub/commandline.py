"""How every command reads its arguments: one dialect, and a mistyped option gets the one that was meant.

Knows nothing of what the commands do.
"""

import difflib
import re
from typing import NoReturn

import jsonargparse

from eca_hub.errors import InvalidUsage

_UNKNOWN = re.compile(r"unrecognized arguments: (.*)", re.IGNORECASE)
_WRONG_TYPE = re.compile(r"Parser key \"([\w.]+)\": Expected a <class '(\w+)'>\. Got value: (.*)")
_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false"}


class MeantOption:
    """Parser mixin: a mistake becomes one sentence, with the closest option, instead of a page of usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise what the dispatcher prints; jsonargparse calls this for every mistake."""
        parser = getattr(ex, "subcommand_parser", None) or self
        options = [name for name in parser._option_string_actions if name.startswith("--")]  # type: ignore[union-attr]
        folded = " ".join(message.split()).rstrip(".")
        raise InvalidUsage(_sentence(folded), hint=_hint(folded, options, parser.prog)) from None  # type: ignore[union-attr]


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
        """Read what stands after the command.

        Raises:
            InvalidUsage: an option that the command does not take, or a value of the wrong kind.
        """
        return self.parse_args([_with_underscores(word) for word in argv])


def _with_underscores(word: str) -> str:
    """Spell the name of an option as it is declared; its value is left alone."""
    name, equals, value = word.partition("=")
    return f"--{name[2:].replace('-', '_')}{equals}{value}" if word.startswith("--") else word


def _sentence(folded: str) -> str:
    """Say in our words what a parser says in its own; the rest as it comes."""
    if unknown := _UNKNOWN.fullmatch(folded):
        return f"There is no option {unknown[1].split()[0].partition('=')[0]}."
    if wrong := _WRONG_TYPE.fullmatch(folded):
        return f"--{wrong[1]} must be {_KINDS.get(wrong[2], wrong[2])}, not {wrong[3]!r}."
    return f"{folded[:1].upper()}{folded[1:]}."


def _hint(folded: str, options: list[str], prog: str) -> str:
    typed = re.findall(r"--[\w.-]+", folded) or [f"--{key}" for key in re.findall(r"[\"']([\w.]+)[\"']", folded)]
    for option in typed:
        # Letters that changed places are the likeliest mistake: --prot means --port, though --root is as near.
        swapped = [each for each in options if sorted(each) == sorted(option)]
        close = swapped or difflib.get_close_matches(option, options, n=1, cutoff=0.6)
        if close and close[0] != option:
            return f"Did you mean {close[0]}?"
    return f"All options: {prog.replace(' [options]', '')} --help"
