"""The one error that a user can mend, and the sentence that says how."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

from histocrypt.kinds import why_unreadable


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
    ) -> None:
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
        super().__init__(sentence if sentence.endswith("?") else sentence + ".")

    def of_file(self, file: str | Path, *, fix: str | None = None) -> InputError:
        """Return the same error said of a file that only the caller knows, with ``fix`` where it names none itself."""
        return InputError(
            self.problem,
            file=file,
            field=self.field,
            value=self.value,
            expected=self.expected,
            fix=self.fix or fix,
        )


def unknown_name(what: str, name: str, known: Iterable[str], **where: object) -> InputError:
    """Return the error for a misspelt name: it lists the known ones and guesses which was meant."""
    known = sorted(known)
    close = get_close_matches(name, known, n=1)
    fix = f"did you mean {close[0]!r}?" if close else None
    return InputError(f"unknown {what} {name!r}", expected="one of " + ", ".join(known), fix=fix, **where)


def unreadable(problem: str, error: Exception, **where: object) -> InputError:
    """Return the error for a file that a library cannot read: why, as far as its bytes and the library tell."""
    why, fix = why_unreadable(where.get("file"), error)
    return InputError(f"{problem}: {why}", fix=fix, **where)
