"""What is free on this machine, in bytes, and how bytes are told."""

from __future__ import annotations

import shutil
from pathlib import Path

import psutil


def free_memory() -> int:
    """Main memory that programs can have without swapping."""
    return int(psutil.virtual_memory().available)


def free_disk(folder: Path) -> int:
    """Where a folder lies, or will: it need not be there yet."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free


def in_words(size: float) -> str:
    """In megabytes or gigabytes."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB" if size >= 1e6 else "< 1 MB"
