// Puts the page together, and what belongs to the whole of it: navigation, theme, keys.

const THEMES = ["auto", "light", "dark"];
let theme = "auto";

function nextTheme() {
  theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
  document.documentElement.style.colorScheme = theme === "auto" ? "" : theme;
  document.getElementById("theme").textContent = `Theme: ${theme}`;
}

async function start() {
  const core = await part("core");
  const sections = [resultsSection, againstN, byGroupSection, evaluatorsSection, trainingSection, problemsSection]
    .filter((section) => section !== resultsSection || core.evaluations.length)
    .map((section) => section(core)).filter(Boolean);
  document.getElementById("main").replaceChildren(make("header", {}, make("h1", {}, core.title), facts(core)), ...sections);
  document.getElementById("nav").append(...sections.map((section) =>
    make("a", { href: `#${section.id}` }, section.querySelector("h2").textContent)));
  markWhereWeAre(sections);
}

function markWhereWeAre(sections) {
  const links = new Map(sections.map((section) => [section, document.querySelector(`#nav a[href="#${section.id}"]`)]));
  const watch = new IntersectionObserver((changes) => {
    for (const { target, isIntersecting } of changes) links.get(target).toggleAttribute("aria-current", isIntersecting);
  }, { rootMargin: "-45% 0px -50% 0px" });
  sections.forEach((section) => watch.observe(section));
}

document.getElementById("theme").addEventListener("click", nextTheme);
document.getElementById("help-button").addEventListener("click", () => document.getElementById("help").showModal());
document.addEventListener("scroll", hideTooltip, { passive: true });
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || document.getElementById("help").open) return;
  const typing = event.target.matches("input[type=search], select, textarea");
  if (typing) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (event.key === "?") document.getElementById("help").showModal();
  else if (event.key === "t") nextTheme();
  else if (browser && browser.key(event.key)) event.preventDefault();
});
start().catch((error) => {
  document.getElementById("main").replaceChildren(make("p", { class: "wait" }, `This page could not be drawn (${error.message}). It needs a browser of 2023 or later.`));
  throw error;
});
