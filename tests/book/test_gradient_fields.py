"""The gradient fields: nothing moves by itself; patches and time are the reader's; it prints."""

import re

PAGE = "book/why_sharing_helps.html"
BOX = ".gradient-fields"


def said(tab):
    """Return what the picture says: patches, time and (s, q) of the three learners."""
    text = tab.inner_text(f"{BOX} output")
    patches, time = re.match(r"k = (\d+), time ([\d.e+]+)\.", text).groups()
    places = re.findall(r"s = ([-\d.e+]+), q = ([-\d.e+]+)", text)
    return int(patches), float(time), [tuple(map(float, place)) for place in places]


def test_the_reader_moves_the_time(tab):
    slider = tab.locator(f"{BOX} input")
    slider.press("Home")
    _, time, places = said(tab)
    assert time == 0
    assert len(set(places)) == 1  # all learners start at one place
    slider.press("ArrowRight")
    assert said(tab)[1] > 0
    slider.press("End")
    shared, rows, _ = said(tab)[2]
    assert shared == rows == (1, 1)


def test_the_reader_chooses_the_patches(tab):
    buttons = tab.locator(f"{BOX} button[data-k]")
    stuck = {}
    for button in buttons.all():
        button.press("Enter")
        assert button.get_attribute("aria-pressed") == "true"
        assert tab.locator(f"{BOX} button[aria-pressed=true]").count() == 1
        patches, _, (shared, _, free) = said(tab)
        assert str(patches) == button.get_attribute("data-k")
        assert shared == (1, 1)
        stuck[patches] = free[1] < 0.5
    assert not stuck[2]
    assert stuck[14]


def test_each_number_of_patches_has_its_own_field(tab):
    def shades():
        return [tile.get_attribute("opacity") for tile in tab.locator(f"{BOX} .tiles rect").all()]

    before = shades()
    tab.locator(f"{BOX} button[data-k='2']").click()
    assert shades() != before
    tab.locator(f"{BOX} button[data-k='10']").click()
    assert shades() == before  # the state drawn without a script


def test_it_plays_and_pauses(tab):
    play = tab.locator(f"{BOX} .play")
    started = said(tab)[1]
    tab.wait_for_timeout(500)
    assert said(tab)[1] == started  # nothing moves by itself
    play.press("Enter")
    assert play.inner_text() == "Pause"
    tab.wait_for_timeout(1500)
    play.press("Enter")
    assert play.inner_text() == "Play"
    paused = said(tab)[1]
    tab.wait_for_timeout(1200)
    assert said(tab)[1] == paused > started


def test_print_and_no_script_show_the_still(browser, address, tab):
    assert tab.locator(f"{BOX} .controls").is_visible()
    tab.emulate_media(media="print")
    assert tab.locator(f"{BOX} svg").is_visible()
    assert not tab.locator(f"{BOX} .controls").is_visible()
    with browser.new_context(java_script_enabled=False) as context:
        still = context.new_page()
        still.goto(f"{address}/{PAGE}", wait_until="load")
        assert still.locator(f"{BOX} svg").is_visible()
        assert not still.locator(f"{BOX} .controls").is_visible()
