"""Print lines, words and reading grade of README and documentation: ``reading.py [--against REVISION]``.

The grade is that of Flesch and Kincaid (1975): 0.39 words per sentence + 11.8 syllables per word - 15.59. Only prose
counts: code blocks, tables, pictures and the addresses of links are left out. Code within a line, and a number, are one
word of one syllable. A sentence ends at a full stop, question or exclamation mark before a space, at a colon that ends
a paragraph, and with every heading, item of a list and paragraph. Syllables are counted by vowels, not by a dictionary.

``--against`` prints the same of the files of a git revision, and how many words are fewer or more.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
FILES = ("README.md", "CONTRIBUTING.md", "docs/*.md", "lib/histocrypt/shipped/*/README.md")
FENCE = re.compile(r"^(```+|:::+).*?^\1[ \t]*$", re.MULTILINE | re.DOTALL)
FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
TABLE_ROW = re.compile(r"^[ \t]*\|.*$", re.MULTILINE)
PICTURE = re.compile(r"!\[[^\]]*\]\([^)]*\)")
LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")
CODE = re.compile(r"(`+)(.+?)\1", re.DOTALL)
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
BLOCK = re.compile(r"\n[ \t]*\n|\n(?=[ \t]*(?:[-*+]|\d+\.)[ \t])|\n(?=#)|(?<=\n)(?<=#)")
SENTENCE_END = re.compile(r"(?<=[.!?])[\"'”’)\]*_]*\s+")
WORD = re.compile(r"[^\W_]+(?:['’.,/-][^\W_]+)*")
VOWELS = re.compile(r"[aeiouyäöüáéíóú]+")
SILENT = re.compile(r"[^aeiouyl]es?$|[aeiouy]les?$|[^aeioutd]ed$")
"""As in made, genes, tiles and masked; not as in table, added and fitted."""
HEARD = re.compile(r"(?:[sxzcg]|[cs]h)es$")
"""As in slices and patches."""


class Reading(NamedTuple):
    """What is counted of one file."""

    lines: int
    words: int
    sentences: int
    syllables: int

    @property
    def grade(self) -> float:
        """School years that a reader needs."""
        if not self.words:
            return 0.0
        return 0.39 * self.words / self.sentences + 11.8 * self.syllables / self.words - 15.59


def prose(text: str) -> list[str]:
    """Return headings, list items and paragraphs of a Markdown text, without what is not read as prose."""
    text = FRONT_MATTER.sub("", text)
    for pattern in (FENCE, COMMENT, TABLE_ROW, PICTURE):
        text = pattern.sub("\n", text)
    text = CODE.sub("code", LINK.sub(r"\1", text))
    headed = re.sub(r"^(#+.*)$", r"\n\1\n", text, flags=re.MULTILINE)
    return [block for part in BLOCK.split(headed) if (block := " ".join(part.split()))]


def syllables(word: str) -> int:
    """Return the syllables of an English word: its groups of vowels, without those that are silent."""
    letters = word.lower()
    silent = SILENT.search(letters) and not HEARD.search(letters)
    return max(len(VOWELS.findall(letters)) - bool(silent), 1)


def read(text: str) -> Reading:
    """Count a Markdown text."""
    sentences = [WORD.findall(one) for block in prose(text) for one in SENTENCE_END.split(block)]
    sentences = [words for words in sentences if words]
    words = [word for words in sentences for word in words]
    heard = sum(syllables(part) for word in words for part in re.split(r"[-/]", word))
    return Reading(len(text.splitlines()), len(words), len(sentences), heard)


def at(revision: str, name: str) -> str | None:
    """Return a file as a git revision has it, or nothing."""
    asked = ["git", "-C", str(ROOT), "show", f"{revision}:{name}"]
    shown = subprocess.run(asked, capture_output=True, text=True, check=False)
    return None if shown.returncode else shown.stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", metavar="REVISION", help="also print the counts of this git revision")
    given = parser.parse_args()
    names = [str(path.relative_to(ROOT)) for pattern in FILES for path in sorted(ROOT.glob(pattern))]
    now = {name: read((ROOT / name).read_text(encoding="utf-8")) for name in names}
    if given.against is None:
        print("| file | lines | words | grade |\n|---|---|---|---|")
        for name, one in now.items():
            print(f"| `{name}` | {one.lines} | {one.words:,} | {one.grade:.1f} |")
        return 0
    known = ["git", "-C", str(ROOT), "rev-parse", "--verify", "--quiet", f"{given.against}^{{commit}}"]
    if subprocess.run(known, capture_output=True, check=False).returncode:
        print(f"reading: git knows no revision {given.against!r}", file=sys.stderr)
        return 2
    print("| file | lines before | now | words before | now | change | grade before | now |\n|" + "---|" * 8)
    for name, one in now.items():
        text = at(given.against, name)
        if text is None:
            print(f"| `{name}` | | {one.lines} | | {one.words:,} | new | | {one.grade:.1f} |")
            continue
        old = read(text)
        change = f"{one.words / old.words - 1:+.0%}" if old.words else ""
        cells = [
            old.lines,
            one.lines,
            f"{old.words:,}",
            f"{one.words:,}",
            change,
            f"{old.grade:.1f}",
            f"{one.grade:.1f}",
        ]
        print(f"| `{name}` | " + " | ".join(map(str, cells)) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
