import pytest

from jmpq.run.compute import join_devices, parse_bytes
from jmpq.run.options import Compute


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("4GB", 4 * 10**9), ("4GiB", 4 * 2**30), ("0.5MiB", 2**19), (" 1.5 kB ", 1500),
        ("123", 123), ("2T", 2 * 10**12), (".25GB", 25 * 10**7), ("1B", 1),
    ],
)  # fmt: skip
def test_bytes_are_read_with_their_unit(text, count):
    assert parse_bytes(text) == count


@pytest.mark.parametrize(
    "text", ["much", "40%", "0.5", "-1GB", "4 GB/s", "", "GB", "1e9", "W4"]
)
def test_what_is_not_a_number_of_bytes_is_refused(text):
    with pytest.raises(ValueError, match="expected bytes, as 4GB") as error:
        parse_bytes(text)
    assert repr(text) in str(error.value)


def test_options_of_several_processes_need_them():
    assert join_devices(Compute()) is None
    for options in ({"coordinator": "host:1"}, {"processes": 2}, {"process_index": 0}):
        with pytest.raises(ValueError, match="is for several processes: add --distributed"):
            join_devices(Compute(**options))
