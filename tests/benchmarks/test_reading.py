"""Words, sentences and syllables of ``benchmarks/reading.py``, counted by hand."""

import runpy
import subprocess
import sys

import pytest

from histocrypt.paths import repository

SCRIPT = repository() / "benchmarks" / "reading.py"
TEXT = """# Two tables

A [model](https://example.org/a/long/address.md) predicts `log1p_cp10k values` of .5 here.
It was trained twice!

![a picture. With words.](picture.png)

| a | table. | of. many. words. |
|---|---|---|

```bash
this is no prose. None of it.
```

- One item
  goes on.
- Another
"""


@pytest.fixture(scope="module")
def reading():
    return runpy.run_path(str(SCRIPT))


def test_only_prose_counts(reading):
    assert reading["prose"](TEXT) == [
        "# Two tables",
        "A model predicts code of .5 here. It was trained twice!",
        "- One item goes on.",
        "- Another",
    ]


def test_words_sentences_and_syllables(reading):
    counted = reading["read"](TEXT)
    assert (counted.lines, counted.words, counted.sentences) == (17, 2 + 7 + 4 + 4 + 1, 5)
    assert counted.syllables == (1 + 2) + (1 + 2 + 2 + 1 + 1 + 1 + 1) + (1 + 1 + 1 + 1) + (1 + 2 + 1 + 1) + 3
    assert counted.grade == pytest.approx(0.39 * 18 / 5 + 11.8 * counted.syllables / 18 - 15.59)


@pytest.mark.parametrize(
    ("word", "count"),
    [
        ("genes", 1),
        ("tile", 1),
        ("tables", 2),
        ("slices", 2),
        ("masked", 1),
        ("fitted", 2),
        ("normalised", 3),
        ("97", 1),
    ],
)
def test_syllables(reading, word, count):
    assert reading["syllables"](word) == count


def test_it_compares_with_a_revision_and_knows_which_there_are(tmp_path):
    (tmp_path / "benchmarks").mkdir()
    script = tmp_path / "benchmarks" / "reading.py"
    script.write_text(SCRIPT.read_text(encoding="utf-8"), encoding="utf-8")

    def git(*given):
        named = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        subprocess.run(["git", "-C", tmp_path, *named, *given], check=True, capture_output=True)

    (tmp_path / "README.md").write_text("One two three four.\n", encoding="utf-8")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "before")
    (tmp_path / "README.md").write_text("One two.\n", encoding="utf-8")
    (tmp_path / "CONTRIBUTING.md").write_text("New.\n", encoding="utf-8")
    told = subprocess.run(
        [sys.executable, script, "--against", "HEAD"], check=True, capture_output=True, text=True
    ).stdout
    rows = {row.split(" | ")[0]: [cell.strip() for cell in row.split("|")[2:-1]] for row in told.splitlines()[2:]}
    assert rows["| `README.md`"][:5] == ["1", "1", "4", "2", "-50%"]
    assert rows["| `CONTRIBUTING.md`"][4] == "new"
    refused = subprocess.run(
        [sys.executable, script, "--against", "nowhere"], check=False, capture_output=True, text=True
    )
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "nowhere" in refused.stderr
