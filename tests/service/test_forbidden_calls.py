"""Calls that are forbidden in the library and the service, found in their source."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import eca_service
from eca_service.http.server import DAEMON_THREADS

ROOT = Path(__file__).parents[2]

FORBIDDEN_CALLS = {
    "os.fork": "a forked child hangs in its first matrix product once torch has run in its parent",
    "os.forkpty": "as os.fork",
    "multiprocessing.Process": "it may fork: get_context('spawn').Process",
    "multiprocessing.Pool": "as multiprocessing.Process",
    "pickle.load": "it runs code from the file",
    "pickle.loads": "as pickle.load",
    "eval": "it runs text",
    "exec": "it runs text",
    "safetensors.torch.load_file": "weights stay mapped: overwriting the file changes the network",
}
FORBIDDEN_VALUES = {("MAX_IMAGE_PIXELS", None), ("LOAD_TRUNCATED_IMAGES", True)}


def faults_in(source: str) -> Iterator[str]:
    """Yield each forbidden call with its reason."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if name in FORBIDDEN_CALLS:
                yield f"line {node.lineno}: {name}: {FORBIDDEN_CALLS[name]}"
            if name.endswith("get_context") and ast.unparse(node) != "multiprocessing.get_context('spawn')":
                yield f"line {node.lineno}: processes are spawned"
            if "'fork'" in keywords.get("multiprocessing_context", ""):
                yield f"line {node.lineno}: workers are spawned"
            if name == "torch.load" and keywords.get("weights_only") != "True":
                yield f"line {node.lineno}: a pickle may run code: weights_only=True"
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            for target in node.targets:
                if (ast.unparse(target).rpartition(".")[2], node.value.value) in FORBIDDEN_VALUES:
                    yield f"line {node.lineno}: Pillow's own bounds stay"


@pytest.mark.parametrize("package", ["eca_hub", "service/eca_service"])
def test_no_line_does_what_is_forbidden(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert len(files) > 30
    assert [f"{file.name}, {fault}" for file in files for fault in faults_in(file.read_text())] == []


@pytest.mark.parametrize(
    "line",
    [
        "os.fork()",
        "multiprocessing.get_context('fork').Process(target=f)",
        "DataLoader(x, multiprocessing_context='fork')",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "pickle.loads(data)",
        "x = eval('1')",
        "Image.MAX_IMAGE_PIXELS = None",
        "ImageFile.LOAD_TRUNCATED_IMAGES = True",
    ],
)
def test_each_kind_is_found(line: str) -> None:
    assert list(faults_in(line))


def test_every_daemon_thread_is_listed() -> None:
    sources = [file.read_text() for file in Path(eca_service.__file__).parent.rglob("*.py")]
    daemons = [line for source in sources for line in re.findall(r"threading\.Thread\(.*daemon=True.*", source)]
    names = {found[1] for line in daemons if (found := re.search(r'name="([^"]+)"', line))}
    assert len(daemons) >= 4
    # The threads that write the log and send the last traces are joined where they were started.
    assert names == DAEMON_THREADS | {"log", "trace export"}
