#!/usr/bin/env python3
"""Joins two network namespaces by a link that delays and loses packets, for kernels without netem.

    impaired-link.py NEAR FAR DELAY_MILLIS LOSS_PERCENT

One TUN device in each namespace (10.77.0.1 and 10.77.0.2); says `ready` and runs until it is ended.
Loss is drawn from a fixed seed. Packets keep their order, and a queue of 4 MiB each way drops at its
tail, as a router's does.
"""

import ctypes
import fcntl
import os
import random
import select
import struct
import subprocess
import sys
import time
from collections import deque

CLONE_NEWNET = 0x40000000
TUNSETIFF = 0x400454CA
IFF_TUN = 0x0001
IFF_NO_PI = 0x1000
MTU_BYTES = 1500
QUEUE_BYTES = 4 * 1024 * 1024


def device_in(namespace, address):
    """A TUN device that lives in the namespace, with its file descriptor here."""
    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    there = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    if libc.setns(there, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH", b"link0", IFF_TUN | IFF_NO_PI))
    for command in (
        ["ip", "addr", "add", f"{address}/24", "dev", "link0"],
        ["ip", "link", "set", "link0", "mtu", str(MTU_BYTES), "txqueuelen", "4000", "up"],
    ):
        subprocess.run(command, check=True)
    if libc.setns(home, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")
    os.close(home)
    os.close(there)
    return device


def main():
    near, far, delay_millis, loss_percent = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
    ends = [device_in(near, "10.77.0.1"), device_in(far, "10.77.0.2")]
    other = {ends[0]: ends[1], ends[1]: ends[0]}
    queues = {end: deque() for end in ends}
    queued = {end: 0 for end in ends}
    draw = random.Random(1)
    print("ready", flush=True)
    while True:
        now = time.monotonic()
        due = [queue[0][0] for queue in queues.values() if queue]
        wait = max(0.0, min(due) - now) if due else None
        readable, _, _ = select.select(ends, [], [], wait)
        now = time.monotonic()
        for end in readable:
            for _ in range(64):
                try:
                    packet = os.read(end, MTU_BYTES)
                except BlockingIOError:
                    break
                to = other[end]
                if draw.random() * 100 >= loss_percent and queued[to] + len(packet) <= QUEUE_BYTES:
                    queues[to].append((now + delay_millis / 1000, packet))
                    queued[to] += len(packet)
        for end, queue in queues.items():
            while queue and queue[0][0] <= now:
                packet = queue.popleft()[1]
                queued[end] -= len(packet)
                try:
                    os.write(end, packet)
                except (BlockingIOError, OSError):
                    pass


main()
