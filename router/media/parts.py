"""The parts that calls with files need, made once per router."""

from __future__ import annotations

from msgspec import Struct

from router.contract.settings import Settings
from router.media.links import Links
from router.media.places import Places
from router.media.receiving import Spool
from router.media.signed import SignedLinks
from router.media.types import Prepare
from router.media.uploads import MB, Limits, Uploads, as_it_is
from router.store.files import Files, UploadRate
from router.store.objects import Objects
from router.store.resumable import Resumables


class Media(Struct, frozen=True):
    files: Files
    objects: Objects
    uploads: Uploads
    spool: Spool
    places: Places
    links: Links
    signed: SignedLinks
    resumables: Resumables

    @classmethod
    def make(
        cls, settings: Settings, files: Files, resumables: Resumables, objects: Objects, prepare: Prepare = as_it_is
    ) -> Media:
        quota = round(settings.media_quota_mb * MB)
        rate = UploadRate(settings.media_uploads_at_once, settings.media_uploads_per_min, quota)
        return cls(
            files=files,
            objects=objects,
            uploads=Uploads(files, objects, prepare, Limits.of(settings), quota),
            spool=Spool(settings.media_spool),
            places=Places(files, rate),
            links=Links.of(settings),
            signed=SignedLinks(objects),
            resumables=resumables,
        )
