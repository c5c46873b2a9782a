"""One call of the HTTP API as its handler receives it, the parts that all handlers share, and a row of the table.

Routes are in `app.py`, statuses and HTTP itself in `steps.py`. A server key may do everything: its calls have no actor
(`actor` is None, so no membership or role is checked), also if it acts for a user. `Linnet-User` names a user if a call
needs one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from time import time_ns
from typing import Any, Final, Literal

from msgspec import Struct
from starlette.requests import Request

from router.api.passwords import Passwords
from router.api.rate_limits import Limiter
from router.contract.addressing import visible
from router.contract.errors import BadCommand, Forbidden
from router.contract.settings import Settings
from router.contract.tokens import TokenId
from router.contract.verifier import Fetch, Verifier
from router.media.parts import Media
from router.process.hooked import Appends, HookedAppends
from router.process.send_hook import SendHook
from router.search.parts import Search
from router.store.accounts import Accounts
from router.store.audit import Audit
from router.store.contacts import Contacts
from router.store.conversations import Conversations
from router.store.deployment import RowFormats
from router.store.direct import DirectConversations
from router.store.directory import Directory
from router.store.dirty import Dirty, wall_ms
from router.store.durability import Durability, durability
from router.store.files import Files
from router.store.moderation import Moderation
from router.store.pairs import Pairs
from router.store.people import People
from router.store.presence import Presence
from router.store.profiles import Profiles
from router.store.pushes import Pushes
from router.store.redis.client import Client
from router.store.reports import Reports
from router.store.state import State
from router.store.users import Users

ADDRESS_EVERY_S, ADDRESS_BURST = 0.1, 200
UNKNOWN_USER_EVERY_S, UNKNOWN_USER_BURST = 12.0, 5  # the rate of `accounts.take_guess`, so that both look the same


class EventNumbers:
    """This process's own devices, and an `n` for each event without one: unique, beginning at the Unix time in µs.

    Clients drop an event that has the (from, device, n) of another one, so every event needs its own.
    """

    def __init__(self, node: str) -> None:
        self.device = f"api/{node}"
        self.keyed_device = f"api/{node}.keys"
        self._last = time_ns() // 1000

    def next(self) -> int:
        self._last += 1
        return self._last


def rate_us(settings: Settings) -> tuple[int, int]:
    """Return the cost and the burst of a device's sends in a conversation, in µs."""
    cost = 1e6 / settings.sends_per_s
    return round(cost), round(cost * settings.send_burst)


class Services(Struct, frozen=True):
    """The parts that handlers call."""

    settings: Settings
    conversations: Conversations
    appends: Appends
    hook: SendHook | None
    moderation: Moderation
    audit: Audit
    reports: Reports
    directory: Directory
    row_formats: RowFormats
    dirty: Dirty
    users: Users
    presence: Presence
    direct: DirectConversations
    pairs: Pairs
    people: People
    profiles: Profiles
    contacts: Contacts
    state: State
    accounts: Accounts
    pushes: Pushes
    durability: Durability
    verifier: Verifier
    passwords: Passwords
    addresses: Limiter
    unknown_users: Limiter
    event_numbers: EventNumbers
    files: Files
    media: Media | None
    search: Search | None

    @classmethod
    def make(
        cls,
        settings: Settings,
        client: Client,
        node: str,
        fetch: Fetch | None = None,
        media: Media | None = None,
        search: Search | None = None,
    ) -> Services:
        """Make all parts on one client; `node` names this process in the API's devices.

        `media` is None in a deployment without a store of files, `search` in one without search.
        """
        cap = 2 * settings.retention_events
        users, conversations = Users(client), Conversations(client, cap)
        pairs, people, profiles = Pairs(client), People(client), Profiles(client)
        state = State(client, rate_us(settings))
        direct = DirectConversations(users, conversations, pairs, profiles, rate_us(settings))
        hook = SendHook(settings) if settings.send_hook_url else None
        durable = durability(settings.durability, client, settings.replicas)
        return cls(
            settings=settings,
            conversations=conversations,
            appends=HookedAppends(conversations, direct, hook) if hook else conversations,
            hook=hook,
            moderation=Moderation(client, cap),
            audit=Audit(client),
            reports=Reports(client),
            directory=Directory(client),
            row_formats=RowFormats(client),
            dirty=Dirty(client, None if settings.trust_redis_clock else wall_ms, followed=bool(settings.search_url)),
            users=users,
            direct=direct,
            pairs=pairs,
            people=people,
            profiles=profiles,
            contacts=Contacts(pairs, people, profiles, users, state),
            state=state,
            presence=Presence(client),
            accounts=Accounts(client),
            pushes=Pushes(client),
            durability=durable,
            verifier=Verifier(settings, fetch, clocks=client.clocks),
            passwords=Passwords(settings.password_min),
            addresses=Limiter(ADDRESS_EVERY_S, ADDRESS_BURST),
            unknown_users=Limiter(UNKNOWN_USER_EVERY_S, UNKNOWN_USER_BURST),
            event_numbers=EventNumbers(node),
            files=Files(client, kept=durable.when_file_kept),
            media=media,
            search=search,
        )

    async def close(self) -> None:
        """End the questions to the pre-send hook, if one is set."""
        if isinstance(self.appends, HookedAppends):
            await self.appends.close()


