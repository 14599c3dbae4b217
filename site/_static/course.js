// What scrolls sideways can be reached with the keyboard, and says what it is.
document.addEventListener("DOMContentLoaded", () => {
  for (const box of document.querySelectorAll(".bd-article table, .bd-article pre, .bd-article .math")) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
  }
  // the theme's label lacks the keys that the search button shows
  for (const button of document.querySelectorAll(".search-button-field[aria-label]")) {
    button.ariaLabel = button.innerText.replace(/\s+/g, " ").trim() || "Search";
  }
});
