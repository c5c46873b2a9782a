"""What the Python client's view of a conversation makes of lists and events."""

from __future__ import annotations

from typing import Any

from linnet_client import events
from linnet_client.model import ConversationView
from linnet_client.wire import ConversationState

GROUP = "g:one"


def listed(**fields: Any) -> ConversationState:
    state: ConversationState = {"conversation": GROUP, "kind": "group", "title": "One", "role": "member", **fields}  # type: ignore[typeddict-item]
    return state


def logged(seq: int, **fields: Any) -> events.LoggedEvent:
    raw = {"conversation": GROUP, "seq": seq, "prev": seq - 1, "count": 0, "at": 1, "device": "", "n": 0, "from": ""}
    return events.LOGGED[fields["type"]](raw | fields)


def test_view_has_who_may_post_and_the_own_mute() -> None:
    """By lists and by events; an entry that only says that a part does not answer changes neither."""
    view = ConversationView(GROUP, "ann")
    view.apply_state(listed(posting="admins", muted_until=None))
    assert (view.posting, view.muted_until) == ("admins", None)
    view.hold({"conversation": GROUP, "kind": "group", "held": True})
    assert (view.posting, view.muted_until) == ("admins", None)
    view.apply_state(listed(posting="admins"))
    assert view.muted_until == 0
    view.apply(logged(1, type="title", title="Two"))
    assert (view.title, view.posting) == ("Two", "admins")
    view.apply(logged(2, type="title", title="Two", posting="all"))
    assert view.posting == "all"
    view.apply(logged(3, type="member", user="ann", action="mute", until=5000))
    view.apply(logged(4, type="member", user="bob", action="unmute"))
    assert view.muted_until == 5000
    view.apply(logged(5, type="member", user="ann", action="unmute"))
    assert (view.muted_until, view.role) == (0, "member")
    view.apply(logged(6, type="member", user="ann", action="role", role="admin"))
    assert view.role == "admin"
