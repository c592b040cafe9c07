# SPDX-License-Identifier: GPL-2.0-or-later
"""FTP of real clients and servers; the frames were read off with tshark."""

from pathlib import Path
from typing import Final

import pytest

from cthelper.helpers.ftp import Ftp
from cthelper.testing import expectations, failures, related, replay

PCAPS: Final = Path(__file__).parents[2] / "pcaps" / "ftp"


# Of each data flow: what announces it, its first frame, and what is expected.
DATA_FLOWS: Final = {
    "ftp-curl-eprt4-pyftpdlib": [(13, 14, "tcp 10.77.2.2 > 10.77.1.2:56817")],
    "ftp-curl-eprt4-vsftpd": [(17, 24, "tcp 10.91.1.1 > 10.91.1.2:51603")],
    "ftp-curl-eprt6-vsftpd": [(17, 24, "tcp fd91::1 > [fd91::2]:36369")],
    "ftp-curl-epsv4-pyftpdlib": [(14, 15, "tcp 10.77.1.2 > 10.77.2.2:35705")],
    "ftp-curl-epsv6-pyftpdlib": [(14, 15, "tcp fd77:1::2 > [fd77:2::2]:47595")],
    "ftp-curl-pasv-other-pyftpdlib": [(18, 19, "tcp 10.92.1.2 > 10.92.1.3:51421")],
    "ftp-curl-pasv-pyftpdlib": [(14, 15, "tcp 10.77.1.2 > 10.77.2.2:35437")],
    "ftp-curl-port-pyftpdlib": [(13, 14, "tcp 10.77.2.2 > 10.77.1.2:40603")],
    "ftp-ftplib-port-stou-pure": [
        (11, 17, "tcp 10.92.1.1 > 10.92.1.2:46771"),
        (31, 34, "tcp 10.92.1.1 > 10.92.1.2:44051"),
        (47, 52, "tcp 10.92.1.1 > 10.92.1.2:37007"),
        (67, 70, "tcp 10.92.1.1 > 10.92.1.2:41827"),
    ],
    "ftp-lftp-abor-vsftpd": [
        (33, 34, "tcp 10.91.1.2 > 10.91.1.1:55136"),
        (58, 59, "tcp 10.91.1.2 > 10.91.1.1:7825"),
    ],
    "ftp-lftp-async-vsftpd": [
        (34, 40, "tcp 10.91.1.1 > 10.91.1.2:50435"),
        (53, 56, "tcp 10.91.1.1 > 10.91.1.2:55731"),
    ],
    "ftp-lftp-epsvbang-pyftpdlib": [
        (31, 32, "tcp 10.92.1.2 > 10.92.1.5:49291"),
        (49, 50, "tcp 10.92.1.2 > 10.92.1.5:55917"),
    ],
    "ftp-lftp-port-pyftpdlib": [(24, 25, "tcp 10.77.2.2 > 10.77.1.2:34873")],
    "ftp-wget6-epsv2-vsftpd": [(24, 25, "tcp fd91::2 > [fd91::1]:64161")],
}


@pytest.mark.parametrize("capture", DATA_FLOWS)
def test_data_flow_of_a_real_client_is_expected(capture: str) -> None:
    events = replay(PCAPS / f"{capture}.pcap", Ftp)
    flows = DATA_FLOWS[capture]
    assert expectations(events) == [(frame, text) for frame, _, text in flows]
    assert related(events) == [(met, frame) for frame, met, _ in flows]
    other = [(18, "refused: other-address")] if "other" in capture else []
    assert failures(events) == other


@pytest.mark.parametrize("settings", ["", "helpers.ftp.ccc = true"])
def test_clear_text_after_tls_is_no_failure(settings: str) -> None:
    events = replay(PCAPS / "ftp-curl-ccc-pure.pcap", Ftp, settings=settings)
    assert (expectations(events), failures(events)) == ([], [])


def test_every_capture_is_in_the_table() -> None:
    names = {each.stem for each in PCAPS.iterdir()}
    assert names == {*DATA_FLOWS, "ftp-curl-ccc-pure"}


# Published ones, where they are beside the project.

PUBLIC: Final = Path(__file__).parents[3] / "shared" / "captures" / "public"
published = pytest.mark.skipif(not PUBLIC.is_dir(), reason="no captures there")


@published
def test_port_that_is_announced_after_ccc_is_opened_by_option() -> None:
    capture = PUBLIC / "ndpi-ftp-start-tls.pcap"
    assert expectations(replay(capture, Ftp)) == []
    events = replay(capture, Ftp, settings="helpers.ftp.ccc = true")
    assert expectations(events) == [(46, "tcp 10.238.26.36 > 10.220.50.76:16539")]
    assert failures(events) == []


@published
@pytest.mark.parametrize(
    "name",
    [
        *("zeek-ftp_fake-server-delays-all", "suri-ftp-quit", "zeek-ftp_ipv6"),
        *("zeek-ftp_ftp-invalid-reply-code", "zeek-ftp_ftp-missing-reply-code"),
        "zeek-ftp_ftp-missing-space-after-reply-code",
    ],
)
def test_what_is_odd_there_is_not_malformed(name: str) -> None:
    events = replay(PUBLIC / f"{name}.pcap", Ftp)
    assert not [each for each in failures(events) if "malformed" in each[1]]
