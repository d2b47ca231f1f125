"""GitHub's part: signed deliveries, repeated with the same id until they are answered."""

import hashlib
import hmac
import http.client
import json
import threading
import time
import uuid

REQUEST_TIMEOUT_S = 30
# GitHub gives up after one try; whoever redelivers goes on until the daemon is back.
PATIENCE_S = 120
PAUSE_FIRST_S = 0.05
PAUSE_MAX_S = 2.0
NAMESPACE = uuid.UUID("6f0cf9ac-3c7b-4a06-9d4c-5e35a4f6b0d1")


class Delivery:
    """One webhook: what is sent, and the id under which it must be recorded."""

    def __init__(self, label, name, body):
        self.label = label
        self.name = name
        self.body = body
        self.id = str(uuid.uuid5(NAMESPACE, label))
        self.event_id = f"webhook:github:{self.id}"


def send_once(port, delivery, secret):
    """One POST. Returns the status and, if there is one, the event id of the answer."""
    headers = {"Content-Type": "application/json", "User-Agent": "GitHub-Hookshot/interop"}
    headers["X-GitHub-Delivery"] = delivery.id
    headers["X-GitHub-Event"] = delivery.name
    if secret is not None:
        digest = hmac.new(secret.encode(), delivery.body, hashlib.sha256).hexdigest()
        headers["X-Hub-Signature-256"] = f"sha256={digest}"
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=REQUEST_TIMEOUT_S)
    try:
        connection.request("POST", "/github", delivery.body, headers)
        answer = connection.getresponse()
        text = answer.read()
        return answer.status, json.loads(text).get("event_id") if answer.status == 200 else None
    finally:
        connection.close()


class Sender:
    """Sends from many threads and keeps account of what was accepted."""

    def __init__(self, port, secret):
        self.port = port
        self.secret = secret
        # Called with the count of accepted deliveries after each one.
        self.on_accepted = lambda count: None
        self._lock = threading.Lock()
        self._accepted = set()
        self._retries = 0
        self._over = threading.Event()

    def accepted(self):
        """The event ids of all deliveries answered 200 so far."""
        with self._lock:
            return set(self._accepted)

    def retries(self):
        with self._lock:
            return self._retries

    def give_up(self):
        """Ends all sending soon."""
        self._over.set()

    def send(self, delivery):
        """Sends until accepted. Returns None, or what went wrong."""
        deadline = time.monotonic() + PATIENCE_S
        pause = PAUSE_FIRST_S
        last = "nothing was tried"
        while time.monotonic() < deadline:
            try:
                status, event_id = send_once(self.port, delivery, self.secret)
            except (OSError, http.client.HTTPException, ValueError) as error:
                last = f"{type(error).__name__}: {error}"
            else:
                if status == 200:
                    return self._note(delivery, event_id)
                last = f"status {status}"
                if status != 503:
                    return f"{delivery.event_id}: answered {status}"
            with self._lock:
                self._retries += 1
            if self._over.wait(pause):
                break
            pause = min(pause * 2, PAUSE_MAX_S)
        return f"{delivery.event_id}: given up, last: {last}"

    def _note(self, delivery, event_id):
        if event_id != delivery.event_id:
            return f"{delivery.event_id}: accepted as {event_id}"
        with self._lock:
            self._accepted.add(event_id)
            count = len(self._accepted)
        self.on_accepted(count)
        return None
