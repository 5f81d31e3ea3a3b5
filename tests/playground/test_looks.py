"""Can everybody use it: contrast, keyboard, names for screen readers, small screens, little motion."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from tabs import Playground

from soak.servers import Server

Make = Callable[..., Playground]
Colour = tuple[float, float, float]

PROMPTS = ("three penguins in the snow", "a rocket above a house in space", "a blue teapot and a yellow cup")
ROLES = {"button", "link", "textbox", "combobox", "radio", "radiogroup", "list", "DisclosureTriangle"}
SCREENS = {"desktop": (1280, 860), "tablet": (820, 1180), "phone": (390, 844)}

TEXTS = """
[...document.querySelectorAll("body *")].flatMap((item) => {
  const own = [...item.childNodes].some((node) => node.nodeType === 3 && node.data.trim() !== "");
  const field = item.matches("input:not([type=radio]), select, textarea");
  if (!(own || field) || item.closest("#marks, #heard, noscript") || !item.checkVisibility()) return [];
  const grounds = [];
  for (let at = item; at; at = at.parentElement) grounds.push(getComputedStyle(at).backgroundColor);
  const { color, fontSize, fontWeight } = getComputedStyle(item);
  return [{ text: item.id || item.textContent.trim().slice(0, 30), color, grounds,
            size: parseFloat(fontSize), weight: Number(fontWeight), disabled: item.disabled === true }];
})
"""
EDGES = """
["#writing", "#seed", "#lock", "#copy-code", "#size", ".choice span"].map((selector) => {
  const item = document.querySelector(selector);
  const holder = selector === "#seed" ? item.parentElement : item;
  const grounds = [];
  for (let at = holder.parentElement; at; at = at.parentElement)
    grounds.push(getComputedStyle(at).backgroundColor);
  return { text: selector, color: getComputedStyle(holder).borderTopColor, grounds };
})
"""
NAME = """((item) =>
  item.closest("#stage, #examples, #history")?.id || item.closest(".chips")?.getAttribute("aria-label") ||
  item.name || item.id || item.textContent.trim() || item.localName)
"""
STOPS = f"""
[...document.querySelectorAll("a, button, input, select, textarea, summary, pre")]
  .filter((item) => item.checkVisibility() && !item.disabled).map({NAME})
