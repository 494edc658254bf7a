"""Addresses that look public and are not, and names that are none."""

from __future__ import annotations

import pytest

from perdure.core.errors import AddressRefusedError, ToolUnreachableError
from perdure.tools.addresses import check_url


def leading_to(*addresses: str) -> object:
    async def resolver(host: str, port: int) -> list[str]:
        return list(addresses)

    return resolver


@pytest.mark.parametrize(
    "address",
    [
        "fec0::1", "2600::5efe:a00:1", "2600::200:5efe:a9fe:a9fe", "192.88.99.1", "3fff::1", "2002:a9fe:a9fe::1", "64:ff9b::7f00:1",
        "64:ff9b:1::a00:1", "::ffff:169.254.169.254", "::7f00:1", "fd00:ec2::254", "fe80::1%eth0", "2001:0:a00:1::", "240.0.0.1",
    ],
)  # fmt: skip
async def test_what_is_not_on_the_internet_is_refused(address: str) -> None:
    with pytest.raises(AddressRefusedError):
        await check_url("http://api.example.org/", resolver=leading_to(address))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "address", ["93.184.216.34", "2606:2800:220:1::1", "64:ff9b::5db8:d822", "2600::5efe:5db8:d822"]
)
async def test_what_is_on_it_is_not(address: str) -> None:
    found = await check_url("http://api.example.org/", resolver=leading_to(address))  # type: ignore[arg-type]
    assert found.address == address


@pytest.mark.parametrize("host", ["a..example.org", f"{'a' * 64}.example.org"])
async def test_a_name_that_cannot_be_is_unreachable(host: str) -> None:
    with pytest.raises(ToolUnreachableError):
        await check_url(f"http://{host}/")
