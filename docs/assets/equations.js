// Sets the equations that pymdownx.arithmatex has marked, by the report's scripts: no network.
document.addEventListener("DOMContentLoaded", () => {
  for (const element of document.querySelectorAll(".arithmatex")) {
    const text = element.textContent.trim();
    element.replaceChildren(mathElement(formulaTree(text.slice(2, -2), text.startsWith("\\["))));
  }
});