"""
FOCUS = f"{NAME}(document.activeElement)"


def parse(color: str) -> tuple[Colour, float]:
    """Red, green, blue from 0 to 1, and opacity."""
    numbers = [float(number) for number in re.findall(r"[\d.]+", color)]
    red, green, blue = (value / 255 for value in numbers[:3])
    return (red, green, blue), numbers[3] if len(numbers) > 3 else 1.0


def flatten(color: str, grounds: list[str]) -> tuple[Colour, Colour]:
    """A colour and its background as they are seen, the nearest background first."""
    ground: Colour = (1.0, 1.0, 1.0)
    for each in reversed(grounds):
        ground = blend(*parse(each), ground)
    return blend(*parse(color), ground), ground


def blend(color: Colour, opacity: float, ground: Colour) -> Colour:
    red, green, blue = (opacity * c + (1 - opacity) * g for c, g in zip(color, ground, strict=True))
    return red, green, blue


def contrast(one: Colour, other: Colour) -> float:
    """The ratio of WCAG 2.2 (relative luminance of sRGB), 1 to 21."""
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def luminance(color: Colour) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def needed(text: dict[str, Any]) -> float:
    """AA: 4.5, and 3 for large text."""
    large = text["size"] >= 24 or (text["size"] >= 18.66 and text["weight"] >= 700)
    return 3.0 if large else 4.5


def full(playground: Playground) -> Playground:
    """The page with everything on it that may be seen."""
    playground.open()
    playground.page.check("[name=n][value='2']")
    playground.page.fill("#prompt", "a red palace")
    playground.wait_for_picture(prompt="a red palace", tile=1)
    playground.until(lambda: playground.page.locator("#history button").count() > 0)
    for summary in playground.page.locator("summary").all():
        summary.click()
    return playground


def test_the_formula_of_contrast() -> None:
    assert contrast((0, 0, 0), (1, 1, 1)) == pytest.approx(21)
    assert contrast(parse("rgb(118, 118, 118)")[0], (1, 1, 1)) == pytest.approx(4.54, abs=0.01)
    assert flatten("rgba(0, 0, 0, 0.5)", ["rgba(0, 0, 0, 0)", "rgb(255, 255, 255)"])[0] == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(scheme: str, make_playground: Make, miniature: Server) -> None:
    page = full(make_playground(miniature, color_scheme=scheme))
    page.page.evaluate("document.getElementById('problem').textContent = 'Something went wrong.'")
    page.page.fill("#seed", "-1")
    page.page.evaluate("document.getElementById('access').hidden = false")
    texts = page.page.evaluate(TEXTS)
    assert len(texts) > 60
    assert {"problem", "note", "key"} <= {text["text"] for text in texts}
    faint = {text["text"]: contrast(*flatten(text["color"], text["grounds"])) for text in texts}
    assert {t["text"]: faint[t["text"]] for t in texts if faint[t["text"]] < needed(t)} == {}
    edges = page.page.evaluate(EDGES)
    ratios = {edge["text"]: contrast(*flatten(edge["color"], edge["grounds"])) for edge in edges}
    assert {name: ratio for name, ratio in ratios.items() if ratio < 3} == {}


def test_every_control_is_reached_by_keyboard_and_shows_it(make_playground: Make, miniature: Server) -> None:
    page = full(make_playground(miniature))
    expected = set(page.page.evaluate(STOPS))
    assert {"prompt", "seed", "n", "size", "language", "stage", "history", "download"} <= expected
    page.page.evaluate("document.activeElement.blur()")
    reached = set()
    for _ in range(len(expected) + 12):
        page.page.keyboard.press("Tab")
        reached.add(page.page.evaluate(FOCUS))
        assert page.page.evaluate("document.activeElement.matches(':focus-visible, body')")
    assert expected - reached == set()


def test_every_control_has_a_name(make_playground: Make, miniature: Server) -> None:
    page = full(make_playground(miniature))
    tree = page.page.context.new_cdp_session(page.page).send("Accessibility.getFullAXTree")
    controls = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in tree["nodes"]
        if not node["ignored"] and node["role"]["value"] in ROLES
    ]
    assert len(controls) > 60
    assert [role for role, name in controls if not name] == []
    assert {
        ("textbox", "Type what you want to see"),
        ("button", "Previous seed"),
        ("button", "a red palace, seed 7"),
        ("combobox", "Size"),
    } <= set(controls)


def test_screen_readers_hear_what_matters_and_no_more(make_playground: Make, miniature: Server) -> None:
    page = make_playground(miniature).open()
    page.page.evaluate("""
      window.heard = [];
      for (const region of document.querySelectorAll("[role=status], [role=alert]"))
        new MutationObserver(() => heard.push(region.textContent)).observe(region, { childList: true });
    """)
    page.type("a blue palace on a beach", delay=60)
    page.until(lambda: "Picture of a blue palace on a beach" in " ".join(page.page.evaluate("heard")))
    heard = page.page.evaluate("heard.filter(Boolean)")
    assert heard.count("This model was never taught: palace (castle instead)") == 1
    assert len([text for text in heard if text.startswith("Picture of")]) == 1


@pytest.mark.parametrize("width", [320, 390, 820, 1920])
def test_nothing_sticks_out_of_the_screen(width: int, make_playground: Make, miniature: Server) -> None:
    page = full(make_playground(miniature, viewport={"width": width, "height": 800}))
    page.page.fill("#prompt", "a very long prompt " * 20 + "w" * 200)
    assert page.page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.page.evaluate("document.getElementById('prompt').scrollHeight") <= 2 + page.page.evaluate(
        "document.getElementById('prompt').clientHeight"
    )


def test_little_motion_where_that_is_asked_for(make_playground: Make, miniature: Server) -> None:
    page = make_playground(miniature, reduced_motion="reduce").open()
    page.page.evaluate("document.body.dataset.state = 'warming'")
    assert page.page.evaluate("document.getAnimations().length") == 0
    calm = make_playground(miniature).open()
    calm.page.evaluate("document.body.dataset.state = 'warming'")
    assert calm.page.evaluate("document.getAnimations().length") == 1


def test_what_belongs_together_stands_on_one_line(make_playground: Make, miniature: Server) -> None:
    page = make_playground(miniature).open()
    for row in ("#previous, #following, #lock, #copy, #share", "#language, #copy-code", "h1, #state"):
        boxes = [item.bounding_box() for item in page.page.locator(row).all()]
        middles = [box["y"] + box["height"] / 2 for box in boxes if box]
        assert len(middles) == len(boxes) > 1
        assert max(middles) - min(middles) < 2, row


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", SCREENS)
def test_what_it_looks_like(screen: str, scheme: str, make_playground: Make, miniature: Server) -> None:
    width, height = SCREENS[screen]
    page = make_playground(miniature, viewport={"width": width, "height": height}, color_scheme=scheme).open()
    for prompt in PROMPTS:
        page.type(prompt)
        page.wait_for_picture(prompt=prompt)
        page.until(lambda: page.page.get_attribute("#history button", "title").startswith(prompt))  # noqa: B023
    page.screenshot(f"{screen}-{scheme}")
    assert page.errors == []
