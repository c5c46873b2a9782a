"""Releasing the files of messages and avatars that are gone, so that the sweeper looks at them."""

from __future__ import annotations

from router.store.files import USER, Files


async def free(files: Files, conv: str, hashes: bytes) -> None:
    """Have the files looked at that the last message of a conversation has left; then the conversation forgets them."""
    for at in range(0, len(hashes), 32):
        await files.recheck(hashes[at : at + 32].hex(), conv)
    await files.clear_freed(conv, hashes)


async def free_avatars(files: Files, user: str) -> None:
    """Have the former avatars of a user looked at; then the user's hash forgets them."""
    if hashes := await files.former_avatars(user):
        await free(files, f"{USER}{user}", hashes)


async def free_all(files: Files, conv: str) -> None:
    """Take all references of a removed conversation, to which no message comes any more."""
    cursor = -1
    while cursor:
        found, cursor = await files.referred(conv, max(cursor, 0))
        for sha256 in found:
            await files.settle(sha256, conv, "removed")
