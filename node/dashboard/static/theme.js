// Runs before the page is painted, so that it does not flash in the wrong colours.
const kept = localStorage.getItem("spillway-theme");
if (kept === "light" || kept === "dark") document.documentElement.dataset.theme = kept;
