"""Links that lead to the object store itself: what is linked to, for how long, and that the store takes them."""

from __future__ import annotations

import json
import logging
from base64 import b64encode
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from router.contract import metrics
from router.contract.errors import Unavailable
from router.media.links import Linked
from router.media.names import object_of
from router.media.signed import LIFE_S, PAUSE_S, SignedLinks
from router.store.objects import Objects
from tests.router.media.servers import NEEDS_AZURITE, S3, Azure, azurite, weed
from tests.support import eventually

SHA = "ab" * 32
PICTURE = Linked(SHA, "gen", 0, 9, "image/webp", "inline; filename*=UTF-8''a.webp")
PUBLIC = "https://files.example"
NOWHERE = "http://127.0.0.1:9"
UNREADABLE = '{"private_key": "a-secret", "client_email": "a", "private_key_id": "1"}'


@pytest.fixture(scope="module", params=["weed", pytest.param("azure", marks=NEEDS_AZURITE)])
def server(
    request: pytest.FixtureRequest, starts_processes: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[S3 | Azure]:
    """One that checks signatures, as the simulation of S3 does not."""
    folder = tmp_path_factory.mktemp("store")
    with weed(folder) if request.param == "weed" else azurite(folder) as running:
        yield running


async def away(url: str, public: str = f"{PUBLIC}/") -> Objects:
    """A store that cannot be reached, which has read its credentials."""
    objects = Objects(url, "ours", public)
    with pytest.raises(Unavailable):
        await objects.claim(known_before=False)
    return objects


async def test_store_serves_a_linked_object_with_its_headers(
    server: S3 | Azure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the host that clients use, in ranges, for GET alone, until the link ends."""
    public = server.endpoint.replace("127.0.0.1", "localhost")
    objects = Objects(server.new_bucket(monkeypatch), "ours", public)
    await objects.claim(known_before=False)
    (tmp_path / "picture").write_bytes(b"a picture")
    name = object_of(SHA, "gen")
    await objects.put(name, tmp_path / "picture", 9, "image/webp", "inline")
    made = await SignedLinks(objects).make(PICTURE, 0)
    assert made is not None
    url, _ = made
    assert url.startswith(f"{public}/bucket-")
    async with httpx.AsyncClient(trust_env=False) as http:
        got = await http.get(url)
        assert (got.status_code, got.content) == (200, b"a picture")
        wanted = {"content-type": "image/webp", "content-disposition": "inline",
                  "cache-control": "private, max-age=3600"}  # fmt: skip
        assert {header: got.headers[header] for header in wanted} == wanted
        part = await http.get(url, headers={"Range": "bytes=2-4"})
        assert (part.status_code, part.content) == (206, b"pic")
        for refused in (url.replace(SHA, "cd" * 32), url[:-1] + ("0" if url[-1] != "0" else "1")):
            assert (await http.get(refused)).status_code in (400, 403)
        assert (await http.put(url, content=b"other")).status_code in (400, 403)
        short = await objects.signed(name, 1)
        assert short is not None

        async def ended() -> bool:
            return (await http.get(short)).status_code == 403

        await eventually(ended)


async def test_only_what_a_browser_shows_is_linked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """All else needs the headers of a router. A store without a public URL has no links."""
    S3(NOWHERE).variables(monkeypatch)
    links = SignedLinks(await away("s3://bucket"))
    for type_, disposition, is_linked in (
        ("image/webp", "inline", True), ("video/mp4", "inline; filename*=UTF-8''a", True),
        ("image/webp", "attachment", False), ("text/plain", "inline", False), ("application/pdf", "attachment", False),
        ("application/octet-stream", "inline", False),
    ):  # fmt: skip
        assert (await links.make(Linked(SHA, "gen", 0, 9, type_, disposition), 0) is not None) == is_linked
    assert await SignedLinks(await away("s3://bucket", public="")).make(PICTURE, 0) is None


async def test_link_is_given_out_again_for_half_of_its_life(monkeypatch: pytest.MonkeyPatch) -> None:
    """So browsers find what they have; then there is another one."""
    S3(NOWHERE).variables(monkeypatch)
    links = SignedLinks(await away("s3://bucket/prefix"))
    first = await links.make(PICTURE, 1500)
    assert first is not None
    assert first[1] == 1000 + LIFE_S * 1000
    query = parse_qs(urlsplit(first[0]).query)
    assert query["X-Amz-Expires"] == [str(LIFE_S)]
    assert list(query)[-1] == "X-Amz-Signature"
    assert await links.make(PICTURE, LIFE_S * 500) == first
    later = await links.make(PICTURE, 1_000_000 + LIFE_S * 500)
    assert later is not None
    assert later[1] == 1_000_000 + LIFE_S * 1500


async def test_store_that_cannot_sign_leaves_links_to_routers(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked again only after a pause. Here the cloud's service of credentials is away."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", NOWHERE)
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", NOWHERE)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    now = 0.0
    links = SignedLinks(await away("s3://bucket"), lambda: now)
    failed = metrics.MEDIA_STORE_ERRORS.labels("sign")._value.get
    before = failed()
    for now, failures in ((0.0, 1), (PAUSE_S - 1, 1), (PAUSE_S + 1, 2)):  # noqa: B007 - the clock reads it
        assert await links.make(PICTURE, 0) is None
        assert failed() == before + failures


async def test_google_link_has_a_valid_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checked by the rules of V4 with the public key. Google signs for its own host, whatever host leads there."""
    key = generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    account = {"client_email": "a@b.example", "private_key": pem, "private_key_id": "1", "type": "service_account",
               "token_uri": f"{NOWHERE}/token"}  # fmt: skip
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", json.dumps(account))
    monkeypatch.setenv("GOOGLE_BASE_URL", NOWHERE)
    url = await (await away("gs://bucket/prefix")).signed(object_of(SHA, "gen"), LIFE_S)
    assert url is not None
    parts = urlsplit(url)
    assert (f"{parts.scheme}://{parts.netloc}", parts.path) == (PUBLIC, f"/bucket/prefix/{object_of(SHA, 'gen')}")
    query, _, signature = parts.query.rpartition("&X-Goog-Signature=")
    given = parse_qs(query)
    assert given["X-Goog-Expires"] == [str(LIFE_S)]
    asked = f"GET\n{parts.path}\n{query}\nhost:storage.googleapis.com\n\nhost\nUNSIGNED-PAYLOAD"
    (date,), (credential,) = given["X-Goog-Date"], given["X-Goog-Credential"]
    scope = credential.partition("/")[2]
    text = f"GOOG4-RSA-SHA256\n{date}\n{scope}\n{sha256(asked.encode()).hexdigest()}"
    key.public_key().verify(bytes.fromhex(signature), text.encode(), PKCS1v15(), SHA256())


async def test_azure_link_reads_one_object(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", b64encode(b"k" * 32).decode())
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", NOWHERE)
    url = await (await away("az://container/prefix")).signed(object_of(SHA, "gen"), LIFE_S)
    assert url is not None
    assert url.startswith(f"{PUBLIC}/container/prefix/{object_of(SHA, 'gen')}?")
    query = parse_qs(urlsplit(url).query)
    assert (query["sp"], query["sr"], list(query)[-1]) == (["r"], ["b"], "sig")


@pytest.mark.parametrize(
    ("url", "variables"),
    [
        ("az://container", {"AZURE_STORAGE_SAS_KEY": "sv=2023-11-03&sp=rw&sig=a-secret"}),
        ("az://container", {"AZURE_STORAGE_ACCOUNT_KEY": "a-secret, not base64"}),
        ("gs://bucket", {"GOOGLE_SERVICE_ACCOUNT_KEY": '{"private_key": "a-secret"'}),
        ("gs://bucket", {"GOOGLE_SERVICE_ACCOUNT_KEY": UNREADABLE}),
        ("s3://bucket", {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "a-secret", "AWS_SESSION_TOKEN": "x"}),
    ],
)  # fmt: skip
async def test_credentials_of_a_store_that_fails_are_not_logged(
    url: str, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor are those that it cannot read."""
    shared = {"AZURE_STORAGE_ACCOUNT_NAME": "account", "AZURE_STORAGE_ENDPOINT": NOWHERE, "AWS_ENDPOINT_URL": NOWHERE,
              "GOOGLE_BASE_URL": NOWHERE, "AWS_REGION": "us-east-1"}  # fmt: skip
    for name, value in (shared | variables).items():
        monkeypatch.setenv(name, value)
    with caplog.at_level(logging.ERROR):
        objects = await away(url)
        await objects.signed(object_of(SHA, "gen"), LIFE_S)
    assert "the store of files fails" in caplog.text
    assert "a-secret" not in caplog.text + objects.trouble
