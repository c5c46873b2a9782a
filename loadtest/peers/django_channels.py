"""One node of Django Channels with the pub/sub layer of channels_redis, on uvicorn and uvloop, as documented.

`python -m loadtest.peers.django_channels PORT REDIS_URL`, run by the interpreter of `.venv/peers`. It is what a user
would write: a consumer joins a group per conversation and sends its client's messages to it. Channels has no acks, so
the sender's own copy serves as one. Two defaults of redis-py that break it under load are changed, as for
python-socketio. It uses no database, which only makes it cheaper.
"""

from __future__ import annotations

import sys
from typing import Any

import uvicorn
from channels.generic.websocket import AsyncJsonWebsocketConsumer  # type: ignore[import-untyped] # of .venv/peers
from django.conf import settings  # type: ignore[import-not-found] # of .venv/peers

REDIS = {"max_connections": 10_000, "socket_timeout": None}
LAYER = "channels_redis.pubsub.RedisPubSubChannelLayer"


class Member(AsyncJsonWebsocketConsumer):  # type: ignore[misc] # its base is of .venv/peers
    async def receive_json(self, content: dict[str, Any]) -> None:
        if content["type"] == "join":
            await self.channel_layer.group_add(content["room"], self.channel_name)
            await self.send_json({"type": "joined"})
        else:
            await self.channel_layer.group_send(content["to"], content)

    async def message(self, event: dict[str, Any]) -> None:
        """Handle a message of type `message` from the layer."""
        await self.send_json(event)


def serve(port: int, redis_url: str) -> None:
    settings.configure(
        CHANNEL_LAYERS={"default": {"BACKEND": LAYER, "CONFIG": {"hosts": [{"address": redis_url, **REDIS}]}}}
    )
    uvicorn.run(Member.as_asgi(), port=port, loop="uvloop", lifespan="off", log_level="warning")


if __name__ == "__main__":
    serve(int(sys.argv[1]), sys.argv[2])
