"""The hub's folder: other folders stay untouched, files are private, damaged repositories do not hide the others."""

import concurrent.futures
import errno
import json
import stat
import threading
from pathlib import Path

import filelock
import pytest

from eca_hub.__main__ import main
from eca_hub.localhub.auth import Users
from eca_hub.localhub.errors import HubHTTPError
from eca_hub.localhub.fsck import check
from eca_hub.localhub.repo import Repo, read_refs
from eca_hub.localhub.store import Store, StoreLocked, StoreUnusable
from tests.localhub.hub_process import opened_hub
from tests.localhub.push_client import REPO, push
from tests.localhub.xet_client import push_by_xet


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize(
    "content",
    [
        {"tmp/thesis.tex": "mine", ".notes.tmp": "mine"},
        {"tmp/thesis.tex": "mine"},
        {".notes.tmp": "mine"},
        {"lock/readme": "mine"},
        {"repos/work/main.py": "mine"},
        {"hub.json": '{"name": "an app of mine"}', "tmp/thesis.tex": "mine", ".notes.tmp": "mine"},
        {"hub.json": '{"format": 2, "store_id": "a", "signing_key": "' + 64 * "0" + '"}', "tmp/x": "mine"},
        {"hub.json": "not json", "tmp/thesis.tex": "mine"},
        {"hub.json": "[]", "tmp/thesis.tex": "mine"},
    ],
)
def test_a_folder_that_is_not_a_hubs_stays_as_it_is(tmp_path: Path, content: dict[str, str]) -> None:
    for name, text in content.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    before = snapshot(tmp_path)
    with pytest.raises(StoreUnusable):
        Store(tmp_path)
    for command in ([], ["gc"], ["fsck"]):
        assert main(["localhub", *command, "--root", str(tmp_path), *([] if command else ["--port", "0"])]) == 2
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("leftovers", [[], ["lock"], ["lock", ".hub.json.0123456789ab.tmp", "tmp/"], ["token"]])
def test_what_a_hub_killed_at_its_first_start_leaves_is_a_hubs_folder(tmp_path: Path, leftovers: list[str]) -> None:
    for name in leftovers:
        if name.endswith("/"):
            (tmp_path / name).mkdir()
        else:
            (tmp_path / name).touch()
    Store(tmp_path).close()
    Store(tmp_path).close()
    assert not list(tmp_path.glob(".hub.json.*"))


def test_unfinished_files_of_the_hub_itself_are_removed_and_no_others(tmp_path: Path) -> None:
    Store(tmp_path).close()
    for name in ("tmp/unfinished", ".names.json.0123456789ab.tmp", ".mine.tmp", "notes.txt"):
        (tmp_path / name).write_text("x")
    Store(tmp_path).close()
    assert {path.name for path in tmp_path.iterdir()} >= {".mine.tmp", "notes.txt"}
    assert not (tmp_path / "tmp" / "unfinished").exists()
    assert not (tmp_path / ".names.json.0123456789ab.tmp").exists()


def test_a_folder_in_use_is_locked_until_it_is_closed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(StoreLocked):
        Store(tmp_path)
    store.close()
    Store(tmp_path).close()


