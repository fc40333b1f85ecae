"""Which letters a language is written in, for trimming a vocabulary where there is no text to count in.

The script of a letter is read off its Unicode name ("CYRILLIC SMALL LETTER A"), so the table of Unicode
itself is unicodedata's. Which language uses which script: Unicode CLDR, likely subtags, with the second
script where two are in everyday use. Latin belongs to every language here: units, names, addresses, code.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from tenth.core.errors import unknown

# Scripts by the beginning of their letters' names; letters of any other name count as common to all.
SCRIPTS = (
    "LATIN",
    "GREEK",
    "CYRILLIC",
    "ARMENIAN",
    "GEORGIAN",
    "HEBREW",
    "ARABIC",
    "SYRIAC",
    "THAANA",
    "DEVANAGARI",
    "BENGALI",
    "GURMUKHI",
    "GUJARATI",
    "ORIYA",
    "TAMIL",
    "TELUGU",
    "KANNADA",
    "MALAYALAM",
    "SINHALA",
    "THAI",
    "LAO",
    "TIBETAN",
    "MYANMAR",
    "KHMER",
    "ETHIOPIC",
    "HANGUL",
    "HIRAGANA",
    "KATAKANA",
    "BOPOMOFO",
    "CJK",
    "MONGOLIAN",
    "CHEROKEE",
    "CANADIAN",
    "OL",
    "TIFINAGH",
    "YI",
    "NKO",
    "COPTIC",
    "GOTHIC",
)
_LANGUAGES = {
    "LATIN": "af az bs ca cs cy da de en es et eu fi fo fr ga gd gl ha hr hu id ig is it ku lb lt lv mg ms mt"
    " nb nl nn no pl pt ro rw sk sl so sq sr sv sw tl tr tk uz vi xh yo zu",
    "CYRILLIC": "be bg kk ky mk mn ru sr tg tt uk",
    "GREEK": "el",
    "ARMENIAN": "hy",
    "GEORGIAN": "ka",
    "HEBREW": "he yi",
    "ARABIC": "ar fa ps sd ug ur ckb",
    "DEVANAGARI": "hi mr ne sa",
    "BENGALI": "bn as",
    "GURMUKHI": "pa",
    "GUJARATI": "gu",
    "ORIYA": "or",
    "TAMIL": "ta",
    "TELUGU": "te",
    "KANNADA": "kn",
    "MALAYALAM": "ml",
    "SINHALA": "si",
    "THAI": "th",
    "LAO": "lo",
    "TIBETAN": "bo dz",
    "MYANMAR": "my",
    "KHMER": "km",
    "ETHIOPIC": "am ti",
    "THAANA": "dv",
    "HANGUL": "ko",
    "CJK": "ja ko zh",
    "HIRAGANA": "ja",
    "KATAKANA": "ja",
    "BOPOMOFO": "zh",
}
KNOWN = frozenset(code for codes in _LANGUAGES.values() for code in codes.split())


def scripts(languages: Iterable[str]) -> frozenset[str]:
    """The scripts of languages given as ISO 639 codes, any region left out ("pt-BR" is "pt"); Latin always.

    InputError for a code that is not known.
    """
    allowed = {"LATIN"}
    for language in languages:
        code = language.strip().lower().replace("_", "-").partition("-")[0]
        if code not in KNOWN:
            raise unknown("language", language, KNOWN, "Or give a text of it with --text.")
        allowed |= {script for script, codes in _LANGUAGES.items() if code in codes.split()}
    return frozenset(allowed)


def foreign(text: str, allowed: frozenset[str]) -> bool:
    """Whether a text has letters, and none in the scripts allowed nor in one common to all."""
    letters = [script(c) for c in text if unicodedata.category(c)[0] in "LM"]
    return bool(letters) and all(name and name not in allowed for name in letters)


def script(letter: str) -> str:
    """Of one letter or mark; empty where its name is of none of SCRIPTS."""
    words = unicodedata.name(letter, "").split()
    if words and words[0] in ("FULLWIDTH", "HALFWIDTH"):
        words = words[1:]
    return words[0] if words and words[0] in SCRIPTS else ""
