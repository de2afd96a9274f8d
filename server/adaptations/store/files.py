"""Files under an fsspec URL: written atomically, created by one of several, or not at all.

The store's guarantees need two operations that disks and object stores both have: to replace a
small file as a whole, and to create a file only if there is none.
"""

import contextlib
import errno
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import fsspec
from fsspec.core import split_protocol
from fsspec.implementations.local import LocalFileSystem

from refine_server.server.adaptations.store.errors import StoreError

CACHES = ("blockcache", "cached", "filecache", "simplecache")
"""File systems that keep copies of another's files, and so miss what other servers write."""
INSTALL = {"s3": "refine-server[s3]", "s3a": "refine-server[s3]"}
"""What to install for a protocol; for others, the message of fsspec says it."""
PROBE, PROBE_BYTES = "probe", 64 * 2**10


@dataclass(frozen=True, kw_only=True, slots=True)
class FileInfo:
    """A file as a listing shows it."""

    path: str
    """Relative to the root of the store."""
    size: int
    """In bytes."""


def require_file_system(url: str) -> None:
    """Raise StoreError unless the file systems of a URL are known to fsspec and installed.

    Nothing is connected to: a store that cannot be reached now may be reached later.
    """
    for link in url.split("::"):  # for example tar::s3://bucket/prefix
        protocol = split_protocol(link)[0] or ("file" if link == url else link)
        if protocol in CACHES:
            raise StoreError(
                f"the store cannot use {protocol}::, because a cache hides what other servers "
                "write; leave it out"
            )
        try:
            fsspec.get_filesystem_class(protocol)
        except ImportError as error:
            package = INSTALL.get(protocol)
            advice = f"pip install '{package}'" if package else f"{error}"
            raise StoreError(f"the store cannot use {protocol}://: {advice}") from error
        except ValueError:
            raise StoreError(
                f"the store cannot use {protocol}://, which fsspec does not know; use for example "
                "file:// or s3://"
            ) from None


