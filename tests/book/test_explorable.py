"""The explorable computes what wsr computes, and shows it whatever the reader does."""

import math
import re

import pytest
import torch
from conftest import SITE

import wsr
from wsr.particles import free_end_points

PAGE = "book/explorable.html"
MODULE = SITE.parents[1] / "book" / "_static" / "explorable.mjs"
REACH, STEP = 3, 0.05
STRENGTHS = ("lambd", "l1", "rho")


@pytest.fixture(params=[1280, 390])
def tab(browser, address, request):
    """Open the page, with a mouse or a finger, and hold it to silence afterwards."""
    complaints, requested = [], []
    size = {"width": request.param, "height": 844}
    with browser.new_context(viewport=size, has_touch=request.param < 500) as context:
        tab = context.new_page()
        tab.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("request", lambda request: requested.append(request.url))
        tab.goto(f"{address}/{PAGE}", wait_until="load")
        yield tab
        assert tab.evaluate("document.documentElement.scrollWidth") <= request.param
    assert complaints == []
    assert [url for url in requested if not url.startswith((address, "data:", "blob:"))] == []


# The mathematics.


def draw_inputs(tied):
    """Return a thousand problems of 1 to 30 weights, and strengths of every kind."""
    generator = torch.Generator().manual_seed(int(tied))

    def uniform(*size):
        return torch.rand(*size, generator=generator, dtype=torch.float64)

    problems = []
    for n in range(1000):
        w = torch.randn(1 + n % 30, generator=generator, dtype=torch.float64)
        scale = 10.0 ** int(6 * uniform(()) - 3)
        w = scale * ((5 * w).round() / 5 if tied else w)
        # Each strength is absent in some problems; rho is 0, 1 or between.
        lambd = float(3 * scale * uniform(())) if n % 7 else 0.0
        l1 = float(scale * uniform(())) if n % 3 else 0.0
        rho = (0.0, 1.0, float(uniform(())))[n // 3 % 3]
        problems.append((w.tolist(), lambd, l1, rho))
    return problems


def call(tab, address, function, arguments):
    """Return what a function of the module gives for each row of arguments."""
    return tab.evaluate(
        """async ([url, name, rows]) => {
          const module = await import(url);
          return rows.map((row) => module[name](...row));
        }""",
        [f"{address}/_static/{MODULE.name}", function, arguments],
    )


@pytest.mark.parametrize("tab", [1280], indirect=True)
@pytest.mark.parametrize("tied", [False, True])
class TestModule:
    """No problem is left out: clusters are found by exact comparisons here and there."""

    def test_finds_the_same_clusters(self, tab, address, tied):
        z = [
            free_end_points(torch.tensor(w, dtype=torch.float64).sort().values, lambd)
            for w, lambd, _, _ in draw_inputs(tied)
        ]
        found = call(tab, address, "heads", [[row.tolist()] for row in z])
        for row, begins in zip(z, found, strict=True):
            heads = wsr.ALGORITHMS["pool_adjacent_violators"](row)
            assert begins == heads.nonzero().flatten().tolist()

    def test_prox_is_that_of_wsr(self, tab, address, tied):
        problems = draw_inputs(tied)
        removed = 0
        for (w, lambd, l1, rho), u in zip(
            problems, call(tab, address, "prox", problems), strict=True
        ):
            w = torch.tensor(w, dtype=torch.float64)
            expected = wsr.prox(w, lambd, l1=l1, rho=rho)
            u = torch.tensor(u, dtype=torch.float64)
            assert (u - expected).abs().max() <= 1e-12 * (w.abs().max() + lambd + l1)
            if l1 > 0:
                assert (u == 0).equal(expected == 0)
                assert not u[u == 0].signbit().any()
                removed += int((u == 0).sum())
        assert removed > 1000

    def test_motion_is_that_of_wsr(self, tab, address, tied):
        # A part of them, of every size and kind: following all would take a minute.
        problems = [(w, lambd) for w, lambd, _, _ in draw_inputs(tied)[::11]]
        events = 0
        for (w, lambd), motion in zip(
            problems, call(tab, address, "simulate", problems), strict=True
        ):
            expected = wsr.simulate(torch.tensor(w, dtype=torch.float64), lambd)
            tolerance = 1e-12 * (max(map(abs, w)) + lambd)
            if not tied:  # rounding decides whether meetings at one time count as one event
                times = torch.tensor([moment["time"] for moment in motion], dtype=torch.float64)
                assert torch.allclose(times, expected.times, rtol=0, atol=1e-9)
                events += len(times) - 2
            there = torch.stack([expected.at(moment["time"]) for moment in motion])
            here = [[math.nan] * len(w) for _ in motion]
            for row, moment in zip(here, motion, strict=True):
                for cluster in moment["clusters"]:
                    for i in cluster["members"]:
                        row[i] = cluster["position"]
            assert (torch.tensor(here, dtype=torch.float64) - there).abs().max() <= tolerance
            assert motion[-1]["time"] == 1
        assert tied or events > 300


@pytest.mark.parametrize("tab", [1280], indirect=True)
def test_border_cases(tab, address):
    near = 2.0**-50
    problems = [
        ([1.5, -1.5, 0.5], 0.0, 1.5, 1.0),  # at the distance l1 from 0
        ([-0.5, 0.5], 0.5, 0.0, 1.0),  # the end points touch
        ([0.0, 0.5 + near, 5.0], 0.5, 0.0, 1.0),  # they nearly do
        ([0.0, 0.5 - near, 5.0], 0.5, 0.0, 1.0),
        ([0.0, 1.0, 5.0], 1.0, 0.0, 0.5),
        ([0.0, 0.0, 0.0, 0.0], 0.3, 0.1, 0.5),
        ([0.1] * 7, 0.3, 0.0, 0.0),
    ]
    for (w, lambd, l1, rho), u in zip(problems, call(tab, address, "prox", problems), strict=True):
        w = torch.tensor(w, dtype=torch.float64)
        assert torch.tensor(u, dtype=torch.float64).equal(wsr.prox(w, lambd, l1=l1, rho=rho))


@pytest.mark.parametrize("tab", [1280], indirect=True)
def test_removed_beside_one_at_the_border(tab, address):
    for w in ([-0.4, 0.1, 2.0], [-0.1, 0.4, 2.0]):
        (found,) = call(tab, address, "clusters", [(w, 0.0, 0.4, 0.0)])
        (words,) = call(tab, address, "describe", [[found]])
        assert "Result: 2 at 0 (removed); 1 at" in words


def test_page_embeds_its_script_as_it_stands():
    page = (SITE / PAGE).read_text(encoding="utf-8")
    source = MODULE.read_text(encoding="utf-8")
    assert f'<script type="module">{source}</script>' in page
    assert (SITE / "_static" / MODULE.name).read_text(encoding="utf-8") == source


# What the page shows.


def particle(tab, i):
    """Return the particle with this number, from 1."""
    return tab.get_by_role("slider", name=f"particle {i}", exact=True)


def weights(tab):
    """Return the weights that the page says it shows."""
    values = tab.locator(".particles [role=slider]").evaluate_all(
        "all => all.map((one) => one.getAttribute('aria-valuenow'))"
    )
    return torch.tensor([float(value) for value in values], dtype=torch.float64)


def strengths(tab):
    """Return lambd, l1 and rho as the numbers beside the sliders say."""
    values = []
    for name in STRENGTHS:
        slider = tab.locator(f"#sticky-particles-{name}")
        number, unit = re.fullmatch(
            r"([\d.]+) \((.+)\)", slider.locator("xpath=../output").inner_text()
        ).groups()
        assert unit == ("no unit" if name == "rho" else "units of w")
        assert float(number) == float(slider.input_value())
        assert slider.get_attribute("aria-valuetext") == f"{number} {unit}"
        values.append(float(number))
    return values


def parse(number):
    """Read a number as the page writes it."""
    return float(number.replace("−", "-"))


def check(tab):
    """Hold all numbers that the page shows against wsr; return the weights and their prox."""
    w, (lambd, l1, rho) = weights(tab), strengths(tab)
    u = wsr.prox(w, lambd, l1=l1, rho=rho)
    order = w.argsort(stable=True)
    heads = wsr.ALGORITHMS["pool_adjacent_violators"](free_end_points(w[order], lambd))
    positions = wsr.prox(w, lambd)[order][heads]  # at time 1, one a cluster
    removed = positions.abs() < l1

    # The sentence.
    d, clusters, groups = re.fullmatch(
        r"(\d+) particles, (\d+) clusters?\. Result: (.+)\.", tab.locator(".seen").inner_text()
    ).groups()
    assert (int(d), int(clusters)) == (len(w), len(positions))
    sharing = wsr.Sharing.of(u)
    groups = [re.fullmatch(r"(\d+) at (\S+)( \(removed\))?", g) for g in groups.split("; ")]
    assert [int(group[1]) for group in groups] == sharing.counts.tolist()
    for group, value in zip(groups, sharing.values, strict=True):
        assert abs(parse(group[2]) - value) < 0.00051
        assert bool(group[3]) == bool(removed.any() and value == 0)

    # Each particle, to a listener.
    for i, end in enumerate(u.tolist(), start=1):
        says = particle(tab, i).get_attribute("aria-valuetext")
        start, stop = re.match(r"(\S+), (?:ends at ([^\s,]+)|removed, exactly 0)", says).groups()
        assert abs(parse(start) - w[i - 1]) < 0.0051
        assert abs((parse(stop) if stop else 0) - end) < 0.00051

    # The space-time diagram, measured against its grid.
    def places(kind):
        found = tab.locator(f".space-time .{kind}").evaluate_all(
            "all => all.map((one) => { const box = one.getBBox(); return box.x + box.width / 2; })"
        )
        return torch.tensor(found, dtype=torch.float64)

    grid = places("grid")
    unit = (grid[-1] - grid[0]) / (2 * REACH)
    assert torch.allclose((places("at-one") - grid[0]) / unit - REACH, positions, atol=1e-4)
    kept = u[order][heads][~removed]
    assert torch.allclose((places("result") - grid[0]) / unit - REACH, kept, atol=1e-4)
    assert len(places("removed")) == 2 * int(removed.sum())  # two strokes make a cross

    # The string.
    assert tab.locator(".minorant .bend").count() == len(positions) + 1
    slopes = tab.locator(".minorant").get_attribute("aria-label").split(": ")[1]
    slopes = torch.tensor([parse(s) for s in slopes.removesuffix(".").split(", ")])
    assert (slopes - positions).abs().max() < 0.0051
    return w, u


def choose(tab, name):
    """Press a button."""
    tab.get_by_role("button", name=name, exact=True).click()


def slide(tab, **values):
    """Set sliders."""
    for name, value in values.items():
        tab.locator(f"#sticky-particles-{name}").fill(str(value))


def drag(tab, i, right):
    """Pull particle i to the right by so many pixels, with a finger where there is one."""
    dot = particle(tab, i).locator(".dot")
    dot.scroll_into_view_if_needed()
    box = dot.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    steps = [(x + right * n / 4, y - 6 * n) for n in range(1, 5)]  # a hand wavers
    if tab.evaluate("matchMedia('(pointer: coarse)').matches || navigator.maxTouchPoints > 0"):
        session = tab.context.new_cdp_session(tab)

        def touch(kind, *points):
            points = [{"x": px, "y": py} for px, py in points]
            session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

        touch("touchStart", (x, y))
        for point in steps:
            touch("touchMove", point)
        touch("touchEnd")
    else:
        tab.mouse.move(x, y)
        tab.mouse.down()
        for point in steps:
            tab.mouse.move(*point)
        tab.mouse.up()


def test_presets(tab):
    check(tab)
    seen = {}
    for name in ("One cluster", "Cascade", "Ties", "Random"):
        slide(tab, l1=0.5, rho=0.5)
        choose(tab, name)
        seen[name] = check(tab)
        assert strengths(tab)[1:] == [0, 0]
    distinct = {name: (len(w.unique()), len(u.unique())) for name, (w, u) in seen.items()}
    assert distinct["One cluster"] == (9, 1)
    assert distinct["Cascade"] == (5, 2)
    assert distinct["Ties"] == (4, 4)
    choose(tab, "Random")
    again, _ = check(tab)
    assert len(again) == 9
    assert not again.equal(seen["Random"][0])


@pytest.mark.parametrize("preset", ["Cascade", "Ties", "Random"])
def test_sliders(tab, preset):
    choose(tab, preset)
    for lambd, l1, rho in [(0, 0, 0), (0.35, 0, 0), (0.75, 0.4, 0), (1, 0.4, 0.3), (4, 2, 1)]:
        slide(tab, lambd=lambd, l1=l1, rho=rho)
        assert strengths(tab) == [lambd, l1, rho]
        check(tab)
    slide(tab, lambd=1)
    tab.locator("#sticky-particles-lambd").press("ArrowRight")
    assert strengths(tab)[0] == 1 + STEP
    check(tab)


def test_drag(tab):
    choose(tab, "One cluster")
    before, _ = check(tab)
    grid = tab.locator(".space-time .grid").evaluate_all(
        "all => all.map((one) => one.getBoundingClientRect().x)"
    )
    unit = (grid[-1] - grid[0]) / (2 * REACH)
    drag(tab, 3, 0.9 * unit)
    after, _ = check(tab)
    moved = after - before
    assert abs(moved[2] - 0.9) <= STEP
    assert moved.count_nonzero() == 1
    drag(tab, 9, 3 * unit)  # beyond the end
    after, _ = check(tab)
    assert after[8] == REACH


def test_dragging_past_another_keeps_who_is_who(tab):
    choose(tab, "Ties")
    slide(tab, lambd=0.5)
    before, _ = check(tab)
    width = tab.locator(".space-time").bounding_box()["width"]
    drag(tab, 6, -width / 3)
    after, _ = check(tab)
    assert after[5] < before[3]
    assert (after - before).count_nonzero() == 1


def test_keyboard(tab):
    choose(tab, "Ties")
    w, _ = check(tab)
    particle(tab, 6).focus()
    keys = [
        ("ArrowRight", STEP), ("ArrowUp", STEP), ("ArrowLeft", -STEP), ("ArrowDown", -STEP),
        ("PageUp", 0.5), ("PageDown", -0.5), ("PageDown", -0.5),
    ]  # fmt: skip
    for key, by in keys:
        tab.keyboard.press(key)
        w[5] += by
        assert torch.allclose(check(tab)[0], w)
    for key, end in (("Home", -REACH), ("ArrowLeft", -REACH), ("End", REACH), ("ArrowUp", REACH)):
        tab.keyboard.press(key)
        assert check(tab)[0][5] == end
    assert tab.evaluate("document.activeElement.getAttribute('aria-label')") == "particle 6"
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.getAttribute('aria-label')") == "particle 7"


def test_every_control_is_reached_by_tab(tab):
    tab.get_by_role("button", name="One cluster").focus()
    reached = []
    for _ in range(5 + 9 + 3):
        tab.keyboard.press("Tab")
        reached.append(
            tab.evaluate(
                """() => {
                  const e = document.activeElement;
                  const label = e.getAttribute("aria-label") ?? e.labels?.[0]?.textContent;
                  return label ?? e.textContent;
                }"""
            )
        )
    buttons = ["Cascade", "Ties", "Random", "Add one", "Remove one"]
    sliders = ["λ, sharing", "ℓ₁, shrinking", "ρ, relaxation"]
    assert reached == [*buttons, *(f"particle {i}" for i in range(1, 10)), *sliders]


def test_adding_and_removing(tab):
    choose(tab, "Cascade")
    before, _ = check(tab)
    choose(tab, "Add one")
    added, _ = check(tab)
    assert added[:-1].equal(before)
    particle(tab, 2).press("ArrowRight")
    choose(tab, "Remove one")
    assert check(tab)[0].equal(added[[0, *range(2, 10)]])
    for name, last in (("Add one", 16), ("Remove one", 2)):
        button = tab.get_by_role("button", name=name)
        while button.is_enabled():
            button.click()
        assert len(check(tab)[0]) == last


# The tasks, as a reader does them.


def test_task_collapse(tab):
    choose(tab, "One cluster")
    slide(tab, lambd=2.45)
    assert len(check(tab)[1].unique()) > 1
    tab.locator("#sticky-particles-lambd").press("ArrowRight")
    assert strengths(tab)[0] == 2.5
    assert check(tab)[1].unique().tolist() == [0]


def test_task_pull(tab):
    choose(tab, "Ties")
    for _ in range(5):
        particle(tab, 9).press("ArrowRight")
    assert weights(tab)[8] == 1.75
    together = []
    for lambd in (0.65, 0.7):
        slide(tab, lambd=lambd)
        u = check(tab)[1]
        together.append(bool(u[8] == u[7]))
    assert together == [False, True]


def test_task_remove(tab):
    choose(tab, "Ties")
    others = []
    for l1 in (0.35, 0.4):
        slide(tab, l1=l1)
        others.append(int((check(tab)[1].unique() != 0).sum()))
    assert others == [3, 2]
    slide(tab, rho=1)
    assert check(tab)[1].unique().tolist() == [-2, 0, 1.5]


# Where there is no server, no script, no light or no screen.


def test_from_the_file_system(browser):
    complaints = []
    with browser.new_context() as context:
        tab = context.new_page()
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.goto((SITE / PAGE).as_uri())
        choose(tab, "Ties")
        slide(tab, l1=0.4)
        check(tab)
    assert complaints == []


def test_without_scripts(browser, address):
    with browser.new_context(java_script_enabled=False) as context:
        tab = context.new_page()
        tab.goto(f"{address}/{PAGE}")
        still = tab.locator("noscript img")
        assert still.is_visible()
        assert still.bounding_box()["height"] > 100


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_stand_out(tab, theme):
    tab.evaluate("theme => { document.documentElement.dataset.theme = theme; }", theme)
    slide(tab, l1=0.4)
    colours = tab.evaluate(
        """() => {
          const of = (query, key) => getComputedStyle(document.querySelector(query))[key];
          const paper = of("body", "backgroundColor");
          const parts = {".track": "stroke", ".string": "stroke", ".result": "fill", ".dot": "fill",
            ".bend": "fill", ".sticky-particles text": "fill", ".rule": "stroke",
            ".sticky-particles figcaption": "color", ".seen": "color",
            ".presets button": "color"};
          return [paper, ...Object.entries(parts).map(([query, key]) => of(query, key))];
        }"""
    )

    def luminance(colour):
        levels = [float(level) / 255 for level in re.findall(r"[\d.]+", colour)[:3]]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in levels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    paper, *inks = map(luminance, colours)
    contrasts = [(max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) for ink in inks]
    assert min(contrasts) >= 3  # WCAG 1.4.11, for graphics
    assert min(contrasts[-3:]) >= 4.5  # WCAG 1.4.3, for text


@pytest.mark.parametrize("tab", [1280], indirect=True)
def test_prints_as_a_still(tab):
    tab.emulate_media(media="print")
    assert tab.locator(".space-time").is_visible()
    assert tab.locator(".minorant").is_visible()
    assert not tab.get_by_role("button", name="Cascade").is_visible()
    assert not tab.locator("#sticky-particles-lambd").is_visible()
    assert tab.locator(".sliders output").first.is_visible()
