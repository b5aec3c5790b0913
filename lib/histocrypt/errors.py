"""The one error that a user can mend, and the sentence that says how."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

from histocrypt.kinds import why_unreadable

IN_STUDY = {
    "id": "add `id:` to the section's entry in the study",
    "patient": "add the column, or `patient:` to the section's entry in the study",
    "image": "add `image:` to the section's entry in the study",
    "um_per_px": "add `um_per_px:` (micrometres per full-resolution pixel) to the section's entry in the study",
    "bin_um": "set `bin_um:` (micrometres) in the section's entry in the study, or give --bin-um",
}
"""What to do about a setting of a section that is missing or wrong, in a study."""


class InputError(ValueError):
    """Something the user supplied cannot be used.

    Rendered as one sentence that names the file, the field and the value, what was expected and what to do.
    The command line prints it without a traceback and exits with code 2.

    Parameters
    ----------
    problem
        What is wrong, as a clause without a full stop, e.g. ``"counts are negative"``.
    file
        The file or folder concerned.
    field
        The field inside the file, e.g. ``"obsm['spatial']"``.
    value
        The offending value, shown as given.
    expected
        What would have been accepted.
    fix
        What the user can do now.
    setting
        The setting of a section that mends it, of `IN_STUDY`: then what can be done depends on where it is given, and
        is said for a study where there is no ``fix``.
    """

    def __init__(
        self,
        problem: str,
        *,
        file: str | Path | None = None,
        field: str | None = None,
        value: object = None,
        expected: str | None = None,
        fix: str | None = None,
        setting: str | None = None,
    ) -> None:
        self.setting, fix = setting, fix or IN_STUDY.get(setting or "")
        self.problem, self.file, self.field, self.value, self.expected, self.fix = (
            problem,
            file,
            field,
            value,
            expected,
            fix,
        )
        where = ": ".join(str(part) for part in (file, field) if part is not None)
        sentence = f"{where}: {problem}" if where else problem
        if value is not None:
            sentence += f" (found {value!r})"
        if expected:
            sentence += f"; expected {expected}"
        if fix:
            sentence += f"; {fix}"
        super().__init__(_on_one_line(sentence if sentence.endswith("?") else sentence + "."))

    def of_file(self, file: str | Path, *, fix: str | None = None) -> InputError:
        """Return the same error said of a file that only the caller knows, with ``fix`` where it names none itself."""
        return self._but(file=file, fix=self.fix or fix)

    def _but(self, **changes: object) -> InputError:
        kept = {name: getattr(self, name) for name in ("file", "field", "value", "expected", "fix", "setting")}
        return InputError(self.problem, **(kept | changes))


@contextmanager
def said_with(ways: Mapping[str, str]) -> Iterator[None]:
    """Let errors say what to do about a setting where it is given in another way than in a study; see `IN_STUDY`."""
    try:
        yield
    except InputError as error:
        if error.setting not in ways:
            raise
        raise error._but(fix=ways[error.setting]) from error


def _on_one_line(sentence: str) -> str:
    """Return a sentence with what would break its line, steer a terminal or not be printed written as escapes."""
    sentence = re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", lambda odd: repr(odd[0])[1:-1], sentence)
    return sentence.encode("utf-8", "backslashreplace").decode()


def unknown_name(what: str, name: str, known: Iterable[str], **where: object) -> InputError:
    """Return the error for a misspelt name: it lists the known ones and guesses which was meant."""
    known = sorted(known)
    close = get_close_matches(name, known, n=1)
    fix = f"did you mean {close[0]!r}?" if close else None
    if not known:
        return InputError(f"unknown {what} {name!r}: there is none at all", **where)
    return InputError(f"unknown {what} {name!r}", expected="one of " + ", ".join(known), fix=fix, **where)


@contextmanager
def reading(problem: str, *errors: type[Exception], **where: object) -> Iterator[None]:
    """Turn what a library raises on a file that it cannot read into `unreadable`; an `InputError` stays as it is."""
    try:
        yield
    except InputError:
        raise
    except errors as error:
        raise unreadable(problem, error, **where) from error


def unreadable(problem: str, error: Exception, **where: object) -> InputError:
    """Return the error for a file that a library cannot read: why, as far as its bytes and the library tell."""
    why, fix = why_unreadable(where.get("file"), error)
    return InputError(f"{problem}: {why}", fix=fix, **where)
