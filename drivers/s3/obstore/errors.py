"""What obstore's errors say: it has few classes, and the rest stands in their texts."""

from __future__ import annotations

import re
from typing import NamedTuple

from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

from tensorstash.drivers.s3.client import Failed
from tensorstash.drivers.s3.errors import is_hidden, kind_of

# Only the Debug print at the end of the text can be trusted: in it line breaks of a key or of a
# server's answer are escaped, so neither can stand for a line of its own.
_DEBUG = "\n\nDebug source:\n"
_STATUS = re.compile(r"\n +inner: Status \{\n +status: (\d{3}),\n +body: (?:None|Some\(\n +(.*))")
_CODE = re.compile(r"<Code>(?:\\n|\s)*(\w+)")
_DELETE = re.compile(r'\n +source: DeleteFailed \{\n +path: .*\n +code: "(\w+)",\n')
_REDIRECT = re.compile(r"\n +inner: BareRedirect,\n")
# The way to every other host is closed (store.py); it followed too many; it cannot follow.
_ELSEWHERE = re.compile(r"\n +127\.0\.0\.1:0,\n|\n +kind: Redirect,\n|\bTooManyRedirects\b")
_MOVED = (301, 302, 303, 307, 308)
_WRONG_PART = re.compile(r"\n +source: (NotPartial|UnexpectedRange)\b")
_CUT = re.compile(r"\bHttpError \{\n +kind: (\w+),\n")
_TIMED_OUT = re.compile(r"\n +kind: Timeout,\n|\bTimedOut\b")
_TLS = re.compile(r"error: (Invalid(?:Certificate|Message)|AlertReceived|Peer\w+)\b")


class Answer(NamedTuple):
    """What an error of obstore says about the server's answer."""

    status: int | None = None
    code: str | None = None
    redirected: bool = False
    """To another server, or in a way that obstore does not follow; nothing was carried out."""
    failed: Failed | None = None
    """Set where there was no answer, or none that could be read."""

    @property
    def absent(self) -> bool:
        """The key is definitely not there. A 404 without this code may come from anywhere."""
        return (self.status, self.code) == (404, "NoSuchKey")

    @property
    def ranged(self) -> bool:
        """It is about the range that was asked for."""
        return self.status == 416 or self.code in ("NotPartial", "UnexpectedRange")

    def failure(self, *, conditional: bool = False) -> Failed:
        """The failure to raise; ``conditional``: the request was a put with a condition."""
        if self.failed is not None:
            return self.failed
        said = " ".join(str(word) for word in (self.status, self.code) if word is not None)
        if conditional and self.absent:  # what a server may say to If-Match where nothing is
            return Failed("precondition", said)
        hidden = is_hidden(self.code, self.status)
        return Failed(kind_of(self.code, self.status), said, hidden=hidden)

    def cause(self, error: Exception) -> Exception | None:
        """The error to chain. Not one about a signature: the server may repeat in it what was
        signed, and credentials or a session token with it."""
        secret = self.status in (400, 401, 403) or isinstance(error, UnauthenticatedError)
        return None if secret else error


def answer_of(error: Exception) -> Answer:
    """What ``error`` says, which any function of obstore raised."""
    _, found, debug = str(error).rpartition(_DEBUG)
    if not found:
        return Answer(failed=Failed("other", f"{type(error).__name__} from obstore"))
    if status := _STATUS.search(debug):
        code = _CODE.search(status[2] or "")
        number = int(status[1])
        return Answer(number, code and code[1], redirected=number in _MOVED)
    if refused := _DELETE.search(debug):
        return Answer(200, refused[1])
    if part := _WRONG_PART.search(debug):
        return Answer(200, part[1])
    if _REDIRECT.search(debug):
        why = "the server redirects: the bucket is in another region; give option 'region'"
        return Answer(failed=Failed("other", why))
    if _ELSEWHERE.search(debug):
        return Answer(redirected=True, failed=Failed("redirected", "the server redirects"))
    if tls := _TLS.search(debug):
        return Answer(failed=Failed("other", f"TLS: {tls[1]}"))
    if cut := _CUT.search(debug):
        late = _TIMED_OUT.search(debug) is not None
        why = "no answer in time" if late else f"connection: {cut[1].lower()}"
        return Answer(failed=Failed("lost", why, timed_out=late))
    if isinstance(error, UnauthenticatedError | PermissionDeniedError):
        return Answer(failed=Failed("denied", "no usable credentials"))
    return Answer(failed=Failed("other", f"{type(error).__name__} from obstore"))
