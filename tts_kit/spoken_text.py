"""Written English -> the words that are said: numbers, dates, times, money, units, abbreviations, symbols; and a lexicon."""

import csv
import functools
import itertools
import re
import unicodedata
from collections.abc import Callable, Sequence
from io import StringIO
from pathlib import Path

from tts_kit import io
from tts_kit.errors import KitError

MAX_LEXICON_ROWS, MAX_LEXICON_CHARACTERS = 5_000, 200
MAX_CARDINAL_DIGITS = 9  # longer numbers without separators are read digit by digit, as telephone numbers are
MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
          "December")
TABLES: dict[str, dict[str, str]] = {}
"""Written -> spoken, by kind; a noun with another plural than with s is singular/plural."""
for _kind, _written, _spoken in csv.reader(Path(__file__).with_suffix(".txt").read_text("utf-8").splitlines(),
                                           delimiter="\t", quoting=csv.QUOTE_NONE):
    TABLES.setdefault(_kind, {})[_written] = _spoken
ABBREVIATIONS, FINAL_ABBREVIATIONS, BEFORE_NUMBER, UNITS, CURRENCIES, SCALES, SYMBOLS = TABLES.values()
IN_ADDRESSES = SYMBOLS | {".": "dot", "-": "dash", ":": "colon", "?": "question mark"}
NAMED = r"Chapter|Part|Volume|Book|Act|Scene|Section|Phase|Appendix|World War|Super Bowl|Type|Class|Title"
RULERS = (r"Henry|Louis|Charles|George|Edward|Elizabeth|James|William|Richard|Philip|Peter|Catherine|Frederick|Napoleon|"
          r"Nicholas|Alexander|Pius|Benedict|Leo|Gregory|Innocent|John Paul|Ramses|Christian|Gustav")
ROMAN = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100}
NUMBER = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?(?![\d,]\d)|\d+(?:\.\d+)?"


def to_spoken(text: str, lexicon: Sequence[tuple[str, str]] = (), english: bool = True) -> str:
    """Return the words that are said for an English text in one line; applied again, nothing changes.

    Words of the lexicon go first, those of other languages than English too. 3/5/2024 is read as in the USA, 1010 to 2099
    without a comma as a year."""
    if lexicon:
        pattern, spoken = _lexicon_pattern(tuple(lexicon))
        text = pattern.sub(lambda match: spoken.get(match[0]) or spoken.get(match[0].lower()) or match[0], text)
    if not english:
        return text
    text = re.sub(r"[^\D0-9]", lambda match: str(unicodedata.digit(match[0])), text)  # digits of other scripts
    for pattern, rule in RULES:
        text = re.sub(pattern, rule, text)
    return re.sub(r" +(?=[,.;:!?](?:\s|$))", "", " ".join(text.split()))


def read_lexicon(path: str | Path) -> tuple[tuple[str, str], ...]:
    """Return the rows (word, spoken as) of a CSV file in UTF-8, whose header `word,spoken` may be left out.

    A word in small letters also stands for itself in capitals; one with capitals only for itself as it is written."""
    entries: dict[str, str] = {}
    try:
        rows = [*csv.reader(StringIO(io.read_text(path, f"the lexicon {path}")), strict=True)]
    except csv.Error as error:
        raise KitError(f"the lexicon {path} is not CSV ({error}). Write rows such as: Siobhan,shivawn") from error
    for number, row in enumerate(rows, 1):
        cells = [" ".join(cell.split()) for cell in row]
        if number == 1 and [cell.lower() for cell in cells[:1]] == ["word"]:
            continue
        where = f"the lexicon {path} row {number}"
        if len(cells) != 2 or not all(cells):
            raise KitError(f"{where} is {','.join(row)[:60]!r}; wanted a word and how it is spoken, as in: Siobhan,shivawn")
        word, spoken = cells
        if not (word[0].isalnum() and word[-1].isalnum()) or not any(map(str.isalpha, spoken)) or not "".join(
                cells).isprintable() or max(map(len, cells)) > MAX_LEXICON_CHARACTERS:
            raise KitError(f"{where}: {word[:40]!r} spoken {spoken[:40]!r}; wanted words that begin and end with letters or "
                           f"digits, spoken in letters, of at most {MAX_LEXICON_CHARACTERS} characters.")
        if word in entries:
            raise KitError(f"{where}: {word[:40]!r} stands there twice. Remove one of the rows.")
        entries[word] = spoken
    if not 0 < len(entries) <= MAX_LEXICON_ROWS:
        raise KitError(f"the lexicon {path} holds {len(entries)} words; wanted 1 to {MAX_LEXICON_ROWS}.")
    return tuple(entries.items())


