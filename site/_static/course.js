// What scrolls sideways can be reached with the keyboard, and says what it is.
document.addEventListener("DOMContentLoaded", () => {
  for (const box of document.querySelectorAll(".bd-article table, .bd-article pre, .bd-article .math")) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
  }
  // an explorer is as high as what it shows
  for (const frame of document.querySelectorAll("iframe.explorer")) {
    frame.addEventListener("load", () => {
      const { documentElement, body } = frame.contentDocument;
      const fit = () => (frame.style.height = `${body.scrollHeight + 24}px`);
      new frame.contentWindow.ResizeObserver(fit).observe(body);
      documentElement.style.overflowY = "hidden";
    });
  }
  // the theme's label lacks the keys that the search button shows
  for (const button of document.querySelectorAll(".search-button-field[aria-label]")) {
    button.ariaLabel = button.innerText.replace(/\s+/g, " ").trim() || "Search";
  }
});
