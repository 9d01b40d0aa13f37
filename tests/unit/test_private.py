"""Secrets and personal data are found, what only looks like them is not, and all else stays."""

from __future__ import annotations

import base64
import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retone.data.private import find_private, redact

# Every secret is put together here, so that scanners of repositories do not find it.
LETTERS = "qWmZ7tRv2LxKp9HnYc4JdFs8BgT3uEaNo5VbXi6"  # 40 that look generated


def token(length: int) -> str:
    """Letters and digits as a service would generate them."""
    return (LETTERS * 4)[:length]


def json_part(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


JWT = ".".join([json_part({"alg": "HS256"}), json_part({"sub": "u-81723", "adm": True}), token(43)])
KEY_BODY = "\n".join([(LETTERS * 2)[:64]] * 3)
BEGIN, END = (f"-----{side} RSA PRIVATE" + " KEY-----" for side in ("BEGIN", "END"))
KEY = f"{BEGIN}\n{KEY_BODY}\n{END}"
PUTTY = "PuTTY-User-Key-" + "File-"
DSN = "postgres://app:"

# Kind -> what is found (between guillemets, which are taken away), and what is not.
SECRETS = [
    ("AWS key", f"id «{'AKIA' + 'QZ4TLWMJ7RVXE2PD'}»", "id " + "AKIA" + "IOSFODNN7EXAMPLE"),
    (
        "AWS key",
        f"aws_key = '«{token(38)}+/»'",
        "aws_key = 'a_name_of_forty_letters_or_about_as_many'",
    ),
    ("Azure storage key", f"«{'Account' + 'Key='}{token(86)}==»", "AccountKey=<your key>"),
    ("GitHub token", f"use «{'gh' + 'p_'}{token(36)}».", "use ghp_your_token_goes_here"),
    ("GitHub token", f"«{'github_' + 'pat_'}{token(82)}»", "github_pat_and_other_kinds_of_tokens"),
    ("GitLab token", f"«{'gl' + 'pat-'}{token(20)}»", "glpat-" + "x" * 20),
    (
        "JSON web token",
        f"Bearer «{JWT}»",
        f"Bearer {'ey' + 'J'}{token(20)}.{token(20)}.{token(43)}",
    ),
    (
        "OpenAI key",
        f"«sk-{token(20)}{'T3Blbk' + 'FJ'}{token(20)}»",
        "sk-learn and other-long-names",
    ),
    (
        "OpenAI key",
        f"«{'sk-' + 'proj-'}{token(120)}»",
        "sk-proj-your-key-and-nothing-else-here-please",
    ),
    ("Anthropic key", f"«{'sk-' + 'ant-api03-'}{token(93)}AA»", "sk-ant-api03-and-so-on-and-so-on"),
    (
        "Hugging Face token",
        f"«{'hf' + '_'}{token(34)}»",
        "hf_hub_download_with_a_cache_and_no_token",
    ),
    ("Google key", f"?key=«{'AI' + 'za'}{token(35)}»", "AIza" + "x" * 35),
    ("npm token", f"«{'np' + 'm_'}{token(36)}»", "npm_config_registry_and_all_other_variables"),
    (
        "npm token",
        "//r.io/:_authToken=«" + "8c5dbb0b-51c1-4f2e-a6f5-2d1c7ad3b9f1»",
        "//r.io/:_authToken=${NPM_TOKEN_OF_THE_BUILD}",
    ),
    ("PyPI token", f"«{'pypi-' + 'AgEIcHlwaS5vcmc'}{token(80)}»", "pypi-AgEIcHlwaS5vcmc and so on"),
    ("Slack token", f"«{'xox' + 'b-'}123401-{token(24)}»", "xoxb-your-token-in-the-environment"),
    ("Stripe key", f"«{'sk_' + 'live_'}{token(24)}»", f"sk_test_{token(24)}"),
    ("SendGrid key", f"«{'S' + 'G.'}{token(22)}.{token(43)}»", f"SG.{token(22)}.svg"),
    ("Twilio key", f"«{'S' + 'K'}{token(32).lower()}»", f"MASK{token(32).lower()}"),
    ("Telegram token", f"«{'61' * 5}:{'A' + 'A'}{token(33)}»", f"1:AA{token(33)}"),
    (
        "Discord token",
        f"«{'M' + 'T'}{token(24)}.{token(6)}.{token(27)}»",
        f"MT{token(24)}.{token(27)}",
    ),
    ("generated password", f"DB_PASSWORD=«{token(24)}»", "password = get_password_of_user_2_and_3"),
    ("generated password", f'{{"api_key": "«{token(32)}»"}}', f'{{"monkey": "{token(32)}"}}'),
    (
        "generated password",
        f"cfg['secret'] = '«{token(24)}»'",
        "secret = 'internationalization-2024-v2'",
    ),
    ("password in a URL", f"{DSN}«tr0ub4dor»@db.corp.io/x", DSN + "password@db.corp.io/x"),
    ("password in a URL", "https://me:«Xk9!»@web.de", "https://docs.io/a:b and me@x"),
    ("private key", f"key: «{KEY}» end", f"{BEGIN} is its first line"),
    ("private key", f"«{KEY[:170]}»", f"{BEGIN}\n{token(20)}...{END}"),
    ("private key", "«" + KEY.replace("\n", "\\n") + "»", "PRIVATE KEY: " + token(15)),
    ("private key", f"«{PUTTY}3: ssh-rsa\n{KEY_BODY}\nPrivate-MAC: 0a1b»", f"{PUTTY}3: ..."),
]
PERSONAL = [
    (
        "e-mail address",
        "to «Ann.Lee+x@mail.corp-a.co.uk», please",
        "to ann.lee@example.com, please",
    ),
    ("e-mail address", "<«jörg@bücher.de»>", "<no-reply@bücher.de>, <admin@bücher.de>"),
    (
        "e-mail address",
        "«m.curie@sorbonne.fr».",
        "jane.doe@gmail.com, boss@company.com, me@your-firm.de",
    ),
    (
        "e-mail address",
        "mailto:«myriam@mail.nl»",
        "git@github.com:a/b.git lodash@4.17.21 @media.print",
    ),
    ("e-mail address", "a «liu@uic.edu»", "y = a@b.reshape(2) and @app.route or x @ y.T"),
    ("phone number", "ring «+49 30 901820»!", "from +49 to 30 901 people, +1 000 000 0000"),
    ("phone number", "«+44 20 7219 3000»", "+44 20 7946 0123 and +44 7700 900123"),
    ("phone number", "«(212) 736-5000» or «1-212-736-5001»", "(212) 555-0199 or 212-555-1234"),
    ("phone number", "text «646-736-5000»", "123-456-7890, 911-736-5000, 800-273-8255"),
    ("phone number", "Tel.: «030 901820-12», Berlin", "order 030 901820-12, Berlin"),
    ("phone number", "mobile no «07911 123 455»", "mobile no 0000 000 0000, hotel 030 901820-12"),
    ("IBAN", "pay «DE44 5001 0517 5407 3249 31» NOW", "pay DE45 5001 0517 5407 3249 31 NOW"),
    ("IBAN", "«AT48 3200 0000 1234 5864» 2026", "DE89 3704 0044 0532 0130 00 is the example"),
    ("credit card number", "«4539 5787 6362 1486»", "4539 5787 6362 1487"),
    (
        "credit card number",
        "«5425233430109903», thanks",
        "4111 1111 1111 1111 and 4242424242424242",
    ),
    ("credit card number", "«3782 822463 10021»", "9539 5787 6362 1488"),
    ("US social security number", "SSN «536-90-4399»", "123-45-6789, 666-90-4399, 536-904-399"),
    ("Brazilian CPF", "«390.533.447-05»", "390.533.447-06"),
    ("French NIR", "«2 95 10 99 126 111 93»", "2 95 10 99 126 111 94"),
    ("Swedish personal number", "«880320-0016»", "880320-0018, 883320-0016"),
]
CASES = [("secret", *case) for case in SECRETS] + [("personal-data", *case) for case in PERSONAL]
ALL = "\n".join(text for _, _, text, _ in CASES).replace("«", "").replace("»", "")


def marked(text: str) -> str:
    """The text with guillemets around what is found in it."""
    for hit in reversed(find_private(text)):
        text = f"{text[: hit.start]}«{text[hit.start : hit.end]}»{text[hit.end :]}"
    return text


@pytest.mark.parametrize(
    ("code", "kind", "private", "harmless"),
    [pytest.param(*case, id=f"{case[1]}: {case[3][:40]!r} is none") for case in CASES],
)
def test_found_and_near_miss(code: str, kind: str, private: str, harmless: str) -> None:
    text = private.replace("«", "").replace("»", "")
    assert marked(text) == private
    assert {(hit.kind, hit.code) for hit in find_private(text)} == {(kind, code)}
    assert find_private(harmless) == []


def test_everything_else_stays_byte_for_byte() -> None:
    text, found = redact(ALL)
    rest = text
    for hit in found:
        before, label, rest = rest.partition(f"[{hit.kind.upper()}]")
        assert label
        assert before in ALL
    ends = [0, *(hit.end for hit in found)]
    starts = [*(hit.start for hit in found), len(ALL)]
    labels = [*(f"[{hit.kind.upper()}]" for hit in found), ""]
    kept = [ALL[end:start] for end, start in zip(ends, starts, strict=True)]
    assert text == "".join(piece + label for piece, label in zip(kept, labels, strict=True))
    assert redact("Nothing\r\nhere.\n ") == ("Nothing\r\nhere.\n ", [])


def test_labels() -> None:
    line = "Ann <ann@lee-bakery.fr>, IBAN AT48 3200 0000 1234 5864."
    assert redact(line)[0] == "Ann <[E-MAIL ADDRESS]>, IBAN [IBAN]."
    assert redact(f"psql {DSN}tr0ub4dor@db.corp.io/x")[0] == (
        f"psql {DSN}[PASSWORD IN A URL]@db.corp.io/x"
    )


def test_a_label_does_not_make_its_neighbour_private() -> None:
    aws, forty = "AKIA" + "QZ4TLWMJ7RVXE2PD", token(40)
    for text in (
        f"{aws} '{forty}'",
        "+49 30 901820 and 030 901820-12",
        f"{token(24)} {aws}={forty}",
    ):
        once, _ = redact(text)
        assert redact(once) == (once, [])


PIECES = [text.replace("«", "").replace("»", "") for _, _, text, _ in CASES]
# What names a secret, or stands around one.
WORDS = ["aws key", "phone", "password", "secret", ' = "', "'", "://", "@", ":", "-", "+1 ", " "]
TEXTS = st.lists(
    st.text(st.characters(), max_size=8)  # half surrogate pairs too
    | st.sampled_from(PIECES)
    | st.sampled_from(WORDS)
    | st.builds(lambda text, end: text[:end], st.sampled_from(PIECES), st.integers(1, 90))
    | st.from_regex(r"[+(]?[0-9]{3}[-. )]{1,2}[0-9]{2,4}[-. ]?[0-9]{4}", fullmatch=True),
    max_size=8,
).map("".join)


@settings(max_examples=300, deadline=None, database=None, derandomize=True)
@given(TEXTS)
def test_any_text_is_redacted_once_and_for_all(text: str) -> None:
    found = find_private(text)
    ends = [0, *(hit.end for hit in found)]
    assert all(end <= hit.start < hit.end for end, hit in zip(ends, found, strict=False))
    once, places = redact(text)
    assert places == found
    assert redact(once) == (once, [])


@pytest.mark.parametrize(
    "text",
    [
        "a" * 200_000, "1 2-3." * 30_000, "a@" * 100_000, "://a:b" * 30_000, "eyJ." * 50_000,
        BEGIN * 7_000, f"{PUTTY}2:" * 500, "password=" * 20_000,
        "AB12" * 50_000, "+1 (2) " * 30_000, "1-212-736-5000 " * 500, "aws key '" * 20_000,
    ],
    ids=lambda text: text[:22],
)  # fmt: skip
@pytest.mark.timeout(20)
def test_a_long_text_is_no_trap(text: str) -> None:
    redact(text)


def test_libraries_are_not_loaded_for_a_text_without_candidates() -> None:
    code = (
        "import sys; from retone.data.private import find_private;"
        "assert find_private('In 1914, or 1918, he wrote: see www.bookofhours.org, p. 12.') == [];"
        "print([m for m in ('detect_secrets', 'phonenumbers', 'stdnum') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
