"""What a page's own program does: `websocket URL` has messages of many sizes echoed, `events URL COUNT PAUSE`
reads an event stream and says of each event that it was seen. The operator's token is in the environment, the
CA's certificate in CA_FILE."""

import asyncio
import http.client
import os
import ssl
import sys
import time
from urllib.parse import urlsplit

import websockets

SIZES = [0, 1, 125, 126, 65_535, 65_536, 1_000_000, 8_000_000]
ROUND_TRIPS = 200
CONTEXT = ssl.create_default_context(cafile=os.environ["CA_FILE"])
AUTHORIZATION = {"Authorization": "Bearer " + os.environ["POWERNODE_OPERATOR_TOKEN"]}


async def websocket(url):
    options = {"ssl": CONTEXT, "extra_headers": AUTHORIZATION, "max_size": None}
    async with websockets.connect(url, **options) as socket:
        for size in SIZES:
            sent = os.urandom(size)
            await socket.send(sent)
            assert await socket.recv() == sent, f"{size} bytes came back otherwise"
        begun = time.monotonic()
        for number in range(ROUND_TRIPS):
            await socket.send(f"message {number}")
            assert await socket.recv() == f"message {number}"
        each = (time.monotonic() - begun) / ROUND_TRIPS
        await (await socket.ping())
        await socket.close(1000, "done")
        assert socket.close_code == 1000, socket.close_code
    print(f"{ROUND_TRIPS} round trips of {each * 1000:.2f} ms")


def events(url, count, pause):
    url = urlsplit(url)

    def connect():
        return http.client.HTTPSConnection(url.hostname, url.port, context=CONTEXT, timeout=60)

    stream, acknowledging = connect(), connect()
    stream.request("GET", f"{url.path}/{count}/{pause}", headers=AUTHORIZATION)
    answer = stream.getresponse()
    assert answer.status == 200, answer.status
    assert answer.headers["Content-Type"] == "text/event-stream"
    number, late = 0, 0.0
    while (line := answer.readline().decode().strip()) != "event: over":
        if line.startswith("id: "):
            assert int(line[4:]) == number + 1, line
            number += 1
        elif line.startswith("data: "):
            late = max(late, time.monotonic() - float(line[6:]))
            acknowledging.request("POST", url.path, body=str(number), headers=AUTHORIZATION)
            acknowledged = acknowledging.getresponse()
            acknowledged.read()
            assert acknowledged.status == 204, acknowledged.status
        else:
            assert line == "", line
    assert number == int(count), number
    print(f"{number} events, the latest {late * 1000:.0f} ms after it was sent")


match sys.argv[1:]:
    case ["websocket", url]:
        asyncio.run(websocket(url))
    case ["events", *arguments]:
        events(*arguments)
