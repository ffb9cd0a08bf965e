"""As much of a Kubernetes API server as kubectl needs to list, create and watch pods: over TLS, with
chunked answers that go on for as long as somebody watches."""

import json
import ssl
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

PODS = "/api/v1/namespaces/default/pods"
TOKEN = "token-of-the-cluster"
pods = []
changed = threading.Condition()


class Api(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def reply(self, status, body):
        body = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def may(self):
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            return True
        self.reply(401, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 401})
        return False

    def do_GET(self):
        if not self.may():
            return
        url = urlsplit(self.path)
        if url.path == PODS and "watch" in parse_qs(url.query):
            return self.watch(int(parse_qs(url.query).get("resourceVersion", ["0"])[0]))
        with changed:
            found = {
                "/api": {"kind": "APIVersions", "versions": ["v1"]},
                "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": []},
                "/api/v1": {
                    "kind": "APIResourceList",
                    "groupVersion": "v1",
                    "resources": [{
                        "name": "pods", "singularName": "pod", "namespaced": True, "kind": "Pod",
                        "verbs": ["create", "get", "list", "watch"],
                    }],
                },
                PODS: {
                    "kind": "PodList", "apiVersion": "v1", "items": pods,
                    "metadata": {"resourceVersion": str(len(pods))},
                },
            }.get(url.path)
        if found is None:
            return self.reply(404, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404})
        self.reply(200, found)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if not self.may():
            return
        pod = json.loads(body)
        with changed:
            pod["metadata"].update(namespace="default", resourceVersion=str(len(pods) + 1))
            pods.append(pod)
            changed.notify_all()
        self.reply(201, pod)

    def watch(self, seen):
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while True:
            with changed:
                changed.wait_for(lambda: len(pods) > seen)
                pod = pods[seen]
            seen += 1
            line = json.dumps({"type": "ADDED", "object": pod}).encode() + b"\n"
            self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
            self.wfile.flush()


port, certificate, key = sys.argv[1:]
server = ThreadingHTTPServer(("127.0.0.1", int(port)), Api)
server.daemon_threads = True
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate, key)
server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
server.serve_forever()
