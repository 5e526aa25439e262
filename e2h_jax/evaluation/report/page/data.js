// Data parts of the page, and the making of elements. Text enters the page by textContent alone, so no text can become markup.

const cache = new Map();

async function inflate(id) {
  const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

function part(id) {
  if (!cache.has(id)) cache.set(id, inflate(id).then(JSON.parse));
  return cache.get(id);
}

// Puts children, in nested lists or absent, in place of what an element holds.
const replace = (element, ...children) => {
  element.replaceChildren();
  return fill(element, {}, children);
};

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") element.style.cssText = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(4).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const make = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
const draw = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

const choice = (label, options, value, onchange) =>
  make("label", {}, label, make("select", { onchange: (event) => onchange(event.target.value) },
    options.map(([key, text]) => make("option", { value: key, selected: key === value }, text))));

const tick = (label, checked, onchange) =>
  make("label", {}, make("input", { type: "checkbox", checked, onchange: (event) => onchange(event.target.checked) }), label);