class Files:
    """The files of a store. Every method may block, and raises StoreError if the file system fails.

    Paths are relative to the URL and separated by slashes.

    Args:
        url: for example ``file:///var/lib/refine`` or ``s3://bucket/prefix``.
    """

    def __init__(self, url: str) -> None:
        require_file_system(url)
        with _store_errors("open"):
            # Cached listings would hide what other servers write and delete.
            self.fs, root = fsspec.url_to_fs(url, use_listings_cache=False)
        self.root = self._top = root.rstrip("/")
        self.is_local = isinstance(self.fs, LocalFileSystem)

    def make_root(self) -> None:
        """Make the store's folder, where it is on a disk.

        Only here, so that a folder that is lost later is not taken for an empty store.
        """
        with _store_errors("write"):
            if self.is_local:
                os.makedirs(self._top, exist_ok=True)

    def within(self, folder: str) -> "Files":
        """Return the files of a folder."""
        inner = object.__new__(Files)
        inner.fs, inner.is_local, inner._top = self.fs, self.is_local, self._top
        inner.root = self._path(folder)
        return inner

    def read(self, path: str) -> bytes | None:
        """Return a file's bytes, None if there is none."""
        with _store_errors("read"):
            try:
                data: bytes = self.fs.cat_file(self._path(path))
            except FileNotFoundError:
                return None
            return data

    def size(self, path: str) -> int | None:
        """Return a file's size in bytes, None if there is none."""
        with _store_errors("read"):
            try:
                return int(self.fs.info(self._path(path))["size"])
            except FileNotFoundError:
                return None

    def write(self, path: str, data: bytes, *, is_durable: bool = True) -> None:
        """Replace a file as a whole: others see the old bytes or the new ones.

        Args:
            path: the file; its folders are made.
            data: its bytes.
            is_durable: whether to wait until it would survive a loss of power.
        """
        with _store_errors("write"):
            if self.is_local:
                self._place(os.replace, path, data, is_durable)
            else:
                self.fs.pipe_file(self._path(path), data)

    def create(self, path: str, data: bytes) -> bool:
        """Write a file unless there is one; return whether the file has these bytes now.

        Of several that create it at the same time, one succeeds.
        """
        with _store_errors("write"):
            try:
                if self.is_local:
                    self._place(os.link, path, data, is_durable=True)
                else:
                    self.fs.pipe_file(self._path(path), data, mode="create")
            except FileExistsError:
                # A request whose answer was lost is sent again, and then meets its own file.
                return self.read(path) == data
        return True

    def delete(self, path: str) -> None:
        """Delete a file if it exists."""
        with _store_errors("delete"), contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(self._path(path))

    def delete_folder(self, path: str) -> None:
        """Delete a folder with its files, if it exists; others may be doing the same."""
        with _store_errors("delete"), contextlib.suppress(FileNotFoundError):
            self.fs.rm(self._path(path), recursive=True)

    def move_folder(self, path: str, target: str) -> None:
        """Move a folder with its files; another may have done so already."""
        files = self.find(path)
        with _store_errors("move"):
            for file in files:
                moved = self._path(f"{target}/{file.path.removeprefix(path + '/')}")
                with contextlib.suppress(FileNotFoundError):
                    self.fs.makedirs(moved.rpartition("/")[0], exist_ok=True)
                    self.fs.cp_file(self._path(file.path), moved)
        self.delete_folder(path)

    def folders(self) -> list[str]:
        """Return the names of the folders in the root."""
        with _store_errors("list"):
            try:
                listed = self.fs.ls(self.root, detail=True)
            except FileNotFoundError:
                return []
        paths = [info["name"].rstrip("/") for info in listed if info["type"] == "directory"]
        return sorted(path.rpartition("/")[2] for path in paths)

    def find(self, folder: str = "") -> list[FileInfo]:
        """Return all files of a folder and the folders in it; none if it does not exist.

        A file that appears or vanishes meanwhile may be listed or not. Some object stores show
        what was written or deleted only after a while.
        """
        with _store_errors("list"):
            try:
                found = self.fs.find(self._path(folder), detail=True)
            except FileNotFoundError:
                return []
        start = len(self.root) + 1
        return [FileInfo(path=p[start:], size=int(i["size"])) for p, i in sorted(found.items())]

    def modified(self, path: str) -> float | None:
        """Return when a file was written, in seconds since 1970; None if there is none."""
        with _store_errors("read"):
            try:
                return float(self.fs.modified(self._path(path)).timestamp())
            except FileNotFoundError:
                return None

    def probe(self) -> None:
        """Write, read and delete a file.

        Raises:
            StoreError: the store is read-only, full, or lost.
        """
        name = f"{PROBE}-{secrets.token_hex(4)}"
        data = bytes(PROBE_BYTES)
        try:
            if not (self.create(name, data) and self.read(name) == data):
                raise StoreError("the store cannot read what it has written")
        except StoreError:
            with contextlib.suppress(StoreError):
                self.delete(name)
            raise
        self.delete(name)

    def _path(self, path: str) -> str:
        return f"{self.root}/{path}".rstrip("/")

    def _place(
        self, place: Callable[[str, str], None], path: str, data: bytes, is_durable: bool
    ) -> None:
        """Write a file on a disk under another name, and rename or link it when it is whole."""
        final = self._path(path)
        temporary = f"{final}.{secrets.token_hex(4)}"
        for is_last in (False, False, True):
            if not os.path.isdir(self._top):
                raise NotADirectoryError(f"there is no folder {self._top}")
            try:
                os.makedirs(os.path.dirname(final), exist_ok=True)
                with open(temporary, "wb") as file:
                    file.write(data)
                    file.flush()
                    if is_durable:
                        os.fsync(file.fileno())
                place(temporary, final)
                return
            except FileNotFoundError:  # another server has deleted the folder meanwhile
                if is_last:
                    raise
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary)


@contextlib.contextmanager
def _store_errors(operation: str) -> Iterator[None]:
    """Raise every error of a file system as a StoreError, except that a file is missing."""
    try:
        yield
    except StoreError:
        raise
    except Exception as error:
        reason = str(error) or type(error).__name__
        if isinstance(error, OSError) and error.errno in (errno.EROFS, errno.EACCES):
            reason += "; make it writable for the server's user"
        elif isinstance(error, OSError) and error.errno == errno.ENOSPC:
            reason += "; free some"
        raise StoreError(f"the store cannot {operation}: {reason}") from error
