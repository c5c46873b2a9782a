"""A client for Linnet that keeps the promises: what is stored is sent once, what is received is received once."""

from linnet_client.client import Client
from linnet_client.conversation import Conversation
from linnet_client.errors import (
    Cancelled,
    ClientError,
    InvalidValue,
    NotConnected,
    Refused,
    Stopped,
    StoreError,
    StoreInUse,
    StoreLost,
    StoreMismatch,
    Unreachable,
)
from linnet_client.events import (
    Delete,
    Edit,
    Event,
    Gap,
    Gone,
    Joined,
    Logged,
    Member,
    Message,
    Online,
    Presence,
    React,
    Receipt,
    Title,
    Typing,
)
from linnet_client.http import Api, Login, TokenSource
from linnet_client.machine import Status
from linnet_client.media import Media
from linnet_client.messages import Ack, MessageHandle
from linnet_client.model import ConversationView, MessageView
from linnet_client.moderation import AuditEntry, AuditPage, Ban, Moderation, Report, ReportPage, Reports, Rules
from linnet_client.people import People
from linnet_client.profiles import Me, Privacy, Profile, ProfileChange, Profiles
from linnet_client.state import State

__all__ = [
    "Ack", "Api", "AuditEntry", "AuditPage", "Ban", "Cancelled", "Client", "ClientError", "Conversation",
    "ConversationView", "Delete", "Edit", "Event", "Gap", "Gone", "InvalidValue", "Joined", "Logged", "Login", "Me",
    "Media", "Member", "Message", "MessageHandle", "MessageView", "Moderation", "NotConnected", "Online", "People",
    "Presence", "Privacy", "Profile", "ProfileChange", "Profiles", "React", "Receipt", "Refused", "Report",
    "ReportPage", "Reports", "Rules", "State", "Status", "Stopped", "StoreError", "StoreInUse", "StoreLost",
    "StoreMismatch", "Title", "TokenSource", "Typing", "Unreachable",
]  # fmt: skip
