"""As much of an MQTT 3.1.1 broker as one client needs: it takes connections, keeps what it is told, and can vanish.

Source: OASIS MQTT Version 3.1.1, chapters 2 and 3.
"""

import socket
import threading


class FakeBroker:
    """Listens on the loopback address until closed. All lists grow while it runs."""

    def __init__(self, port: int = 0, refuse: int = 0) -> None:
        """refuse: return code of each CONNACK; 0 accepts, 5 is "not authorized"."""
        self._refuse = refuse
        self.connects: list[dict] = []
        #: Topic, payload, quality of service, whether retained.
        self.published: list[tuple[str, str, int, bool]] = []
        #: Whether each connection that ended had said goodbye.
        self.goodbyes: list[bool] = []
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """As if its machine had gone."""
        for one in [self._listener, *self._open]:
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            one.close()

    def last(self, topic: str) -> str | None:
        """The newest payload of the topic."""
        found = [payload for name, payload, _, _ in list(self.published) if name == topic]
        return found[-1] if found else None

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(client)
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        said_goodbye = False
        try:
            with client, client.makefile("rb") as file:
                while head := file.read(1):
                    body = file.read(_length(file))
                    kind, flags = head[0] >> 4, head[0] & 15
                    if kind == 1:
                        self.connects.append(_connect(body))
                        client.sendall(bytes([0x20, 2, 0, self._refuse]))
                    elif kind == 3:
                        self._publish(client, flags, body)
                    elif kind == 12:
                        client.sendall(b"\xd0\x00")
                    elif kind == 14:
                        said_goodbye = True
        except OSError:
            pass
        self.goodbyes.append(said_goodbye)

    def _publish(self, client: socket.socket, flags: int, body: bytes) -> None:
        quality, retained = flags >> 1 & 3, bool(flags & 1)
        topic, rest = _text(body)
        if quality:
            client.sendall(b"\x40\x02" + rest[:2])
            rest = rest[2:]
        self.published.append((topic, rest.decode(), quality, retained))


def _length(file) -> int:
    value, shift = 0, 0
    while True:
        (byte,) = file.read(1)
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value


def _text(body: bytes) -> tuple[str, bytes]:
    end = 2 + int.from_bytes(body[:2])
    return body[2:end].decode(), body[end:]


def _connect(body: bytes) -> dict:
    protocol, rest = _text(body)
    level, flags = rest[0], rest[1]
    client, rest = _text(rest[4:])
    found: dict = {"protocol": protocol, "level": level, "client": client, "will": None, "user": None, "password": None}
    if flags & 4:
        topic, rest = _text(rest)
        payload, rest = _text(rest)
        found["will"] = (topic, payload, flags >> 3 & 3, bool(flags & 32))
    if flags & 128:
        found["user"], rest = _text(rest)
    if flags & 64:
        found["password"], rest = _text(rest)
    return found
