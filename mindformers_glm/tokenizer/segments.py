"""A conversation as the parts it is tokenized in: special tokens by name, and text."""

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class SpecialToken:
    """One special token of the vocabulary, by its name (`<|user|>`, `[gMASK]`, `sop`)."""

    name: str


# A text is tokenized on its own, and what looks like a special token in it is only text. Where two
# texts are cut decides their ids, so a chat format joins those that its model saw as one piece:
#   ChatGLM3   <|user|> "\n" "你好"  ->  64795 | 30910 13 | 36474 54591   role line and text apart
#   one piece  <|user|> "\n你好"     ->  64795 | 30910 13 39701           other ids
Segment: TypeAlias = SpecialToken | str