def now_ms() -> int:
    return time_ns() // 1_000_000


def bearer(request: Request) -> str | None:
    """The credential in the header `Authorization: Bearer …`; None if there is none."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return (token.strip() or None) if scheme.lower() == "bearer" else None


class Caller(Struct, frozen=True):
    """The caller: a user, or a backend that may act for a user. A user's token, its expiry (ms), and the generation of
    the user's tokens when it was checked. `rank`: of the roles in the deployment, which count with a token of the admin
    view alone; 0 for none (`store/accounts.py`)."""

    user: str | None
    server: bool
    token: TokenId = TokenId()
    expires_at: int = 0
    generation: int = 0
    rank: int = 0


class Call(Struct, frozen=True):
    """A call whose caller, path and input are checked."""

    services: Services
    caller: Caller
    path: Mapping[str, str]
    request: Request
    private: bool = False  # it arrived at the listener of the admin view

    @property
    def actor(self) -> str | None:
        """The user whose rights count; None for a backend, which has all rights."""
        return None if self.caller.server else self.caller.user

    @property
    def user(self) -> str:
        """The user that the call is about."""
        if self.caller.user is None:
            raise BadCommand("name the user in the header Linnet-User")
        return self.caller.user

    @property
    def conversation(self) -> str:
        """The conversation in the path, checked by `known`."""
        return self.known(self.path["conversation"])

    @property
    def address(self) -> str:
        return self.request.client.host if self.request.client else ""

    @property
    def token(self) -> str | None:
        """The caller's `Authorization: Bearer` credential, unchecked."""
        return bearer(self.request)

    def known(self, conversation: str, user: str | None = None) -> str:
        """The id; NotFound if it is not valid or is a direct conversation of other users."""
        return visible(user or self.actor, conversation)

    def require_user(self, user: str) -> None:
        """Raise Forbidden unless the caller is this user or a backend."""
        if self.actor is not None and self.actor != user:
            raise Forbidden("only the user or a server key may make this call")


Handler = Callable[[Call, Any], Awaitable[Any]]
Auth = Literal["open", "caller", "server"]

OPEN: Final[Auth] = "open"
CALLER: Final[Auth] = "caller"
SERVER: Final[Auth] = "server"


class Endpoint(Struct, frozen=True):
    """A row of the table. `body` or `query` is decoded for the handler; `answer` is its result (None: empty).

    `refusals` are further statuses, beside those that follow from the other fields. `raw_body`: the handler reads the
    body, which is bytes of any type. `raw_answer`: the answer is bytes, and may have these statuses too. `always`:
    headers of every answer, also of a refusal.
    """

    method: str
    path: str
    auth: Auth
    handler: Handler
    status: int = 200
    body: Any = None
    query: Any = None
    answer: Any = None
    refusals: tuple[int, ...] = ()
    headers: tuple[str, ...] = ()
    raw_body: bool = False
    raw_answer: tuple[int, ...] = ()
    always: Mapping[str, str] = {}
