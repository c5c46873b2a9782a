"""The table of the HTTP API: every call with its handler, its structs and its refusals.

The table drives routing, decoding, authentication, metrics and the OpenAPI document, so every call is documented. The
steps around each handler are in `steps.py`, the ASGI application that serves the rows is in `app.py`.

To add a call: structs in `types/`, a handler whose docstring is its documentation, a row here, a test. Unknown fields
and query parameters are ignored; a parameter that is given twice is refused.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import msgspec
from starlette.responses import Response

from router.api import (
    accounts,
    admin,
    commands,
    contacts,
    conversations,
    messages,
    moderation,
    profiles,
    reports,
    search,
    sessions,
    state,
    tus,
    uploads,
)
from router.api.call import CALLER, OPEN, SERVER, Call, Endpoint
from router.api.openapi import document
from router.api.steps import raw_json
from router.api.types import accounts as accounts_types
from router.api.types import admin as admin_types
from router.api.types import commands as commands_types
from router.api.types import contacts as contacts_types
from router.api.types import conversations as conversations_types
from router.api.types import messages as messages_types
from router.api.types import moderation as moderation_types
from router.api.types import profiles as profiles_types
from router.api.types import search as search_types
from router.api.types import sessions as sessions_types
from router.api.types import state as state_types
from router.api.types import uploads as uploads_types
from router.contract import codecs, wire
from router.contract.settings import Settings

ACCOUNTS: Final = (
    Endpoint("POST", "/v1/accounts", OPEN, accounts.create_account, status=201,
             body=accounts_types.NewAccount, answer=accounts_types.AccountMade, refusals=(409, 429)),
    Endpoint("POST", "/v1/login", OPEN, accounts.login,
             body=accounts_types.LoginRequest, answer=accounts_types.LoginAnswer, refusals=(401, 403, 429)),
    Endpoint("PUT", "/v1/password", CALLER, sessions.change_password, status=204, body=sessions_types.PasswordChange,
             refusals=(403, 404, 429)),
    Endpoint("POST", "/v1/password/resets", CALLER, sessions.create_reset, body=sessions_types.ResetRequest,
             answer=sessions_types.ResetToken, refusals=(404, 429)),
    Endpoint("POST", "/v1/password/reset", OPEN, sessions.reset_password, status=204, body=sessions_types.PasswordReset,
             refusals=(401, 429)),
    Endpoint("POST", "/v1/tokens/renew", CALLER, accounts.renew_token, answer=accounts_types.Renewal, refusals=(403,)),
)  # fmt: skip

TOKENS: Final = (
    Endpoint("POST", "/v1/tokens", SERVER, accounts.create_token, body=accounts_types.TokenRequest,
             answer=accounts_types.TokenAnswer),
)  # fmt: skip

ALWAYS: Final = (
    Endpoint("DELETE", "/v1/accounts/{user}", CALLER, accounts.delete_account, status=204, refusals=(403, 404)),
    Endpoint("GET", "/v1/sessions", CALLER, sessions.list_sessions, answer=sessions_types.Sessions),
    Endpoint("POST", "/v1/logout", CALLER, sessions.logout, status=204, body=sessions_types.Logout, refusals=(404,)),
    Endpoint("DELETE", "/v1/sessions/{user}", CALLER, accounts.delete_sessions, status=204, refusals=(403, 404, 429)),
    Endpoint("DELETE", "/v1/sessions/{user}/{device}", CALLER, accounts.delete_sessions, status=204,
             refusals=(403, 404, 429)),
    Endpoint("GET", "/v1/gateways", CALLER, accounts.get_gateways, answer=accounts_types.Gateways),
    Endpoint("GET", "/v1/presence", CALLER, accounts.presence, query=accounts_types.PresenceQuery,
             answer=accounts_types.PresenceAnswer),
    Endpoint("GET", "/v1/me", CALLER, profiles.get_me, answer=profiles_types.Me, refusals=(404,)),
    Endpoint("PATCH", "/v1/me", CALLER, profiles.patch_me, body=profiles_types.ProfileChange, answer=profiles_types.Me,
             refusals=(404, 413, 429)),
    Endpoint("GET", "/v1/users", CALLER, profiles.list_users, query=profiles_types.UsersQuery,
             answer=profiles_types.Users,
             refusals=(429,)),
    Endpoint("GET", "/v1/users/{user}", CALLER, profiles.get_user, answer=profiles_types.User, refusals=(404,)),
    Endpoint("GET", "/v1/contacts", CALLER, contacts.list_contacts, query=contacts_types.ContactsQuery,
             answer=contacts_types.Contacts),
    Endpoint("GET", "/v1/contacts/{user}", CALLER, contacts.get_contact, answer=contacts_types.Contact,
             refusals=(404,)),
    Endpoint("PUT", "/v1/contacts/{user}", CALLER, contacts.put_contact, body=contacts_types.ContactRequest,
             answer=contacts_types.ContactAnswer, refusals=(403, 404, 409, 429)),
    Endpoint("POST", "/v1/contacts/{user}/accept", CALLER, contacts.accept_contact, answer=contacts_types.ContactAnswer,
             refusals=(403, 404)),
    Endpoint("DELETE", "/v1/contacts/{user}", CALLER, contacts.delete_contact, status=204),
    Endpoint("GET", "/v1/blocks", CALLER, contacts.list_blocks, query=contacts_types.PageQuery,
             answer=contacts_types.Blocks),
    Endpoint("PUT", "/v1/blocks/{user}", CALLER, contacts.put_block, status=204, refusals=(403, 404)),
    Endpoint("DELETE", "/v1/blocks/{user}", CALLER, contacts.delete_block, status=204),
    Endpoint("POST", "/v1/conversations", CALLER, conversations.create_conversation, status=201,
             body=conversations_types.NewConversation, answer=conversations_types.CreatedConversation, refusals=(403,
             404, 429)),
    Endpoint("GET", "/v1/conversations", CALLER, conversations.list_conversations, query=conversations_types.ListQuery,
             answer=conversations_types.ConversationList),
    Endpoint("GET", "/v1/conversations/{conversation}", CALLER, conversations.get_conversation,
             answer=conversations_types.Conversation, refusals=(404,)),
    Endpoint("PATCH", "/v1/conversations/{conversation}", CALLER, conversations.patch_conversation,
             body=conversations_types.ConversationChange, answer=conversations_types.Conversation, refusals=(403, 404,
             429)),
    Endpoint("DELETE", "/v1/conversations/{conversation}", CALLER, conversations.delete_conversation, status=204,
             refusals=(403, 404)),
    Endpoint("GET", "/v1/conversations/{conversation}/members", CALLER, conversations.list_members,
             query=conversations_types.MemberQuery, answer=conversations_types.MemberList, refusals=(404,)),
    Endpoint("PUT", "/v1/conversations/{conversation}/members/{user}", CALLER, conversations.put_member,
             body=conversations_types.NewRole, answer=conversations_types.Membership, refusals=(403, 404, 409)),
    Endpoint("DELETE", "/v1/conversations/{conversation}/members/{user}", CALLER, conversations.delete_member,
             status=204, refusals=(403, 404, 409)),
    Endpoint("POST", "/v1/conversations/{conversation}/join", CALLER, conversations.join_conversation,
             answer=conversations_types.Membership, refusals=(403, 404, 409)),
    Endpoint("GET", "/v1/conversations/{conversation}/reads", CALLER, conversations.get_reads,
             answer=conversations_types.Reads,
             refusals=(403, 404)),
    Endpoint("GET", "/v1/conversations/{conversation}/events", CALLER, messages.get_events,
             query=messages_types.EventsQuery, answer=messages_types.Events, refusals=(404,)),
    Endpoint("GET", "/v1/state", CALLER, state.list_state, query=state_types.StateQuery,
             answer=state_types.StateEntries),
    Endpoint("GET", "/v1/state/{key}", CALLER, state.get_state, answer=state_types.StateEntry, refusals=(404,)),
    Endpoint("PUT", "/v1/state/{key}", CALLER, state.put_state, body=state_types.StateChange,
             answer=state_types.StateWritten,
             refusals=(403, 409, 429)),
    Endpoint("DELETE", "/v1/state/{key}", CALLER, state.delete_state, query=state_types.StateExpected, status=204,
             refusals=(403, 409, 429)),
    Endpoint("POST", "/v1/commands", CALLER, commands.run_command, body=wire.Delete | wire.State,
             answer=commands_types.CommandAnswer,
             refusals=(403, 404, 409, 429), headers=("Linnet-Device",)),
    Endpoint("POST", "/v1/messages", CALLER, messages.send_message, body=messages_types.NewMessage,
             answer=messages_types.Sent,
             refusals=(403, 404, 409, 429), headers=("Idempotency-Key",)),
)  # fmt: skip


MODERATION: Final = (
    Endpoint("PUT", "/v1/conversations/{conversation}/members/{user}/mute", CALLER, moderation.put_mute, status=204,
             body=moderation_types.Restraint, refusals=(403, 404, 429)),
    Endpoint("DELETE", "/v1/conversations/{conversation}/members/{user}/mute", CALLER, moderation.delete_mute,
             status=204, refusals=(403, 404, 429)),
    Endpoint("GET", "/v1/conversations/{conversation}/bans", CALLER, moderation.list_bans,
             query=moderation_types.BansQuery, answer=moderation_types.Bans, refusals=(403, 404)),
    Endpoint("PUT", "/v1/conversations/{conversation}/bans/{user}", CALLER, moderation.put_ban, status=204,
             body=moderation_types.Restraint, refusals=(403, 404, 429)),
    Endpoint("DELETE", "/v1/conversations/{conversation}/bans/{user}", CALLER, moderation.delete_ban, status=204,
             refusals=(403, 404, 429)),
    Endpoint("PUT", "/v1/accounts/{user}/suspension", CALLER, moderation.put_suspension, status=204,
             body=moderation_types.Restraint, refusals=(403, 404, 429)),
    Endpoint("DELETE", "/v1/accounts/{user}/suspension", CALLER, moderation.delete_suspension, status=204,
             refusals=(403, 404, 429)),
    Endpoint("GET", "/v1/roles/{user}", SERVER, moderation.get_roles, answer=moderation_types.Roles, refusals=(404,)),
    Endpoint("PUT", "/v1/roles/{user}", SERVER, moderation.put_roles, body=moderation_types.NewRoles,
             answer=moderation_types.Roles, refusals=(404,)),
    Endpoint("POST", "/v1/reports", CALLER, reports.create_report, status=201, body=moderation_types.NewReport,
             answer=moderation_types.MadeReport, refusals=(403, 404, 429)),
    Endpoint("GET", "/v1/reports", CALLER, reports.list_reports, query=moderation_types.ReportsQuery,
             answer=moderation_types.Reports, refusals=(403, 404)),
    Endpoint("PATCH", "/v1/reports/{report}", CALLER, reports.patch_report, body=moderation_types.ReportChange,
             answer=moderation_types.Report, refusals=(403, 404, 429)),
    Endpoint("GET", "/v1/audit", CALLER, moderation.get_audit, query=moderation_types.AuditQuery,
             answer=moderation_types.Audit, refusals=(403,)),
)  # fmt: skip


ADMIN: Final = (
    Endpoint("GET", "/v1/admin/users", CALLER, admin.list_users, query=admin_types.AdminUsersQuery,
             answer=admin_types.AdminUsers, refusals=(403,)),
    Endpoint("GET", "/v1/admin/conversations", CALLER, admin.list_conversations,
             query=admin_types.AdminConversationsQuery, answer=admin_types.AdminConversations, refusals=(403, 404)),
    Endpoint("GET", "/v1/admin/conversations/{conversation}/events", CALLER, admin.read_events,
             query=messages_types.EventsQuery, answer=messages_types.Events, refusals=(403, 404, 429),
             headers=("Linnet-Reason",)),
    Endpoint("GET", "/v1/admin/conversations/{conversation}/devices", CALLER, admin.list_devices,
             query=admin_types.AdminDevicesQuery, answer=admin_types.AdminDevices, refusals=(403, 404)),
    Endpoint("GET", "/v1/admin/nodes", CALLER, admin.list_nodes, answer=admin_types.AdminNodes, refusals=(403,)),
)  # fmt: skip
# What the view needs beside its own calls.
FOR_ADMINS: Final = frozenset((
    "POST /v1/login", "POST /v1/logout", "GET /v1/me", "POST /v1/password/resets", "DELETE /v1/sessions/{user}",
    "DELETE /v1/sessions/{user}/{device}", "POST /v1/commands", "GET /v1/openapi.json",
))  # fmt: skip

TUS: Final = ("Tus-Resumable", "Upload-Length", "Upload-Metadata")
MEDIA: Final = (
    Endpoint("POST", "/v1/uploads", CALLER, uploads.upload_file, status=201, query=uploads_types.UploadQuery,
             answer=uploads_types.Uploaded, refusals=(400, 413, 415, 429), headers=("Linnet-Name",), raw_body=True),
    Endpoint("POST", "/v1/uploads/links", CALLER, uploads.make_links, body=uploads_types.LinkRequest,
             answer=uploads_types.LinksMade),
    Endpoint("OPTIONS", "/v1/uploads/tus", OPEN, tus.get_tus_options, status=204, always=tus.ALWAYS),
    Endpoint("POST", "/v1/uploads/tus", CALLER, tus.create_tus, status=201, refusals=(400, 413, 429), raw_body=True,
             always=tus.ALWAYS, headers=TUS),
    Endpoint("HEAD", "/v1/uploads/tus/{upload}", CALLER, tus.head_tus, refusals=(404, 423), always=tus.ALWAYS,
             headers=TUS[:1]),
    Endpoint("PATCH", "/v1/uploads/tus/{upload}", CALLER, tus.patch_tus, status=204,
             refusals=(400, 404, 409, 413, 415, 423), raw_body=True, always=tus.ALWAYS, headers=TUS[:1]),
    Endpoint("DELETE", "/v1/uploads/tus/{upload}", CALLER, tus.delete_tus, status=204, refusals=(404,),
             always=tus.ALWAYS, headers=TUS[:1]),
    Endpoint("GET", "/v1/uploads/{sha256}", CALLER, uploads.get_file, query=uploads_types.FileQuery, refusals=(404,),
             raw_answer=(206, 304, 307, 416)),
    Endpoint("DELETE", "/v1/uploads/{sha256}", SERVER, uploads.delete_file, status=204),
    Endpoint("GET", "/v1/files/{sha256}", OPEN, uploads.get_linked_file, query=uploads_types.LinkQuery, refusals=(404,),
             raw_answer=(206, 304, 416)),
)  # fmt: skip


SEARCH: Final = (
    Endpoint("GET", "/v1/search", CALLER, search.search, query=search_types.SearchQuery, answer=search_types.Found,
             refusals=(404, 429)),
)  # fmt: skip


@cache  # both documents take milliseconds to make and need no authentication
def _document(settings: Settings, private: bool) -> bytes:
    return msgspec.json.encode(document((admin_endpoints if private else endpoints)(settings)))


@cache
def _wire() -> bytes:
    return msgspec.json.encode(codecs.schema())


async def _get_openapi(call: Call, _: None) -> Response:
    """Get this document."""
    return raw_json(_document(call.services.settings, call.private))


async def _get_schema(_call: Call, _: None) -> Response:
    """Get the JSON Schema of the WebSocket's commands and events."""
    return raw_json(_wire())


DOCUMENTS: Final = (
    Endpoint("GET", "/v1/openapi.json", OPEN, _get_openapi, answer=dict[str, Any]),
    Endpoint("GET", "/v1/schema.json", OPEN, _get_schema, answer=dict[str, Any]),
)


def endpoints(settings: Settings) -> tuple[Endpoint, ...]:
    """The rows that this deployment serves; without accounts and without its own tokens there are fewer."""
    own = (ACCOUNTS if settings.accounts else ()) + (TOKENS if settings.jwt_secret else ())
    media, searching = (MEDIA if settings.media_url else ()), (SEARCH if settings.search_url else ())
    return own + ALWAYS + MODERATION + media + searching + DOCUMENTS


def admin_endpoints(settings: Settings) -> tuple[Endpoint, ...]:
    """The rows of the admin view's listener: its own, moderation, and the calls that go with them."""
    return ADMIN + tuple(
        row for row in endpoints(settings) if f"{row.method} {row.path}" in FOR_ADMINS or row in MODERATION
    )
