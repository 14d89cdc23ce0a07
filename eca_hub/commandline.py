"""The argument parser of every command: one syntax, one-sentence errors, and a suggestion for a mistyped option.

`eca_service` imports it as well, because `eca-hub serve` is one more command.
"""

import argparse
import difflib
import math
import re
import textwrap
from collections.abc import Sequence
from typing import Any, NoReturn

import jsonargparse

from eca_hub.errors import InvalidUsage

_UNKNOWN = re.compile(r"unrecognized arguments: (.*)", re.IGNORECASE)
_NEGATIVE_NUMBER = re.compile(r"-(\d+|\d*\.\d+)")
_WRONG_TYPE = re.compile(
    r"Parser key \"([\w.]+)\"(?: element \d+)?: "
    r"(?:Expected|Does not validate against any of the Union subtypes Subtypes: .*? - Expected) a <class '(\w+)'>"
    r".*(?:Got|Given) value:(.*)"
)
"""The value is empty where nothing follows the colon; of a Union the first type is named, the other is None."""
_WIDTH_CHARS = 100
_TYPE_NAMES = {"int": "a whole number", "float": "a number", "bool": "true or false"}


class SuggestionMixin:
    """Parser mixin: a mistake becomes one sentence with the closest option, instead of a page of usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise InvalidUsage, which the dispatcher prints; jsonargparse calls this for every mistake."""
        parser = getattr(ex, "subcommand_parser", None) or self
        options = [name for name in parser._option_string_actions if name.startswith("--")]  # type: ignore[union-attr]
        one_line = " ".join(message.split()).rstrip(".")
        raise InvalidUsage(_sentence(one_line), hint=_hint(one_line, options, parser.prog)) from None  # type: ignore[union-attr]

    def print_help(self, file: Any = None) -> None:
        """Print the help; argparse itself ignores that it cannot be written."""
        print(self.format_help(), end="", file=file)  # type: ignore[attr-defined]


class CommandParser(SuggestionMixin, jsonargparse.ArgumentParser):
    """Parse the arguments of one command; `--dry-run` and `--dry_run` are the same option.

    Args:
        command: Its name, as typed after `eca-hub`.
        description: What it does, for `--help`.
        examples: Command lines to show at the end of `--help`.
        env_prefix: When given, every option is also an environment variable with this prefix.
    """

    def __init__(
        self,
        command: str,
        description: str,
        *,
        examples: Sequence[str] = (),
        env_prefix: str | None = None,
    ) -> None:
        super().__init__(
            prog=f"eca-hub {command}",
            description=_wrap(description),
            epilog="\n  ".join(["examples:", *examples]) if examples else None,
            formatter_class=_Formatter,
            allow_abbrev=False,
            default_env=env_prefix is not None,
            env_prefix=env_prefix or False,
        )

    def read(self, argv: Sequence[str]) -> jsonargparse.Namespace:
        """Parse the words after the command.

        Raises:
            InvalidUsage: an option that the command does not take, or a value of the wrong type.
        """
        # Words after -- are no options, but names such as --my-photo.jpg.
        num_words = argv.index("--") if "--" in argv else len(argv)
        options, names = self._split([_with_underscores(word) for word in argv[:num_words]])
        names += argv[num_words + 1 :]
        return self.parse_args([*options, "--", *names] if names else options)

    def _split(self, words: list[str]) -> tuple[list[str], list[str]]:
        """Return the options with their values, and the other words, which argparse takes only side by side."""
        options: list[str] = []
        names: list[str] = []
        most: float = 0
        for word in words:
            if word.startswith("-") and word != "-" and not (most and _NEGATIVE_NUMBER.fullmatch(word)):
                # --attention_args.reduction 8 sets one key of a mapping.
                actions = self._option_string_actions
                action = None if "=" in word else actions.get(word) or actions.get(word.partition(".")[0])
                nargs = 0 if action is None else 1 if action.nargs is None else action.nargs
                most = nargs if isinstance(nargs, int) else 1 if nargs == "?" else math.inf
                options.append(word)
            elif most:
                most -= 1
                options.append(word)
            else:
                names.append(word)
        return options, names


class _Formatter(jsonargparse.DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Short help: usage on one line, no empty defaults, no types and no environment variable names."""

    def _format_usage(self, usage: Any, actions: Any, *args: Any, **kwargs: Any) -> str:
        needed = [each for each in actions if not each.option_strings or each.required]
        return super()._format_usage(usage, needed, *args, **kwargs).rstrip("\n") + " [options]\n\n"

    def _format_action_invocation(self, action: argparse.Action) -> str:
        return argparse.HelpFormatter._format_action_invocation(self, action)

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        default = action.default
        says_nothing = default is None or default is False or default in ("", argparse.SUPPRESS, [], {})
        if says_nothing or not action.option_strings or "%(default)" in text:
            return text
        return f"{text} (default: %(default)s)"


def _wrap(description: str) -> str:
    """Wrap paragraphs; those with command lines, which are indented, stay as they are."""
    paragraphs = description.split("\n\n")
    return "\n\n".join(text if "\n " in f"\n{text}" else textwrap.fill(text, _WIDTH_CHARS) for text in paragraphs)


def _with_underscores(word: str) -> str:
    """Spell the name of an option as it is declared; its value stays."""
    name, equals, value = word.partition("=")
    return f"--{name[2:].replace('-', '_')}{equals}{value}" if word.startswith("--") else word


def _sentence(message: str) -> str:
    """Reword the parser's usual messages; any other stays as it is."""
    if unknown := _UNKNOWN.fullmatch(message):
        word = next((each for each in unknown[1].split() if each != "--"), "--")
        is_option = word.startswith("-") and word != "-"
        return f"There is no option {word.partition('=')[0]}." if is_option else f"{word!r} is one word too many."
    if wrong := _WRONG_TYPE.fullmatch(message):
        return f"--{wrong[1]} must be {_TYPE_NAMES.get(wrong[2], wrong[2])}, not {wrong[3].strip()!r}."
    return f"{message[:1].upper()}{message[1:]}."


def _hint(message: str, options: list[str], prog: str) -> str:
    if _WRONG_TYPE.fullmatch(message):
        # The option exists, so no other name is suggested: its value is wrong.
        return f"All options: {prog.replace(' [options]', '')} --help"
    typed = re.findall(r"--[\w.-]+", message) or [f"--{key}" for key in re.findall(r"[\"']([\w.]+)[\"']", message)]
    for option in typed:
        # Swapped letters are the likeliest mistake: --prot means --port, though --root is as close.
        swapped = [each for each in options if sorted(each) == sorted(option)]
        close = swapped or difflib.get_close_matches(option, options, n=1, cutoff=0.6)
        if close and close[0] != option:
            return f"Did you mean {close[0]}?"
    return f"All options: {prog.replace(' [options]', '')} --help"
