"""Object stores: the same behaviour of a folder, of S3-speaking servers and of Azure's emulator (`make stores`)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from router.contract.errors import Unavailable
from router.store.objects import MARKER, Foreign, Missing, Objects
from tests.router.media.servers import NEEDS_AZURITE, S3, Azure, azurite, moto, weed

DATA = os.urandom(6_000_000)  # more than one part
PROCESSES = pytest.mark.processes


@pytest.fixture(scope="module")
def moto_server() -> Iterator[S3]:
    with moto() as server:
        yield server


@pytest.fixture(scope="module")
def weed_server(starts_processes: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with weed(tmp_path_factory.mktemp("weed")) as server:
        yield server


@pytest.fixture(scope="module")
def azure_server(starts_processes: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azure]:
    with azurite(tmp_path_factory.mktemp("azurite")) as server:
        yield server


@pytest.fixture(
    params=[
        "folder",
        "moto",
        pytest.param("weed", marks=PROCESSES),
        pytest.param("azure", marks=[PROCESSES, NEEDS_AZURITE]),
    ]
)
def kind(request: pytest.FixtureRequest) -> str:
    """Return what kind of store `url` is."""
    return str(request.param)


@pytest.fixture
def url(kind: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty store."""
    if kind == "folder":
        return f"file://{tmp_path}/store"
    server: S3 | Azure = request.getfixturevalue(f"{kind}_server")
    return server.new_bucket(monkeypatch)


async def read(objects: Objects, name: str, start: int, end: int) -> bytes:
    return b"".join([piece async for piece in await objects.read(name, start, end)])


async def test_object_is_written_once_and_read_in_parts(url: str, tmp_path: Path) -> None:
    """Never replaced; gone after a delete, which may be repeated; below its prefix."""
    objects = Objects(url, "ours")
    await objects.claim(known_before=False)
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(DATA)
    second.write_bytes(DATA[::-1])
    assert await objects.put("files/ab/x.1", first, len(DATA), "image/png") is True
    assert await objects.put("files/ab/x.1", second, len(DATA)) is False
    assert await objects.size("files/ab/x.1") == len(DATA)
    assert await objects.size("files/ab/x.2") is None
    for start, end in ((0, len(DATA)), (0, 1), (5_000_000, 5_999_999)):
        assert await read(objects, "files/ab/x.1", start, end) == DATA[start:end]
    with pytest.raises(Missing):
        await objects.read("files/ab/x.2", 0, 1)
    await objects.put("uploads/y", second, 10)
    assert [name async for name in objects.names("files/")] == ["files/ab/x.1"]
    for _ in range(2):
        await objects.delete("files/ab/x.1")
    assert await objects.size("files/ab/x.1") is None


async def test_writers_at_once_leave_one_whole_object(kind: str, url: str, tmp_path: Path) -> None:
    """Only one of them writes it. The simulated server looks and writes in two steps, so two may write there; even then
    the object is whole, and of one that said so."""
    objects = Objects(url, "ours")
    await objects.claim(known_before=False)
    paths = [tmp_path / str(i) for i in range(6)]
    for i, path in enumerate(paths):
        path.write_bytes(bytes([i]) * 100_000)
    written = await asyncio.gather(*(objects.put("files/ab/x.1", path, 100_000) for path in paths))
    stored = await read(objects, "files/ab/x.1", 0, 100_000)
    assert stored in [path.read_bytes() for path, wrote in zip(paths, written, strict=True) if wrote]
    assert sum(written) == 1 or kind == "moto"


async def test_store_of_another_deployment_is_refused(url: str, tmp_path: Path) -> None:
    """Of two that mark an empty store at once, one has it; one that lost its marker is not marked again."""
    ours, theirs = Objects(url, "ours"), Objects(url, "theirs")
    await ours.claim(known_before=False)
    await Objects(url, "ours").claim(known_before=True)
    (tmp_path / "x").write_text("x")
    for _ in range(2):
        with pytest.raises(Foreign):
            await theirs.claim(known_before=False)
        with pytest.raises(Unavailable):
            await theirs.put("files/ab/x.1", tmp_path / "x", 1)
    await ours.delete(MARKER)
    with pytest.raises(Foreign):
        await Objects(url, "ours").claim(known_before=True)


async def test_store_that_is_down_is_unavailable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """At once, not after many tries."""
    S3("http://127.0.0.1:9").variables(monkeypatch)
    objects = Objects("s3://bucket", "ours")
    with pytest.raises(Unavailable):
        await objects.claim(known_before=False)
    assert objects.trouble