@functools.lru_cache(8)
def _lexicon_pattern(lexicon: tuple[tuple[str, str], ...]) -> tuple[re.Pattern, dict[str, str]]:
    spoken = dict(lexicon)
    words = sorted(spoken, key=len, reverse=True)  # the longest wins
    parts = [f"(?i:{re.escape(word)})" if word == word.lower() else re.escape(word) for word in words]
    return re.compile(rf"(?<!\w)(?:{'|'.join(parts)})(?!\w)"), spoken


@functools.lru_cache(4096)
def _words(digits: str, to: str = "cardinal") -> str:
    import num2words

    words = num2words.num2words(int(digits), to=to)
    return words.replace(",", "").replace("oh-", "oh ")


def _digits(text: str) -> str:
    return " ".join(_words(digit) for digit in text if digit in "0123456789")


def _cardinal(number: str) -> str:
    """Return the words of a number with thousands separators and a decimal point."""
    whole, _, fraction = number.replace(",", "").partition(".")
    by_digit = (len(whole) > 1 and whole[0] == "0") or len(whole) > (15 if "," in number else MAX_CARDINAL_DIGITS)
    return (_digits(whole) if by_digit else _words(whole)) + (f" point {_digits(fraction)}" if fraction else "")


def _number(text: str) -> str:
    """Return the words of a number that stands alone: a year, if it looks like one."""
    return _words(text, "year") if re.fullmatch(r"1[1-9]\d\d|10[1-9]\d|20\d\d", text) else _cardinal(text)


def _counted(number: str, noun: str) -> str:
    """Return a number and its noun, which is `singular`, or `singular/plural and what follows both`."""
    singular, _, plural = noun.partition("/")
    rest = plural.partition(" ")[2] if plural else ""
    word = f"{singular} {rest}".strip() if number == "1" else plural or f"{singular}s"
    return f"{_cardinal(number)} {word}"


def _money(currency: str, number: str, scale: str | None) -> str:
    unit, _, cent = CURRENCIES[currency].partition(", ")
    whole, _, fraction = number.replace(",", "").partition(".")
    if scale:
        return f"{_cardinal(number)} {SCALES.get(scale, scale)} {_counted('2', unit).partition(' ')[2]}"
    if not cent or len(fraction) > 2 or not fraction.strip("0"):
        return _counted(number if fraction.strip("0") else number.partition(".")[0], unit)
    cents = _counted(str(int(fraction.ljust(2, "0"))), cent)
    return cents if whole.strip("0") == "" else f"{_counted(number.partition('.')[0], unit)} and {cents}"


def _date(match: re.Match, year: str | None, month: str, day: str, order: str = "{0} {1}") -> str:
    """Return a date with the month as number or name; the text itself where there is no such day."""
    if month.isdigit():
        name = MONTHS[int(month) - 1] if 1 <= int(month) <= 12 else ""
    else:
        name = next(name for name in MONTHS if name.startswith(month[:3]))
    if not name or not 1 <= int(day) <= 31:
        return match[0]
    spoken_year = f", {_digits(year) if year[0] == '0' else _number(year)}" if year else ""
    return order.format(name, _words(day, "ordinal")) + spoken_year


def _time(match: re.Match) -> str:
    hour, minute, second, half = match.groups()
    words = [_words(hour)]
    if minute and int(minute):
        words.append(("oh " if minute[0] == "0" else "") + _words(minute))
    elif not half and not second:
        words.append("o'clock")
    if second:
        words.append(f"and {_counted(str(int(second)), 'second')}")
    return " ".join(words) + (f" {half[0].lower()} m{_full_stop(match, half)}" if half else "")


