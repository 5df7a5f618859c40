"""Networks of hosts as data: what the schema gives, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from tools.scenario_files import read_scenario

TWO_REGIONS = """
[[region]]
name = "Ohio"
hosts = 2
devices-per-host = 2
intra-gbps = 5.0
intra-delay-ms = 1.0
host-gbps = 100.0

[[region]]
name = "Virginia"
hosts = 1
devices-per-host = 1
"""
LINK = '[[link]]\nbetween = ["Ohio", "Virginia"]\ngbps = 1.12\ndelay-ms = 11.0\n'


def _read(folder, text):
    path = folder / "network.toml"
    path.write_text(text)
    return read_scenario("network", folder)


def test_a_pair_of_hosts_has_the_bandwidth_and_delay_of_its_regions(tmp_path) -> None:
    scenario = _read(tmp_path, TWO_REGIONS + LINK)
    assert scenario.name == "network"
    assert [host.region for host in scenario.hosts] == ["Ohio", "Ohio", "Virginia"]
    within, across, same = 5e9, 1.12e9, 100e9
    expected = [[same, within, across], [within, same, across], [across, across, np.inf]]
    np.testing.assert_allclose(scenario.bandwidth, expected)
    np.testing.assert_allclose(scenario.delay, [[0, 1e-3, 11e-3], [1e-3, 0, 11e-3], [11e-3, 11e-3, 0]])


def test_devices_are_numbered_host_by_host(tmp_path) -> None:
    scenario = _read(tmp_path, TWO_REGIONS + LINK)
    assert scenario.host_of_device.tolist() == [0, 0, 1, 1, 2]
    assert scenario.device_bandwidth[0].tolist() == [100e9, 100e9, 5e9, 5e9, 1.12e9]
    assert scenario.device_delay[4].tolist() == [0.011] * 4 + [0.0]


def test_a_link_may_differ_by_direction(tmp_path) -> None:
    one = '[[link]]\nfrom = "Ohio"\nto = "Virginia"\ngbps = 3.0\ndelay-ms = 1.0\n'
    other = one.replace('from = "Ohio"\nto = "Virginia"\ngbps = 3.0', 'from = "Virginia"\nto = "Ohio"\ngbps = 4.0')
    scenario = _read(tmp_path, TWO_REGIONS + one + other)
    assert scenario.bandwidth[0, 2] == 3e9 and scenario.bandwidth[2, 0] == 4e9


def test_hosts_stand_in_the_given_order(tmp_path) -> None:
    scenario = _read(tmp_path, 'host-order = ["Ohio", "Virginia", "Ohio"]\n' + TWO_REGIONS + LINK)
    assert [host.num_devices for host in scenario.hosts] == [2, 1, 2]
    assert scenario.bandwidth[0, 2] == 5e9 and scenario.bandwidth[0, 1] == 1.12e9


def test_a_matrix_takes_the_place_of_links_and_may_be_asymmetric(tmp_path) -> None:
    rows = "[matrix]\ngbps = [[0, 1, 2], [3, 0, 4], [5, 6, 0]]\ndelay-ms = [[0, 1, 1], [1, 0, 1], [1, 2, 0]]\n"
    scenario = _read(tmp_path, TWO_REGIONS + rows)
    assert scenario.bandwidth[1, 0] == 3e9 and scenario.bandwidth[2, 1] == 6e9 and scenario.bandwidth[0, 0] == 100e9
    assert scenario.delay[2, 1] == 2e-3


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (TWO_REGIONS, "no link from Ohio to Virginia"),
        (TWO_REGIONS + LINK + LINK, "given twice"),
        (TWO_REGIONS + LINK.replace("Virginia", "Texas"), "not two of the regions Ohio, Virginia"),
        (TWO_REGIONS + LINK.replace("Virginia", "Ohio"), "Ohio to itself"),
        (TWO_REGIONS + LINK.replace("1.12", "0.0"), "gbps = 0.0 has to be a number above 0"),
        (TWO_REGIONS + LINK.replace("11.0", "-1"), "delay-ms = -1 has to be a number at least 0"),
        (TWO_REGIONS + LINK.replace("delay-ms", "delay"), "unknown key 'delay'"),
        (TWO_REGIONS.replace("intra-gbps = 5.0\n", "") + LINK, "'intra-gbps' is missing"),
        (TWO_REGIONS.replace("Virginia", "Ohio"), "two regions named 'Ohio'"),
        (TWO_REGIONS.replace("hosts = 1\n", "hosts = 0\n") + LINK, "hosts = 0 is not a positive integer"),
        ('host-order = ["Ohio"]\n' + TWO_REGIONS + LINK, "host-order has to name every region"),
        (TWO_REGIONS + "[matrix]\ngbps = [[0, 1, 1], [1, 0]]\ndelay-ms = []\n", "gbps has to be square, 3 rows of 3"),
        (TWO_REGIONS + LINK + "[matrix]\n", "links or a matrix, not both"),
        ("[[link]]\n", "'region' is missing"),
        ("[region]\n", "written as [[region]]"),
        ("name =", "is not valid TOML"),
    ],
)  # fmt: skip
def test_what_does_not_follow_the_schema_is_refused_with_a_sentence(tmp_path, text, sentence) -> None:
    with pytest.raises(ValueError) as refused:
        _read(tmp_path, text)
    assert sentence in str(refused.value) and "network.toml" in str(refused.value)


def test_an_unknown_scenario_is_named_with_those_that_there_are(tmp_path) -> None:
    (tmp_path / "case3.toml").write_text("")
    with pytest.raises(ValueError, match="there is no scenario .*case9.toml; .* has: case3"):
        read_scenario("case9", tmp_path)
