"""S3 over TLS with a certificate that the system does not know."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

import tensorstash as stash
from tensorstash.errors import DriverError
from tests.servers.certificates import Certificates
from tests.servers.moto import moto
from tests.servers.s3 import S3
from tests.support.oracle import same

MODEL = np.arange(100).reshape(10, 10)


@pytest.fixture(scope="module")
def server(certificates: Certificates) -> Iterator[S3]:
    made = moto(certificates=certificates)
    assert made.process is not None
    with closing(made.process):
        yield made


@pytest.fixture(params=["s3fs", "obstore"])
def client(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def test_its_authority_is_trusted_when_named(server: S3, client: str) -> None:
    url = f"s3://{server.make_bucket()}/a"
    options = server.options | {"client": client}
    array = stash.save(url, MODEL, chunks=(4, 4), options=options)
    array[3] = -MODEL[3]
    same(stash.load(url, options=options)[3], -MODEL[3])


def test_it_is_not_trusted_otherwise(server: S3, client: str, tmp_path: Path) -> None:
    url = f"s3://{server.make_bucket()}/a"
    options = server.options | {"client": client, "timeout": 3.0}
    stash.save(url, MODEL, options=options)
    del options["ca"]
    with pytest.raises(DriverError, match=r"zarr.json.*option 'ca'") as caught:
        stash.open(url, options=options)
    assert "\n" not in str(caught.value)
    same(stash.load(url, options=options | {"verify": False}), MODEL)
    with pytest.raises(DriverError):
        stash.open(url, options=options | {"ca": str(tmp_path / "none.pem")})
