"""Our terminal joined to a guest's: bytes go both ways until Ctrl-] or the guest's end."""

import os
import select
import shutil
import socket
import sys
import termios
import tty
from pathlib import Path

from kwhy.errors import LinkError

LEAVE = b"\x1d"  # Ctrl-], as telnet and `virsh console` have it


def attach(path: Path) -> int:
    """Join standard input and output to the unix socket of a guest's console.

    Returns 0; raises LinkError when the guest is not there. Without a terminal (a pipe), input
    ends with the pipe's end.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as console:
        try:
            console.connect(str(path))
        except OSError as error:
            raise LinkError(f"no contact with the guest's console: {error.strerror}") from None
        keyboard = sys.stdin.fileno()
        if not os.isatty(keyboard):
            console.sendall(b"\n")
            _copy(console, keyboard)
            return 0
        print("a root shell in the guest; Ctrl-] leaves it", file=sys.stderr)
        before = termios.tcgetattr(keyboard)
        size = shutil.get_terminal_size()
        try:
            tty.setraw(keyboard)
            # The first byte starts the shell; a virtio console does not know our window's size.
            console.sendall(f"\n stty rows {size.lines} cols {size.columns}\n".encode())
            _copy(console, keyboard)
        finally:
            termios.tcsetattr(keyboard, termios.TCSADRAIN, before)
            print(file=sys.stderr)
    return 0


def _copy(console: socket.socket, keyboard: int) -> None:
    readers: list[socket.socket | int] = [console, keyboard]
    while True:
        ready, _, _ = select.select(readers, [], [], None if keyboard in readers else 1.0)
        if console in ready:
            data = console.recv(65536)
            if not data:
                return
            os.write(sys.stdout.fileno(), data)
        if keyboard in ready:
            typed = os.read(keyboard, 4096)
            if LEAVE in typed:
                console.sendall(typed[: typed.index(LEAVE)])
                return
            if typed:
                console.sendall(typed)
            else:
                readers.remove(keyboard)
        if not ready:
            return  # the pipe ended, and the guest has been silent since
