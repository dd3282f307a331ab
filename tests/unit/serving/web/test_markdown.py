"""What of an answer the web page may read as HTML: nothing."""

import pytest

from mindformers_glm.serving.web.markdown import escape_html


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("1 < 2 and <b>", "1 &lt; 2 and &lt;b>"),
        ("`a<b` and ``a`<b`` <i>", "`a<b` and ``a`<b`` &lt;i>"),
        ("```\n<a>\n```\n<b>", "```\n<a>\n```\n&lt;b>"),
        ("~~~~\n<a>\n~~~\n<b>", "~~~~\n<a>\n~~~\n<b>"),
        ("x\n```cpp\nvector<int>", "x\n```cpp\nvector<int>"),
        ("$$a<b$$ \\(a<b\\) \\[a<b\\] <", "$$a< b$$ \\(a< b\\) \\[a< b\\] &lt;"),
        ("one ` is < no code", "one ` is &lt; no code"),
        ("a\n\n    <b>\n    <i>\n\nend <b>", "a\n\n    <b>\n    <i>\n\nend &lt;b>"),
        ("a\n    <b>", "a\n    &lt;b>"),
        ("- a\n\n    <b>", "- a\n\n    &lt;b>"),
        ("- a\n  ```\n  <b>\n  ```\n  <i>", "- a\n  ```\n  <b>\n  ```\n  &lt;i>"),
        ("1. ```\n   <b>\n<i>", "1. ```\n   <b>\n&lt;i>"),
        ("> ```\n> <b>\n>\n> <b>\n<i>", "> ```\n> <b>\n>\n> <b>\n&lt;i>"),
        ("a\n        ```\n<b>", "a\n        ```\n&lt;b>"),
        ("```a`<b>\n<i>", "```a`&lt;b>\n&lt;i>"),
        ("`one\n\n<b>\n\ntwo`", "`one\n\n&lt;b>\n\ntwo`"),
        ("a `` b ` <b> ` c", "a `` b ` <b> ` c"),
        ("\\`<b>\\`", "\\`&lt;b>\\`"),
        ("http://x/`<b>` [y](`) <b> `", "http://x/`&lt;b>` [y](`) &lt;b> `"),
        ("$$<b>$$ \\(</b>\\) \\[1<2\\]", "$$< b>$$ \\(< /b>\\) \\[1<2\\]"),
        ("", ""),
    ],
)
def test_tags_are_spelt_outside_code_and_formulas(text: str, shown: str) -> None:
    assert escape_html(text) == shown
