"""router/contract/text.py: names and titles that other users can read."""

import pytest

from router.contract import text


@pytest.mark.parametrize(
    "given",
    [
        "",
        "Ada",
        "Größe",
        "\u05d0\u200f(1)",
        "\u0645\u06cc\u200c\u062e\u0648",
        "\u2764\u200d\U0001f525",
        "\u2764\ufe0f",
        "a b",
    ],
)
def test_text_of_any_language_is_accepted(given: str) -> None:
    """With its joiners and marks; an empty text is accepted too."""
    text.check("name", given)


@pytest.mark.parametrize(
    "given",
    ["a\nb", "a\tb", "a\0", "\x7f", "a\x85b", "a\u2028b", "a\u2029b", "\u202etxt.exe", "a\u2066b\u2069", "a\u202cb"],
)
def test_text_with_controls_or_overrides_is_refused(given: str) -> None:
    """Also among visible characters."""
    with pytest.raises(ValueError, match="`title`"):
        text.check("title", given)


@pytest.mark.parametrize(
    "given",
    [
        " ",
        "\u00a0\u3000",
        "\u200b",
        "\u200d\ufeff",
        "\u3164",
        "\u2800",
        "\ufe0f",
        "\u115f\u1160",
        "\u00ad",
        "\U000e0041",
    ],
)
def test_text_of_only_invisible_characters_is_refused(given: str) -> None:
    """Spaces, joiners, fillers, blanks, selectors and tags are invisible."""
    with pytest.raises(ValueError, match="visible"):
        text.check("name", given)
