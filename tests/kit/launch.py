"""The small program of zygote.py: it starts in a hundredth of a second, since it imports next to nothing."""

import os
import signal
import socket
import sys

HANDED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, HANDED_ON)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as zygote:
        zygote.connect(sys.argv[1])
        environment = [name + b"=" + value for name, value in os.environb.items()]
        arguments = [os.fsencode(one) for one in (os.getcwd(), *sys.argv[2:])]
        socket.send_fds(zygote, [b"\0".join([b"%d" % len(arguments), *arguments, *environment])], [0, 1, 2])
        for stream in (0, 1, 2):  # whoever waits for their end waits for the fork
            os.close(stream)
        pid = int(zygote.recv(100))
        for number in HANDED_ON:
            signal.signal(number, lambda number, _: os.kill(pid, number))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDED_ON)
        status = int(zygote.recv(100) or b"9")
    if os.WIFSIGNALED(status):
        if os.WTERMSIG(status) != signal.SIGKILL:
            signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
    os._exit(os.waitstatus_to_exitcode(status))


main()