def _full_stop(match: re.Match, written: str) -> str:
    """Return the full stop of an abbreviation that also ends the sentence."""
    return "." * (written.endswith(".") and bool(re.match(r"[\"')\]]*(?:\s+[A-Z]|\s*$)", match.string[match.end():])))


def _fraction(match: re.Match) -> str:
    whole, top, bottom = match.groups()
    words = _cardinal(whole) if whole else ""
    if (top, bottom) == ("24", "7"):
        return "twenty-four seven"
    if not 1 < int(bottom) < 100 or not 0 < int(top) < int(bottom):
        return f"{words} " * bool(words) + f"{_cardinal(top)} over {_cardinal(bottom)}"
    part = {"2": "half", "4": "quarter"}.get(bottom) or _words(bottom, "ordinal")
    plural = "halves" if part == "half" else f"{part}s"
    return f"{words} and " * bool(words) + f"{_words(top)} {part if top == '1' else plural}"


def _roman(letters: str) -> str:
    values = [ROMAN[letter] for letter in letters] + [0]
    return str(sum(-one if one < following else one for one, following in itertools.pairwise(values)))


def _address(match: re.Match) -> str:
    text = re.sub(r"^(?:https?://)?(?:www\.)?", "", match[0], flags=re.IGNORECASE)
    end = re.search(r"[.,;:!?)\]'\"/]*$", text).start()
    parts = re.findall(r"[0-9]+|[^\W\d_]+|.", text[:end])
    return " ".join(_cardinal(part) if part[0] in "0123456789" else IN_ADDRESSES.get(part, part)
                    for part in parts) + text[end:].replace("/", "")


def _decade(match: re.Match) -> str:
    digits = match[1]
    words = _words(digits, "year" if len(digits) == 4 else "cardinal")
    return words[:-1] + "ies" if words.endswith("y") else f"{words}s"


def _choice(words: dict[str, str]) -> str:
    return "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))


