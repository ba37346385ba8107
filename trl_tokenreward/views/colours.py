"""The colour scale of scores, for pages, notebooks, terminals and figures."""

from collections.abc import Iterable


# Blue and orange stay apart in all common forms of colour blindness. Colour never is the only sign: low
# scores are dotted as well, and edits are lined.
GOOD_RGB = (33, 102, 172)
BAD_RGB = (230, 97, 1)
# A terminal has no opacity: the scale's lighter steps, of a background and of the letters.
GOOD_LIGHT_RGB, GOOD_TEXT_RGB = (146, 197, 222), (67, 147, 195)
BAD_LIGHT_RGB, BAD_TEXT_RGB = (253, 184, 99), (217, 119, 6)
STRONGEST = 0.6  # opacity of the strongest colour: the text on it stays legible on a light and on a dark page
LOW = 0.5  # the share of the scale below 0 from where on a token is dotted


def score_colour(score: float, limit: float) -> str:
    """The CSS colour of a score: blue above 0, orange below, the stronger the nearer to `limit` (or beyond).

    It is laid over the page with an opacity in proportion to the score, so that 0 is the page's own colour.

    Args:
        score (`float`):
            Any finite number.
        limit (`float`):
            The magnitude that gets the strongest colour; above 0.
    """
    return rgba(GOOD_RGB if score > 0 else BAD_RGB, STRONGEST * min(abs(score) / limit, 1.0))


def colour_limit(scores: Iterable[float]) -> float:
    """Where the colours of these scores are strongest: the 98th percentile of their magnitudes, so that single outliers
    do not wash out the rest."""
    magnitudes = sorted(map(abs, scores))
    if not magnitudes or magnitudes[-1] == 0:
        return 1.0
    # Where nearly all scores are 0 the percentile is 0 as well, and the greatest has to do.
    return magnitudes[round(0.98 * (len(magnitudes) - 1))] or magnitudes[-1]


def number(magnitude: float) -> str:
    """With two decimals; below 0.1 with two significant digits."""
    return f"{magnitude:.2f}" if magnitude >= 0.1 else f"{magnitude:.2g}"


def hex_colour(rgb: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*rgb)


def rgba(rgb: tuple[int, int, int], opacity: float) -> str:
    return f"rgba({rgb[0]}, {rgb[1]}, {rgb[2]}, {opacity:.3f})"
