"""Known answers of RFC 8448 section 3 (the server's application traffic keys)."""

from ztunnel.tls.key_schedule import SUITES, expand_label, next_secret, write_iv, write_key

SECRET = bytes.fromhex("a11af9f05531f856ad47116b45a950328204b4f44bfb6b3a4b4f1f3fcb631643")


def test_key_and_iv_of_the_rfcs_trace() -> None:
    suite = SUITES["TLS_AES_128_GCM_SHA256"]
    assert write_key(suite, SECRET).hex() == "9f02283b6c9c07efc26bb9f2ac92e356"
    assert write_iv(suite, SECRET).hex() == "cf782b88dd83549aadf1e984"


def test_finished_key_of_the_rfcs_trace() -> None:
    handshake = bytes.fromhex("b67b7d690cc16c4e75e54213cb2d37b4e9c912bcded9105d42befd59d391ad38")
    expected = "008d3b66f816ea559f96b537e885c31fc068bf492c652f01f288a1d8cdc19fc8"
    assert expand_label(handshake, b"finished", 32, "sha256").hex() == expected


def test_secrets_change_and_keep_their_length() -> None:
    for suite in SUITES.values():
        secret = bytes(range(suite.hash_length))
        updated = next_secret(suite, secret)
        assert len(updated) == suite.hash_length
        assert updated != secret
        assert len(write_key(suite, updated)) == suite.key_length