MONTH = "(" + "|".join(f"{month}|{month[:3]}t?\\." for month in MONTHS) + ")"
HALF = r"([ap]\.m\.|[AP]\.M\.|[ap]m\b|[AP]M\b)"
RULES: tuple[tuple[str, Callable[[re.Match], str] | str], ...] = (
    (r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,5}", _address),
    (r"(?:https?://|\bwww\.)[^\s<>\"]{1,500}", _address),
    (r"(?<![\w.-])(?:[\w-]{1,63}\.){1,5}(?:com|org|net|io|ai|dev|edu|gov|uk|de|fr|eu|us|app)\b(?:/[^\s<>\"]{0,300})?",
     _address),
    (r"(?<!\w)\.NET\b", "dot net"),
    (r"\b([CF])#", r"\1 sharp"),
    (r"\b([A-Za-z])\+\+", r"\1 plus plus"),
    (r"(?<=\w)\.(?=(?:js|py|txt|csv|pdf|md|wav|mp\d|json|exe|zip)\b)", " dot "),
    (r"\bSt\. (?=[A-Z])(?!(?:and|is|in)\b)", "Saint "),
    (rf"(?<![\w.])({_choice(ABBREVIATIONS)})", lambda match: ABBREVIATIONS[match[1]]),
    (rf"(?<![\w.])({_choice(FINAL_ABBREVIATIONS)})",
     lambda match: FINAL_ABBREVIATIONS[match[1]] + _full_stop(match, match[1])),
    (rf"(?<![\w.])({_choice(BEFORE_NUMBER)}) ?(?=\d)", lambda match: f"{BEFORE_NUMBER[match[1]]} "),
    (r"[½¼¾]", lambda match: {"½": " 1/2", "¼": " 1/4", "¾": " 3/4"}[match[0]]),
    (r"(?<![\w/-])(\d{4})-(\d{2})-(\d{2})(?![\w/-])", lambda match: _date(match, *match.groups())),
    (r"(?<![\w/])(\d{1,2})/(\d{1,2})/(\d{4}|\d{2})(?![\w/])", lambda match: _date(match, match[3], match[1], match[2])),
    (rf"\b{MONTH} (\d{{1,2}})(?:st|nd|rd|th)?(?![\w:.]*\d)(?:,? (\d{{4}})\b)?",
     lambda match: _date(match, match[3], match[1], match[2])),
    (rf"(?<![\w.,])(?:[Tt]he )?(\d{{1,2}})(?:st|nd|rd|th)? (?:of )?{MONTH}(?:,? (\d{{4}})\b)?",
     lambda match: _date(match, match[3], match[2], match[1], "the {1} of {0}")),
    (rf"(?<![\w:.,])([01]?\d|2[0-3]):([0-5]\d)(?::([0-5]\d))?(?![\d:])(?: ?{HALF})?", _time),
    (rf"(?<![\w:.,])(\d{{1,2}})()() ?{HALF}", _time),
    (r"(?<![\w-])(?:\+?\d{1,3}[ .-])?(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[ .-]\d{4}(?![\w-])",
     lambda match: ", ".join(filter(None, map(_digits, re.split(r"[^0-9]+", match[0]))))),
    (r"(?<![\w-])(\d{3})-(\d{4})(?![\w-])", lambda match: f"{_digits(match[1])}, {_digits(match[2])}"),
    (r"\+(?=\d{7,})", "plus "),
    (r"(?<![\w.,)])-(?=[$£€¥₹]?\d)", "minus "),
    (rf"([$£€¥₹]|\b(?:USD|EUR|GBP) ?)({NUMBER})(?: ?(thousand|million|billion|trillion|{_choice(SCALES)})\b)?",
     lambda match: _money(match[1].strip(), match[2], match[3])),
    (rf"(?<![\w.,])({NUMBER}) ?([€£]|(?:USD|EUR|GBP)\b)", lambda match: _money(match[2], match[1], None)),
    (r"(?<![\w.,])(\d+)¢", lambda match: _counted(match[1], "cent")),
    (r"\b(?:[vV]ersion |[vV])(\d{1,4}(?:\.\d{1,4}){0,5})\b",
     lambda match: "version " + " point ".join(map(_cardinal, match[1].split(".")))),
    (r"(?<![\w.])\d{1,4}(?:\.\d{1,4}){2,6}(?![\w]|\.\d)", lambda match: " point ".join(map(_cardinal, match[0].split(".")))),
    (r"(?<![\d.,/])(?:(\d{1,4}) )?(\d{1,4})/(\d{1,4})(?![\w/])", _fraction),
    (r"(?<![\w.,-])(\d{1,4}(?:\.\d+)?)-(?=\d{1,4}(?![\d-]))", lambda match: f"{_number(match[1])} to "),
    (rf"(?<![\w.,])({NUMBER})(?:st|nd|rd|th)\b", lambda match: _words(match[1].replace(",", ""), "ordinal")
     if match[1].replace(",", "").isdigit() and len(match[1]) <= 15 else match[0]),
    (r"(?<![\w.,])'?(\d0|1\d{2}0|20\d0)'?s(?!\w)", _decade),
    (rf"(?<![\w.,])({NUMBER}) ?({_choice(UNITS)})(?![\w/°²])", lambda match: _counted(match[1], UNITS[match[2]])),
    (rf"\b({NAMED}) ([IVXL]{{1,7}})\b(?!')", lambda match: f"{match[1]} {_cardinal(_roman(match[2]))}"),
    (rf"\b({RULERS}) ([IVXL]{{2,7}}|[VX])\b(?!')", lambda match: f"{match[1]} the {_words(_roman(match[2]), 'ordinal')}"),
    (r"(?<=[A-Za-z])-(?=\d)", " "),
    (NUMBER, lambda match: f" {_number(match[0])} " if match.string[match.start() - 1:match.start()].isalpha() or
     match.string[match.end():match.end() + 1].isalpha() else _number(match[0])),
    (r"#(?=[A-Za-z])", "hashtag "),
    (rf"[{re.escape(''.join(SYMBOLS))}]", lambda match: f" {SYMBOLS[match[0]]} "),
)
"""Applied in turn; what a rule returns is words, which no later rule changes."""
