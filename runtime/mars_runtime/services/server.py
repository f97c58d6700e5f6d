"""The HTTP server under every page of ours: a thread per client, for a bounded number of them."""

from __future__ import annotations

import socket
import socketserver
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from mars_runtime.services import access

CLIENTS = 32


class BoundedServer(ThreadingHTTPServer):
    """Threads for a bounded number of clients; a further one is turned away at once."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, address: access.Address, answer: type[BaseHTTPRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        self._places = threading.BoundedSemaphore(CLIENTS)
        super().__init__((address.host, address.port), answer)
        self.here = access.Address(host=address.host, port=self.server_port)

    def server_bind(self) -> None:
        """Listen without asking a name server for this machine's name, as HTTPServer does and may wait for."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread of its own while there is a place."""
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Give the place back, however the answer ended."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away, or does not trust the certificate, is nobody's error."""
