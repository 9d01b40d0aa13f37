"""Secrets and personal data in a text: where they stand, and the text without them.

Most texts hold neither, so each search begins with a test that takes microseconds; only what
passes it is looked at by patterns, and only what fits a pattern by libraries, which are imported
then: detect-secrets (its patterns of single services, neither its file scanner nor a question to
a server), python-stdnum (check digits) and phonenumbers (numbering plans).

What documentation makes up is no finding: bob@example.com, 555-0199, the test numbers of card
issuers, keys with EXAMPLE in them. Some things are not looked for, because what was found on public
data was false: IPv4 addresses (they were versions of programs), short passwords in quotes (they
were invented for the row), strings of high entropy.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from importlib import import_module
from typing import Any, NamedTuple


class Private(NamedTuple):
    """A piece of a text that should not be trained on.

    Attributes:
        start, end: its characters are text[start:end].
        kind: what it is, such as "AWS key" or "IBAN".
        code: "secret" or "personal-data", as in `findings.CHECKS`.
    """

    start: int
    end: int
    kind: str
    code: str


def find_private(text: str) -> list[Private]:
    """The secrets and the personal data in `text`, in order; no two overlap."""
    found: list[Private] = []
    # What was found is covered before the search goes on, so that nothing is found in it twice and
    # what stands beside it is seen as it will be beside its label.
    while hits := next(filter(None, (_apart(search(text)) for search in _SEARCHES)), []):
        found += hits
        text = _replaced(text, hits, _covered)
    return sorted(found)


def redact(text: str) -> tuple[str, list[Private]]:
    """`text` with a label such as [IBAN] in each place of `find_private`, and these places."""
    found = find_private(text)
    return _replaced(text, found, label), found


def veiled(text: str) -> str:
    """`text` with a star for each character of what is private; as long as it was."""
    return _replaced(text, find_private(text), lambda hit: "*" * (hit.end - hit.start))


def _apart(hits: Iterable[Private]) -> list[Private]:
    """The hits in order, without those that begin inside another."""
    kept: list[Private] = []
    for hit in sorted(hits, key=lambda hit: (hit.start, -hit.end)):
        if not kept or hit.start >= kept[-1].end:
            kept.append(hit)
    return kept


def _replaced(text: str, hits: Iterable[Private], by: Callable[[Private], str]) -> str:
    pieces, end = [], 0
    for hit in hits:
        pieces += [text[end : hit.start], by(hit)]
        end = hit.end
    return "".join([*pieces, text[end:]])


def label(hit: Private) -> str:
    return f"[{hit.kind.upper()}]"


def _covered(hit: Private) -> str:
    return "]" * (hit.end - hit.start)  # patterns see it as they see a label


# ---------------------------------------------------------------------------------------- secrets

_TOKEN = 20  # characters; no key of a service is shorter
_TOKEN_CHARACTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-+/="
_TOKENS = bytes(ord("a") if byte in _TOKEN_CHARACTERS else ord(" ") for byte in range(256))


class _Secret(NamedTuple):
    """How one kind of secret is found.

    Attributes:
        kind: its name.
        signs: a text without any of these holds none.
        finder: a pattern, or a plugin of detect-secrets as "module.Class".
        group: of the pattern: what is hidden; 0 is all of it.
    """

    kind: str
    signs: tuple[str, ...]
    finder: str | re.Pattern[str]
    group: int = 0


# Shapes of keys that detect-secrets 1.5 lacks or reads too narrowly are those of gitleaks 8
# (github.com/gitleaks/gitleaks, config/gitleaks.toml), without the exact lengths that change.
_SECRETS = (
    _Secret("AWS key", ("AKIA", "ASIA", "ABIA", "ACCA", "A3T", "aws", "AWS"),
            "aws.AWSKeyDetector", group=1),
    _Secret("Azure storage key", ("AccountKey=",), "azure_storage_key.AzureStorageKeyDetector"),
    _Secret("GitHub token", ("ghp_", "gho_", "ghu_", "ghs_", "ghr_"),
            "github_token.GitHubTokenDetector"),
    _Secret("GitHub token", ("github_pat_",), re.compile(r"github_pat_\w{60,}", re.ASCII)),
    _Secret("GitLab token", ("gl", "GR1348941"), "gitlab_token.GitLabTokenDetector"),
    _Secret("JSON web token", ("eyJ",), "jwt.JwtTokenDetector"),
    _Secret("OpenAI key", ("T3BlbkFJ",), "openai.OpenAIDetector"),
    _Secret("OpenAI key", ("sk-proj-", "sk-svcacct-", "sk-admin-"),
            re.compile(r"sk-(?:proj|svcacct|admin)-[\w-]{40,}", re.ASCII)),
    _Secret("Anthropic key", ("sk-ant-",),
            re.compile(r"sk-ant-[a-z]{3,5}\d\d-[\w-]{80,}", re.ASCII)),
    _Secret("Hugging Face token", ("hf_", "api_org_"),
            re.compile(r"(?:hf_|api_org_)[A-Za-z0-9]{34}")),
    _Secret("Google key", ("AIza",), re.compile(r"AIza[\w-]{35}", re.ASCII)),
    _Secret("npm token", ("npm_",), re.compile(r"npm_[A-Za-z0-9]{36}")),
    _Secret("npm token", (":_authToken=",), re.compile(r":_authToken=([A-Fa-f0-9-]{36})"), group=1),
    _Secret("PyPI token", ("pypi-Ag",), "pypi_token.PypiTokenDetector"),
    _Secret("Slack token", ("xox", "hooks.slack.com"), "slack.SlackDetector"),
    _Secret("Stripe key", ("k_live_",), "stripe.StripeDetector"),
    _Secret("SendGrid key", ("SG.",), "sendgrid.SendGridDetector"),
    _Secret("Twilio key", ("AC", "SK"), "twilio.TwilioKeyDetector"),
    _Secret("Telegram token", (":A",), "telegram_token.TelegramBotTokenDetector"),
    _Secret("Discord token", (".",), "discord.DiscordBotTokenDetector"),
    # A long value given to a name that says secret, with letters and digits as generated ones have.
    # The names are those of detect-secrets' keyword detector, which takes any value.
    _Secret(
        "generated password",
        ("key", "KEY", "Key", "pass", "PASS", "Pass", "pwd", "PWD", "secret", "SECRET", "Secret",
         "token", "TOKEN", "Token"),
        re.compile(
            r"(?:passw(?:or)?d|pwd|secret|(?:api|auth|access|account|client|service|private)_?key"
            r"|(?:api|auth|access)_?token)\w{0,40}+(?:[\"']\]?)?\s{0,3}(?::=|=>|[:=])\s{0,3}[\"'`]?"
            r"((?=[a-z+/]*\d[a-z+/]*\d)(?=[\d+/]*[a-z])[a-z0-9+/]{20,}={0,2})(?![\w(.-])",
            re.IGNORECASE | re.ASCII,
        ),
        group=1,
    ),
)  # fmt: skip
# These are not recognised by a long token.
_PASSWORD_IN_URL = _Secret(
    "password in a URL",
    ("://",),
    # detect-secrets' own forbids signs such as ! and $, which RFC 3986 (3.2.1) allows
    re.compile(r"://[^\s:/?#\[\]@\"'<>]+:([^\s:/?#\[\]@\"'<>]+)@"),
    group=1,
)
_KEY_BLOCK = _Secret(
    "private key",
    ("PRIVATE KEY", "PuTTY-User-Key-File-"),
    re.compile(
        r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----[^-]*+(?:-(?!----)[^-]*+)*+"
        r"-----END [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----"
        # cut off before its end
        r"|-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----(?:(?:\s|\\[nr])*[A-Za-z0-9+/=]{40,})+"
        r"(?:(?:\s|\\[nr])*[A-Za-z0-9+/=]+(?=\s*\Z|\.\.\.))?"
        r"|PuTTY-User-Key-File-\d:[^\0]{0,20000}?Private-MAC: [0-9a-f]+"
    ),
)
_KEY_BODY = re.compile(r"[A-Za-z0-9+/]{40}")
_LABEL_END = re.compile(r"[^\"']\]")
_TOKEN_END = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")
# Written where a secret would stand; the last is the token that jwt.io shows.
_NO_SECRET = re.compile(
    r"example|sample|dummy|placeholder|redacted|your|[_-](?:my|the|some)[_-]|x{5}|(.)\1{7}"
    r"|abcdefghij|1234567890|0123456789|eyJzdWIiOiIxMjM0NTY3ODkwIiwibmFtZSI6IkpvaG4gRG9l",
    re.IGNORECASE,
)
# A password or the name in an address that is only a word for one.
_PLACEHOLDER = re.compile(
    r"[<{$%*\[].*|\W+|(?:my|your|the|db)?[_-]?(?:pass(?:word|wd|phrase)?|pwd?|secret|token|key|test"
    r"|root|admin|guest|postgres|mysql|user(?:name)?|x+|[*.]+)[\d_-]*",
    re.IGNORECASE,
)


def _secrets(text: str) -> Iterator[Private]:
    if b"a" * _TOKEN in text.encode("utf-8", "surrogatepass").translate(_TOKENS):
        for secret in _SECRETS:
            for start, end in _places(secret, text):
                if not _NO_SECRET.search(text[start:end]):
                    yield Private(start, end, secret.kind, "secret")
    for start, end in _places(_KEY_BLOCK, text):
        if _KEY_BODY.search(text, start, end):
            yield Private(start, end, _KEY_BLOCK.kind, "secret")
    for start, end in _places(_PASSWORD_IN_URL, text):
        password = text[start:end]
        if not _PLACEHOLDER.fullmatch(password) and not _NO_SECRET.search(password):
            yield Private(start, end, _PASSWORD_IN_URL.kind, "secret")


def _places(secret: _Secret, text: str) -> Iterator[tuple[int, int]]:
    """Where a finder matches, to the end of the token: some patterns stop at a fixed length."""
    if not any(sign in text for sign in secret.signs):
        return
    if isinstance(secret.finder, re.Pattern):
        matches = secret.finder.finditer(text)
    else:
        matches = _plugin_matches(_plugin(secret.finder), text)
    for match in matches:
        start, end = match.span(min(secret.group, match.re.groups))
        if start and text[start - 1].isalnum():
            continue  # the end of something longer
        if not _LABEL_END.search(text, match.start(), start):  # "[AWS KEY]" names no other key
            while end < len(text) and text[end] in _TOKEN_END:
                end += 1
            yield start, end


def _plugin_matches(plugin: Any, text: str) -> Iterator[re.Match[str]]:
    for pattern in plugin.denylist:
        for match in pattern.finditer(text):
            if any(plugin.analyze_string(match[0])):  # a JSON web token must hold JSON
                yield match


@lru_cache
def _plugin(name: str) -> Any:
    module, _, class_ = name.partition(".")
    return getattr(import_module(f"detect_secrets.plugins.{module}"), class_)()


# ------------------------------------------------------------------------------- e-mail addresses

_E_MAIL = re.compile(
    r"(?<![\w.+%@/-])([\w.+%-]{1,64})@((?:[\w-]{1,63}\.){1,8})([^\W\d_]{2,24})(?![\w@(-])"
)
# Not a person's: senders that nobody reads, and what is written where a name is to be filled in.
_NOBODY = re.compile(
    r"(?:no|do[._-]?not)[._-]?reply|mailer-daemon|postmaster|git|hg|e?mail|name"
    r"|your[\w.-]*|my[._-]?(?:e?mail|name|address|user\w*)|(?:first|full)[._-]?name.*"
    r"|some(?:one|body)|j(?:ohn|ane)[._-]?doe.*",
    re.IGNORECASE,
)
# Reserved for documentation and tests (RFC 2606, RFC 6761), and what is used in their place.
_NOWHERE = re.compile(
    r".*\b(?:example|test|invalid|localhost|local)"
    r"|(?:.*\.)?(?:\w*(?:example|sample)[\w-]*|your[\w-]*|(?:my)?-?(?:test|e-?mail|domain|company"
    r"|website|site|server|host|business|organi[sz]ation|school|university|abc|xyz|acme|foo|bar"
    r"|contoso|fabrikam))\.[a-z.]{2,6}",
    re.IGNORECASE,
)


def _e_mails(text: str) -> Iterator[Private]:
    if "@" not in text:
        return
    for match in _E_MAIL.finditer(text):
        name, host = match[1], match[2] + match[3]
        nobody = _NOBODY.fullmatch(name) or _PLACEHOLDER.fullmatch(name)
        if not nobody and not _NOWHERE.fullmatch(host):
            yield Private(*match.span(), "e-mail address", "personal-data")


# ---------------------------------------------------------------------------------------- numbers

_DIGITS = 9  # in a number that identifies somebody, at least
_NUMERALS = bytes(ord("0") if chr(byte) in "0123456789" else ord(" ") for byte in range(256))
_BETWEEN_DIGITS = b" -.()/"
# Six digits that rise, fall or stay: nobody's number, such as 123-456-7890 or 4111 1111 1111 1111.
_INVENTED = re.compile(
    "|".join(
        [r"(\d)\1{5}"]
        + ["0123456789012345"[first : first + 6] for first in range(10)]
        + ["9876543210987654"[first : first + 6] for first in range(10)]
    )
)
# Test cards of Stripe and PayPal that are not seen to be invented, and examples of IBANs in
# SWIFT's registry.
_EXAMPLES = frozenset(
    """
    4242424242424242 4000056655665556 5200828282828210 371449635398431 6011000990139424
    3566002020360505 5105105105105100 378282246310005 3530111333300000
    DE89370400440532013000 GB29NWBK60161331926819 GB82WEST12345698765432 BE68539007547034
    FR1420041010050500013M02606 NL91ABNA0417164300 ES9121000418450200051332
    IT60X0542811101000000123456 CH9300762011623852957 AT611904300234573201
    """.split()  # noqa: SIM905
)
_IBAN = re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)")
# Kind, shape, module of python-stdnum that knows the check digits. The shapes keep the signs
# between groups where a bare row of digits could be anything. The first digits of cards are those
# of Visa, Mastercard, Discover, JCB and American Express (ISO/IEC 7812).
_NUMBERS = (
    ("credit card number",
     r"(?:4\d{3}|5[1-5]\d\d|2[2-7]\d\d|6011|64[4-9]\d|65\d\d|35\d\d)([ -]?)\d{4}\1\d{4}\1\d{4}"
     r"|3[47]\d\d([ -]?)\d{6}\2\d{5}", "luhn"),
    ("US social security number", r"\d{3}-\d\d-\d{4}", "us.ssn"),
    ("Brazilian CPF", r"\d{3}\.\d{3}\.\d{3}-\d\d", "br.cpf"),
    ("French NIR", r"[12]( ?)\d\d\1(?:0[1-9]|1[0-2])\1\d[\dAB]\1\d{3}\1\d{3}\1\d\d", "fr.nir"),
    ("Swedish personal number", r"\d\d[01]\d[0-3]\d[-+]\d{4}", "se.personnummer"),
)  # fmt: skip
_NUMBER_PATTERNS = tuple(
    (kind, re.compile(rf"(?<![\w.,+-])(?:{shape})(?![\w-]|[.,]\d)", re.ASCII), module)
    for kind, shape, module in _NUMBERS
)
# Candidates for phone numbers, and the countries in which they are read. Without a country code
# only those are taken that are written as in North America or follow a word such as "Tel.".
_PHONES = (
    (re.compile(r"(?<![\w+])(\+\d[\d ().\-/]{6,20}\d)(?!\w)"), (None,)),
    (re.compile(r"(?<![\w.,+-])((?:1[ -.])?(?:\(\d{3}\) ?|\d{3}[-.])\d{3}[-.]\d{4})(?![\w-])"),
     ("US",)),
    (re.compile(
        r"(?:phone|fax|mobile?|whatsapp|handy|(?<![^\W_])(?:tel|cell))[\w.]{0,6}[^\d\n\[\]]{0,15}"
        r"(?<!\w)(\(?0\d[\d ()./-]{6,16}\d)(?!\w)", re.IGNORECASE),
     ("GB", "DE", "FR", "IT", "AU", "JP", "IN")),
)  # fmt: skip
# Kept free for fiction: the North American exchange 555, and Ofcom's numbers for radio and drama.
_FICTION = re.compile(
    r"\+1\d{3}555\d{4}"
    r"|\+44(?:1[1-6]\d4960\d{3}|1914980\d{3}|2079460\d{3}|2896496\d{3}|2920180\d{3}|1632960\d{3}"
    r"|7700900\d{3}|8081570\d{3}|9098790\d{3}|3069990\d{3})"
)


def _numbers(text: str) -> Iterator[Private]:
    numerals = text.encode("utf-8", "surrogatepass").translate(_NUMERALS, _BETWEEN_DIGITS)
    if b"0" * _DIGITS not in numerals:
        return
    for start, end in _ibans(text):
        yield Private(start, end, "IBAN", "personal-data")
    for kind, pattern, module in _NUMBER_PATTERNS:
        for match in pattern.finditer(text):
            number = re.sub(r"[ .-]", "", match[0])
            invented = number in _EXAMPLES or _INVENTED.search(number)
            if not invented and _has_check_digits(number, module):
                yield Private(*match.span(), kind, "personal-data")
    for start, end in _phones(text):
        yield Private(start, end, "phone number", "personal-data")


def _has_check_digits(number: str, module: str) -> bool:
    return bool(import_module(f"stdnum.{module}").is_valid(number))


def _ibans(text: str) -> Iterator[tuple[int, int]]:
    for match in _IBAN.finditer(text):
        number = match[0]
        while number and not _has_check_digits(
            number, "iban"
        ):  # a word in capitals or a year may follow
            number = number.rpartition(" ")[0]
        if number and number.replace(" ", "") not in _EXAMPLES:
            yield match.start(), match.start() + len(number)


def _phones(text: str) -> Iterator[tuple[int, int]]:
    for pattern, regions in _PHONES:
        for match in pattern.finditer(text):
            for region in regions:
                yield from _phones_of(match[1], region, match.start(1))


def _phones_of(candidate: str, region: str | None, offset: int) -> Iterator[tuple[int, int]]:
    """Places of numbers that a person may have: those of hotlines are everybody's."""
    import phonenumbers as plans

    types = plans.PhoneNumberType
    personal = (types.FIXED_LINE, types.MOBILE, types.FIXED_LINE_OR_MOBILE, types.VOIP, types.PAGER,
                types.PERSONAL_NUMBER)  # fmt: skip
    for found in plans.PhoneNumberMatcher(candidate, region, leniency=plans.Leniency.VALID):
        number = plans.format_number(found.number, plans.PhoneNumberFormat.E164)
        if plans.number_type(found.number) in personal and not (
            _INVENTED.search(number) or _FICTION.fullmatch(number)
        ):
            yield offset + found.start, offset + found.end


_SEARCHES = (_secrets, _e_mails, _numbers)  # a password in a URL is not the name in an address
