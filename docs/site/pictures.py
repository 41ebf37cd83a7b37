"""Take over the screenshots that the tests of the pages left, as the documentation's pictures: `make pictures`.

They are of the real pages on the real server; where its engine is the fake one, the pages say so themselves. A picture
is reduced to a palette, which these flat pages lose nothing by and which makes it three times smaller.
"""

from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
SHOTS = ROOT / "tests" / "pages" / "screenshots"
PICTURES = ROOT / "docs" / "images"
TAKEN = {
    "compare": "chat-compare",
    "console-learning": "console-learning",
    "console-rollout": "console-rollout",
    "console-versions": "console-versions",
}
"""Screenshots and what they are called in the documentation."""


def main() -> None:
    """Take all of them, or say which test has not left its own."""
    missing = [shot for shot in TAKEN if not (SHOTS / f"{shot}.png").is_file()]
    if missing:
        raise SystemExit(f"pictures: no {', '.join(missing)} in {SHOTS}: run make pages-test first")
    PICTURES.mkdir(exist_ok=True)
    for shot, name in TAKEN.items():
        with Image.open(SHOTS / f"{shot}.png") as image:
            image.convert("RGB").quantize(64).save(PICTURES / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
