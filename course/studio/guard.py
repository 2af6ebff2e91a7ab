"""Who may talk to the studio: a browser on this machine, on our own page, that was shown the token.

What could go wrong otherwise: any page on the web can send requests to 127.0.0.1, and, once its own name has been pointed there
(DNS rebinding), read the answers; and on a machine of several people each can reach the ports of all others.
"""

import hmac
from urllib.parse import urlsplit

import tornado.web

LOCAL = ("127.0.0.1", "localhost", "::1")
HEADERS = {
    # everything comes from here, and nothing that is typed can become a script
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
                               "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Resource-Policy": "same-origin",
}


class Guarded(tornado.web.RequestHandler):
    """Every handler of the studio. Errors are plain words as JSON, never a stack trace."""

    def set_default_headers(self):
        for name, value in HEADERS.items():
            self.set_header(name, value)
        self.set_header("Server", "course studio")

    def prepare(self):
        if (why := refusal(self.request, self.settings["local_only"])) is not None:
            raise Refused(why)
        given, cookie = self.get_query_argument("token", None), self.settings["cookie"]
        if given is not None and self.same(given):
            # cookies are shared by all ports of a name, so the port is in the cookie's
            self.set_cookie(cookie, given, path="/", httponly=True, samesite="Strict")
        elif not self.same(self.get_cookie(cookie, "")):
            raise Refused("Open the address that `course studio` printed, with its token: "
                          + ("this one is of another start." if given else "it is not in this one."))

    def same(self, given: str) -> bool:
        return hmac.compare_digest(given.encode("utf-8", "replace"), self.settings["token"].encode())

    def write_error(self, status_code: int, **more) -> None:
        error = more.get("exc_info", (None, None))[1]
        said = error.why if isinstance(error, Refused) else {404: "There is nothing here.", 405: "Not this way."}.get(
            status_code, "Something went wrong; the terminal says where.")
        if "text/html" in self.request.headers.get("Accept", ""):
            self.set_header("Content-Type", "text/plain; charset=utf-8")       # who opened it in a browser
            self.finish(said)
        else:
            self.finish({"error": said})


class Refused(tornado.web.HTTPError):
    """403, and in plain words why."""

    def __init__(self, why: str):
        super().__init__(403)
        self.why = why


def refusal(request, local_only: bool) -> str | None:
    """Why not to listen to a request at all; None where all is well."""
    if local_only and name_of(request.host) not in LOCAL:
        return "The studio answers to 127.0.0.1 and localhost only."
    # a link on another page may lead here, such as in JupyterLab's terminal; nothing else of another page may
    led_here = request.method == "GET" and request.headers.get("Sec-Fetch-Mode") == "navigate"
    if request.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none") and not led_here:
        return "The studio takes nothing from other pages."
    origin = request.headers.get("Origin")
    if origin is not None and urlsplit(origin).netloc.lower() != request.host.lower():
        return "The studio takes nothing from other pages."
    return None


def name_of(host: str) -> str:
    """"localhost:8899" -> "localhost"; "[::1]:80" -> "::1"."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""
