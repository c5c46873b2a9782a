"""Files of acked messages: each member could fetch each of them at the end, byte for byte. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from loadtest.chaos.proof.evidence import FetchedFile, FileRows, SentFile
from loadtest.chaos.proof.findings import Violation


def check_files(rows: Iterable[FileRows]) -> Iterator[Violation]:
    fetched: dict[tuple[str, int, str, str], FetchedFile] = {}
    sent: list[SentFile] = []
    for row in rows:
        if isinstance(row, SentFile):
            sent.append(row)
        else:
            fetched[row.conversation, row.seq, row.sha256, row.user] = row
    for one in sent:
        for user in one.members:
            got = fetched.get((one.conversation, one.seq, one.sha256, user))
            where = {"at": one.at, "conversation": one.conversation, "seq": one.seq}
            if got is None:
                what = f"{user} did not fetch the file {one.sha256}"
            elif got.status != 200:
                what = f"{user} got {got.status} for the file {one.sha256}"
            elif got.digest != one.sha256:
                what = f"{user} got other bytes for the file {one.sha256}: {got.digest}"
            else:
                continue
            yield Violation("files", what, **where)  # type: ignore[arg-type]
