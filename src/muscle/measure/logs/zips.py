"""Zip files from strangers, read member by member: every fault is a LogError, and no member fills the memory."""

import lzma
import struct
import sys
import zlib
from functools import partial
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Self

from muscle.errors import LogError, quoted

if sys.version_info >= (3, 14):
    import zipfile

    from compression.zstd import ZstdError
else:  # inspect_ai compresses with zstandard (method 93), which the standard zipfile reads since 3.14
    from backports.zstd import ZstdError, zipfile

LARGEST_MEMBER = 1 << 29
"""In bytes, unpacked: far above any sample of an evaluation, and still in memory."""

_ANY_SIZE, _TIGHTEST = 1 << 24, 100
"""Bytes that any archive may unpack to, and how many more for each of its own; transcripts take 5 to 50."""
_BLOCK = 1 << 12  # an older zipfile unpacks at once all that it reads, which a bomb makes 30,000 times as much
_ENCRYPTED = 0x1
_FAULTS = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, ZstdError, struct.error),
    *(EOFError, NotImplementedError, OSError, OverflowError, RuntimeError, ValueError),
)


class Archive:
    """An open zip file; a context manager."""

    def __init__(self, path: Path) -> None:
        """Open the file and read its list of members.

        Raises:
            LogError: It is no zip file, or is cut off.
        """
        self._path = path
        self._file = path.open("rb")
        try:
            self._zip = zipfile.ZipFile(self._file)
            self._check_sizes()
        except _FAULTS as error:
            self._file.close()
            raise LogError(f"{path}: not a zip file, or cut off ({_reason(error)}); copy the log anew") from None
        except LogError:
            self._file.close()
            raise
        # Of members with one name the last one counts: who rewrites a member appends it.
        self._members = {member.filename: member for member in self._zip.infolist()}

    def __enter__(self) -> Self:
        """The archive itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self._zip.close()
        self._file.close()

    def _check_sizes(self) -> None:
        """Refuse what would fill the memory or take forever, by the sizes that the list of members states.

        Raises:
            LogError: The members are packed more tightly than a log can be, or share their bytes.
        """
        members = self._zip.infolist()
        unpacked, packed = sum(member.file_size for member in members), self._path.stat().st_size
        if unpacked > _ANY_SIZE + _TIGHTEST * packed:
            sizes = f"{packed >> 10} KiB would unpack to {unpacked >> 20} MiB"
            raise LogError(f"{self._path}: {sizes}, which is no log's; if it is one, convert it to .json")
        if len({member.header_offset for member in members}) < len(members):
            raise LogError(f"{self._path}: damaged, two members share their bytes; copy the log anew")

    @property
    def names(self) -> list[str]:
        """The members' names, in the order of the file."""
        return list(self._members)

    def read(self, name: str) -> bytes:
        """Unpack a member.

        Raises:
            LogError: It is damaged, encrypted, packed by an unknown method, or larger than LARGEST_MEMBER.
        """
        member = self._members[name]
        where = f"{self._path}: {quoted(name)}"
        if member.flag_bits & _ENCRYPTED:
            raise LogError(f"{where} is encrypted; unpack the log with its password, and pack it without")
        try:
            with self._zip.open(member) as stream:
                blocks = iter(partial(stream.read, _BLOCK), b"")
                data = b"".join(islice(blocks, LARGEST_MEMBER // _BLOCK + 1))
        except _FAULTS as error:
            raise LogError(f"{where} cannot be unpacked ({_reason(error)}); copy the log anew") from None
        if len(data) > LARGEST_MEMBER:
            size = LARGEST_MEMBER >> 20
            raise LogError(f"{where} is larger than {size} MiB unpacked; take the sample out of the log")
        return data


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
