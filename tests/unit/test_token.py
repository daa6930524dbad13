"""Join tokens and API tokens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from novacron.model.errors import InvalidInput
from novacron.model.token import JoinTicket, api_secret, decode_ticket, encode_ticket, hash_secret


@given(st.builds(JoinTicket, *(st.text(max_size=40) for _ in range(4))))
def test_a_join_token_carries_its_ticket(ticket: JoinTicket) -> None:
    assert decode_ticket(encode_ticket(ticket)) == ticket
    assert decode_ticket(f"  {encode_ticket(ticket)}\n") == ticket


@pytest.mark.parametrize("text", ["", "nvj_", "nvj_AAAA", "nva_whatever", "ü", "nvj_" + "x" * 5000])
def test_an_invalid_join_token_is_refused_with_the_next_command(text: str) -> None:
    with pytest.raises(InvalidInput, match="not a join token") as caught:
        decode_ticket(text)
    assert "node join-token" in str(caught.value.hint)


def test_secrets_are_long_and_their_hashes_differ() -> None:
    a, b = api_secret(bytes(32)), api_secret(b"\1" * 32)
    assert len(a) > 40
    assert hash_secret(a) != hash_secret(b)
