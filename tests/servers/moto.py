"""moto's S3 server: pure Python, answers as AWS does, but checks no checksum."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace

from tests.servers.certificates import Certificates
from tests.servers.missing import missing
from tests.servers.port import HOST, free_port, listening
from tests.servers.process import Process
from tests.servers.s3 import S3

_ALLOW_S3 = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}],
}


# moto compares and stores in two steps, between which its other threads may do the same.
_SERVE = """
from threading import Lock
from moto.s3.responses import S3Response
from moto.server import main
one_at_a_time, put_object = Lock(), S3Response.put_object
def put_object_alone(self):
    with one_at_a_time:
        return put_object(self)
S3Response.put_object = put_object_alone
main()
"""


def moto(*, authentication: bool = False, certificates: Certificates | None = None) -> S3:
    """A moto server of our own; without ``authentication`` it takes any key and secret, with
    ``certificates`` it speaks TLS."""
    if importlib.util.find_spec("moto") is None or importlib.util.find_spec("flask") is None:
        missing("moto_server", "pip install 'moto[server]'")
    port = free_port()
    command = [sys.executable, "-c", _SERVE]
    command += ["-H", HOST, "-p", str(port)]
    if certificates is not None:
        command += ["-c", str(certificates.certificate), "-k", str(certificates.key)]
    process = Process(
        command,
        lambda: listening(port),
        # The first three calls make the user; from then on every call must be signed and allowed.
        environment={"INITIAL_NO_AUTH_ACTION_COUNT": "3"} if authentication else {},
    )
    scheme = "http" if certificates is None else "https"
    authority = None if certificates is None else certificates.authority
    server = S3(f"{scheme}://{HOST}:{port}", "anyone", "anything", process, authority)
    return _with_user(server) if authentication else server


def _with_user(server: S3) -> S3:
    iam = server.client("iam")
    iam.create_user(UserName="stash")
    key = iam.create_access_key(UserName="stash")["AccessKey"]
    iam.put_user_policy(UserName="stash", PolicyName="s3", PolicyDocument=json.dumps(_ALLOW_S3))
    iam.close()
    return replace(server, key=key["AccessKeyId"], secret=key["SecretAccessKey"])
