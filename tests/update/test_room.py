"""What is free, how it is told, and who refuses what does not fit."""

import shutil
from pathlib import Path

import pytest

from muscle.errors import MuscleError
from muscle.update import teacher_cache
from muscle.update.room import free_disk, in_words
from muscle.update.teacher_cache import check_room


def test_the_disk_of_a_folder_that_is_not_there_yet_is_that_of_its_parents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, usage = list[Path](), shutil.disk_usage(tmp_path)

    def disk_usage(path: Path) -> object:
        asked.append(path)
        return usage

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    assert free_disk(tmp_path / "a" / "b") == usage.free
    monkeypatch.chdir(tmp_path)
    free_disk(Path("a/b"))
    assert asked == [tmp_path, tmp_path]


@pytest.mark.parametrize(
    ("size", "words"), [(0, "< 1 MB"), (999_999, "< 1 MB"), (1e6, "1 MB"), (999e6, "999 MB"), (2.34e9, "2.3 GB")]
)
def test_sizes_in_words(size: float, words: str) -> None:
    assert in_words(size) == words


def test_all_processes_refuse_what_one_has_no_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    check_room(1, None)
    monkeypatch.setattr(teacher_cache, "gather_object", lambda mine: [*mine, (3_000_000, 2_000_000)])
    with pytest.raises(MuscleError, match="takes 3 MB of memory, where 2 MB are free"):
        check_room(1, None)


def test_states_on_disk_are_written_by_one_machine_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    for here, fits in (("4", True), ("2", False), (None, True)):  # a launcher that does not tell is believed
        monkeypatch.setenv("LOCAL_WORLD_SIZE", here) if here else monkeypatch.delenv("LOCAL_WORLD_SIZE")
        for size, folder in ((1, tmp_path), (0, tmp_path), (1, None)):
            if fits or not size or not folder:
                monkeypatch.setattr(teacher_cache, "processes", lambda: None)  # which would wait for the others
                check_room(size, folder)
            else:
                with pytest.raises(MuscleError, match=r"several machines .* `memory` or `off`"):
                    check_room(size, folder)