def test_a_file_system_without_permissions_or_without_locks_is_named_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse_mode(path: Path, mode: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted", str(path))

    def refuse_lock(lock: filelock.FileLock) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock")

    for name, refuse, expected in (
        ("pathlib.Path.chmod", refuse_mode, "FAT and exFAT keep no permissions."),
        ("filelock.FileLock.acquire", refuse_lock, "its file system has no file locks."),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(name, refuse)
            assert main(["localhub", "--root", str(tmp_path / "hub"), "--port", "0"]) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert line.endswith(expected)
    Store(tmp_path / "hub").close()


def test_other_users_of_the_machine_can_read_nothing(tmp_path: Path) -> None:
    root = tmp_path / "hub"
    with opened_hub(root) as client:
        push(client, {"README.md": b"# secret"}, {"model.safetensors": b"secret"})
        push_by_xet(client, {}, {"other.safetensors": b"secret" * 10})
    assert list((root / "xorbs").rglob("*.json"))
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    for path in root.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_folders_of_an_older_hub_are_closed_to_other_users(tmp_path: Path) -> None:
    with opened_hub(tmp_path) as client:
        push(client, {"README.md": b"# secret"}, {"model.safetensors": b"secret"})
    for name in ("blobs", "repos", "names.json"):
        (tmp_path / name).chmod(0o755)
    Store(tmp_path).close()
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("blobs", "repos", "names.json")]
    assert modes == [0o700, 0o700, 0o600]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("refs.json", b'{"refs/heads/main": "../../token"}'),
        ("refs.json", None),
        ("repo.json", b"{"),
        ("commits/*.json", b"{}"),
        ("repo.json", b'{"creator": "x", "created_at": 5}'),
        pytest.param("repo.json", b'{"creator": "x", "created_at": "", "is_private": "no"}', marks=pytest.mark.slow),
        pytest.param("refs.json", b"{", marks=pytest.mark.slow),
        pytest.param("refs.json", b"[1]", marks=pytest.mark.slow),
        pytest.param("refs.json", b"{}", marks=pytest.mark.slow),
        pytest.param("repo.json", b'{"creator": "x", "surprise": 1}', marks=pytest.mark.slow),
        pytest.param("commits/*.json", None, marks=pytest.mark.slow),
    ],
)
def test_one_damaged_repository_does_not_hide_the_others(
    tmp_path: Path, file: str, content: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    with opened_hub(tmp_path) as client:
        push(client, {"README.md": b"# whole"}, {}, repo="acme/whole")
        push(client, {"README.md": b"# damaged"}, {}, repo="acme/damaged")
    for path in next(tmp_path.glob("repos/*damaged*")).glob(file):
        path.unlink() if content is None else path.write_bytes(content)
    blobs = snapshot(tmp_path / "blobs")
    with opened_hub(tmp_path) as client:
        assert client.get("/").status_code == 200
        assert [model["id"] for model in client.get("/api/models").json()] == ["acme/whole"]
        assert client.get("/api/settings/repositories").status_code == 200
        assert client.get("/acme/whole/resolve/main/README.md").content == b"# whole"
        response = client.get("/api/models/acme/damaged")
        assert (response.status_code, response.headers["x-error-code"]) in (
            (500, "repo_corrupt"),
            (404, "RevisionNotFound"),
        )
    assert main(["localhub", "fsck", "--root", str(tmp_path)]) == 1
    assert "acme/damaged" in capsys.readouterr().out
    if content != b"{}" or file != "refs.json":
        settings_only = file == "repo.json"
        assert main(["localhub", "gc", "--root", str(tmp_path)]) == (0 if settings_only else 2)
        assert snapshot(tmp_path / "blobs") == blobs
    with opened_hub(tmp_path) as client:
        body = {"name": "damaged", "organization": "acme"}
        assert client.request("DELETE", "/api/repos/delete", json=body).status_code == 200
        push(client, {"README.md": b"# again"}, {}, repo="acme/damaged")
    assert main(["localhub", "gc", "--root", str(tmp_path)]) == 0
    assert main(["localhub", "fsck", "--root", str(tmp_path)]) == 0


@pytest.mark.parametrize("name", ["refs.json", "repo.json", "commits/*.json"])
def test_a_file_that_cannot_be_read_does_not_hide_other_repositories(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with opened_hub(tmp_path) as client:
        push(client, {"README.md": b"# whole"}, {}, repo="acme/whole")
        push(client, {"README.md": b"# damaged"}, {}, repo="acme/damaged")
    for path in next(tmp_path.glob("repos/*damaged*")).glob(name):
        path.unlink()
        path.mkdir()
    with opened_hub(tmp_path) as client:
        assert client.get("/").status_code == 200
        assert [model["id"] for model in client.get("/api/models").json()] == ["acme/whole"]
        response = client.get("/api/models/acme/damaged")
        assert (response.status_code, response.headers["x-error-code"]) == (500, "repo_corrupt")
    assert main(["localhub", "fsck", "--root", str(tmp_path)]) == 1
    assert "acme/damaged" in capsys.readouterr().out


def test_files_of_other_programs_between_the_blobs_are_no_blobs(tmp_path: Path) -> None:
    with opened_hub(tmp_path) as client:
        push(client, {"a.txt": b"a"}, {})
    (tmp_path / "blobs" / ".DS_Store").write_bytes(b"x")
    assert main(["localhub", "fsck", "--root", str(tmp_path)]) == 0
    assert main(["localhub", "gc", "--root", str(tmp_path)]) == 0


@pytest.mark.parametrize("content", [b"two words", b"\xff\xfe", None])
def test_a_token_file_without_a_token_is_named_and_stays(
    tmp_path: Path, content: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "token"
    path.mkdir() if content is None else path.write_bytes(content)
    root = tmp_path if content is not None else tmp_path / "hub"
    if content is None:
        with opened_hub(root):
            (root / "token").mkdir()
    assert main(["localhub", "--root", str(root), "--port", "0"]) == 2
    assert str(root / "token") in capsys.readouterr().err
    assert content is None or path.read_bytes() == content


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"models/a/b": 3}',
        '{"models/a/b": {"name": "a/b"}}',
        '{"models/a/b": {"name": "a/b", "folder": "../../.."}}',
        '{"models/a/b": {"name": 1, "folder": 2}}',
    ],
)
def test_damaged_names_are_reported_and_not_repaired_by_guessing(
    tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with opened_hub(tmp_path) as client:
        push(client, {"a.txt": b"a"}, {})
    (tmp_path / "names.json").write_text(content)
    before = snapshot(tmp_path)
    assert main(["localhub", "fsck", "--root", str(tmp_path)]) == 1
    assert main(["localhub", "gc", "--root", str(tmp_path)]) == 2
    assert main(["localhub", "--root", str(tmp_path), "--port", "0"]) == 2
    assert "names.json is damaged" in capsys.readouterr().err
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("kind", ["branch", pytest.param("tag", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("name", "other"), [("Release", "release"), ("v1", "v1/fix"), ("v1/fix", "v1"), ("V1/fix", "v1"), ("main", "MAIN")]
)
def test_references_that_git_cannot_hold_together_are_refused(tmp_path: Path, kind: str, name: str, other: str) -> None:
    with opened_hub(tmp_path) as client:
        push(client, {"a.txt": b"a"}, {})

        def create(ref: str) -> int:
            quoted = ref.replace("/", "%2F")
            url = f"/api/models/{REPO}/" + (f"branch/{quoted}" if kind == "branch" else "tag/main")
            return client.post(url, json={} if kind == "branch" else {"tag": ref}).status_code

        if (kind, name) != ("branch", "main"):
            assert create(name) == 200
        assert create(other) == 409


@pytest.mark.slow
def test_a_branch_may_be_deleted_while_it_is_committed_to_and_read(tmp_path: Path) -> None:
    with opened_hub(tmp_path) as client:
        push(client, {"a.txt": b"a"}, {})
        branch = f"/api/models/{REPO}/branch/next"

        def come_and_go() -> set[int]:
            return {
                client.request(method, branch, json={}).status_code for _ in range(25) for method in ("POST", "DELETE")
            }

        def use(number: int) -> set[int]:
            seen = set()
            for step in range(15):
                lines = [
                    {"key": "header", "value": {"summary": "one"}},
                    {"key": "file", "value": {"path": "b.txt", "content": f"{number} {step}"}},
                ]
                body = "\n".join(map(json.dumps, lines))
                seen.add(client.post(f"/api/models/{REPO}/commit/next", content=body).status_code)
                for path in (
                    f"/api/models/{REPO}/revision/next",
                    f"/api/models/{REPO}/tree/next",
                    f"/{REPO}/tree/next",
                ):
                    seen.add(client.get(path).status_code)
            return seen

        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            jobs = [pool.submit(come_and_go), pool.submit(use, 1), pool.submit(use, 2)]
            statuses = set().union(*(job.result() for job in jobs))
    assert statuses <= {200, 404, 409}


def test_simultaneous_creations_of_one_repository_all_get_its_url(tmp_path: Path) -> None:
    with opened_hub(tmp_path) as client:
        body = {"name": "digits", "organization": "acme"}

        def create(_: int) -> tuple[int, str]:
            response = client.post("/api/repos/create", json=body)
            return response.status_code, response.json()["url"]

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            results = list(pool.map(create, range(8)))
    assert sorted(status for status, _ in results) == [200] + [409] * 7
    assert {url for _, url in results} == {"http://127.0.0.1:1234/acme/digits"}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Data/a.txt", "data/b.txt"),
        ("a/B/c.txt", "a/b"),
        ("README.md", "readme.md"),
        ("caf\u00e9.txt", "cafe\u0301.txt"),
    ],
)
def test_paths_that_collide_where_names_ignore_case_are_refused(tmp_path: Path, first: str, second: str) -> None:
    with opened_hub(tmp_path) as client:
        push(client, {first: b"1"}, {})
        for files in ({second: b"2"}, {second: b"2", "other.txt": b"3"}):
            with pytest.raises(Exception, match="422"):
                push(client, files, {})
        push(client, {first: b"4"}, {})
        assert client.get(f"/{REPO}/resolve/main/{first}").content == b"4"


def test_the_lock_is_held_until_a_worker_thread_has_ended(tmp_path: Path) -> None:
    store = Store(tmp_path)
    is_writing, may_end = threading.Event(), threading.Event()

    def write() -> None:
        is_writing.set()
        may_end.wait(60)
        with pytest.raises(StoreLocked):
            Store(tmp_path)

    def run_until(future: concurrent.futures.Future[None]) -> None:
        while not future.done():
            store.run(bool)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        writing = pool.submit(store.run, write)
        is_writing.wait(60)
        closing = pool.submit(store.close)
        # Refused from the moment at which `close` waits.
        with pytest.raises(HubHTTPError):
            run_until(closing)
        may_end.set()
        writing.result()
        closing.result()
    Store(tmp_path).close()


def test_a_call_that_does_not_return_keeps_the_folder_locked_and_not_the_process_alive(tmp_path: Path) -> None:
    store = Store(tmp_path)
    is_writing, may_end = threading.Event(), threading.Event()

    def write() -> None:
        is_writing.set()
        may_end.wait(60)

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        writing = pool.submit(store.run, write)
        is_writing.wait(60)
        store.close(timeout_s=0.0)
        assert not writing.done()
        with pytest.raises(StoreLocked):
            Store(tmp_path)
        may_end.set()


def test_an_old_name_gives_no_right_to_delete_a_damaged_repository(tmp_path: Path) -> None:
    users = tmp_path / "users.json"
    acme = {"acme": "Acme"}
    people = {"alice": {"token": "alice-token", "orgs": acme}, "bob": {"token": "bob-token", "orgs": acme}}
    users.write_text(json.dumps(people))
    with opened_hub(tmp_path / "hub", Users.from_file(users), "alice-token") as client:
        push(client, {"a.txt": b"a"}, {})
        body = {"fromRepo": REPO, "toRepo": "alice/digits", "type": "model"}
        client.post("/api/repos/move", json=body).raise_for_status()
    next(tmp_path.glob("hub/repos/*/refs.json")).write_bytes(b"{")
    old_name = {"name": "digits", "organization": "acme"}
    with opened_hub(tmp_path / "hub", Users.from_file(users), "bob-token") as client:
        assert client.request("DELETE", "/api/repos/delete", json=old_name).status_code == 500
    assert list(tmp_path.glob("hub/repos/*/refs.json"))
    with opened_hub(tmp_path / "hub", Users.from_file(users), "alice-token") as client:
        assert client.request("DELETE", "/api/repos/delete", json=old_name).status_code == 200


def test_a_repository_that_is_deleted_during_a_check_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened_hub(tmp_path) as client:
        push(client, {"a.txt": b"a"}, {})

        def read_refs_then_delete(folder: Path) -> dict[str, str]:
            refs = read_refs(folder)
            body = {"name": "digits", "organization": "acme"}
            client.request("DELETE", "/api/repos/delete", json=body).raise_for_status()
            return refs

        monkeypatch.setattr("eca_hub.localhub.fsck.read_refs", read_refs_then_delete)
        assert check(tmp_path).problems == []


def test_the_revision_of_a_new_tag_is_resolved_under_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve = Repo.resolve
    is_locked: list[bool] = []

    def try_lock(repo: Repo) -> bool:
        is_free = repo.lock.acquire(blocking=False)
        if is_free:
            repo.lock.release()
        return is_free

    def resolve_and_look(repo: Repo, revision: str) -> str:
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            is_locked.append(not pool.submit(try_lock, repo).result())
        return resolve(repo, revision)

    with opened_hub(tmp_path) as client:
        push(client, {"a.txt": b"a"}, {})
        monkeypatch.setattr(Repo, "resolve", resolve_and_look)
        client.post(f"/api/models/{REPO}/tag/main", json={"tag": "v1"})
    assert is_locked == [True]
