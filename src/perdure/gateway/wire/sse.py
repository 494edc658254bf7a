"""Server-sent events, from chunks that may be cut anywhere."""

from __future__ import annotations

from collections.abc import Iterator

EVENT_BYTES_MAX = (
    4 * 1024 * 1024
)  # the final event of a long answer repeats all of it; more is no event of a model


class EventReader:
    """Takes chunks and gives the data of each event that is whole.

    It keeps no more than one unfinished event of at most ``limit`` bytes; a longer one is dropped and counted.
    """

    def __init__(self, *, limit: int = EVENT_BYTES_MAX) -> None:
        self.dropped = 0
        self._limit = limit
        self._tail = bytearray()
        self._is_dropping = False
        self._ends_in_return = False
        self._is_new = True

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """The data of the events that end in this chunk; read all of it before the next chunk."""
        if self._ends_in_return or b"\r" in chunk:
            chunk = self._with_line_feeds(chunk)
        tail = self._tail
        if tail:
            begin = len(tail) - 1
            tail += chunk
            if tail.find(b"\n\n", begin) < 0:
                self._bound()
                return
            chunk = bytes(tail)
        *events, rest = chunk.split(b"\n\n")
        self._tail = bytearray(rest)
        for event in events:
            if self._is_dropping:
                self._is_dropping = False
            elif len(event) > self._limit:
                self.dropped += 1
            else:
                data = self._data(event)
                if data is not None:
                    yield data
        self._bound()

    def end(self) -> bytes | None:
        """The data of an event that no empty line ended, where the stream stops; ``None`` if there is none."""
        event, self._tail = bytes(self._tail), bytearray()
        return None if self._is_dropping else self._data(event)

    def _bound(self) -> None:
        if self._is_dropping or len(self._tail) > self._limit:
            self.dropped += not self._is_dropping
            self._is_dropping = True
            del self._tail[:-1]  # its last byte may be half of the empty line

    def _with_line_feeds(self, chunk: bytes) -> bytes:
        """CR LF and CR as LF. A CR at the end of a chunk counts at once; the LF that may follow is left out then."""
        if self._ends_in_return and chunk.startswith(b"\n"):
            chunk = chunk[1:]
            self._ends_in_return = False
        if chunk:
            self._ends_in_return = chunk.endswith(b"\r")
        return chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _data(self, event: bytes) -> bytes | None:
        if self._is_new:
            event = event.removeprefix(b"\xef\xbb\xbf")
            self._is_new = not event
        if event.startswith(b"data: ") and b"\n" not in event:  # nearly all of OpenAI
            return event[6:]
        lines = [line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:")]
        return b"\n".join(lines) if lines else None
