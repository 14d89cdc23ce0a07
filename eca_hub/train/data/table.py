"""Tables in CSV files, as other programs write them, and the files that they list."""

import codecs
import csv
import io
import os
import re
import unicodedata
from pathlib import Path

from eca_hub.errors import InvalidConfig
from eca_hub.images.folders import IMAGE_ENDINGS

_SNIFFED_BYTES = 512


def read_table(file: Path, encoding: str | None, remarks: list[str]) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of a CSV file.

    Args:
        file: Fields are separated by comma, semicolon, tab or a vertical bar.
        encoding: None takes UTF-8, UTF-16 or UTF-32, and else Windows-1252, with a remark.
        remarks: Remarks for the user are appended to it.

    Raises:
        InvalidConfig: it cannot be read, is no table, or has no rows.
    """
    try:
        text, is_guessed = _decode(file.read_bytes(), encoding)
        if is_guessed:
            sample = next(word for word in re.split(r"[,;|\t\r\n\"]", text) if not word.isascii())
            remarks.append(
                f"{file} is not in UTF-8 and is read as Windows-1252, such as {sample.strip()!r}. If that is wrong, "
                "give its encoding, such as --data.encoding shift_jis."
            )
        first, _, rest = text.partition("\n")
        # Excel may state the delimiter in a line of its own.
        if (stated := first.strip()).casefold().startswith("sep=") and len(stated) == 5:
            text, delimiter = rest, stated[-1]
        else:
            delimiter = max(",;\t|", key=first.count)
        lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        rows = [row for row in lines if any(cell.strip() for cell in row)]
    except OSError as error:
        raise InvalidConfig(f"{file} cannot be read: {error.strerror}.", hint="Give --data.root FILE.csv.") from None
    except (ValueError, csv.Error) as error:
        raise InvalidConfig(f"{file} is no CSV file: {error}.", hint="Save it as CSV in UTF-8.") from None
    if len(rows) < 2:
        raise InvalidConfig(f"{file} has no rows below a header.")
    header = [cell.strip() for cell in rows[0]]
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(header):
            raise InvalidConfig(f"Row {number} of {file} has {len(row)} fields, the header has {len(header)}.")
    return header, rows[1:]


def _decode(content: bytes, encoding: str | None) -> tuple[str, bool]:
    """Decode a text, and return whether its encoding is a guess: Windows-1252, where it is not UTF-8.

    UTF-16 ("Unicode text" of Excel) and UTF-32 are known by their byte order mark.

    Raises:
        ValueError: the bytes are not text in the encoding, or no text at all.
    """
    if encoding is not None:
        try:
            return content.decode(encoding).removeprefix("\ufeff"), False
        except (LookupError, UnicodeError) as error:
            raise ValueError(f"--data.encoding {encoding}: {error}") from None
    if content.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return content.decode("utf-32"), False
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16"), False
    for mark, name in ((b"PK\3\4", "an Excel or ZIP file"), (b"\x1f\x8b", "a gzip file"), (b"\0", "not text")):
        if mark in content[:_SNIFFED_BYTES]:
            raise ValueError(f"it is {name}")
    try:
        return content.decode("utf-8-sig"), False
    except UnicodeDecodeError:
        return content.decode("cp1252", "replace"), True


def find_file(folder: Path, path: str) -> str:
    """Return the path of a file as it is on disk, where a table spells its name in another way.

    A table may leave out the ending, or write the name in another Unicode normalization form than the file system.
    """
    forms = [path, unicodedata.normalize("NFC", path), unicodedata.normalize("NFD", path)]
    endings = ["", *IMAGE_ENDINGS] if path and not path.lower().endswith(IMAGE_ENDINGS) else [""]
    names = (f"{form}{ending}" for form in dict.fromkeys(forms) for ending in endings)
    return next((name for name in names if is_file(folder / name)), path)


def is_file(path: Path) -> bool:
    """Whether a path that a table states is a file; it may be longer than a path can be."""
    return os.path.isfile(path)  # noqa: PTH113  Path.is_file raises OSError for such a path
