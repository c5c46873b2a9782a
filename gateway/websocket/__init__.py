"""One WebSocket connection: bytes become messages, and payloads become frames. It imports nothing of Linnet.

connection  the callbacks between one transport and one session
handshake   the upgrade request and the answer that the ASGI application gives
closing     connections whose end has begun, dropped after a while
deflate     permessage-deflate: the agreement with a client, and compressed frames
frames      RFC 6455 frames, without I/O: bytes to messages, payloads to frames
"""
