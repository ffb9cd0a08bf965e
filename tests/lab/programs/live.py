"""The lively parts of a web site: WebSocket echo on the first port, an event stream on the second, which sends
the next event only when somebody has said that the one before was seen."""

import asyncio
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import websockets

PATIENCE_SECONDS = 60
seen = 0
changed = threading.Condition()


class Events(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Cache-Control", "no-cache")
        self.end_headers()
        self.close_connection = True
        _, count, pause = self.path.rsplit("/", 2)
        for number in range(1, int(count) + 1):
            self.wfile.write(f"id: {number}\ndata: {time.monotonic()}\n\n".encode())
            self.wfile.flush()
            with changed:
                if not changed.wait_for(lambda: seen >= number, PATIENCE_SECONDS):
                    return
            time.sleep(float(pause))
        self.wfile.write(b"event: over\ndata: over\n\n")

    def do_POST(self):
        global seen
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with changed:
            seen = int(body)
            changed.notify_all()
        self.send_response(204)
        self.end_headers()


async def echo(socket, _path=None):
    async for message in socket:
        await socket.send(message)


async def main(websocket_port, event_port):
    events = ThreadingHTTPServer(("127.0.0.1", event_port), Events)
    threading.Thread(target=events.serve_forever, daemon=True).start()
    async with websockets.serve(echo, "127.0.0.1", websocket_port, max_size=None):
        await asyncio.Future()


asyncio.run(main(*map(int, sys.argv[1:])))
