# SPDX-License-Identifier: GPL-2.0-or-later
"""Chromium without a display, and a page that is open in it.

Needs selenium, which a light set-up lacks: only what runs a test imports this. What its
functions return is annotated where it is returned, as without it nothing has a type.
"""

import json
import os
import shutil
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement


class Chromium:
    """A browser."""

    def __init__(self) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium") or ""
        options.add_argument("--headless=new")
        options.add_argument("--window-size=1280,800")
        options.add_argument("--disable-gpu")
        # Containers give /dev/shm 64 MB.
        options.add_argument("--disable-dev-shm-usage")
        # The browser's own services ask for names, too.
        options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND")
        if os.geteuid() == 0:
            # Chromium has no sandbox for root.
            options.add_argument("--no-sandbox")
        options.set_capability(
            "goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"}
        )
        service = Service(shutil.which("chromedriver"))
        self._driver = webdriver.Chrome(options=options, service=service)

    def page(self, file: Path) -> "Page":
        """The page in a file, not loaded yet; what was logged before is forgotten."""
        for kind in ("browser", "performance"):
            log(self._driver, kind)
        return Page(self._driver, file)

    def close(self) -> None:
        """End it."""
        self._driver.quit()


def log(driver: webdriver.Chrome, kind: str) -> list[dict[str, str]]:
    """What has been logged since the last call, which selenium's own leaves untyped."""
    entries: list[dict[str, str]] = driver.execute("getLog", {"type": kind})["value"]
    return entries


class Page:
    """The page of some captures, open in the browser."""

    def __init__(self, driver: webdriver.Chrome, file: Path) -> None:
        self.driver = driver
        self._url = file.as_uri()

    def open(self, address: str = "") -> None:
        """Load it anew, with this behind the ``#``."""
        self.driver.get("about:blank")
        self.driver.get(f"{self._url}#{address}")

    @property
    def address(self) -> str:
        return str(self.driver.current_url).partition("#")[2]

    def all(self, selector: str) -> list[WebElement]:
        found: list[WebElement] = self.driver.find_elements(By.CSS_SELECTOR, selector)
        return found

    def one(self, selector: str) -> WebElement:
        found: WebElement = self.driver.find_element(By.CSS_SELECTOR, selector)
        return found

    def text(self, selector: str) -> str:
        return str(self.one(selector).text)

    def texts(self, selector: str) -> list[str]:
        """In one call: a table has many cells."""
        found: list[str] = self.driver.execute_script(
            "return [...document.querySelectorAll(arguments[0])]"
            ".map(node => node.textContent)",
            selector,
        )
        return found

    def kinds(self) -> list[str]:
        """The third column."""
        return self.texts("#rows tr[data-event] td:nth-child(3)")

    def row(self, number: int) -> WebElement:
        return self.one(f"#rows tr[data-event='{number}']")

    def cells(self, number: int) -> list[str]:
        """What a row shows."""
        return [each.text for each in self.row(number).find_elements(By.TAG_NAME, "td")]

    def detail(self) -> dict[str, str]:
        """The facts and fields, by their names."""
        names, values = self.texts("#detail dt"), self.texts("#detail dd")
        return dict(zip(names, values, strict=True))

    def dump(self) -> list[str]:
        return self.texts("#dump")[0].splitlines()

    def press(self, *keys: str) -> None:
        """On what has the focus. A key is a character, or has selenium's name."""
        for key in keys:
            self.driver.switch_to.active_element.send_keys(getattr(Keys, key, key))

    def drag(self, element: WebElement, width: int) -> None:
        """From the middle of it, to the right."""
        drag = ActionChains(self.driver).move_to_element(element)
        drag.click_and_hold().move_by_offset(width, 0).release().perform()

    def focus(self) -> str:
        """The id of the element that has it."""
        return str(self.driver.switch_to.active_element.get_attribute("id") or "")

    def selected(self) -> list[str | None]:
        """The selected rows' numbers."""
        rows = self.all("#rows [aria-selected=true]")
        return [each.get_attribute("data-event") for each in rows]

    def check(self) -> None:
        """Nothing was complained of, and nothing but the file was asked for."""
        assert self.requests() == {self._url}

    def requests(self) -> set[str]:
        """What has been asked for; nothing was complained of."""
        assert log(self.driver, "browser") == []
        logged = log(self.driver, "performance")
        events = [json.loads(entry["message"])["message"] for entry in logged]
        return {
            event["params"]["request"]["url"].partition("#")[0]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        }
