"""What is found, in which order, and what makes two items the same."""

from __future__ import annotations

import os
import shutil

import pytest

from omnicli.batch.items import Wanted, find_media, plan
from omnicli.errors import UsageError


@pytest.fixture
def archive(tmp_path, monkeypatch):
    for name in (
        "b.mp4",
        "a.MKV",
        "notes.txt",
        ".hidden.mp4",
        "sub/c.webm",
        "sub/deep/d.wav",
        ".git/e.mp4",
        "sub.mp4/f.mov",
        "[x].mp4",
        "a b\nc.mp4",
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(name.encode())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def found(*names, **how):
    notes: list[str] = []
    return find_media(names, notes.append, **how), notes


def test_folders(archive):
    everything = ["[x].mp4", "a b\nc.mp4", "a.MKV", "b.mp4", "sub/c.webm", "sub/deep/d.wav", "sub.mp4/f.mov"]
    assert found(".")[0] == [os.path.join(".", name) for name in everything]
    assert found("sub", "b.mp4", "sub/c.webm")[0] == ["sub/c.webm", "sub/deep/d.wav", "b.mp4"]
    os.symlink(archive / "sub", archive / "link")
    assert len(found(".")[0]) == 7
    assert found("link")[0] == ["link/c.webm", "link/deep/d.wav"]


def test_patterns_and_names(archive):
    assert found("*.mp4")[0] == ["[x].mp4", "a b\nc.mp4", "b.mp4", "sub.mp4/f.mov"]
    assert found("**/*.w*")[0] == ["sub/c.webm", "sub/deep/d.wav"]
    assert found("[x].mp4")[0] == ["[x].mp4"]  # a name that is there is no pattern
    assert found("notes.txt", ".hidden.mp4")[0] == ["notes.txt", ".hidden.mp4"]
    assert found("gone.mp4", "*.mp4", "sub/deep", patterns=False)[0] == ["gone.mp4", "*.mp4", "sub/deep/d.wav"]
    with pytest.raises(UsageError, match="no file matches"):
        found("*.avi")
    with pytest.raises(UsageError, match=r"did you mean b\.mp4"):
        found("bb.mp4")


def test_subtitles_beside_a_film_are_part_of_its_key(archive):
    def keys(source):
        films = ("b.mp4", "sub/c.webm", "gone.mp4")
        return [job.items[0].key for job in plan([Wanted(film, "why?") for film in films], "s", source)]

    off, without = keys("off"), keys("auto")
    assert off == without, "no file of subtitles, nothing to tell"
    (archive / "b.srt").write_text("one")
    with_one = keys("auto")
    assert keys("off") == off and with_one[1:] == off[1:] and with_one[0] != off[0]
    (archive / "b.srt").write_text("two")
    assert keys("auto")[0] not in (with_one[0], off[0])
    (archive / "b.srt").write_text("one")
    (archive / "b.ass").write_text("not read")
    os.utime(archive / "b.srt", (1, 1))
    assert keys("auto") == with_one
    (archive / "all.srt").write_text("x")
    named = keys("all.srt")
    (archive / "all.srt").write_text("y")
    assert all(a != b for a, b in zip(named, keys("all.srt"), strict=True))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_cannot_be_read_is_told_of(archive):
    (archive / "sub").chmod(0)
    files, notes = found(".")
    (archive / "sub").chmod(0o755)
    assert len(files) == 5 and len(notes) == 1 and "sub: not looked into" in notes[0]


def items(*wanted, settings="s"):
    return [item for job in plan([Wanted(*w) for w in wanted], settings) for item in job.items]


def key(*wanted, settings="s"):
    (item,) = items(wanted, settings=settings)
    return item.key


def test_the_key_follows_the_content_and_not_the_name(archive):
    before = key("b.mp4", "q")
    os.rename("b.mp4", "new name.mp4")
    assert key("new name.mp4", "q") == before
    shutil.move("new name.mp4", "sub/b.mp4")
    assert key(str(archive / "sub" / "b.mp4"), "q") == before


def test_the_key_follows_everything_that_answers_depend_on(archive):
    keys = [
        key("b.mp4", "q"),
        key("b.mp4", "other"),
        key("b.mp4", "q", settings="t"),
        key("b.mp4", "q", "name"),
        key("b.mp4", "q", None, ("x", "y")),
        key("a.MKV", "q"),
    ]
    (archive / "b.mp4").write_bytes(b"c.mp4")  # same length
    keys.append(key("b.mp4", "q"))
    (archive / "b.mp4").unlink()
    keys.append(key("b.mp4", "q"))
    assert len(set(keys)) == len(keys)


def test_one_item_for_each_content(archive):
    os.link("b.mp4", "hard.mp4")
    os.symlink("b.mp4", "soft.mp4")
    shutil.copy2("b.mp4", "copy.mp4")
    same = [(name, "q") for name in ("b.mp4", "./b.mp4", "b.mp4", "hard.mp4", "soft.mp4", "copy.mp4", "hard.mp4")]
    out = items(*same)
    assert [i.media for i in out] == ["b.mp4", "hard.mp4", "soft.mp4", "copy.mp4"]
    assert [i.same_as for i in out] == [None, "b.mp4", "b.mp4", "b.mp4"]
    assert len({i.key for i in out}) == 4
    os.utime("copy.mp4", (1, 1))  # another time of change: taken for another film
    assert [i.same_as for i in items(*same)] == [None, "b.mp4", "b.mp4", None]


def test_files_that_are_not_there_are_items_of_their_own(archive):
    os.mkfifo("fifo.mp4")
    names = ["gone.mp4", "lost.mp4", "fifo.mp4", "sub", "bad\0name.mp4"]
    assert [i.media for i in items(*((name, "q") for name in names))] == names


def test_questions_about_a_film_are_one_job(archive):
    wanted = [Wanted("b.mp4", "1"), Wanted("a.MKV", "1"), Wanted("b.mp4", "2"), Wanted("b.mp4", "1")]
    assert [(j.media, [i.question for i in j.items]) for j in plan(wanted, "s")] == [
        ("b.mp4", ["1", "2"]),
        ("a.MKV", ["1"]),
    ]
