"""A limit for the size of what is sent to a server."""

from __future__ import annotations

import json
from typing import Any

from retone.inference import replies


class BodyLimit:
    """ASGI middleware that refuses bodies above a size before they are in memory.

    Args:
        app: the application behind it.
        most_bytes: the largest body that is let through; paths outside /v1 are not looked at.
    """

    def __init__(self, app: Any, most_bytes: int) -> None:
        self._app = app
        self._most = most_bytes

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, or answer it with 413."""
        if scope["type"] != "http" or not scope["path"].startswith("/v1"):
            await self._app(scope, receive, send)
            return
        messages, size = [], 0
        while True:
            message = await receive()
            messages.append(message)
            size += len(message.get("body", b""))
            if size > self._most:
                await _too_large(send, self._most)
                return
            if message["type"] != "http.request" or not message.get("more_body"):
                break
        messages.reverse()

        async def again() -> Any:
            return messages.pop() if messages else await receive()

        await self._app(scope, again, send)


async def _too_large(send: Any, most: int) -> None:
    text = f"the body is larger than {most} bytes"
    body = json.dumps(replies.error(text, code="too_large", status=413)).encode()
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 413, "headers": headers})
    await send({"type": "http.response.body", "body": body})
