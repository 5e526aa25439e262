"""The one exception for a user's mistake. Ground floor: every room may import it; it imports nothing of ours."""

import difflib
import errno
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class UserError(Exception):
    """A mistake the user can mend. `str(error)` is one sentence naming the file, line, field or flag, and the remedy.

    `main` prints the sentence and exits with code 2; everything else keeps its traceback, because it is our bug.
    """


def nearest(name: str, valid: Iterable[str]) -> str:
    """Returns ' (did you mean "x"?)' for the valid name closest to `name`, or '' when none is close."""
    close = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return f' (did you mean "{close[0]}"?)' if close else ""


@contextmanager
def naming(prefix: str, outside: Iterable[str] = ("mesh",)) -> Iterator[None]:
    """Where a stage is part of another one: its mistakes name "config.rows" as the user knows it, "config.sample.rows" say.

    Args:
      prefix: "config.sample.".
      outside: fields that have this name at the top.
    """
    try:
        yield
    except UserError as error:
        # config.json, a_config.py and generation_config.json are files.
        field = rf"(?<![\w./])config\.(?!(?:{'|'.join(('json', 'py', *outside))})\b)"
        raise UserError(re.sub(field, prefix, str(error))) from None


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def full_disk(error: BaseException | None) -> str | None:
    """The sentence for an error that comes from a full disk, a quota or a limit of file size; None for any other."""
    for cause in _causes(error):
        # Orbax and TensorStore tell of it in words.
        said = next((os.strerror(number) for number in FULL if os.strerror(number) in str(cause)), None)
        if said or (isinstance(cause, OSError) and cause.errno in FULL):
            return (
                f"the disk is full ({said or os.strerror(cause.errno)}); what was written before is whole: make room and run "
                "the same command to go on."
            )
    return None


def denied(error: BaseException | None) -> str | None:
    """The sentence for a file or folder that this user may not read or write; None for any other error."""
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and cause.filename:
            return f"{cause.filename}: {cause.strerror.lower()}; change its permissions, or give another file or folder."
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what it came of, and so on; not what was handled before it (`raise … from None`)."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
