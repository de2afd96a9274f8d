"""Files are replaced as a whole, or created by one of several."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest

from refine_server.server.adaptations.store.errors import StoreError
from refine_server.server.adaptations.store.files import Files, require_file_system


@pytest.fixture(params=["file", "memory"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Files:
    folder = tmp_path.as_uri() if request.param == "file" else f"memory://{tmp_path.name}"
    files = Files(f"{folder}/store")
    files.make_root()
    return files


def test_files_are_written_read_listed_and_deleted(files: Files) -> None:
    assert (files.read("a/b"), files.size("a/b"), files.modified("a/b")) == (None, None, None)
    assert files.find() == files.folders() == []
    files.write("a/b", b"old")
    files.write("a/b", b"newer")
    assert (files.read("a/b"), files.size("a/b")) == (b"newer", 5)
    assert [(f.path, f.size) for f in files.find("a")] == [("a/b", 5)]
    assert files.folders() == ["a"]
    inner = files.within("a")
    assert inner.read("b") == b"newer"
    assert [f.path for f in inner.find()] == ["b"]
    for _ in range(2):
        files.delete("a/b")
        files.delete_folder("a")
    assert files.find() == []


def test_a_folder_is_moved_once(files: Files) -> None:
    files.write("a/b", b"x")
    for _ in range(2):
        files.move_folder("a", "c/d")
    assert [f.path for f in files.find()] == ["c/d/b"]


def test_one_of_several_creates_a_file(files: Files) -> None:
    texts = [str(i).encode() * 1000 for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        created = list(pool.map(lambda text: files.create("a/b", text), texts))
    if files.is_local:  # fsspec's memory looks first and writes then
        assert created.count(True) == 1
    assert files.read("a/b") in texts
    assert not files.create("a/b", b"late")


def test_a_creation_that_is_sent_again_has_succeeded(files: Files) -> None:
    assert files.create("a", b"x")
    assert files.create("a", b"x")
    assert not files.create("a", b"y")


def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = Files(tmp_path.as_uri())
    files.write("a", b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for write in (files.write, files.create):
        with pytest.raises(StoreError, match=r"cannot write: .*No space left.*; free some"):
            write("a", b"new")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a", "old")]


def test_a_probe_leaves_nothing(files: Files) -> None:
    files.probe()
    assert files.find() == []


def test_a_probe_tells_that_a_folder_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(StoreError, match="cannot write"):
        Files((tmp_path / "file" / "store").as_uri()).probe()


def test_a_folder_that_is_lost_is_not_made_again(tmp_path: Path) -> None:
    files = Files((tmp_path / "store").as_uri())
    files.make_root()
    (tmp_path / "store").rmdir()
    for write in (lambda: files.probe(), lambda: files.within("a").write("b", b"x")):
        with pytest.raises(StoreError, match="there is no folder"):
            write()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["file:///x", "/x", "memory://x", "tar://x::file:///y"])
def test_known_file_systems_are_accepted(url: str) -> None:
    require_file_system(url)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("foo://x", r"cannot use foo://, which fsspec does not know"),
        ("simplecache::memory://x", r"cannot use simplecache::, because a cache hides"),
        ("filecache::memory://x", r"cannot use filecache::"),
    ],
)
def test_other_file_systems_are_refused(url: str, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        Files(url)


def test_a_driver_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(protocol: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    with pytest.raises(StoreError, match=r"s3://: pip install 'refine-server\[s3\]'"):
        require_file_system("s3://bucket")
