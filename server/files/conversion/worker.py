"""The process that reads one file: ``python -m`` this module, the file on standard input.

A parser may have a flaw that a file makes use of. So it runs in a process of its own, with the
server's settings out of reach, limited memory and time, and, from before the file is looked at, no
right to open anything: no file, no socket, no program.
"""

import encodings
import importlib
import json
import pkgutil
import resource
import sys
from dataclasses import asdict

from refine_server.server.files.conversion.found import (
    ConversionError,
    Kind,
    Limits,
    Read,
    convert,
)
from refine_server.server.files.conversion.kinds import kind_of

PACKAGE = "refine_server.server.files.conversion"
PARSERS = {"pdf": ("pypdf",), "docx": ("mammoth", "selectolax", "xml"), "html": ("selectolax",)}
"""The packages that read a type of file."""
NOT_INSTALLED = (
    "cannot be read by this server: the extra refine-server[documents] is not installed. "
    "Send its text instead"
)


def main() -> None:
    """Read the limits and the file's name from the arguments, the file from standard input."""
    filename, options = sys.argv[1], json.loads(sys.argv[2])
    limits = Limits(**options)
    _limit_resources(limits)
    data = sys.stdin.buffer.read()
    try:
        kind = kind_of(data, filename)
        read = _load_reader(kind)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
        result = asdict(convert(data, kind, limits, read))
    except ConversionError as error:
        result = {"error": error.code, "reason": error.reason}
    except MemoryError:
        result = {"error": "too_much_memory", "reason": ""}
    except Exception as error:  # parsers raise whatever they like
        reason = f"cannot be read: {type(error).__name__}: {str(error)[:200]}"
        result = {"error": "damaged_file", "reason": reason}
    sys.stdout.buffer.write(json.dumps(result).encode())


def _limit_resources(limits: Limits) -> None:
    seconds = max(1, int(limits.seconds))
    for kind, value in (
        (resource.RLIMIT_AS, limits.memory_bytes),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
    ):
        resource.setrlimit(kind, (value, value))


def _load_reader(kind: Kind) -> Read:
    """Return what reads files of a type.

    All that it may load later is loaded now: afterwards nothing can be opened any more.

    Raises:
        ConversionError: a package that it needs is not installed.
    """
    for module in pkgutil.iter_modules(encodings.__path__):
        _load(f"encodings.{module.name}")
    try:
        reader = importlib.import_module(f"{PACKAGE}.{kind}")
        for name in PARSERS.get(kind, ()):
            parser = importlib.import_module(name)
            for module in pkgutil.walk_packages(parser.__path__, f"{name}."):
                _load(module.name)
    except ImportError:
        raise ConversionError("unsupported_file", NOT_INSTALLED) from None
    read: Read = reader.read
    return read


def _load(name: str) -> None:
    try:
        importlib.import_module(name)
    except ImportError:
        return  # needs a package that is not installed, or another platform


if __name__ == "__main__":
    main()
