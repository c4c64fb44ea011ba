"""A TCP proxy in front of a server, to cut connections at a moment of the test's choice."""

from __future__ import annotations

import selectors
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress

# What to do with bytes on their way to the server: pass them on; cut before they get there; pass
# them on and cut at once; or cut when the answer is there, and nobody gets it.
PASS, BEFORE, AFTER, UNANSWERED = "pass", "before", "after", "unanswered"

Judge = Callable[[bytes], str]


class Proxy:
    """Listens on `port` of 127.0.0.1 from the start; forwards from `run` to `close`."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listening = _listen(0)
        self.port: int = self._listening.getsockname()[1]
        self.judge: Judge = lambda _data: PASS
        self.cuts = 0
        self._pairs: set[_Pair] = set()
        self._turn = threading.Lock()
        self._thread: threading.Thread | None = None

    def run(self) -> None:
        self._thread = threading.Thread(target=self._accept, args=[self._listening], daemon=True)
        self._thread.start()

    def down(self) -> None:
        """Refuse connections, and cut those there are."""
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        if self._thread is not None:
            self._thread.join(10)
        with self._turn:
            pairs = list(self._pairs)
        for pair in pairs:
            pair.cut()

    def up(self) -> None:
        self._listening = _listen(self.port)
        self.run()

    close = down

    def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                client, _ = listening.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._target), timeout=10)
            except OSError:
                client.close()
                continue
            pair = _Pair(self, client, server)
            with self._turn:
                self._pairs.add(pair)
            threading.Thread(target=pair.forward, daemon=True).start()

    def _gone(self, pair: _Pair) -> None:
        with self._turn:
            self._pairs.discard(pair)


class _Pair:
    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server

    def forward(self) -> None:
        waiting = selectors.DefaultSelector()
        unanswered = False
        try:
            waiting.register(self._client, selectors.EVENT_READ)
            waiting.register(self._server, selectors.EVENT_READ)
            while True:
                for key, _ in waiting.select():
                    data = key.fileobj.recv(1 << 16)  # type: ignore[union-attr]
                    if not data:
                        return
                    if key.fileobj is self._server:
                        if unanswered:
                            return
                        self._client.sendall(data)
                        continue
                    said = self._proxy.judge(data)
                    self._proxy.cuts += said != PASS
                    if said == BEFORE:
                        return
                    self._server.sendall(data)
                    if said == AFTER:
                        return
                    unanswered = said == UNANSWERED
        except (OSError, ValueError):
            pass
        finally:
            waiting.close()
            self.cut()
            self._proxy._gone(self)

    def cut(self) -> None:
        for end in (self._client, self._server):
            with suppress(OSError):  # no goodbye: as if the cable was pulled
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


def _listen(port: int) -> socket.socket:
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(("127.0.0.1", port))
    listening.listen(64)
    return listening
