"""The OpenAPI document equals the service, tested with thousands of requests made from it, valid and invalid."""

import asyncio
import sys
from pathlib import Path

import pytest

from deploy.embedded import EmbeddedValkey
from router.api import openapi
from router.api.call import Endpoint
from router.api.table import admin_endpoints, endpoints
from router.contract import codecs
from tests.router.api.serving import SETTINGS, by, serve
from tests.support import SERVER_KEY, run

DEADLINE_S = 400.0
EXAMPLES = "8"
# The document cannot say which user or conversation there is, nor that some names are taken: a 404, 409 or 403 for
# well-formed data is no contradiction. Everything else counts.
CHECKS = "all"
NOT = "positive_data_acceptance,use_after_free,ensure_resource_availability,object_level_authorization"


@pytest.mark.processes
@pytest.mark.parametrize("caller", ["backend", "user"])
def test_service_conforms_to_its_document(valkey: EmbeddedValkey, tmp_path: Path, caller: str) -> None:
    """Every status, body and header is documented; malformed requests are refused; no call fails; every call checks
    its caller. As a backend, which may do everything, and as a user.
    """
    token = SERVER_KEY if caller == "backend" else by("ada")["Authorization"].removeprefix("Bearer ")

    async def main() -> None:
        async with serve(valkey, sends_per_s=1e6, send_burst=10**6) as api:
            status, said = await schemathesis(api.port, token, tmp_path / caller)
            assert status == 0, said[-8000:]

    run(main(), DEADLINE_S)


async def schemathesis(port: int, token: str, folder: Path) -> tuple[int, str]:
    folder.mkdir()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "schemathesis.cli", "run", f"http://127.0.0.1:{port}/v1/openapi.json",
        "--header", f"Authorization: Bearer {token}", "--header", "Linnet-User: ada",
        "--phases", "examples,coverage,fuzzing", "--max-examples", EXAMPLES, "--seed", "1", "--workers", "1",
        "--checks", CHECKS, "--exclude-checks", NOT, "--continue-on-failure", "--suppress-health-check", "all",
        cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    return process.returncode or 0, said.decode()


@pytest.mark.parametrize("rows", [endpoints(SETTINGS), admin_endpoints(SETTINGS)], ids=["public", "admin"])
def test_every_schema_reference_of_the_document_resolves(rows: tuple[Endpoint, ...]) -> None:
    """Each operation also has an id of its own, and a summary of one sentence."""
    found = openapi.document(rows)
    text = codecs.JSON.encode(found).decode()  # type: ignore[arg-type]  # plain JSON
    for reference in {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}:
        assert reference in found["components"]["schemas"]
    operations = [operation for path in found["paths"].values() for operation in path.values()]
    names = [operation["operationId"] for operation in operations]
    assert len(names) == len(set(names))
    for operation in operations:
        assert operation["summary"]
        assert "\n" not in operation["summary"], operation["operationId"]
