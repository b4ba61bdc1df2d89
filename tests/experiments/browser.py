"""A real browser without a network, and what a reader does with a page in it."""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
SWITCHES = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,1600",
)
PATIENCE = 120
"""Seconds that a page may take to draw its charts on a busy machine."""


@contextmanager
def opened(profile: Path) -> Iterator[WebDriver]:
    """A browser with an empty profile, cut off from every network, that keeps a log of requests and of its console."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for switch in (*SWITCHES, f"--user-data-dir={profile}"):
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=DRIVER))
    try:
        driver.execute_cdp_cmd("Network.enable", {})
        offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
        driver.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
        yield driver
    finally:
        driver.quit()


def use(driver: WebDriver, path: Path) -> None:
    """Read a page as a person would: every tab, every heading of every table, on a light screen and on a dark one.

    Args:
        driver: from `opened`.
        path: of the page.

    Raises:
        AssertionError: a chart that is not drawn, a tab that does not switch, a table that does not sort, a word in the
            console, or a request for anything but the page itself.
    """
    _requests(driver)  # those of the page before this one, or of the empty tab
    _set_scheme(driver, "light")
    driver.get(path.as_uri())
    _wait_until_drawn(driver)
    for figure in driver.find_elements(By.TAG_NAME, "figure"):
        _switch_tabs(driver, figure)
    for table in driver.find_elements(By.TAG_NAME, "table"):
        _sort(driver, table)
    _set_scheme(driver, "dark")
    _wait_until_drawn(driver)
    requests = _requests(driver)
    assert requests == {path.as_uri()}, f"the page must load nothing; it asked for {requests}"
    console = [entry["message"] for entry in driver.get_log("browser")]
    assert console == [], console


def _set_scheme(driver: WebDriver, scheme: str) -> None:
    driver.execute_script("delete document.body.dataset.drawn")
    feature = {"name": "prefers-color-scheme", "value": scheme}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


def _wait_until_drawn(driver: WebDriver) -> None:
    state = WebDriverWait(driver, PATIENCE).until(
        lambda page: page.execute_script("return document.body.dataset.drawn && {...document.body.dataset}")
    )
    charts = driver.find_elements(By.CLASS_NAME, "chart")
    assert state == {"drawn": str(len(charts)), "broken": "0"}, f"{driver.current_url}: {state}"


def _switch_tabs(driver: WebDriver, figure: WebElement) -> None:
    charts = figure.find_elements(By.CLASS_NAME, "chart")
    buttons = figure.find_elements(By.CSS_SELECTOR, ".tabs button")
    assert len(buttons) == (len(charts) if len(charts) > 1 else 0)
    for chosen in [*range(len(charts)), 0]:
        if buttons:
            driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", buttons[chosen])
            buttons[chosen].click()
            pressed = [button.get_attribute("aria-selected") for button in buttons]
            assert pressed == ["true" if i == chosen else "false" for i in range(len(buttons))]
        assert [chart.is_displayed() for chart in charts] == [i == chosen for i in range(len(charts))]
        drawn = charts[chosen].find_element(By.TAG_NAME, "svg")
        assert drawn.size["width"] > 100 and drawn.size["height"] > 50
        marks = driver.execute_script("return arguments[0].querySelectorAll('path, rect, text').length", drawn)
        assert marks > 10, f"{charts[chosen].get_attribute('id')} is empty"


def _sort(driver: WebDriver, table: WebElement) -> None:
    rows = _values(driver, table)
    for column, heading in enumerate(table.find_elements(By.CSS_SELECTOR, "th.sortable")):
        for direction in ("ascending", "descending"):
            driver.execute_script("arguments[0].scrollIntoView({block: 'center', inline: 'center'})", heading)
            heading.click()
            assert heading.get_attribute("aria-sort") == direction
            after = _values(driver, table)
            assert sorted(after) == sorted(rows), "sorting must keep every row"
            given = [row[column] for row in after if row[column] != ""]
            assert [row[column] for row in after][len(given) :] == [""] * (len(after) - len(given))
            if all(_is_number(value) for value in given):
                numbers = [float(value) for value in given]
                assert numbers == sorted(numbers, reverse=direction == "descending")
            else:
                assert given[0] == (min if direction == "ascending" else max)(given, key=str.lower)


def _values(driver: WebDriver, table: WebElement) -> list[list[str]]:
    script = (
        "return [...arguments[0].tBodies[0].rows].map(row => [...row.children].map(cell => cell.dataset.value ?? ''))"
    )
    return driver.execute_script(script, table)


def _is_number(value: str) -> bool:
    return re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", value, re.IGNORECASE) is not None


def _requests(driver: WebDriver) -> set[str]:
    """Addresses that the page asked for, but for data that it carries itself."""
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    addresses = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    return {address for address in addresses if not address.startswith(("data:", "blob:"))}
