"""Ceph's S3 gateway: a production server with real authentication, conditions, quotas and 409s.

``.ci/servers start`` installs it and starts one for all; the environment variable
``TENSORSTASH_TEST_RGW`` names the file that says where it is.
"""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.servers.missing import missing
from tests.servers.port import HOST, free_port, listening
from tests.servers.process import Process, new_folder
from tests.servers.s3 import S3

VARIABLE = "TENSORSTASH_TEST_RGW"


@dataclass(frozen=True, kw_only=True)
class Rgw(S3):
    """The gateway, as the user ``stash`` who may do everything with buckets of its own.

    ``run`` begins every command that talks to the cluster.
    """

    version: str
    run: tuple[str, ...] = field(repr=False)

    def admin(self, *words: str) -> Any:
        """``radosgw-admin words``: what it answers, as an object."""
        command = [*self.run, "radosgw-admin", "-n", "client.rgw", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        if done.returncode:
            raise RuntimeError(f"radosgw-admin {' '.join(words)}: {done.stderr[-2000:]}")
        return json.loads(done.stdout) if done.stdout.strip() else None

    def make_user(self) -> Rgw:
        """The same gateway as a fresh user, with keys of its own and nothing else."""
        name = f"u{uuid.uuid4().hex[:12]}"
        made = self.admin("user", "create", f"--uid={name}", f"--display-name={name}")
        keys = made["keys"][0]
        return replace(self, key=keys["access_key"], secret=keys["secret_key"], user=name)

    user: str = "stash"

    def another(self) -> Rgw:
        """A second gateway to the same objects, ours alone: to be killed and started again."""
        port, folder = free_port(), new_folder()
        process = Process(
            [
                *self.run,
                *("radosgw", "-f", "-n", "client.rgw", "--pid-file="),
                f"--rgw-frontends=beast endpoint={HOST}:{port} tcp_nodelay=1",
            ],
            lambda: listening(port),
            folder=folder,
        )
        return replace(self, endpoint=f"http://{HOST}:{port}", process=process)


def rgw() -> Rgw:
    """The running gateway."""
    place = os.environ.get(VARIABLE)
    if not place:
        missing("Ceph's radosgw", f'as root: eval "$(.ci/servers start)", which sets {VARIABLE}')
    facts = json.loads(Path(place).read_text())
    return Rgw(
        facts["endpoint"],
        facts["key"],
        facts["secret"],
        version=facts["version"],
        run=tuple(facts["run"]),
    )
