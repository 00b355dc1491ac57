"""What each detector sees, what it must not take for it, and how seldom a number that means nothing is held for one."""

import random
import string
import time

import pytest

from node.privacy.detectors import Detector, finds

SEEN = {
    Detector.EMAIL: [
        "mail me at jane.doe+x@example.co.uk.",
        "<o'neil@mail.example.org>",
        "a@b.io",
        "user_1@163.com",
        '{"to":"joe@acme.museum"}',
        "git@github.com:x/y",
    ],
    Detector.PAYMENT_CARD: [
        "4111 1111 1111 1111",
        "card 4111111111111111.",
        "5555-5555-5555-4444",
        "3782 822463 10005",
        "378282246310005",
        "6011111111111117",
        "3056 930902 5904",
        "2223003122003222",
        "card:4012888888881881,",
    ],
    Detector.IBAN: [
        "DE89 3704 0044 0532 0130 00",
        "DE89370400440532013000",
        "pay to GB29 NWBK 6016 1331 9268 19 please",
        "FR14 2004 1010 0505 0001 3M02 606 today",
        "NL91ABNA0417164300",
        "ch93 0076 2011 6238 5295 7",
        "room AB12 is for DE89 3704 0044 0532 0130 00",
    ],
    Detector.NATIONAL_ID: [
        "SSN: 536-22-8726",
        "86095742719",
        "2 95 10 99 126 111 93",
        "295109912611193",
        "54362315-K",
        "X-2482300W",
        "RCCMNL83S18D969H",
        "44051401359",
        "15108695088",
        "880320-0016",
        "131052-308T",
        "85.07.30-033.28",
        "756.9217.0769.85",
        "390.533.447-05",
        "2341 2341 2346",
        "360426199101010071",
        "971013-9019902",
    ],
}
NOT_SEEN = {
    Detector.EMAIL: [
        '@app.route("/x")',
        "lodash@4.17.21",
        "pkg@1.0.0-beta.rc",
        "icon@2x.png",
        "user@localhost",
        "x @ y.com",
        "a@b",
        "@user@",
        "C = A@B",
    ],
    Detector.PAYMENT_CARD: [
        "4111111111111112",
        "1700000000000000",
        "1234567812345678",
        "0.4111111111111111",
        "a4111111111111111",
        "411111111111111111111111",
        "550e8400-4111-1111-1111-446655440000",
        "2023 1105 1200 3344",
        "0000000000000000",
        "2026-11-29 06:17:35",
    ],
    Detector.IBAN: [
        "DE89 3704 0044 0532 0130 01",
        "AB12 this is just a text with words",
        "be12 the one",
        "DE89370400440532013000X",
        "sha256-DE89370400440532013000AAAA",
    ],
    Detector.NATIONAL_ID: [
        "000-12-3456",
        "2026-11-29",
        "192.168.001.001",
        "12345678A",
        "555-123-4567",
        "+49 170 1234567",
        "call 030 1234567 now",
        "1733000000",
    ],
}


@pytest.mark.parametrize(("detector", "text"), [(each, text) for each, texts in SEEN.items() for text in texts])
def test_what_is_there_is_seen(detector: Detector, text: str) -> None:
    assert finds(detector, text)
    assert finds(detector, f"Before it, {text}\nand after it.")


@pytest.mark.parametrize(("detector", "text"), [(each, text) for each, texts in NOT_SEEN.items() for text in texts])
def test_what_only_looks_like_it_is_not_taken_for_it(detector: Detector, text: str) -> None:
    assert not finds(detector, text)


@pytest.mark.parametrize(
    ("detector", "digits", "at_most"),
    [
        (Detector.PAYMENT_CARD, 9, 0.0),
        (Detector.PAYMENT_CARD, 12, 0.0),
        (Detector.PAYMENT_CARD, 13, 0.02),
        (Detector.PAYMENT_CARD, 16, 0.04),
        (Detector.PAYMENT_CARD, 19, 0.03),
        (Detector.NATIONAL_ID, 9, 0.0),
        (Detector.NATIONAL_ID, 10, 0.0),
        (Detector.NATIONAL_ID, 11, 0.03),
        (Detector.NATIONAL_ID, 12, 0.0),
        (Detector.NATIONAL_ID, 13, 0.001),
        (Detector.NATIONAL_ID, 15, 0.01),
        (Detector.NATIONAL_ID, 18, 0.001),
        (Detector.IBAN, 20, 0.0),
        (Detector.EMAIL, 16, 0.0),
    ],
)
def test_random_numbers_are_seldom_held_for_one(detector: Detector, digits: int, at_most: float) -> None:
    drawn = random.Random(digits)
    held = sum(finds(detector, str(drawn.randrange(10 ** (digits - 1), 10**digits))) for _ in range(5000))
    assert held / 5000 <= at_most


def test_no_number_of_any_shape_makes_a_check_fail() -> None:
    """A library's check digit must not end in an exception it does not document."""
    drawn = random.Random(3)
    shapes = ["###-##-####", "## ### ### ###", "# ## ## ## ### ### ##", "########@", "X-#######@", "@@@@@@##@##@###@"]
    shapes += ["###########", "######-####", "########-####", "######-###@", "######A###@", "##.##.##-###.##"]
    shapes += ["756.####.####.##", "###.###.###-##", "#### #### ####", "#################X", "##################"]
    shapes += ["######-#######", "@@##################", "@@## #### #### #### #### ##", "@@##@@@@##############"]
    for shape in shapes:
        for _ in range(2000):
            text = "".join(
                drawn.choice(string.digits)
                if each == "#"
                else drawn.choice(string.ascii_uppercase)
                if each == "@"
                else each
                for each in shape
            )
            for detector in Detector:
                finds(detector, text)


@pytest.mark.parametrize(
    "text", ["1234567890", "4111 1111 1111 ", "a@", "a@b.", "12-34-", "DE89 ", "@a.a.a.", "X1234567"]
)
def test_no_text_makes_a_detector_slower_than_its_length(text: str) -> None:
    """Eight times the text may take eight times as long, not sixty-four: far from either on any machine."""

    def took_s(detector: Detector, chars: int) -> float:
        long = (text * chars)[:chars]
        began_s = time.process_time()
        finds(detector, long)
        return time.process_time() - began_s

    for detector in Detector:
        short_s = min(took_s(detector, 4096) for _ in range(3))
        assert took_s(detector, 8 * 4096) < 30 * short_s + 0.05
