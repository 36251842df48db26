"""Photograph a page of `muscle compare --html`: python docs/make_page_picture.py page.html docs/page.png [ITEM].

ITEM is the end of a link to an instance (task/id/draw), by default the second negative flip. The picture shows the head
of the page, its quadrants, the first rates, and that instance; what lies between is left out.
"""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

LEFT_OUT = (
    ".top, .skip, .keys, .rates tbody:nth-of-type(n + 5), #rates ~ .columns .wide .caption, #instance .buttons, "
    "main > section:not(.hero, :has(#rates), .explorer)"
)

page_file, picture = (Path(argument).resolve() for argument in sys.argv[1:3])
chromium = shutil.which("chromium") or shutil.which("google-chrome")
with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
    page = browser.new_page(viewport={"width": 1180, "height": 800}, color_scheme="light", reduced_motion="reduce")
    page.goto(page_file.as_uri() + (f"#item={sys.argv[3]}" if len(sys.argv) > 3 else ""))
    page.wait_for_selector("html[data-ready]")
    if len(sys.argv) <= 3:
        page.click("#list tbody tr >> nth=1")
    page.wait_for_selector("#instance:not([hidden])")
    page.evaluate(
        """leftOut => {
          for (const element of document.querySelectorAll(leftOut)) element.style.display = "none";
          document.querySelector(".dt-scroll-body").style.maxHeight = "165px";
          document.querySelector("main").style.paddingBottom = "1.5rem";
          for (const section of document.querySelectorAll("main > section")) section.style.marginTop = "1.6rem";
          for (const text of document.querySelectorAll("#instance .text")) {
            text.style.maxHeight = "11rem";
            text.scrollTop = text.scrollHeight;
          }
          document.activeElement.blur();
          scrollTo(0, 0);
        }""",
        LEFT_OUT,
    )
    page.wait_for_timeout(300)
    page.screenshot(path=picture, full_page=True)
    browser.close()
