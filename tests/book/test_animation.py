"""The animation starts still, plays and pauses at the reader's word, and prints as the still."""

import re

PAGE = "book/sticky_particles.html"
BOX = ".moving-particles"


def time(tab):
    """Return the time that the animation shows."""
    return float(re.search(r"time ([\d.]+)", tab.inner_text(f"{BOX} output"))[1])


def test_it_plays_and_pauses(tab):
    play = tab.locator(f"{BOX} button.play")
    tab.wait_for_timeout(500)
    assert time(tab) == 0  # the poster: nothing moves by itself
    play.press("Enter")
    assert play.inner_text() == "Pause"
    tab.wait_for_function(f"!document.querySelector('{BOX} output').innerText.includes('0.000')")
    play.press("Enter")
    assert play.inner_text() == "Play"
    paused = time(tab)
    tab.wait_for_timeout(1500)
    assert time(tab) == paused > 0


def test_the_reader_moves_the_time(tab):
    slider = tab.locator(f"{BOX} input")
    slider.press("End")
    assert time(tab) == 1
    slider.press("Home")
    assert time(tab) == 0
    tab.locator(f"{BOX} button.next").click()
    assert 0 < time(tab) < 1
    dots = tab.locator(f"{BOX} circle")
    assert dots.count() > 2
    assert len({dot.get_attribute("cy") for dot in dots.all()}) == 1


def test_print_shows_the_still(tab):
    assert tab.locator(f"{BOX} .controls").is_visible()
    tab.emulate_media(media="print")
    assert tab.locator(f"{BOX} svg").is_visible()
    assert not tab.locator(f"{BOX} .controls").is_visible()


def test_without_a_script_there_is_the_still(browser, address):
    with browser.new_context(java_script_enabled=False) as context:
        tab = context.new_page()
        tab.goto(f"{address}/{PAGE}", wait_until="load")
        assert tab.locator(f"{BOX} svg").is_visible()
        assert not tab.locator(f"{BOX} .controls").is_visible()
