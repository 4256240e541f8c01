"""A process that decodes images for another: what it runs, and the protocol between the two.

It receives requests for images by their paths through a socket, writes their pixels to the file whose descriptor came
with the request, and replies with their offsets. It ends when the other side does. Loads no torch by itself: it starts
in a quarter of a second. Knows nothing of stores, of the order of images, or of who asks.
"""

from __future__ import annotations

import functools
import os
import pickle
import signal
import socket
import struct
import traceback
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tellapart.allocator import keep_freed
from tellapart.contract.decoding import Pixels
from tellapart.data.samples import read_file
from tellapart.data.stores.decoded import Box, Decode, attempt

Item = tuple[str | Pixels, Box]  # a file's path, or pixels; and the box
# offset, shape (empty: there are no pixels), hash, what is wrong
Place = tuple[int, tuple[int, ...], str, str]
_LENGTH = struct.Struct("<Q")


class Task(NamedTuple):
    """Images to decode, to be written one after the other from ``start`` on.

    With ``sizes``, each has that many bytes of space; an image of another size is not written.
    """

    decode: Decode
    items: Sequence[Item]
    start: int = 0
    sizes: Sequence[int] | None = None


def send(channel: socket.socket, content: bytes, descriptor: int | None = None) -> None:
    """Send a message, and a descriptor with it. Raises OSError if the other side is gone."""
    head = _LENGTH.pack(len(content))
    if descriptor is None:
        channel.sendall(head + content)
    else:
        socket.send_fds(channel, [head], [descriptor])
        channel.sendall(content)


def receive(channel: socket.socket) -> tuple[bytearray, int | None]:
    """Return a message, and the descriptor that came with it. Raises EOFError if the other side has ended."""
    head, descriptors, _, _ = socket.recv_fds(channel, _LENGTH.size, 1)
    if not head:
        raise EOFError
    head += _exactly(channel, _LENGTH.size - len(head))
    return _exactly(channel, *_LENGTH.unpack(head)), descriptors[0] if descriptors else None


def _exactly(channel: socket.socket, count: int) -> bytearray:
    content, done = bytearray(count), 0
    while done < count:
        received = channel.recv_into(memoryview(content)[done:])
        if not received:
            raise EOFError
        done += received
    return content


def work(task: Task, file: int) -> list[Place]:
    """Decode a task's images and write their pixels to ``file``, one after the other."""
    places, position = list[Place](), task.start
    for number, (source, box) in enumerate(task.items):
        image, digest, reason = attempt(functools.partial(_read, source), task.decode, box)
        expected = None if task.sizes is None else task.sizes[number]
        if image is None or expected not in (None, image.nbytes):
            places.append((position, (), digest, reason))
            position += expected or 0
            continue
        _write(file, np.ascontiguousarray(image), position)
        places.append((position, image.shape, digest, ""))
        position += image.nbytes
    return places


def _read(source: str | Pixels) -> bytes | Pixels:
    return read_file(source) if isinstance(source, str) else source


def _write(file: int, image: Pixels, start: int) -> None:
    left = image.data.cast("B")
    while left:
        written = os.pwrite(file, left, start)
        left, start = left[written:], start + written


def serve(channel: socket.socket) -> None:
    """Answer until the other side ends."""
    while True:
        try:
            question, file = receive(channel)
        except (EOFError, OSError):
            return
        answer = _answered(question, file)
        try:
            send(channel, answer)
        except OSError:
            return


def _answered(question: bytearray, file: int | None) -> bytes:
    answer: Any
    try:
        answer = work(Task(*pickle.loads(question)), -1 if file is None else file)
    except Exception as error:
        error.add_note("In a process that decodes:\n" + "".join(traceback.format_exception(error)))
        answer = error
    finally:
        if file is not None:
            os.close(file)
    try:
        return pickle.dumps(answer)
    except Exception:
        return pickle.dumps(RuntimeError("".join(getattr(answer, "__notes__", [repr(answer)]))))


def main() -> None:
    """Serve on the socket that standard input is."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the other side decides when to end
    keep_freed(trim=128 << 20, mmap=32 << 20)
    with socket.socket(fileno=os.dup(0)) as channel:
        serve(channel)
