"""One WebSocket connection: bytes become messages, and payloads become frames. It imports nothing of Linnet.

connection   the callbacks between one transport and one session
handshake    the upgrade request and the answer that the ASGI application gives
frames       RFC 6455 frames and permessage-deflate, without I/O
"""
