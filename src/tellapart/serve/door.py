"""The socket that takes connections: opened, and shut without turning away anyone whom the system has let in.

A socket that is closed resets the connections in its queue, of which the process knows nothing yet and whose clients
believe that they are connected. So newcomers are kept out first, and the queue is emptied before it is closed.
"""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct
import sys

from tellapart.errors import ServeError
from tellapart.serve.options import Options

_BACKLOG = 2048
_ATTACH_FILTER = 26  # SO_ATTACH_FILTER of Linux, which Python's socket does not name
# A classic BPF program (code, jump if true, jump if false, operand) over a TCP header: nobody opens a connection.
_NO_SYN = (
    (0x30, 0, 0, 13),  # load the byte of the flags
    (0x54, 0, 0, 0x12),  # of these SYN and ACK
    (0x15, 0, 1, 0x02),  # SYN alone?
    (0x06, 0, 0, 0),  # drop it
    (0x06, 0, 0, 0xFFFFFFFF),  # let it in
)


def listen(options: Options) -> socket.socket:
    """Return a socket that listens where the options say. Raises ServeError."""
    with contextlib.ExitStack() as undo:
        try:
            found = socket.getaddrinfo(
                options.host, options.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            family, kind, protocol, _, address = found[0]
            listener = undo.enter_context(socket.socket(family, kind, protocol))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(_BACKLOG)
        except OSError as error:
            raise ServeError(
                f"Cannot listen on {options.host}:{options.port}: {error.strerror or error}"
            ) from None
        undo.pop_all()
        return listener


def keep_newcomers_out(listener: socket.socket) -> None:
    """Let no new connection begin; those that are in the queue can still be accepted.

    On Linux the system drops what would open one, so a client tries again a second later and is then refused, or finds
    the next process. Elsewhere the queue is made as short as it can be, which leaves a gap for one.
    """
    if sys.platform == "linux":
        code = b"".join(struct.pack("=HBBI", *line) for line in _NO_SYN)
        buffer = ctypes.create_string_buffer(code, len(code))
        program = struct.pack("@HP", len(_NO_SYN), ctypes.addressof(buffer))
        with contextlib.suppress(OSError):  # a sandbox that knows no filters
            listener.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, program)
            return
    listener.listen(0)
