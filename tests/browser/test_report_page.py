"""The report in a real browser: drawn, pointed at, switched, zoomed, at the width of a desk and of a phone."""

import json
from datetime import UTC, datetime

import pytest

from sconce.report.gather import view_runs
from sconce.report.page import write_page

HOSTILE = "</script><script>document.title='taken'</script><b>bold</b>"


def write_run(folder, scale, steps=300):
    (folder / "samples").mkdir(parents=True)
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(1, steps + 1):
            record = {"step": step, "loss": scale / step**0.3, "lr": 1e-3, "tokens": 1000 * step}
            file.write(json.dumps(record | {"tokens_per_second": 500.0 / scale, "grad_norm": 1 + step % 7}) + "\n")
            if step % 50 == 0:
                file.write(
                    json.dumps({"step": step, "eval_loss": scale / step**0.3 + 0.2, "bits_per_byte": 1.1}) + "\n"
                )
                (folder / f"samples/step-{step:08d}.txt").write_text(f"{folder.name} at {step} {HOSTILE}")
    (folder / "evaluations").mkdir()
    figures = {"acc,none": 0.25, "acc_stderr,none": 0.031, "exact_match,strict": 0.5}
    result = {"kind": "task", "name": "quiz", "figures": figures, "settings": {"limit": None, "seed": 1}}
    evaluated = {"checkpoint": "step-00000300", "step": 300, "model_sha256": {}, "results": [result]}
    (folder / "evaluations/step-00000300.json").write_text(json.dumps(evaluated))
    config = {"optimizer": {"learning_rate": scale, "beta1": 0.9}, "scheduler": {"total_steps": 400}}
    (folder / "run.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    home = tmp_path_factory.mktemp("reports")
    runs = [write_run(home / "low", 4.0), write_run(home / "high", 8.0, steps=200)]
    write_page(view_runs(runs), home / "report.html", datetime(2026, 1, 2, tzinfo=UTC))
    return (home / "report.html").as_uri()


def curves(page, chart="loss"):
    """The path of every line of a chart but the faint ones behind smoothed lines."""
    lines = page.locator(f'figure[data-chart="{chart}"] svg.plot .curve:not(.raw)')
    return [line.get_attribute("d") for line in lines.all()]


def labels(page, chart="loss"):
    return page.locator(f'figure[data-chart="{chart}"] svg.plot text').all_text_contents()


def point_at(page, share, chart="loss"):
    plot = page.locator(f'figure[data-chart="{chart}"] svg.plot')
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    page.mouse.move(box["x"] + share * box["width"], box["y"] + box["height"] / 2)


def test_every_chart_is_drawn_and_pointing_tells_values(open_page, address):
    with open_page(address) as page:
        charts = page.locator("figure").evaluate_all("figures => figures.map((figure) => figure.dataset.chart)")
        assert charts == ["loss", "bits_per_byte", "learning_rate", "gradient_norm", "throughput"]
        assert len(curves(page)) == 4
        page.locator("#smoothing").fill("0")
        page.locator('figure[data-chart="loss"] svg.plot').focus()
        for _ in range(3):  # to the first point, and two to the right
            page.keyboard.press("ArrowRight")
        tip = page.locator("#tip").inner_text()
        assert "step 3" in tip
        for value in (4 / 3**0.3, 8 / 3**0.3):
            assert f"{value:.5g}" in tip
        point_at(page, 0.5)
        assert page.locator(".cross").count() == len(charts)
        assert page.locator("#tip").is_visible()
        assert page.title() == "Sconce report: low, high"


def test_axis_scale_smoothing_and_runs_can_be_switched(open_page, address):
    with open_page(address) as page:
        smooth, by_step = curves(page), labels(page)
        page.locator("#smoothing").fill("0")
        assert curves(page)[0] != smooth[0]
        raw = curves(page)
        page.get_by_text("tokens", exact=True).click()
        assert "100k" in labels(page)
        page.get_by_text("time", exact=True).click()
        assert any(label.endswith(" min") for label in labels(page))  # 300 updates of 8 s, 200 of 16 s
        assert curves(page)[0] != raw[0]  # at the same step, the runs are at different times
        page.get_by_text("steps", exact=True).click()
        assert (curves(page), labels(page)) == (raw, by_step)
        page.get_by_text("log x").click()
        assert curves(page)[0] != raw[0]
        page.get_by_text("log x").click()
        page.locator('figure[data-chart="loss"]').get_by_text("log y").click()
        assert curves(page)[0] != raw[0]
        page.locator("#chips button").first.click()
        assert len(curves(page)) == 2
        page.locator("#chips button").last.click()
        assert "nothing in this range" in labels(page)


def test_dragging_zooms_all_charts_and_a_double_click_goes_back(open_page, address):
    with open_page(address) as page:
        before = labels(page, "learning_rate")
        point_at(page, 0.4)
        page.mouse.down()
        point_at(page, 0.6)
        page.mouse.up()
        assert page.locator("#whole").is_visible()
        zoomed = [int(label) for label in labels(page, "learning_rate") if label.isdecimal() and int(label) > 1]
        assert zoomed
        assert 100 < min(zoomed) < max(zoomed) < 200
        page.locator('figure[data-chart="loss"] svg.plot').dblclick()
        assert labels(page, "learning_rate") == before


def test_evaluations_are_told_in_words(open_page, address):
    with open_page(address) as page:
        row = page.locator("#evaluations tbody tr").first
        assert row.locator("td").all_text_contents() == [
            " low",
            "step-00000300",
            "quiz",
            "acc 0.25 ± 0.031  ·  exact match (strict) 0.5",
            "seed 1",
        ]


def test_samples_and_what_differs_between_configs(open_page, address):
    with open_page(address) as page:
        assert page.locator("#samples pre").all_text_contents() == [
            f"low at 300 {HOSTILE}",
            f"high at 200 {HOSTILE}",
        ]
        page.locator("#sample-step").fill("1")
        assert page.locator("#samples pre").first.text_content() == f"low at 100 {HOSTILE}"
        names = page.locator("#config td.name")
        assert names.all_text_contents() == ["optimizer.learning_rate"]
        page.locator("#differing").uncheck()
        assert "optimizer.beta1" in names.all_text_contents()
        best = page.locator("#summary td.best").all_text_contents()
        assert f"{4 / 300**0.3:.4f}" in best


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1600])
def test_nothing_overflows_and_the_theme_follows(open_page, address, theme, width):
    options = {"viewport": {"width": width, "height": 800}, "color_scheme": theme}
    with open_page(address, **options) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        brightness = "Number(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0])"
        assert (page.evaluate(brightness) > 128) == (theme == "light")
        page.locator("#theme").click()
        assert page.evaluate(brightness) > 128
        page.locator("#theme").click()
        assert page.evaluate(brightness) < 128
