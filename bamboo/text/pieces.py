"""Long texts in pieces that have the same tokens."""

import re
from collections.abc import Iterator

PIECE, LONGEST = 1 << 12, 1 << 18
BLANK = re.compile(r"[ \t\n\r]")  # to BERT other blanks of ASCII are control characters, which part no words


def pieces(text: str) -> Iterator[str]:
    """Cut a text at blanks into pieces of about 4,096 characters; BERT's tokens of the pieces are those of the text.

    tokenizers keeps some hundred bytes for each character while it encodes, and gets no faster on longer texts. What
    has no blank for 262,144 characters is cut there, if it is in the middle of a word.
    """
    start = 0
    while len(text) - start > PIECE:
        blank = BLANK.search(text, start + PIECE, start + LONGEST)
        end = blank.start() if blank else min(start + LONGEST, len(text))
        yield text[start:end]
        start = end
    yield text[start:]
