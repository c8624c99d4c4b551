"""An S3 server that takes every PUT, whatever its conditions say: as some gateways do. Prints its port."""

import hashlib
import http.server
import sys
import threading
import time
import urllib.parse
from xml.sax.saxutils import escape

objects = {}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def key(self):
        return urllib.parse.unquote(urllib.parse.urlparse(self.path).path).lstrip("/").partition("/")[2]

    def answer(self, code, body=b"", **headers):
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self):
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if "aws-chunked" not in self.headers.get("Content-Encoding", ""):
            return data
        whole = b""
        while True:
            size, _, data = data.partition(b"\r\n")
            size = int(size.partition(b";")[0], 16)
            if size == 0:
                return whole
            whole, data = whole + data[:size], data[size + 2 :]

    def do_PUT(self):
        data = self.body()
        tag = '"%s"' % hashlib.md5(data).hexdigest()
        objects[self.key()] = (data, tag, time.time())
        self.answer(200, ETag=tag)

    def do_GET(self):
        query = urllib.parse.parse_qs(urllib.parse.urlparse(self.path).query, keep_blank_values=True)
        if "list-type" in query:
            return self.list(query)
        if self.key() not in objects:
            return self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        data, tag, at = objects[self.key()]
        code = 200
        if self.headers.get("Range", "").startswith("bytes="):
            first, _, last = self.headers["Range"][6:].partition("-")
            data, code = data[int(first) : int(last) + 1], 206
        stamp = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(at))
        self.answer(code, data, ETag=tag, Last_Modified=stamp)

    do_HEAD = do_GET

    def do_DELETE(self):
        objects.pop(self.key(), None)
        self.answer(204)

    def list(self, query):
        prefix, after = query.get("prefix", [""])[0], query.get("start-after", [""])[0]
        entries = ""
        for key in sorted(objects):
            if key.startswith(prefix) and key > after:
                data, tag, at = objects[key]
                stamp = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(at))
                entries += "<Contents><Key>%s</Key><LastModified>%s</LastModified><ETag>%s</ETag><Size>%d</Size></Contents>" % (
                    escape(key), stamp, escape(tag), len(data))
        text = '<?xml version="1.0"?><ListBucketResult><IsTruncated>false</IsTruncated>%s</ListBucketResult>' % entries
        self.answer(200, text.encode(), Content_Type="application/xml")

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_address[1], flush=True)
threading.Thread(target=server.serve_forever, daemon=True).start()
# It ends with whoever started it.
sys.stdin.read()
