import hashlib
from pathlib import Path

import pytest

from coterie.errors import ConfigError
from coterie.server.failures import ApiError
from coterie.server.keys import Key, Keys, add_key


def test_a_new_key_opens_and_is_kept_nowhere(tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    user, admin = add_key(file, "alice"), add_key(file, "root", "admin")
    assert file.stat().st_mode & 0o777 == 0o600
    assert user not in file.read_text() and hashlib.sha256(user.encode()).hexdigest() in file.read_text()
    keys = Keys(file)
    assert keys.find(f"Bearer {user}", None) == keys.find(None, user) == Key("alice", "user")
    assert keys.find(f"bearer  {admin} ", None) == Key("root", "admin")


@pytest.mark.parametrize(
    ("authorization", "x_api_key", "said"),
    [
        (None, None, "is missing"),
        ("Bearer", None, "is missing"),
        ("Bearer ", "", "is missing"),
        ("Basic abc", None, "is missing"),
        ("Bearer wrong", None, "is not one of"),
        (None, "wrong", "is not one of"),
        ("Bearer {key}, Bearer {key}", None, "is not one of"),
        ("Bearer wrong", "{key}", "is not one of"),  # two that differ: the first counts
        ("Bearer {hash}", None, "is not one of"),
        ("Bearer \xff\x00", None, "is not one of"),
    ],
)
def test_what_opens_nothing(tmp_path: Path, authorization: str | None, x_api_key: str | None, said: str) -> None:
    file = tmp_path / "keys.txt"
    key = add_key(file, "alice")
    places = {"key": key, "hash": hashlib.sha256(key.encode()).hexdigest()}
    with pytest.raises(ApiError) as e:
        Keys(file).find(authorization and authorization.format(**places), x_api_key and x_api_key.format(**places))
    assert e.value.status == 401 and e.value.code == "invalid_api_key" and said in e.value.message
    assert "wrong" not in e.value.message


def test_without_a_file_everybody_may() -> None:
    assert Keys().find(None, None) == Key("", "admin") and not Keys().are_needed


def test_reload_keeps_what_was_where_the_file_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    first = add_key(file, "alice")
    keys = Keys(file)
    second = add_key(file, "bob")
    keys.reload()
    file.write_text("nonsense")
    with pytest.raises(ConfigError):
        keys.reload()
    assert keys.find(None, first).name == "alice" and keys.find(None, second).name == "bob"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no key"),
        ("# nobody\n\n", "holds no key"),
        ("ck-secret-in-the-clear", "line 1: expected"),
        ("a user " + "0" * 63, "line 1"),
        ("a owner " + "0" * 64, "line 1"),
        ("a user " + "0" * 64 + "\na user " + "1" * 64, "line 2: the name 'a' appears twice"),
    ],
)
def test_a_file_that_is_wrong(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "keys.txt"
    file.write_text(text)
    with pytest.raises(ConfigError) as e:
        Keys(file)
    assert said in str(e.value) and "secret" not in str(e.value)


def test_names_that_cannot_be(tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    for name, scope in (("a b", "user"), ("", "user"), ("a", "owner"), ("a\nb", "user"), ("x" * 65, "user")):
        with pytest.raises(ConfigError):
            add_key(file, name, scope)
    assert not file.exists()
    file.write_text("# mine")  # no line end
    add_key(file, "a")
    with pytest.raises(ConfigError, match="already"):
        add_key(file, "a")
    assert Keys(file).are_needed
